"""`metadata.csv` or `metadata.jsonl`: a table of image files and their classes, one an image or several."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from gmmvit.data.classes import check_numbers, label_fault, plain_label
from gmmvit.data.label_cells import from_columns, split_cells
from gmmvit.data.parts import part_of
from gmmvit.data.records import DataError, Label, Report, listing

TABLE_EXTENSIONS = (".csv", ".jsonl")
_READ = ("file_name", "label", "labels", "split")


def find_table(folder: Path) -> Path | None:
    """The `metadata.csv` or `metadata.jsonl` of a folder; DataError where it has both."""
    tables = [folder / f"metadata{extension}" for extension in TABLE_EXTENSIONS]
    there = [table for table in tables if table.is_file()]
    if len(there) > 1:
        raise DataError(f"{folder} has {there[0].name} and {there[1].name}: keep one")
    return there[0] if there else None


def read_table(path: Path, report: Report) -> dict[str, list[tuple[str, Label]]]:
    """Read the columns `file_name` (relative to the table), `label` or `labels` and, where it is given, `split`.

    `label` is the class of an image, `labels` are several, or none in an empty cell (see `split_cells`). Without both,
    the other columns are the labels where they hold 0 and 1 alone, which `report` is given.

    Returns:
        Part name -> image files with their class; the one part `all` without a column `split`.

    Raises:
        DataError: a column, a file or a value is missing or wrong; the message names the row: the line of the file on
            which it begins, as an editor or a spreadsheet counts them.
    """
    header, rows = _rows(path)
    labels = _labels(path, header, rows, report)
    entries: dict[str, list[tuple[str, Label]]] = {}
    seen: dict[str, int] = {}
    absent: list[str] = []
    for (number, row), label in zip(rows, labels, strict=True):
        file_name = os.path.normpath(row["file_name"]) if row["file_name"] else ""
        if not file_name or label == "":
            raise DataError(f"{path}, row {number}: the {'label' if file_name else 'file_name'} is empty")
        if file_name in seen:
            raise DataError(f"{path}, row {number}: {file_name} is listed in row {seen[file_name]} already")
        seen[file_name] = number
        file = os.path.join(path.parent, file_name)
        if not os.path.isfile(file):
            absent.append(f"{file_name} (row {number})")
        entries.setdefault(_part(path, number, row.get("split")), []).append((file, label))
    if absent:
        raise DataError(f"{path} names {len(absent)} missing files: {listing(absent)}")
    if not entries:
        raise DataError(f"{path} has no rows")
    if "all" not in entries and "train" not in entries:
        raise DataError(f"no train part in {path}: its column split holds {listing(sorted(entries))} only")
    return {part: entries[part] for part in ("all", "train", "val", "test") if part in entries}


def _labels(
    path: Path, header: Sequence[str], rows: Sequence[tuple[int, dict[str, str]]], report: Report
) -> Sequence[Label]:
    """What each row says of its image's classes; "" where it says nothing and one is needed."""
    if "label" in header:
        check_numbers([(number, row["label"]) for number, row in rows if row["label"]], str(path))
        return [row["label"] for _, row in rows]
    if "labels" in header:
        return split_cells(str(path), [(number, row["labels"]) for number, row in rows])
    if (found := from_columns(str(path), _others(header), rows, report)) is None:
        raise _lacking(path, header)
    return found


def _rows(path: Path) -> tuple[Sequence[str], list[tuple[int, dict[str, str]]]]:
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
    return [name for name in header if name not in ("file_name", "split")]


def _check_columns(path: Path, header: Sequence[str]) -> None:
    """Raise DataError for columns that cannot be read, whatever the rows hold."""
    named = "label" in header or "labels" in header
    if "file_name" not in header or not (named or len(_others(header)) > 1):
        raise _lacking(path, header)
    if odd := [name for name in header if name not in _READ and name.casefold() in _READ]:
        raise DataError(f"{path} has the column {listing(odd)}: write it in small letters")
    if "label" in header and "labels" in header:
        raise DataError(
            f"{path} has the columns label and labels: keep label where every image has one, labels where it may have "
            "several"
        )
    read = _READ if named else dict.fromkeys(header)
    if twice := [name for name in read if header.count(name) > 1]:
        raise DataError(f"{path} has several columns {listing(twice)}: keep one")


def _lacking(path: Path, header: Sequence[str]) -> DataError:
    return DataError(
        f"{path} has the columns {listing(header)}; it needs file_name and label (and may have split), or labels where "
        "an image may have several"
    )


def _csv_rows(path: Path, file: TextIO) -> tuple[Sequence[str], list[tuple[int, dict[str, str]]]]:
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


def _json_rows(path: Path, file: TextIO) -> tuple[Sequence[str], list[tuple[int, dict[str, str]]]]:
    rows: list[tuple[int, dict[str, str]]] = []
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, row {number}: it is no JSON object, or has a key twice") from error
        if not isinstance(values, dict):
            raise DataError(f"{path}, row {number}: it is no JSON object")
        rows.append((number, {key: _json_text(path, number, key, value) for key, value in values.items()}))
    columns = list(rows[0][1]) if rows else ["file_name", "label"]
    _check_columns(path, columns)
    for number, row in rows:
        if missing := [column for column in columns if column not in row]:
            raise DataError(f"{path}, row {number}: it has no {listing(missing)}, which the first row has")
        if more := [column for column in _READ if column in row and column not in columns]:
            raise DataError(f"{path}, row {number}: it has {listing(more)}, which the first row lacks")
    return columns, rows


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
