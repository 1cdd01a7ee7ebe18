"""Which columns of a table are read, and the notice of those that are not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gmmvit.data.records import DataError, Report, listing

IMAGE_COLUMNS = ("img", "image", "images", "pixel_values", "picture")
LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "category", "target")
_SHOWN = 9


def known_columns(
    columns: Sequence[str], known: Sequence[str], what: str, where: str, numeric: Sequence[str] = ()
) -> list[str]:
    """Those of the `known` columns that are there, likeliest first.

    Raises:
        DataError: none is; the message says what is right where `numeric` columns may stand for a class each.
    """
    there = [name for name in known if name in columns]
    if not there:
        hint = (
            f"; if {listing(numeric)} hold 0 and 1 for each class, write a column label with the class of each image "
            "instead, or labels with the list of those that it has"
        )
        raise DataError(
            f"no column of {what} in {where}: it has {listing(columns, _SHOWN)}; expected {' or '.join(known)}"
            f"{hint if len(numeric) > 1 else ''}"
        )
    return there


def one_column(candidates: Mapping[str, Sequence[str]], what: str, report: Report) -> dict[str, str]:
    """The column of `what` in each place, a file or a part: the first that all places have; else the only one that each
    has, which is reported.

    Args:
        candidates: place -> the columns that it may be there, likeliest first.

    Raises:
        DataError: the places have no such column in common, and one has several.
    """
    first, *rest = candidates.values()
    if shared := [column for column in first if all(column in others for others in rest)]:
        return dict.fromkeys(candidates, shared[0])
    places: dict[str, str] = {}
    for place, columns in candidates.items():
        places.setdefault(", ".join(columns), place)
    said = " and ".join(f"{columns} in {place}" for columns, place in places.items())
    if any(len(columns) > 1 for columns in candidates.values()):
        raise DataError(f"{what} may be {said}: give their column one name everywhere")
    report(f"{what} are read from columns of different names: {said}")
    return {place: column for place, [column] in candidates.items()}


def tell_unread(where: str, read: Iterable[str], columns: Iterable[str], report: Report) -> None:
    """Names the `columns` of a table that are not read, beside those that are."""
    read = list(dict.fromkeys(read))
    if others := [column for column in dict.fromkeys(columns) if column not in read]:
        told = f"{listing(read, _SHOWN)} {'are' if len(read) > 1 else 'is'} read"
        report(f"ignored columns of {where}: {listing(others, _SHOWN)} ({told})")
