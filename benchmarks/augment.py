"""Images per second of `gmmvit.augment` against a torchvision DataLoader that does the same on PIL images.

    python benchmarks/augment.py --data-dir ../shared/data --out benchmarks/results/augment.csv

Both do flip, pad-crop, the CIFAR-10 policy, normalisation, random erasing and mixup or cutmix on random CIFAR-10
images, taking turns in one process. The results are medians and quartiles over the rounds; a round is one second of
ours and one pass of the DataLoader.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gmmvit.augment import Augment
from gmmvit.data import load_dataset
from gmmvit.rows import row, write_rows

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def load_cifar10(data_dir: str, count: int) -> tuple[list[Any], Tensor, Tensor]:
    """The first `count` training images as PIL images and as uint8 [N, 3, 32, 32], and their labels."""
    from PIL import Image

    train = load_dataset("cifar10", data_dir=data_dir).train
    images = train.images[:count].clone()
    return [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).numpy()], images, train.labels[:count]


def our_pass(images: Tensor, labels: Tensor, batch: int, seconds: float) -> Callable[[], float]:
    """A function that takes random batches for `seconds` and returns images per second."""
    augment = Augment(num_classes=10, mean=MEAN, std=STD, policy="cifar10")
    generator = torch.Generator().manual_seed(0)

    def run() -> float:
        seen, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            rows = torch.randint(len(images), (batch,), generator=generator)
            augment(images.index_select(0, rows), labels[rows], generator)
            seen += batch
        return seen / (time.perf_counter() - start)

    return run


class Pictures(torch.utils.data.Dataset):
    """PIL images in memory with torchvision's transforms."""

    def __init__(self, pictures: list[Any], labels: Tensor) -> None:
        from torchvision import transforms as T

        self.pictures, self.labels = pictures, labels.tolist()
        self.transform = T.Compose(
            [
                T.RandomHorizontalFlip(),
                T.RandomCrop(32, padding=4),
                T.AutoAugment(T.AutoAugmentPolicy.CIFAR10),
                T.ToTensor(),
                T.Normalize(MEAN, STD),
                T.RandomErasing(0.25, scale=(0.02, 0.4), ratio=(0.3, 3.3)),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pictures[index]), self.labels[index]


def torchvision_pass(pictures: list[Any], labels: Tensor, batch: int, workers: int) -> Callable[[], float]:
    """A function that makes one pass over the pictures with a DataLoader and returns images per second."""
    from torchvision.transforms import v2

    loader = torch.utils.data.DataLoader(
        Pictures(pictures, labels), batch, shuffle=True, num_workers=workers, drop_last=True, persistent_workers=True
    )
    mix = v2.RandomApply([v2.RandomChoice([v2.MixUp(num_classes=10), v2.CutMix(num_classes=10)])], p=0.5)

    def run() -> float:
        seen, start = 0, time.perf_counter()
        for images, targets in loader:
            mix(images, targets)
            seen += len(images)
        return seen / (time.perf_counter() - start)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default="../shared/data", help="the folder that holds cifar10")
    parser.add_argument("--out", default="", help="CSV to write")
    parser.add_argument("--images", type=int, default=8192, help="images of a pass")
    parser.add_argument("--rounds", type=int, default=9, help="passes of each, turn by turn")
    parser.add_argument("--workers", type=int, default=2, help="workers of the DataLoader")
    options = parser.parse_args()

    pictures, images, labels = load_cifar10(options.data_dir, options.images)
    large = images[:2048].repeat_interleave(2, 2).repeat_interleave(2, 3)
    ours, theirs = "gmmvit batch 512 of 32x32", f"torchvision {options.workers} workers batch 512 of 32x32"
    passes = {
        ours: our_pass(images, labels, 512, 1.0),
        theirs: torchvision_pass(pictures, labels, 512, options.workers),
        "gmmvit batch 128 of 32x32": our_pass(images, labels, 128, 1.0),
        "gmmvit batch 64 of 64x64": our_pass(large, labels[:2048], 64, 1.0),
    }
    for run in passes.values():
        run()  # starts the workers and warms the caches; not counted
    rates: dict[str, list[float]] = {what: [] for what in passes}
    for _ in range(options.rounds):
        for what, run in passes.items():
            rates[what].append(run())
    rows = [row(f"augmentation, {what}", "images/s", values) for what, values in rates.items()]
    ratios = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
    rows.append(row("ratio, gmmvit / torchvision, batch 512", "times", ratios))
    write_rows(options.out, rows)


if __name__ == "__main__":
    main()
