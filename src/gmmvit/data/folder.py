"""`folder:PATH`: class folders with or without given parts, or a `metadata.csv`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gmmvit.data.records import (
    PART_NAMES,
    Contents,
    DataError,
    Part,
    Report,
    Source,
    counted,
    listing,
    ordered_classes,
    relative,
    shown,
)
from gmmvit.data.table import read_table
from gmmvit.data.walk import EXTENSIONS, PassedOver, dead_links, images_below, loose_images, visible_folders

# Part name -> the path of each image and the name of its class.
Entries = Mapping[str, Sequence[tuple[str, str]]]


def folder_source(path: Path, report: Report) -> Source:
    """Find the images of `folder:PATH`.

    PATH holds `train/CLASS/*` with `val` or `test` beside it, or `CLASS/*`, or a `metadata.csv` (see `table.py`); PATH
    may also be such a CSV file itself.

    Raises:
        DataError: nothing there, or a fault of its layout.
    """
    path = Path(os.path.realpath(path))
    name = f"folder-{path.name}"
    if not path.exists():
        raise DataError(f"folder {path} does not exist")
    table = path if path.suffix.lower() == ".csv" else path / "metadata.csv"
    if table.is_file():
        return entries_source(name, table.parent, read_table(table), also=[str(table)])
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; expected PATH/CLASS/*.jpg, PATH/train/CLASS/*.jpg or a metadata.csv")
    parts = find_parts(path)
    if not parts:
        return entries_source(name, path, {"all": class_entries(path, report)})
    if "train" not in parts:
        raise DataError(f"no train part in {path}: it holds {listing(sorted(parts))} only; add {path / 'train'}/CLASS/")
    entries = {part: class_entries(root, report, required=part == "train") for part, root in parts.items()}
    entries = {part: rows for part, rows in entries.items() if rows}
    _tell_unused(path, {parts[part] for part in entries}, set(entries), report)
    return entries_source(name, path, entries)


def _tell_unused(path: Path, used: set[Path], parts: set[str], report: Report) -> None:
    """Notices about what lies beside the parts: parts without images, and classes or images that belong into one."""
    strays = [*loose_images(path), *dead_links(path)]
    for folder in visible_folders(path):
        part = PART_NAMES.get(folder.name.lower())
        if part is None:
            strays.append(folder.name)
        elif folder not in used:
            cut = part == "val" or "val" not in parts
            then = f"the {part} part is cut from train by {part}_fraction" if cut else "there is no test part"
            then = f"another folder is the {part} part" if part in parts else then
            report(f"ignored {folder}, which holds no class folders with images: {then}")
    if strays:
        report(f"ignored beside the parts of {path}: {listing(strays)}")


def find_parts(path: Path) -> dict[str, Path]:
    """The folders `train`, `val` and `test` (or a synonym) of PATH that hold class folders themselves; a folder of that
    name with images directly in it is a class."""
    parts: dict[str, Path] = {}
    for folder in visible_folders(path):
        part = PART_NAMES.get(folder.name.lower())
        if part is None or not visible_folders(folder):
            continue
        if part in parts:
            raise DataError(f"both {parts[part]} and {folder} are a {part} part: keep one")
        parts[part] = folder
    return {part: parts[part] for part in ("train", "val", "test") if part in parts}


def class_entries(root: Path, report: Report, *, required: bool = True) -> list[tuple[str, str]]:
    """The images of every class folder of `root`, also in folders below it. Hidden files are left out, as are, with a
    notice, files of other types, linked folders in a class, and images and dead links beside the class folders.

    Raises:
        DataError: no class folders, or with `required` a class folder without images.
    """
    folders = visible_folders(root)
    loose, dead = loose_images(root), dead_links(root)
    if not folders:
        found = f"{counted(len(loose), 'image')} directly in it but " if loose else ""
        raise DataError(f"{root} has {found}no class folders; expected {root}/CLASS/*.jpg")
    if loose:
        report(f"ignored {counted(len(loose), 'image')} beside the class folders of {root}: {listing(loose)}")
    if dead:
        report(f"ignored {counted(len(dead), 'dead link')} beside the class folders of {root}: {listing(dead)}")
    passed = PassedOver()
    entries: list[tuple[str, str]] = []
    empty: list[str] = []
    for folder in folders:
        images = list(images_below(folder, passed))
        if not images:
            empty.append(repr(folder.name))
        entries.extend((image, folder.name) for image in images)
    passed.tell(root, report)
    if empty and required:
        known = " ".join(sorted(extension[1:] for extension in EXTENSIONS))
        raise DataError(f"no images in class folder {listing(empty)} of {root}: add some ({known}) or remove it")
    return entries


def entries_source(name: str, root: Path, entries: Entries, also: Sequence[str] = ()) -> Source:
    """A source from image files with class names; names of images are relative to `root`, and the files in `also`
    count for the cache.

    Raises:
        DataError: one class, class names that differ by case only, or a class that the training part lacks.
    """
    training = "all" if "all" in entries else "train"
    classes = check_classes({part: {label for _, label in rows} for part, rows in entries.items()}, training, str(root))
    index = {label: number for number, label in enumerate(classes)}
    parts = {
        part: files_part(root, [file for file, _ in rows], [index[label] for _, label in rows])
        for part, rows in entries.items()
        if rows
    }
    return Source(
        name=name,
        location=str(root),
        files=[*also, *(file for rows in entries.values() for file, _ in rows)],
        read=lambda: Contents(classes, parts),
    )


def files_part(root: Path, files: Sequence[str], labels: Sequence[int]) -> Part:
    """A part whose images are files; their names are relative to `root` and printable (see `shown`)."""

    def sources() -> Iterator[str]:
        return iter(files)

    names = [shown(relative(file, root)) for file in files]
    return Part(np.asarray(labels, dtype=np.int64), names, sources)


def check_names(classes: Iterable[str], where: str) -> None:
    """Raise DataError for class names that YAML, JSON and HTML files cannot hold as they are."""
    unprintable = sorted(repr(label) for label in classes if shown(label) != label)
    if unprintable:
        raise DataError(
            f"{where} has class {listing(unprintable)}, a name with control characters or bytes that are not UTF-8: "
            "rename the folder (or the label)"
        )


def check_classes(found: Mapping[str, set[str]], training: str, where: str) -> tuple[str, ...]:
    """The classes of the training part in order.

    Args:
        found: the class names in every part.
        training: the key of the part that decides.
        where: the place, for the errors.

    Raises:
        DataError: see `entries_source`.
    """
    check_names(set().union(*found.values()), where)
    spelled: dict[str, str] = {}
    for label in sorted(set().union(*found.values())):
        other = spelled.setdefault(label.casefold(), label)
        if other != label:
            raise DataError(f"classes {other!r} and {label!r} in {where} differ by case only: merge them")
    classes = ordered_classes(found[training])
    if len(classes) < 2:
        only = f"only class {classes[0]!r}" if classes else "no class"
        raise DataError(f"{where} has {only}: at least two classes are needed")
    for part, labels in found.items():
        extra = sorted(repr(label) for label in labels.difference(classes))
        if extra:
            raise DataError(f"the {part} part of {where} has class {listing(extra)}, which the training part lacks")
    return classes
