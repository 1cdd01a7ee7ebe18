"""Packs CIFAR-10 into zip files of at most --part-mib each, with its own PNG bytes in class folders.

    python benchmarks/pack_cifar10.py --data-dir ../shared/data --out packed [--per-class 400]

Archives hold cifar10/train/CLASS/NUMBER.png and cifar10/test/CLASS/NUMBER.png. The folder into which they are unpacked
is a `--data-dir` that needs neither pyarrow nor a network. With --per-class the training part has only that many first
images of each class; the test part is always whole.
"""

import argparse
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from gmmvit.data.named import class_names


def images(folder: Path, per_class: int | None) -> Iterator[tuple[str, bytes]]:
    """Name in the archive and PNG bytes of each image, in the order of the shards."""
    classes = class_names("cifar10")
    assert classes is not None
    for part in ("train", "test"):
        shards = sorted(folder.glob(f"{part}-*.parquet"))
        if not shards:
            raise SystemExit(f"{folder} has no {part}-*.parquet")
        seen: Counter[int] = Counter()
        for shard in shards:
            for row in pq.read_table(shard, columns=["img", "label"]).to_pylist():
                label = row["label"]
                if part == "train" and per_class is not None and seen[label] == per_class:
                    continue
                yield f"cifar10/{part}/{classes[label]}/{seen[label]:05d}.png", row["img"]["bytes"]
                seen[label] += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("../shared/data"), help="holds cifar10/*.parquet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--per-class", type=int)
    parser.add_argument("--part-mib", type=float, default=57)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = args.data_dir / "cifar10"
    folder = folder if any(folder.glob("*.parquet")) else folder / "plain_text"
    archive, number, size = None, 0, 0
    for name, content in images(folder, args.per_class):
        # The archive itself takes 300 bytes per file.
        if archive is None or size + len(content) + 300 > args.part_mib * 2**20:
            if archive is not None:
                archive.close()
            number, size = number + 1, 0
            archive = zipfile.ZipFile(args.out / f"cifar10-{number}.zip", "w", zipfile.ZIP_STORED)
        archive.writestr(zipfile.ZipInfo(name), content)  # with a fixed date: equal images make equal files
        size += len(content) + 300
    if archive is not None:
        archive.close()
    for path in sorted(args.out.glob("cifar10-*.zip")):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
