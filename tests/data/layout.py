"""A layout of a data set, and what the rows of `folders.py`, `tables.py` and `layouts.py` share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

ROW = "file_name,label\n"
FOUR = ["a", "b"] * 2
CUT = {"train": 4, "val": 2, "test": 2}
THREE = {"train": 8, "val": 8, "test": 8}


@dataclass(frozen=True)
class Layout:
    """`tree`: a folder -> how many images lie in it, a parquet file -> its labels or its columns, that of the labels
    first, a link -> the path it leads to from its folder, another file -> its text. `read`: the images of each part,
    None where it is refused; `says`: what the refusal or a notice must say."""

    shown: str
    tree: dict[str, int | list | dict | str | Path]
    read: dict[str, int] | None
    says: str = ""
    seen: str = ""
    kind: str = "folder"
    inner: str = ""
    options: dict = field(default_factory=lambda: {"val_fraction": 0.25, "test_fraction": 0.25})


def classes(*parts: str, count: int = 4, names: tuple[str, ...] = ("a", "b")) -> dict[str, int]:
    """The folders of classes in each of the `parts`, with so many images in each."""
    return {f"{part}/{label}": count for part in parts for label in names}
