"""Writes a few thousand images of a named data set as PNG: the first of each class, and the whole test set.

    python benchmarks/few_images.py --dataset cifar10 --data-dir ../shared/data --per-class 400 --out few-cifar10
    python benchmarks/accuracy.py --recipe small --dataset folder:few-cifar10 --image-size 32 \\
        --masks gmm,none --out benchmarks/results/few-cifar10.csv
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from gmmvit.data import Split, load_dataset


def write(part: Split, classes: Sequence[str], folder: Path, per_class: int | None) -> None:
    """The first `per_class` images of each class, or all, as folder/CLASS/NUMBER.png."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for row in (part.labels == label).nonzero().flatten().tolist()[:per_class]:
            pixels = part.images[row].permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / name / f"{row:05d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir")
    parser.add_argument("--per-class", type=int, default=400)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data = load_dataset(args.dataset, data_dir=args.data_dir, val_fraction=0, report=print)
    write(data.train, data.classes, args.out / "train", args.per_class)
    write(data.test, data.classes, args.out / "test", None)


if __name__ == "__main__":
    main()
