"""`folder:PATH`: class folders with or without given parts, or a `metadata.csv`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gmmvit.data.records import (
    PART_NAMES,
    Contents,
    DataError,
    Part,
    Report,
    Source,
    listing,
    ordered_classes,
    relative,
)
from gmmvit.data.table import read_table

EXTENSIONS = frozenset(
    """.jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .avif""".split()  # noqa: SIM905
)

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
    return entries_source(
        name,
        path,
        {part: class_entries(root, report, required=part == "train") for part, root in parts.items()},
    )


def find_parts(path: Path) -> dict[str, Path]:
    """The folders `train`, `val` and `test` (or a synonym) of PATH that hold class folders themselves; a folder of that
    name with images directly in it is a class."""
    parts: dict[str, Path] = {}
    for folder in _visible_folders(path):
        part = PART_NAMES.get(folder.name.lower())
        if part is None or not _visible_folders(folder):
            continue
        if part in parts:
            raise DataError(f"both {parts[part]} and {folder} are a {part} part: keep one")
        parts[part] = folder
    return {part: parts[part] for part in ("train", "val", "test") if part in parts}


def class_entries(root: Path, report: Report, *, required: bool = True) -> list[tuple[str, str]]:
    """The images of every class folder of `root`, also in folders below it; hidden files and other types are left out.

    Raises:
        DataError: no class folders, or with `required` a class folder without images.
    """
    folders = _visible_folders(root)
    loose = [file.name for file in _sorted_entries(root) if file.is_file() and _is_image(file.name)]
    if not folders:
        found = f"{len(loose)} images directly in it but " if loose else ""
        raise DataError(f"{root} has {found}no class folders; expected {root}/CLASS/*.jpg")
    if loose:
        report(f"ignored {len(loose)} images beside the class folders of {root}: {listing(loose)}")
    entries: list[tuple[str, str]] = []
    empty: list[str] = []
    for folder in folders:
        images = list(_images_below(folder))
        if not images:
            empty.append(repr(folder.name))
        entries.extend((image, folder.name) for image in images)
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
    """A part whose images are files, named relative to `root`."""

    def sources() -> Iterator[str]:
        return iter(files)

    names = [relative(file, root) for file in files]
    return Part(np.asarray(labels, dtype=np.int64), names, sources)


def check_classes(found: Mapping[str, set[str]], training: str, where: str) -> tuple[str, ...]:
    """The classes of the training part in order.

    Args:
        found: the class names in every part.
        training: the key of the part that decides.
        where: the place, for the errors.

    Raises:
        DataError: see `entries_source`.
    """
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


def _sorted_entries(path: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"folder {path} cannot be read: {error.strerror}") from error


def _visible_folders(path: Path | str | os.DirEntry[str]) -> list[Path]:
    return [Path(entry.path) for entry in _sorted_entries(os.fspath(path)) if entry.is_dir()]


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _images_below(folder: str | Path) -> Iterator[str]:
    for entry in _sorted_entries(folder):
        if entry.is_dir(follow_symlinks=False):
            yield from _images_below(entry.path)
        elif _is_image(entry.name) and entry.is_file():
            yield entry.path
