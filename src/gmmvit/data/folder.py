"""`folder:PATH`: class folders with or without given parts, or a `metadata.csv`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gmmvit.data.classes import check_classes, check_some_lack
from gmmvit.data.layout import check_classes_hold_images, check_no_parts, find_parts, tell_other_parts, tell_unused
from gmmvit.data.records import (
    Contents,
    DataError,
    Label,
    Part,
    Report,
    Source,
    counted,
    listing,
    relative,
    shown,
)
from gmmvit.data.several import multi_hot
from gmmvit.data.table import TABLE_EXTENSIONS, find_table, read_table
from gmmvit.data.walk import EXTENSIONS, PassedOver, data_files, idle_links, images_below, loose_images, visible_folders

# Part name -> the path of each image and the name of its class, or of its classes.
Entries = Mapping[str, Sequence[tuple[str, Label]]]
_SAMPLES = 3  # image files that are looked at where channels and bits are open


def folder_source(path: Path, report: Report) -> Source:
    """Find the images of `folder:PATH`.

    PATH holds `train/CLASS/*` with `val` or `test` beside it, or `CLASS/*`, or a `metadata.csv` (see `table.py`), also
    one in each part; PATH may also be such a file itself.

    Raises:
        DataError: nothing there, or a fault of its layout.
    """
    given, path = path, Path(os.path.realpath(path))
    name = f"folder-{path.name}"
    if not path.exists():
        raise DataError(f"folder {path} does not exist")
    tell_other_parts(given if path.is_dir() else given.parent, "folder", report)
    table = path if path.suffix.lower() in TABLE_EXTENSIONS else find_table(path)
    if table is not None and table.is_file():
        return entries_source(name, table.parent, table_entries(table, report), also=[str(table)])
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; expected PATH/CLASS/*.jpg, PATH/train/CLASS/*.jpg or a metadata.csv")
    parts = find_parts(path)
    if not parts:
        check_classes_hold_images(path, report)
        check_no_parts(path, report)
        return entries_source(name, path, {"all": class_entries(path, report)})
    if "train" not in parts:
        raise DataError(f"no train part in {path}: it holds {listing(sorted(parts))} only; add {path / 'train'}/CLASS/")
    entries: dict[str, Sequence[tuple[str, Label]]] = {}
    tables: list[str] = []
    for part, root in parts.items():
        if (table := find_table(root)) is not None:
            tables.append(str(table))
            rows = table_entries(table, report)
            if "all" not in rows:
                raise DataError(f"{table} has a column split, and lies in the {part} part: remove the column")
            entries[part] = rows["all"]
        else:
            check_classes_hold_images(root, report)
            entries[part] = class_entries(root, report, required=part == "train")
    entries = {part: rows for part, rows in entries.items() if rows}
    tell_unused(path, {parts[part] for part in entries}, set(entries), report)
    return entries_source(name, path, entries, also=tables)


def table_entries(table: Path, report: Report) -> dict[str, list[tuple[str, Label]]]:
    """The images of a table by part, as `read_table`, and a notice about those beside it that it does not list."""
    entries = read_table(table, report)
    listed = {os.path.realpath(file) for rows in entries.values() for file, _ in rows}
    passed = PassedOver()
    others = [file for file in images_below(table.parent, passed) if os.path.realpath(file) not in listed]
    passed.report_links(table.parent, report)
    if others:
        names = listing([relative(file, table.parent) for file in others])
        report(f"ignored {counted(len(others), 'image')} that {table} does not list: {names}")
    return entries


def class_entries(root: Path, report: Report, *, required: bool = True) -> list[tuple[str, Label]]:
    """The images of every class folder of `root`, also in folders below it. Hidden files are left out, as are, with a
    notice, files of other types, images beside the class folders, and links that lead nowhere or in a circle.

    Raises:
        DataError: no class folders, or with `required` a class folder without images.
    """
    folders = visible_folders(root)
    loose = loose_images(root)
    if not folders:
        found = f"{counted(len(loose), 'image')} directly in it but " if loose else ""
        tables = data_files(root)
        beside = f" ({listing(tables)} is not read)" if tables else ""
        raise DataError(
            f"{root} has {found}no class folders; expected {root}/CLASS/*.jpg, or a metadata.csv with file_name and "
            f"label{beside}"
        )
    if loose:
        report(f"ignored {counted(len(loose), 'image')} beside the class folders of {root}: {listing(loose)}")
    if tables := data_files(root):
        report(f"ignored beside the class folders of {root}: {listing(tables)}")
    passed = PassedOver(links=idle_links(root))
    entries: list[tuple[str, Label]] = []
    empty: list[str] = []
    for folder in folders:
        images = list(images_below(folder, passed))
        if not images:
            empty.append(repr(folder.name))
        entries.extend((image, folder.name) for image in images)
    passed.report_to(root, report)
    if empty and required:
        known = " ".join(sorted(extension[1:] for extension in EXTENSIONS))
        raise DataError(f"no images in class folder {listing(empty)} of {root}: add some ({known}) or remove it")
    return entries


def entries_source(name: str, root: Path, entries: Entries, also: Sequence[str] = ()) -> Source:
    """A source from image files with class names; names of images are relative to `root`, and the files in `also`
    count for the cache.

    Raises:
        DataError: one class, class names that are spelled in two ways, or a class that the training part lacks; or one
            part has one label an image, and another several.
    """
    training = "all" if "all" in entries else "train"
    kinds = {part: {isinstance(label, tuple) for _, label in rows} for part, rows in entries.items()}
    several = True in set().union(*kinds.values())
    if several and False in set().union(*kinds.values()):
        where = " and ".join(part for part, found in kinds.items() if True in found)
        raise DataError(f"{root}: images have several labels in {where} alone: give all parts a table with labels")
    found = {part: {name for _, label in rows for name in _names(label)} for part, rows in entries.items()}
    classes = check_classes(found, training, str(root))
    index = {label: number for number, label in enumerate(classes)}

    def numbers(rows: Sequence[tuple[str, Label]]) -> np.ndarray:
        if several:
            return multi_hot([[index[name] for name in label] for _, label in rows], len(classes))
        return np.array([index[name] for _, label in rows for name in _names(label)], dtype=np.int64)

    if several:
        check_some_lack(numbers(entries[training]), str(root))
    parts = {
        part: files_part(root, [file for file, _ in rows], numbers(rows)) for part, rows in entries.items() if rows
    }
    return Source(
        name=name,
        location=str(root),
        files=[*also, *(file for rows in entries.values() for file, _ in rows)],
        read=lambda: Contents(classes, parts),
        samples=[file for file, _ in entries[training][:_SAMPLES]],
    )


def _names(label: Label) -> tuple[str, ...]:
    return label if isinstance(label, tuple) else (label,)


def files_part(root: Path, files: Sequence[str], labels: Sequence[int] | np.ndarray) -> Part:
    """A part whose images are files; their names are relative to `root` and printable (see `shown`)."""

    def sources() -> Iterator[str]:
        return iter(files)

    names = [shown(relative(file, root)) for file in files]
    return Part(labels if isinstance(labels, np.ndarray) else np.array(labels, dtype=np.int64), names, sources)
