"""Several labels in a cell of a table, `cat|dog` or `["cat", "dog"]`, and columns of 0 and 1, one for each label."""

from __future__ import annotations

import ast
import io
import itertools
import json
import tokenize
from collections.abc import Mapping, Sequence
from contextlib import suppress

from gmmvit.data.records import DataError, Label, Report, listing
from gmmvit.data.several import SEPARATORS

# What a column for a label may hold: 1 where the image has it, also as pandas and JSON write it.
TRUTH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}
_HINT = 'separate labels by |, or write them as a JSON list, as ["red fox", "tree"]'


def split_cells(where: str, cells: Sequence[tuple[int, str]]) -> list[tuple[str, ...]]:
    """The labels of each cell; an empty cell has none.

    All cells are JSON lists, or all have the same one of `SEPARATORS` between their labels.

    Args:
        where: the table, for the errors.
        cells: line of the file and text of each cell.

    Raises:
        DataError: it is not clear what separates the labels, a label is empty, or stands twice in a cell.
    """
    lists = [number for number, cell in cells if cell.startswith("[")]
    plain = [(number, cell) for number, cell in cells if cell and not cell.startswith("[")]
    if lists and plain:
        raise DataError(
            f"{where}, row {plain[0][0]}: labels are {plain[0][1]!r}, and a list in row {lists[0]}: {_HINT}, everywhere"
        )
    mark = None if lists else _separator(where, plain)
    found = []
    for number, cell in cells:
        if cell.startswith(("(", "{")) and isinstance(_written(cell), tuple | set | dict):
            raise DataError(f"{where}, row {number}: labels {cell[:80]!r} is not a list: {_HINT}")
        labels = _from_list(where, number, cell) if cell.startswith("[") else cell.split(mark) if mark else [cell]
        labels = [label.strip() for label in labels] if cell else []
        if not all(labels):
            raise DataError(f"{where}, row {number}: labels {cell!r} has an empty label: remove it")
        if len(set(labels)) < len(labels):
            raise DataError(f"{where}, row {number}: labels {cell!r} names a label twice: name it once")
        found.append(tuple(labels))
    return found


def _separator(where: str, cells: Sequence[tuple[int, str]]) -> str | None:
    """What stands between the labels; None where every cell has one label at most."""
    seen = {mark: number for mark in SEPARATORS for number, cell in reversed(cells) if mark in cell}
    if len(seen) > 1:
        first, second = list(seen)[:2]
        raise DataError(
            f"{where}: labels have {first!r} in them (row {seen[first]}) and {second!r} (row {seen[second]}), and one "
            f'of these separates: where the other belongs to a name, write JSON lists, as ["a{second} b", "c"]'
        )
    if not seen:
        for number, cell in cells:
            if len(cell.split()) > 1:
                raise DataError(
                    f"{where}, row {number}: labels are {cell!r}, which may be one label or several, and no cell has "
                    f"{' or '.join(SEPARATORS)} in it: {_HINT}"
                )
    return next(iter(seen), None)


def _from_list(where: str, number: int, cell: str) -> list[str]:
    """A JSON list, or a list as pandas writes it."""
    values = _written(cell)
    if not isinstance(values, list) or not all(isinstance(v, str | int) and not isinstance(v, bool) for v in values):
        raise DataError(f"{where}, row {number}: labels {cell[:80]!r} is not a list of texts or whole numbers")
    return [str(value) for value in values]


def _written(cell: str) -> object:
    """What JSON or Python would read; None for neither, and where texts stand side by side without a comma, as numpy
    prints them and Python joins them."""
    with suppress(ValueError, RecursionError):
        return json.loads(cell)
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError):
        kinds = [
            token.type for token in tokenize.generate_tokens(io.StringIO(cell).readline) if token.type != tokenize.NL
        ]
        if (tokenize.STRING, tokenize.STRING) not in itertools.pairwise(kinds):
            return ast.literal_eval(cell)
    return None


def from_columns(
    where: str, columns: Sequence[str], rows: Sequence[tuple[int, Mapping[str, str]]], report: Report, *, whole: bool
) -> Sequence[Label] | None:
    """The labels of rows that have a column of 0 and 1 for each label, which is said; None where they have none.

    Where each row has a single 1, that is the class of its image; otherwise an image may have several labels.

    Args:
        whole: every label must have an image, as in a table for training.
    """
    if len(columns) < 2 or not rows or any(row[name] not in TRUTH for _, row in rows for name in columns):
        return None
    found = [tuple(name for name in columns if TRUTH[row[name]]) for _, row in rows]
    unused = [name for name in columns if all(name not in labels for labels in found)] if whole else []
    if unused:
        raise DataError(f"{where}: no image has the label {listing(unused)}, a column of 0 alone: remove it")
    one = all(len(labels) == 1 for labels in found)
    are = "are the classes, one per image" if one else "are the labels"
    report(f"{where} has neither label nor labels: its columns of 0 and 1 {are}, {listing(columns)}")
    return [label for (label,) in found] if one else found
