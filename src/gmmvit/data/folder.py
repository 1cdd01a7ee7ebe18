"""`folder:PATH`: class folders with or without given parts, or a `metadata.csv`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from gmmvit.data.classes import check_classes, check_numbers, check_some_lack
from gmmvit.data.layout import (
    check_classes_hold_images,
    check_no_parts,
    copied_name,
    find_parts,
    tell_other_parts,
    tell_unused,
)
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
from gmmvit.data.table import TABLE_EXTENSIONS, find_table, labelled, read_table
from gmmvit.data.walk import (
    EXTENSIONS,
    PassedOver,
    holds_images,
    idle_links,
    images_below,
    loose_images,
    other_files,
    visible_folders,
)

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
        rows = table_entries(table, report, alone=table == path)
        return entries_source(name, table.parent, rows, also=[str(table)])
    if not path.is_dir():
        raise DataError(f"{path} is not a folder; expected PATH/CLASS/*.jpg, PATH/train/CLASS/*.jpg or a metadata.csv")
    parts = find_parts(path)
    if not parts:
        if tables := batch_tables(path):
            return entries_source(name, path, batch_entries(path, tables, report), also=list(map(str, tables)))
        check_classes_hold_images(path, report)
        check_no_parts(path, report)
        return entries_source(name, path, {"all": class_entries(path, report)})
    if "train" not in parts:
        raise DataError(f"no train part in {path}: it holds {listing(sorted(parts))} only; add {path / 'train'}/CLASS/")
    entries: dict[str, Sequence[tuple[str, Label]]] = {}
    also: list[str] = []
    for part, root in parts.items():
        if (table := find_table(root)) is not None:
            entries[part] = table_entries(table, report, part).get(part, ())
            also.append(str(table))
        elif tables := batch_tables(root):
            entries[part] = batch_entries(root, tables, report, part).get(part, ())
            also += map(str, tables)
        else:
            check_classes_hold_images(root, report)
            if found := class_entries(root, report, required=part == "train"):
                entries[part] = found
    tell_unused(path, {parts[part] for part in entries}, {part for part, rows in entries.items() if rows}, report)
    return entries_source(name, path, {part: rows for part, rows in entries.items() if rows}, also=also)


def table_entries(
    table: Path, report: Report, part: str = "all", *, alone: bool = False
) -> dict[str, list[tuple[str, Label]]]:
    """The images of a table by part, as `read_table`, and a notice about what lies beside it and is not read: images
    that it does not list, tables and archives.

    Raises:
        DataError: a table in a folder below has images that this one does not list; not if this one is to be read
            `alone`.
    """
    entries = read_table(table, report, part)
    listed = [file for rows in entries.values() for file, _ in rows]
    known = set(map(os.path.realpath, listed))
    passed = PassedOver()
    others = [file for file in images_below(table.parent, passed) if os.path.realpath(file) not in known]
    passed.report_links(table.parent, report)
    _check_inner(table, listed, others, report, alone)
    if others:
        names = listing([relative(file, table.parent) for file in others])
        report(f"ignored {counted(len(others), 'image')} that {table} does not list: {names}")
    if files := [file for file in other_files(table.parent) if file != table.name]:
        report(f"ignored beside {table}: {listing(files)}")
    return labelled(entries, str(table), report)


def _check_inner(table: Path, listed: Sequence[str], others: Sequence[str], report: Report, alone: bool) -> None:
    """Reports tables below another one; raises DataError if images lie there that it does not list."""
    inner = [found for folder in _folders_between(table.parent, [*listed, *others]) if (found := find_table(folder))]
    lacking = _folders_between(table.parent, others)
    rivals = [str(found) for found in inner if found.parent in lacking]
    if rivals and not alone:
        raise DataError(
            f"{table} does not list the images of {listing(rivals)}: put all rows into one table, with a column split "
            f"for the parts, or a table into each part, as {table.parent / 'train' / table.name}"
        )
    if inner:
        report(f"ignored {listing(list(map(str, inner)))}: {table} is read")


def _folders_between(root: Path, files: Sequence[str]) -> list[Path]:
    """The folders below `root` in which, or below which, files lie."""
    folders = {Path(folder) for folder in map(os.path.dirname, files)}
    return sorted({place for folder in folders for place in (folder, *folder.parents) if root in place.parents})


def batch_tables(root: Path) -> list[Path]:
    """The tables in the folders of `root`, which are batches of one data set and no classes."""
    return [table for folder in visible_folders(root) if (table := find_table(folder))]


def batch_entries(
    root: Path, tables: Sequence[Path], report: Report, part: str = "all"
) -> dict[str, list[tuple[str, Label]]]:
    """The images of tables in the folders of `root` by part, read as one table (see `table_entries`).

    Raises:
        DataError: a folder has images and no table, or the tables differ in what they say.
    """
    batches = [table.parent for table in tables]
    for folder in visible_folders(root):
        if folder not in batches and holds_images(folder):
            raise DataError(
                f"{tables[0]} is a table of images, and {folder} has images and no table: give each folder of {root} a "
                f"table, or list all images in {root / tables[0].name}, or remove the table if the folders are classes"
            )
    found: dict[str, list[tuple[str, Label]]] = {}
    for table in tables:
        for its, rows in table_entries(table, report, part).items():
            found.setdefault(its, []).extend(rows)
    labels = [(relative(file, root), label) for rows in found.values() for file, label in rows]
    if len({isinstance(label, tuple) for _, label in labels}) > 1:
        raise DataError(f"the tables in {root} have label in some folders and labels in others: give all the same")
    if "all" in found and len(found) > 1:
        raise DataError(f"the tables in {root} name parts in some folders and none in others: give all a column split")
    check_numbers(labels, str(root))
    report(f"the tables in {listing([folder.name for folder in batches])} of {root} are read as one")
    PassedOver(links=idle_links(root)).report_links(root, report)
    if others := [*loose_images(root), *other_files(root)]:
        report(f"ignored beside the tables in {root}: {listing(others)}")
    return found


def class_entries(root: Path, report: Report, *, required: bool = True) -> list[tuple[str, Label]]:
    """The images of every class folder of `root`, also in folders below it. Hidden files are left out, as are, with a
    notice, files of other types, images beside the class folders, and links that lead nowhere or in a circle.

    Raises:
        DataError: no class folders, or with `required` a class folder without images; else that is reported.
    """
    folders = visible_folders(root)
    loose = loose_images(root)
    if not folders:
        found = f"{counted(len(loose), 'image')} directly in it but " if loose else ""
        others = other_files(root)
        beside = f" ({listing(others)} is not read)" if others else ""
        raise DataError(
            f"{root} has {found}no class folders; expected {root}/CLASS/*.jpg, or a metadata.csv with file_name and "
            f"label{beside}"
        )
    if loose:
        report(f"ignored {counted(len(loose), 'image')} beside the class folders of {root}: {listing(loose)}")
    if others := other_files(root):
        report(f"ignored beside the class folders of {root}: {listing(others)}")
    passed = PassedOver(links=idle_links(root))
    entries: list[tuple[str, Label]] = []
    empty: list[str] = []
    for folder in folders:
        images = list(images_below(folder, passed))
        if not images:
            empty.append(repr(folder.name))
        if original := copied_name(folder.name, {other.name for other in folders}):
            report(f"{folder} is read as a class of its own, though its name is that of a copy of {original}")
        entries.extend((image, folder.name) for image in images)
    if passed.tables:
        raise DataError(
            f"{passed.tables[0]} is a table of images inside a class folder of {root}: list all images in "
            f"{root / 'metadata.csv'}, or remove the table"
        )
    passed.report_to(root, report)
    if empty and entries and not required:
        report(f"no images in class folder {listing(empty)} of {root}")
    if empty and required:
        known = " ".join(sorted(extension[1:] for extension in EXTENSIONS))
        raise DataError(f"no images in class folder {listing(empty)} of {root}: add some ({known}) or remove it")
    return entries


def entries_source(name: str, root: Path, entries: Entries, also: Sequence[str] = ()) -> Source:
    """A source from image files with class names; names of images are relative to `root`, and the files in `also`
    count for the cache.

    Raises:
        DataError: no training part, one class, class names that are spelled in two ways, or a class that the training
            part lacks; or one part has one label an image, and another several.
    """
    training = "all" if "all" in entries else "train"
    if training not in entries:
        raise DataError(f"no train part in {root}: its tables name {listing(sorted(entries))} only")
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
