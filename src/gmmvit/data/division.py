"""Which part the rows of a table belong to: a column says it, or the folders that their files lie in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gmmvit.data.parts import PARTS, part_in, part_of, parts_of
from gmmvit.data.records import DataError, Label, Report, listing

PART_COLUMN = "split"  # in tables of our own
FEW = 8  # different values of a column of parts at most; one with more holds texts or names


def part_column(
    where: str, columns: Mapping[str, Sequence[str]], numbers: Sequence[int]
) -> tuple[str, list[str]] | None:
    """The column that says the part of each row, and these parts; None where none does.

    It is one whose values all name parts in any usual spelling, and not all the same; or `split`, which comes first,
    with one part too.

    Args:
        where: the table, for the errors.
        columns: those that may say it -> their values.
        numbers: what the rows are called, for the errors.

    Raises:
        DataError: a column names several parts and something else, or two columns disagree.
    """
    found: dict[str, list[str]] = {}
    for column, values in columns.items():
        kinds = set(values)
        if not 0 < len(kinds) <= FEW:
            continue
        named = {kind: part for kind in kinds if (part := part_of(kind))}
        if len(named) == len(kinds):
            if is_split(column) or len(set(named.values())) > 1:
                found[column] = [named[value] for value in values]
        elif named and len({part_in(kind) for kind in kinds} - {None}) > 1:
            at = next(at for at, value in enumerate(values) if value not in named)
            raise DataError(
                f"{where}, row {numbers[at]}: {column} is {values[at]!r}, not a part as in other rows: name "
                "train, val or test"
            )
    if not found:
        return None
    name = next((column for column in (PART_COLUMN, *found) if column in found and is_split(column)), next(iter(found)))
    for other in () if is_split(name) else found:
        if found[name] != found[other]:
            at = next(at for at, pair in enumerate(zip(found[name], found[other], strict=True)) if len(set(pair)) > 1)
            raise DataError(
                f"{where}, row {numbers[at]}: {name} is {columns[name][at]!r} and {other} is {columns[other][at]!r}: "
                "call the column that gives the parts split"
            )
    return name, found[name]


def is_split(column: str) -> bool:
    """Whether it is the column that gmmvit's own tables have, in capitals too."""
    return column.casefold() == PART_COLUMN


def divide(
    where: str, given: Mapping[str, tuple[int, Mapping[str, Sequence[str]]]], report: Report
) -> tuple[dict[str, tuple[str, np.ndarray]], list[str]]:
    """The parts of a data set that has columns and may have parts already: `all` and `train` are divided by a column,
    `val` and `test` must agree with theirs.

    Args:
        where: the data set, for the errors.
        given: part -> how many rows it has, and the columns that may say parts, see `part_column`.
        report: given what a column divides.

    Returns:
        Part -> the given part that it comes from and the rows in it, int64; and the columns that were read.

    Raises:
        DataError: a column contradicts the parts, or names no training part.
    """
    parts: dict[str, tuple[str, np.ndarray]] = {}
    used: list[str] = []
    for origin, (count, columns) in given.items():
        there = part_name(origin, where)
        found = part_column(there, columns, range(count))
        if found is None:
            parts[origin] = origin, np.arange(count)
            continue
        column, named = found
        used.append(column)
        numbers = {part: np.flatnonzero([name == part for name in named]) for part in PARTS if part in named}
        for part, rows in numbers.items():
            if part != origin and (part in given or origin not in ("all", "train")):
                raise DataError(
                    f"{there}, row {rows[0]}: {column} says {part}, and {part if part in given else origin} is a part "
                    "of its own: correct the column, or remove it"
                )
            parts[part] = origin, rows
        if list(numbers) != [origin]:
            counts = ", ".join(f"{part} {len(rows)}" for part, rows in numbers.items())
            report(f"{where}: the column {column} makes the parts, {counts}")
    if "all" not in parts and "train" not in parts:
        raise DataError(f"no train part in {where}: its column {listing(used)} holds {listing(sorted(parts))} only")
    return parts, used


def part_name(part: str, where: str) -> str:
    """What errors call a part; a data set without parts by its own name."""
    return where if part == "all" else f"the {part} part of {where}"


def folder_parts(files: Sequence[str], labels: Sequence[Label]) -> list[str | None] | None:
    """The part that the folders of each file name, None for files in other folders; None where that says nothing.

    The outermost folders that name two parts decide; else those of which some name one part, and others none. A folder
    that is called like the label of all its files is that class.
    """
    folders = [file.split(os.sep)[:-1] for file in files]
    one: list[str | None] | None = None
    for depth in range(max(map(len, folders), default=0)):
        names = [folder[depth] if depth < len(folder) else "" for folder in folders]
        others = {name for name, label in zip(names, labels, strict=True) if str(label).casefold() != name.casefold()}
        called = parts_of(sorted(others - {""}))
        named = [called.get(name) for name in names]
        if len(set(called.values())) > 1:
            return named
        if one is None and called and None in named:
            one = named
    return one


def texts_of(
    head: Sequence[object], whole: Callable[[], Sequence[object]], names: Sequence[str] | None
) -> list[str] | None:
    """The values of a column that may say parts, as texts; None where its `head` shows that it cannot.

    Args:
        head: the first values.
        whole: gives all of them.
        names: what whole numbers stand for; without it the values are texts.
    """
    if len(set(head)) > FEW:
        return None
    if names is None:
        return ["" if value is None else str(value) for value in whole()]
    called = dict(enumerate(names))
    return [called.get(value, "") if isinstance(value, int) else "" for value in whole()]
