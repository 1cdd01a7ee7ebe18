"""Images per second of `gmmvit.augment` against a torchvision DataLoader that does the same from PIL images.

    python benchmarks/augment.py --data-dir ../shared/data --out benchmarks/results/augment.csv

Both do flip, pad-crop, the CIFAR-10 policy, normalisation, random erasing and mixup or cutmix on random CIFAR-10
images, turn by turn in one process. Printed and written are medians and quartiles of the rounds; a round is a second of
ours and a pass of the DataLoader.
"""

import argparse
import csv
import datetime
import io
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gmmvit.augment import Augment

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
COLUMNS = ("what", "images_per_s", "q1", "q3", "device", "torch", "date", "commit")


def load_cifar10(data_dir: Path, count: int) -> tuple[list[Any], Tensor, Tensor]:
    """The first `count` training images as PIL images and as uint8 [N, 3, 32, 32], and their labels."""
    import pyarrow.parquet as pq
    from PIL import Image

    shards = sorted((data_dir / "cifar10" / "plain_text").glob("train-*.parquet"))
    if not shards:
        raise SystemExit(f"no {data_dir}/cifar10/plain_text/train-*.parquet; point --data-dir at the folder of cifar10")
    rows = pq.read_table(shards[0], columns=["img", "label"]).slice(0, count).to_pylist()
    pictures = [Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB") for row in rows]
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()
    return pictures, images, torch.tensor([row["label"] for row in rows])


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
    """A function that goes once over the pictures with a DataLoader and returns images per second."""
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


def device_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{model}, {torch.get_num_threads()} threads"


def commit() -> str:
    result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return result.stdout.strip() if result.returncode == 0 else "none"


def write_rows(path: Path, figures: dict[str, tuple[float, float, float]]) -> None:
    """Append a row per figure, with the head if the file is new."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    common = (device_name(), torch.__version__, datetime.date.today().isoformat(), commit())
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        for what, values in figures.items():
            writer.writerow((what, *(f"{value:.4g}" if value < 100 else round(value) for value in values), *common))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="the folder that holds cifar10")
    parser.add_argument("--out", type=Path, help="CSV file to which the rows are appended")
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
    rates["ratio gmmvit to torchvision, batch 512"] = [a / b for a, b in zip(rates[ours], rates[theirs], strict=True)]
    figures = {}
    for what, values in rates.items():
        q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
        figures[what] = (median, q1, q3)
        print(f"{what:44s} {median:10.5g}   quartiles {q1:.5g} to {q3:.5g}")
    if options.out:
        write_rows(options.out, figures)


if __name__ == "__main__":
    main()
