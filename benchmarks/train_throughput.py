"""Training images/s on CIFAR-10 at batch 128, including data loading and augmentation, in one run on one machine.

    python benchmarks/train_throughput.py --data-dir ../shared/data [--original CHECKOUT] [--out CSV]

Contenders take turns: ours with GMM in automatic precision and in float32, ours without mask, and, with `--original`,
the training loop of a checkout of the original implementation (github.com/CatworldLee/Gaussian-Mixture-Mask-Attention;
it needs einops, colorama, torchsummary, tqdm and tensorboard). The original is written for CUDA: its `.cuda()` calls do
nothing here; its loop, augmentation, sampler and worker processes are unchanged. The first steps of every turn do not
count.
"""

import argparse
import contextlib
import dataclasses
import io
import os
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from gmmvit.config import load_recipe
from gmmvit.data import Dataset, Split, load_dataset
from gmmvit.rows import row, write_rows
from gmmvit.training.loop import train_epoch
from gmmvit.training.progress import Progress
from gmmvit.training.session import prepare

WARM_UP = 3  # uncounted steps at the start of a turn


class Timed:
    """Yields `count` batches of a loader and counts images from the first counted batch on."""

    def __init__(self, loader: Iterable[Any], count: int) -> None:
        self.loader, self.count, self.images_per_s = loader, count, 0.0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        images, start = 0, 0.0
        for step, batch in enumerate(self.loader):
            if step == WARM_UP:
                start = time.perf_counter()
            if step == self.count:
                break
            yield batch
            images += len(batch[0]) if step >= WARM_UP else 0
        self.images_per_s = images / (time.perf_counter() - start)


def ours(data: Dataset, args: argparse.Namespace, recipe: str = "paper", **fields: Any) -> Callable[[], float]:
    """A function that trains our model for `steps` batches by a shipped recipe and returns images/s."""
    chosen = load_recipe(recipe, data_dir=args.data_dir, passes=1, batch_size=args.batch_size, **fields)
    folder = Path(tempfile.mkdtemp())
    setting, state, _ = prepare(chosen, folder, Progress(quiet=True), data=data)

    def part(steps: int) -> Dataset:
        count = steps * args.batch_size
        split = Split(data.train.images[:count], data.train.labels[:count], data.train.names[:count])
        return dataclasses.replace(data, train=split)

    def turn(steps: int) -> float:
        changed = dataclasses.replace(setting, data=part(steps), steps_per_epoch=steps)
        start = time.perf_counter()
        train_epoch(changed, state)
        state.epoch += 1
        return steps * args.batch_size / (time.perf_counter() - start)

    def run() -> float:
        turn(WARM_UP)
        return turn(args.steps)

    return run


class PILImages(torch.utils.data.Dataset):
    """CIFAR-10 as torchvision gives it: a PIL image through a transform, and its label."""

    def __init__(self, split: Split, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images = split.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = split.labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def original(data: Dataset, args: argparse.Namespace) -> Callable[[], float]:
    """A function that trains for `steps` batches with the original's own loop and returns images/s."""
    sys.path.insert(0, str(Path(args.original).resolve()))
    np.int = int  # type: ignore[attr-defined]  # removed from numpy since; the original's cutmix uses it
    torch.Tensor.cuda = lambda self, *a, **k: self  # type: ignore[assignment,method-assign]
    popen, os.popen = os.popen, lambda *a: io.StringIO("24 80")  # type: ignore[assignment]  # it asks for a terminal
    import main as loop

    os.popen = popen
    import torchvision.transforms as transforms
    from models.create_model import create_model
    from utils.autoaug import CIFAR10Policy
    from utils.dataloader import datainfo
    from utils.losses import LabelSmoothingCrossEntropy
    from utils.random_erasing import RandomErasing
    from utils.sampler import RASampler
    from utils.scheduler import build_scheduler

    options = loop.init_parser().parse_args(["--no_cuda", "--is_GMM", "--dataset", "CIFAR10"])
    nothing = types.SimpleNamespace(add_scalar=lambda *a: None, update=lambda *a: None, debug=lambda *a: None)
    loop.writer, loop.logger_dict, loop.keys = nothing, nothing, ["T Loss", "T Top-1"]
    with contextlib.redirect_stdout(io.StringIO()):
        info = datainfo(nothing, options)
    torch.manual_seed(0)
    model = create_model(info["img_size"], info["n_classes"], options)
    augmentation = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(info["img_size"], padding=4),
            CIFAR10Policy(),
            transforms.ToTensor(),
            transforms.Normalize(*info["stat"]),
            RandomErasing(options.re, sh=options.re_sh, r1=options.re_r1, mean=info["stat"][0]),
        ]
    )
    images = PILImages(data.train, augmentation)
    sampler = RASampler(len(images), args.batch_size, 1, options.ra, shuffle=True, drop_last=True)
    loader = torch.utils.data.DataLoader(images, num_workers=args.workers, batch_sampler=sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    scheduler = build_scheduler(options, optimizer, len(loader))

    def run() -> float:
        timed = Timed(loader, WARM_UP + args.steps)
        with contextlib.redirect_stdout(io.StringIO()):
            loop.train(timed, model, LabelSmoothingCrossEntropy(), optimizer, 0, scheduler, options)
        return timed.images_per_s

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="../shared/data")
    parser.add_argument("--original", help="a checkout of the original implementation")
    parser.add_argument("--workers", type=int, default=2, help="of the original's data loader (its default is 4)")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10, help="counted steps of a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each contender")
    parser.add_argument("--out", default="", help="CSV to write")
    args = parser.parse_args()
    data = load_dataset("cifar10", data_dir=args.data_dir)
    contenders = {
        "ours, GMM, auto dtype": ours(data, args, mask="gmm"),
        "ours, GMM, float32": ours(data, args, mask="gmm", dtype="float32"),
        "ours, no mask, auto dtype": ours(data, args, mask="none"),
    }
    if args.original:
        contenders[f"original, GMM, {args.workers} workers"] = original(data, args)
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.repeats):
        for name, run in contenders.items():
            speeds[name].append(run())
    rows = [row(f"training, {name}", "images/s", values) for name, values in speeds.items()]
    base = speeds["ours, GMM, auto dtype"]
    for name, values in speeds.items():
        if values is not base:
            ratios = [a / b for a, b in zip(base, values, strict=True)]
            rows.append(row(f"ratio, ours GMM auto / {name}", "times", ratios))
    if args.original:
        values = speeds[f"original, GMM, {args.workers} workers"]
        ratios = [a / b for a, b in zip(speeds["ours, GMM, float32"], values, strict=True)]
        rows.append(row("ratio, ours GMM float32 / original", "times", ratios))
    write_rows(args.out, rows)


if __name__ == "__main__":
    main()
