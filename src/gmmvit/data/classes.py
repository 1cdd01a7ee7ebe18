"""The classes of a data set from the labels of its parts: which values are labels, and what a class may be called."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from gmmvit.data.records import DataError, Label, listing, ordered_classes
from gmmvit.text import shown


def plain_label(value: Any) -> Any:
    """A cell of a table as None (missing), bool, int or text, or unchanged if it is not a label: whole floats and
    decimals are numbers, a list of one is its only item, NaN and blank text are missing."""
    while isinstance(value, list | tuple | np.ndarray) and np.ndim(value) and len(value) == 1:
        value = value[0]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float | Decimal):
        return None if value != value else int(value) if value == value // 1 else value
    return value


def label_fault(value: Any, where: str) -> str:
    """What is wrong with what `plain_label` gave, in a sentence; empty for a label. `where` is its row."""
    if value is None:
        return f"the label {where} is missing: fill it in, or remove the row"
    if isinstance(value, list | tuple | np.ndarray):
        several = "or a column called labels for several"
        hint = "and this looks one-hot: give the number of the class" if _one_hot(value) else several
        return f"{len(value)} labels {where}: one is needed, {hint}"
    if not isinstance(value, bool | int | str):
        return f"label {value!r} {where} is neither a whole number nor text nor True or False"
    return ""


def _one_hot(value: Any) -> bool:
    flat = list(value)
    return all(isinstance(item, bool | int | float | np.generic) for item in flat) and sorted(flat) == sorted(
        [0] * (len(flat) - 1) + [1]
    )


def one_naming(named: Iterable[tuple[str, Sequence[str] | None]]) -> Sequence[str] | None:
    """The class names that numbers stand for, from the places of a data set that may bring them; None where none does.

    Raises:
        DataError: two places name the numbers differently, so that one number would mean two classes.
    """
    first: tuple[str, Sequence[str]] | None = None
    for place, names in named:
        if names is None:
            continue
        if first is not None and list(names) != list(first[1]):
            raise DataError(
                f"{first[0]} calls its classes {listing(first[1])}, {place} {listing(names)}: a number would mean two "
                "classes; give both the same names in the same order"
            )
        first = first or (place, names)
    return None if first is None else first[1]


def check_numbers(labels: Iterable[tuple[int | str, Label]], where: str) -> None:
    """Raise DataError for a table's labels, one per image, with their rows, that are all numbers and hold one that is
    negative, which elsewhere marks an image without a label, or one that is written in two ways."""
    found: dict[float, str] = {}
    rows = [(row, label) for row, label in labels if isinstance(label, str)]
    try:
        numbers = [float(label) for _, label in rows]
    except ValueError:
        return
    for (row, label), number in zip(rows, numbers, strict=True):
        if number < 0:
            raise DataError(
                f"{where}, row {row}: label {label} is negative: number the classes from 0, and remove unlabelled rows"
            )
        if found.setdefault(number, label) != label:
            raise DataError(f"{where}, row {row}: label {label} is {found[number]} in other rows: write one of them")


def check_some_lack(labels: np.ndarray, where: str) -> None:
    """Raise DataError where every image has every label, uint8 `[N, K]`: lists such as [0, 1] and [1, 0] are mostly
    rows of 0 and 1, and not the labels 0 and 1."""
    if len(labels) and labels.all():
        raise DataError(
            f"{where}: every training image has all {labels.shape[1]} labels, so there is nothing to learn: a list "
            "names the labels that an image has, and not a row of 0 and 1"
        )


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
        DataError: fewer than two classes, one that is spelled in two ways, or one that the training part lacks.
    """
    check_names(set().union(*found.values()), where)
    spelled: dict[str, str] = {}
    for label in sorted(set().union(*found.values())):
        other = spelled.setdefault(_spelling(label), label)
        if other != label:
            by = "case, spaces or the encoding of letters"
            by = "case" if other.casefold() == label.casefold() else "zeros in front" if label.isdecimal() else by
            raise DataError(f"classes {other!r} and {label!r} in {where} differ by {by} only: merge them")
    classes = ordered_classes(found[training])
    if len(classes) < 2:
        only = f"only class {classes[0]!r}" if classes else "no class"
        raise DataError(f"{where} has {only}: at least two classes are needed")
    for part, labels in found.items():
        extra = sorted(repr(label) for label in labels.difference(classes))
        if extra:
            raise DataError(f"the {part} part of {where} has class {listing(extra)}, which the training part lacks")
    return classes


def _spelling(label: str) -> str:
    """What labels that look alike have in common; macOS writes letters with accents in another encoding, and some
    characters, such as the zero-width space, have no width. Whole numbers may have zeros in front."""
    if label.isdecimal():
        return label.lstrip("0") or "0"
    seen = "".join(c for c in unicodedata.normalize("NFC", label).casefold() if unicodedata.category(c) != "Cf")
    return " ".join(seen.split())
