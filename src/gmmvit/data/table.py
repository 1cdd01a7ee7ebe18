"""`metadata.csv` or `metadata.jsonl`: a table of image files and their classes, one per image or several."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO, TypeAlias

from gmmvit.data.classes import check_numbers, label_fault, plain_label
from gmmvit.data.columns import tell_unread
from gmmvit.data.division import PART_COLUMN, folder_parts, is_split, part_column
from gmmvit.data.label_cells import TRUTH, from_columns, split_cells
from gmmvit.data.parts import PARTS, part_of
from gmmvit.data.records import DataError, Label, Report, counted, listing
from gmmvit.data.walk import TABLES

TABLE_EXTENSIONS = (".csv", ".jsonl")
Rows: TypeAlias = list[tuple[int, dict[str, str]]]  # the line on which each row begins, and its cells by column
_LABELS = ("label", "labels")
_READ = ("file_name", *_LABELS, PART_COLUMN)


def find_table(folder: Path) -> Path | None:
    """The `metadata.csv` or `metadata.jsonl` of a folder; DataError where it has both."""
    tables = [folder / name for name in TABLES]
    there = [table for table in tables if table.is_file()]
    if len(there) > 1:
        raise DataError(f"{folder} has {there[0].name} and {there[1].name}: keep one")
    return there[0] if there else None


def read_table(path: Path, report: Report, part: str = "all") -> dict[str, list[tuple[str, Label]]]:
    """Read the columns `file_name` (relative to the table), `label` or `labels` and, where there is one, that of the
    parts (see `part_column`); without one, the folders of the files may name the parts (see `folder_parts`).

    `label` is the class of an image, `labels` are several, or none in an empty cell (see `split_cells`). Without both,
    the other columns are the labels where they hold 0 and 1 alone. A part for validation or test may have no label at
    all (see `labelled`). `report` is given what was read by a rule, and which columns were not.

    Args:
        part: the part in whose folder the table lies, `all` if it is in none.

    Returns:
        Part name -> image files with their class; the one part `part` where nothing names others.

    Raises:
        DataError: a column, a file or a value is missing or wrong; the message names the row: the line of the file on
            which it begins, as an editor or a spreadsheet counts them.
    """
    header, rows = _rows(path)
    files = _files(path, rows)
    if not rows:
        raise DataError(f"{path} has no rows")
    column, parts = _by_column(path, header, rows, part, report)
    labels, read = _labels(path, [name for name in header if name != column], rows, part, report)
    tell_unread(str(path), ["file_name", *read, *([column] if column else [])], header, report)
    numbers = [number for number, _ in rows]
    if part == "all":
        parts = _by_folder(path, numbers, files, labels, column, parts, report)
    entries: dict[str, list[tuple[str, Label]]] = {}
    given: list[tuple[int, Label]] = []
    for its in ("all", *PARTS):
        if mine := [at for at, other in enumerate(parts) if other == its]:
            entries[its] = [(os.path.join(path.parent, files[at]), labels[at]) for at in mine]
            if not _lacks_labels(its, entries[its]):
                given.extend((numbers[at], labels[at]) for at in mine)
    for number, label in given:
        if label == "":
            raise DataError(f"{path}, row {number}: the label is empty")
    check_numbers(given, str(path))
    return entries


def labelled(
    entries: Mapping[str, list[tuple[str, Label]]], where: str, report: Report
) -> dict[str, list[tuple[str, Label]]]:
    """The parts of a table without those for validation and test whose labels are all empty or -1, which it reports."""
    for part in (lacking := [part for part, rows in entries.items() if _lacks_labels(part, rows)]):
        report(f"{where}: the {part} part carries no labels and is left out")
    return {part: rows for part, rows in entries.items() if part not in lacking}


def _lacks_labels(part: str, rows: Sequence[tuple[str, Label]]) -> bool:
    return part in ("val", "test") and all(label in ("", "-1") for _, label in rows)


def _files(path: Path, rows: Rows) -> list[str]:
    """The files of the rows, relative to the table."""
    seen: dict[str, int] = {}
    for number, row in rows:
        file_name = os.path.normpath(row["file_name"]) if row["file_name"] else ""
        if not file_name:
            raise DataError(f"{path}, row {number}: the file_name is empty")
        if file_name in seen:
            raise DataError(f"{path}, row {number}: {file_name} is listed in row {seen[file_name]} already")
        seen[file_name] = number
    absent = [
        f"{file} (row {number})" for file, number in seen.items() if not os.path.isfile(os.path.join(path.parent, file))
    ]
    if absent:
        raise DataError(f"{path} names {len(absent)} missing files: {listing(absent)}")
    return list(seen)


def _by_column(
    path: Path, header: Sequence[str], rows: Rows, part: str, report: Report
) -> tuple[str | None, list[str]]:
    """The column of the parts, None without one, and the part of each row."""
    numbers = [number for number, _ in rows]
    columns = {name: [row[name] for _, row in rows] for name in header if name not in ("file_name", *_LABELS)}
    for name in filter(is_split, columns):
        for number, value in zip(numbers, columns[name], strict=True):
            if part_of(value) is None:
                raise DataError(f"{path}, row {number}: {name} is {value!r}; it must be train, val or test")
    found = part_column(str(path), columns, numbers)
    if found is None:
        return None, [part] * len(rows)
    column, parts = found
    if header.count(column) > 1:
        raise DataError(f"{path} has several columns {column}: keep one")
    if part == "all" and not is_split(column):
        report(f"the column {column} of {path} is read as split")
    at = next((at for at, its in enumerate(parts) if part not in ("all", its)), None)
    if at is not None:
        raise DataError(
            f"{path}, row {numbers[at]}: {column} is {columns[column][at]!r}, and the table lies in the {part} part: "
            "remove the column"
        )
    return column, parts


def _by_folder(
    path: Path,
    numbers: Sequence[int],
    files: Sequence[str],
    labels: Sequence[Label],
    column: str | None,
    parts: list[str],
    report: Report,
) -> list[str]:
    """The part of each row, `parts` unless the folders of the files give it."""
    named = folder_parts(files, labels)
    if named is None:
        return parts
    if column is not None:
        if odd := [file for file, its, other in zip(files, parts, named, strict=True) if other not in (None, its)]:
            report(
                f"{path}: the column {column} makes the parts, though the folders of {counted(len(odd), 'image')} name "
                f"others: {listing(odd)}"
            )
        return parts
    found = [its for its in named if its]
    inside = next(file for file, its in zip(files, named, strict=True) if its)
    at = next((at for at, its in enumerate(named) if its is None), None)
    if len(set(found)) == 1:
        report(
            f"{path}: files in a folder called like the {found[0]} part, such as {inside}, are read like the others; a "
            "column split would make them a part"
        )
        return parts
    if at is not None:
        raise DataError(
            f"{path}, row {numbers[at]}: {files[at]} lies in no part, while the folders of others, such as {inside}, "
            "name parts: add a column split"
        )
    return found


def _labels(
    path: Path, header: Sequence[str], rows: Rows, part: str, report: Report
) -> tuple[Sequence[Label], Sequence[str]]:
    """What each row says of its image's classes, and the columns that say it; `header` is without that of the parts."""
    if "label" in header:
        return [row["label"] for _, row in rows], ["label"]
    if "labels" in header:
        return split_cells(str(path), [(number, row["labels"]) for number, row in rows]), ["labels"]
    found = from_columns(str(path), _others(header), rows, report, whole=part in ("all", "train"))
    if found is None:
        raise _lacking(path, header, rows)
    return found, _others(header)


def _rows(path: Path) -> tuple[Sequence[str], Rows]:
    """The columns, and the rows with the lines on which they begin; blank ones count and are left out."""
    try:
        # Spreadsheets put a byte order mark in front.
        with open(path, newline="", encoding="utf-8-sig") as file:
            return (_json_rows if path.suffix.lower() == ".jsonl" else _csv_rows)(path, file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: save it as CSV UTF-8") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _others(header: Sequence[str]) -> list[str]:
    """The columns that may each stand for a label."""
    return [name for name in header if name != "file_name" and not is_split(name)]


def _check_columns(path: Path, header: Sequence[str]) -> None:
    """Raise DataError for columns that cannot be read, whatever the rows hold."""
    named = any(name in header for name in _LABELS)
    if "file_name" not in header or not (named or len(_others(header)) > 1):
        raise _lacking(path, header)
    wanted = ("file_name", *_LABELS)
    if odd := [name for name in header if name not in wanted and name.casefold() in wanted]:
        raise DataError(f"{path} has the column {listing(odd)}: write it in small letters")
    if "label" in header and "labels" in header:
        raise DataError(
            f"{path} has the columns label and labels: keep label where every image has one, labels where it may have "
            "several"
        )
    read = _READ if named else dict.fromkeys(header)
    if twice := [name for name in read if header.count(name) > 1]:
        raise DataError(f"{path} has several columns {listing(twice)}: keep one")


def _lacking(path: Path, header: Sequence[str], rows: Rows | None = None) -> DataError:
    hot = [name for name in _others(header) if rows and all(row[name] in TRUTH for _, row in rows)]
    if len(hot) > 1:
        others = listing([name for name in _others(header) if name not in hot])
        return DataError(
            f"{path} has no column label or labels: columns of 0 and 1 for each class, as {listing(hot)}, are read as "
            f"labels only where no others stand beside them, and here is {others}: remove it, or add a column label "
            "with the class of each image"
        )
    return DataError(
        f"{path} has the columns {listing(header)}; it needs file_name and label (and may have split), or labels where "
        "an image may have several"
    )


def _csv_rows(path: Path, file: TextIO) -> tuple[Sequence[str], Rows]:
    first = next((line for line in file if line.strip()), "")
    file.seek(0)
    # What spreadsheets write where a comma stands in numbers.
    reader = csv.reader(file, delimiter=max(",;\t", key=first.count), strict=True, skipinitialspace=True)
    lines: list[tuple[int, list[str]]] = []
    begins = 1
    try:
        for line in reader:
            cells = [cell.strip() for cell in line]
            if any(cells):
                lines.append((begins, cells))
            begins = reader.line_num + 1
    except csv.Error as error:  # mostly a quote that is not closed, which would take the rows below into its cell
        raise DataError(f"{path}, row {begins}: a quote is not closed or a cell is damaged ({error})") from error
    if not lines:
        raise DataError(f"{path} is empty; it needs the columns file_name and label")
    header = lines[0][1]
    _check_columns(path, header)
    for number, line in lines[1:]:
        if len(line) != len(header):
            raise DataError(f"{path}, row {number}: {len(line)} values for {len(header)} columns")
    return header, [(number, dict(zip(header, line, strict=True))) for number, line in lines[1:]]


def _json_rows(path: Path, file: TextIO) -> tuple[Sequence[str], Rows]:
    rows: Rows = []
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, row {number}: it is not a JSON object, or has a key twice") from error
        if not isinstance(values, dict):
            raise DataError(f"{path}, row {number}: it is not a JSON object")
        rows.append((number, {key: _json_text(path, number, key, value) for key, value in values.items()}))
    columns = list(rows[0][1]) if rows else ["file_name", "label"]
    _check_columns(path, columns)
    for number, row in rows:
        if missing := [column for column in columns if column not in row]:
            raise DataError(f"{path}, row {number}: it has no {listing(missing)}, which the first row has")
        if more := [column for column in _READ if column in row and column not in columns]:
            raise DataError(f"{path}, row {number}: it has {listing(more)}, which the first row lacks")
    every = dict.fromkeys([*columns, *(column for _, row in rows for column in row)])
    return list(every), [(number, dict.fromkeys(every, "") | row) for number, row in rows]


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _json_text(path: Path, number: int, key: str, value: object) -> str:
    """The cell as a CSV would have it; a `label` as in other tables, so that 1.0 and [1] are the class 1."""
    if key == "label":
        value = plain_label(value)
        if value is not None and (fault := label_fault(value, f"in row {number}")):
            raise DataError(f"{path}: {fault}")
    return "" if value is None else json.dumps(value) if isinstance(value, list) else str(value)


def _part(path: Path, number: int, value: str | None) -> str:
    if value is None:
        return "all"
    part = part_of(value)
    if part is None:
        raise DataError(f"{path}, row {number}: split is {value!r}; it must be train, val or test")
    return part
