"""Labels as tables hold them (numbers, texts, truth values, categories, lists) -> class names and numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gmmvit.data.classes import check_classes, check_names, check_some_lack, label_fault, plain_label
from gmmvit.data.records import DataError, Report, listing

_TRUTH = ("False", "True")
SEVERAL_COLUMN = "labels"  # the name that a column of lists must have where an image may have several labels


def number_labels(
    name: str, labels: Mapping[str, Any], classes: Sequence[str] | None, report: Report, column: str = ""
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, and int64 labels `[N]` of every labelled part, from arrays or lists of labels; uint8 `[N, K]` where
    the `column` is called "labels" and holds lists that are not all of one label.

    Whole numbers (floats without a fraction too) are named by `classes`, else each by itself, in order of value, with a
    notice where they are not 0, 1, 2 and so on; False and True are two classes; texts are their own names. Parts that
    are empty are left out, and with a notice those whose labels are all missing or -1 (how the Hub marks a test part
    without labels), or lists without a label.

    Raises:
        DataError: a label is missing, several, negative or of another type, or only the training part lacks a class.
    """
    plain = {part: _plain(values) for part, values in labels.items()}
    several = column == SEVERAL_COLUMN and any(
        isinstance(label, list | tuple | np.ndarray)
        for values in plain.values()
        if isinstance(values, list)
        for label in values
    )
    if several:
        plain = {part: _lists(name, part, values) for part, values in labels.items()}
    unlabelled = [part for part, values in plain.items() if len(values) and _all_missing(values)]
    for part in unlabelled:
        report(f"{name}: the {part} part carries no labels and is left out")
    kept = {part: values for part, values in plain.items() if len(values) and part not in unlabelled}
    training = "all" if "all" in labels else "train"
    if training not in kept:
        raise DataError(f"{name} has no labelled training part: it needs a part called train")
    if not several:
        return _numbered(name, kept, {}, classes, training, report)
    rows = {part: [row for row, values in enumerate(lists) for _ in values] for part, lists in kept.items()}
    each = {part: [value for values in lists for value in values] for part, lists in kept.items()}
    names, numbers = _numbered(name, each, rows, classes, training, report)
    found = {part: np.zeros((len(lists), len(names)), dtype=np.uint8) for part, lists in kept.items()}
    for part, hot in found.items():
        hot[rows[part], numbers[part]] = 1
    check_some_lack(found[training], name)
    return names, found


def _numbered(
    name: str,
    kept: Mapping[str, Any],
    rows: Mapping[str, Sequence[int]],
    classes: Sequence[str] | None,
    training: str,
    report: Report,
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, and the numbers int64 of labels in every part; `rows` says where each stands if not one a row."""
    kinds = {part: _kind(name, part, values, rows.get(part)) for part, values in kept.items()}
    if len(set(kinds.values())) > 1:
        each = ", ".join(f"{kind.__name__} in {part}" for part, kind in kinds.items())
        raise DataError(f"{name}: the labels are of several types ({each}): give all parts one")
    kind = kinds[training]
    if kind is bool or (kind is int and classes):
        numbers = {part: np.asarray(values, dtype=np.int64) for part, values in kept.items()}
        for part, values in numbers.items():
            outside = np.flatnonzero((values < 0) | (values >= len(classes or _TRUTH)))
            if len(outside):
                row = rows[part][outside[0]] if rows else outside[0]
                raise DataError(
                    f"{name}: label {values[outside[0]]} in row {row} of the {part} part is outside of "
                    f"0..{len(classes or _TRUTH) - 1}: one class name is needed for every label"
                )
        return _distinct(tuple(classes or _TRUTH), name, report), numbers
    if kind is int:
        kept = {part: _texts_of_numbers(name, part, values, rows.get(part)) for part, values in kept.items()}
    names = check_classes({part: set(values) for part, values in kept.items()}, training, name)
    if kind is int and names != tuple(map(str, range(len(names)))):
        report(f"{name}: the labels are {listing(names)}, not 0 to {len(names) - 1}: each of them is a class")
    index = {label: number for number, label in enumerate(names)}
    return names, {part: np.array([index[value] for value in values], dtype=np.int64) for part, values in kept.items()}


def _lists(name: str, part: str, values: Any) -> list[Any]:
    """The labels of each image as a list; None for all where a part carries no label."""
    found: list[Any] = []
    for row, value in enumerate(values):
        where = f"in row {row} of the {part} part"
        if value is not None and not isinstance(value, list | tuple | np.ndarray):
            raise DataError(f"{name}: the labels {where} are {value!r} and no list, as those of other rows are")
        labels = None if value is None else [plain_label(label) for label in value]
        if labels is not None and len(set(map(repr, labels))) < len(labels):
            raise DataError(
                f"{name}: the labels {where} are {labels[:9]}, with one of them twice: a list names the labels that an "
                "image has, and not a row of 0 and 1"
            )
        found.append(labels)
    if all(labels in (None, [], [-1], [None]) for labels in found):
        return [None] * len(found)
    if None in found:
        row = found.index(None)
        raise DataError(f"{name}: the labels in row {row} of the {part} part are missing: no label is an empty list")
    return found


def _distinct(names: tuple[str, ...], where: str, report: Report) -> tuple[str, ...]:
    """The names that a data set brings for its numbers, with the number behind those that several have."""
    check_names(names, where)
    several = sorted(name for name, count in Counter(names).items() if count > 1)
    if several:
        report(f"{where}: several classes are called {listing(several)}: their numbers are put behind their names")
    return tuple(f"{name} ({number})" if name in several else name for number, name in enumerate(names))


def _texts_of_numbers(name: str, part: str, values: Any, rows: Sequence[int] | None) -> list[str]:
    numbers = values.tolist() if isinstance(values, np.ndarray) else values
    if (at := next((at for at, value in enumerate(numbers) if value < 0), None)) is not None:
        row, instead = (
            (rows[at], "give images without a label an empty list") if rows else (at, "remove unlabelled rows")
        )
        raise DataError(
            f"{name}: label {numbers[at]} in row {row} of the {part} part is negative: number the classes from 0, and "
            f"{instead}"
        )
    return list(map(str, numbers))


def _plain(values: Any) -> Any:
    """An array of whole numbers as it is, anything else as a list of what `plain_label` gives."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return values
    return [plain_label(value) for value in values]


def _all_missing(values: Any) -> bool:
    if isinstance(values, np.ndarray):
        return bool((values == -1).all())
    return all(value is None or (isinstance(value, int) and value == -1) for value in values)


def _kind(name: str, part: str, values: Any, rows: Sequence[int] | None = None) -> type:
    """bool, int or str, which all of the labels are; `rows` are those that they stand in, by default one in each."""
    if isinstance(values, np.ndarray):
        return int
    first: type | None = None
    for row, value in zip(range(len(values)) if rows is None else rows, values, strict=True):
        where = f"in row {row} of the {part} part"
        if fault := label_fault(value, where):
            raise DataError(f"{name}: {fault}")
        if first is None:
            first = type(value)
        if type(value) is not first:
            raise DataError(f"{name}: label {value!r} {where} is of another type than {values[0]!r} in row 0")
    return first or int
