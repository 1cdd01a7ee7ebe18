"""Finds or downloads the named data sets, in any of their layouts, and reports what is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from gmmvit.data.cache import locked
from gmmvit.data.folder import class_entries, entries_source
from gmmvit.data.layout import find_parts
from gmmvit.data.original import ORIGINALS, Original
from gmmvit.data.parquet import find_shards, known_parts, read_shards
from gmmvit.data.records import DataError, Report, Source, listing, packages_for, silent

T = TypeVar("T")

_SHARD_FOLDERS = ("plain_text", "data", "cropped_digits", "default")


@dataclass(frozen=True)
class NamedSet:
    """The facts about a named data set.

    Attributes:
        parts: the parts that it must have.
        classes: the class names, if its files do not contain them.
        test_part: the published part that serves as `test`.
    """

    image_size: int
    policy: str
    flip: bool
    parts: tuple[str, ...] = ("train", "test")
    classes: Callable[[], Sequence[str]] | None = None
    test_part: str = "test"

    def published_parts(self) -> dict[str, str]:
        """Our name of each part -> its published name."""
        return {part: self.test_part if part == "test" else part for part in self.parts}


_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""


def _flower_classes() -> Sequence[str]:
    from torchvision.datasets import Flowers102

    return Flowers102.classes


NAMED = {
    "cifar10": NamedSet(32, "cifar10", True, classes=_CIFAR10.split),
    "cifar100": NamedSet(32, "cifar10", True, classes=_CIFAR100.split),
    "svhn": NamedSet(32, "svhn", False, classes=lambda: "0123456789"),
    "tiny-imagenet": NamedSet(64, "imagenet", True, test_part="val"),
    "flowers102": NamedSet(64, "imagenet", True, parts=("train", "val", "test"), classes=_flower_classes),
}


def class_names(name: str) -> list[str] | None:
    """The class names of a named data set in label order; None if only its files have them."""
    known = NAMED[name].classes
    with packages_for(name):
        return list(known()) if known else None


def numbered_classes(count: int) -> list[str]:
    """Placeholders for class names, until the files that contain them are read."""
    return [f"class {index}" for index in range(count)]


def named_source(name: str, data_dir: Path, *, download: bool, report: Report) -> Source:
    """Finds a named data set below `data_dir`, or downloads it there.

    Looks, in this order, for parquet shards in `NAME/` or a folder in it, for class folders `NAME/PART/CLASS/*`, and
    for the authors' layout as torchvision unpacks it.

    Raises:
        DataError: it is missing and cannot be downloaded, or it is incomplete.
    """
    source = _find(name, data_dir, report)
    if source is None:
        source = _download(name, data_dir, download, report)
    known = NAMED[name]
    return replace(
        source, name=name, image_size=(known.image_size, known.image_size), policy=known.policy, flip=known.flip
    )


def _find(name: str, data_dir: Path, report: Report) -> Source | None:
    folder = data_dir if data_dir.name == name and not (data_dir / name).is_dir() else data_dir / name
    ways: list[Callable[[Report], Source | None]] = [
        partial(_parquet, name, folder),
        partial(_class_folders, name, folder),
        partial(ORIGINALS[name].find, [data_dir, folder]),
    ]
    source: Source | None = None
    for way in ways:
        if source is None:
            source = way(report)
            continue
        with contextlib.suppress(DataError):  # errors in an unused copy do not matter
            if (other := way(silent)) is not None:
                report(f"{name} lies there twice: {source.location} is read, {other.location} is not")
    return source


def _download(name: str, data_dir: Path, download: bool, report: Report) -> Source:
    original: Original = ORIGINALS[name]
    shards = " and ".join(f"{part}-*.parquet" for part in NAMED[name].published_parts().values())
    place = f"put {original.layout} or {name}/plain_text/ with {shards} there"
    if not download:
        raise DataError(f"{name} is not in {data_dir}: {place}, or allow the download")
    report(f"{name} is not in {data_dir}: downloading it there")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with locked(data_dir / f".{name}.lock", report):
            # Another process may have downloaded it while this one waited.
            source = _find(name, data_dir, report)
            if source is None:
                original.download(data_dir)
                source = _find(name, data_dir, report)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{name} is not in {data_dir} and could not be downloaded ({reason}): {place}") from error
    if source is None:
        raise DataError(f"the download of {name} to {data_dir} brought other files than expected: {place}")
    return source


def _parquet(name: str, folder: Path, report: Report) -> Source | None:
    if not folder.is_dir():
        return None
    found = {place: shards for place, shards in find_shards(folder, report).items() if any(shards)}
    if not found:
        return None
    preferred = [folder / sub for sub in _SHARD_FOLDERS if folder / sub in found] or list(found)
    if len(preferred) > 1 and preferred[0].name not in _SHARD_FOLDERS:
        raise DataError(f"parquet shards lie in {preferred[0]} and in {preferred[1]}: keep one of them")
    place, known = preferred[0], NAMED[name]
    if others := [str(other) for other in found if other != place]:
        report(f"ignored the parquet files in {listing(others)}: those in {place} are read")
    shards = _named_parts(name, known_parts(found[place], report), str(place), "SPLIT-*.parquet")
    return Source(
        name=name,
        location=str(place),
        files=[str(file) for files in shards.values() for file in files],
        read=lambda: read_shards(name, shards, known.classes() if known.classes else None),
    )


def _class_folders(name: str, folder: Path, report: Report) -> Source | None:
    if name == "tiny-imagenet" or not folder.is_dir():
        # The authors' layout has class folders too, with images one folder deeper; see original.py.
        return None
    parts = find_parts(folder)
    if not parts:
        return None
    parts = _named_parts(name, parts, str(folder), "SPLIT/CLASS/*.png")
    return entries_source(name, folder, {part: class_entries(root, report) for part, root in parts.items()})


def _named_parts(name: str, found: dict[str, T], where: str, layout: str) -> dict[str, T]:
    """The parts of a named set under our names; raises DataError if one is missing."""
    theirs = NAMED[name].published_parts()
    missing = [part for part in theirs.values() if part not in found]
    if missing:
        raise DataError(f"{name} in {where} has no {' and no '.join(missing)} part: add it as {layout}")
    return {part: found[there] for part, there in theirs.items()}
