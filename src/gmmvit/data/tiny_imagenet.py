"""Tiny-ImageNet as published. Its labelled validation part is our test part, as in the paper (Li and Zhang)."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gmmvit.data.folder import class_entries, entries_source
from gmmvit.data.records import Contents, DataError, Report, Source, silent

FOLDER = "tiny-imagenet-200"
_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
_ANNOTATIONS = "val_annotations.txt"


def find(places: Sequence[Path], report: Report) -> Source | None:
    """Finds `train/WNID/images/*` beside `val/images/*` with `val_annotations.txt`, or beside `val/WNID/*`, in one of
    the places or in `tiny-imagenet-200/` there; None if none has it.

    Raises:
        DataError: a class folder is empty or a file is missing or malformed.
    """
    candidates = [candidate for place in places for candidate in (place / FOLDER, place)]
    root = next((root for root in candidates if _looks_right(root)), None)
    if root is None:
        return None
    annotations = root / "val" / _ANNOTATIONS
    entries = {
        # No notice about other files: every class has a table of boxes.
        "train": class_entries(root / "train", silent),
        "test": _annotated(annotations) if annotations.is_file() else class_entries(root / "val", report),
    }
    words = root / "words.txt"
    also = [str(file) for file in (annotations, words) if file.is_file()]
    source = entries_source("tiny-imagenet", root, entries, also=also)

    def read() -> Contents:
        contents = source.read()
        return replace(contents, classes=_class_names(contents.classes, words))

    return replace(source, read=read)


def download(place: Path) -> None:
    """Downloads and unpacks into `place`; the folder appears only when it is complete.

    Raises:
        OSError, RuntimeError: the network or the disk fails, or the file is not the expected one.
    """
    from torchvision.datasets.utils import download_and_extract_archive

    with tempfile.TemporaryDirectory(prefix=f".{FOLDER}-", dir=place) as unpacked:
        download_and_extract_archive(_URL, str(place), extract_root=unpacked, md5=_MD5)
        os.replace(Path(unpacked) / FOLDER, place / FOLDER)


def _looks_right(root: Path) -> bool:
    """Whether train/ and val/ exist and do not belong to another data set."""
    if root.name not in (FOLDER, "tiny-imagenet"):
        return False
    return (root / "train").is_dir() and (root / "val").is_dir()


def _annotated(annotations: Path) -> list[tuple[str, str]]:
    """The images of `val/images` with their classes, from lines of file, class and box separated by tabs."""
    rows = [line.split("\t") for line in annotations.read_text().splitlines() if line.strip()]
    if any(len(row) < 2 for row in rows):
        raise DataError(f"{annotations} has a line without a tab: expected FILE<tab>CLASS<tab>box")
    return [(os.path.join(annotations.parent, "images", row[0]), row[1]) for row in rows]


def _class_names(wnids: Sequence[str], words: Path) -> tuple[str, ...]:
    """The first word of each class from the file of words; its WordNet number if there is no such file or two classes
    share the word."""
    if not words.is_file():
        return tuple(wnids)
    lines = (line.split("\t") for line in words.read_text().splitlines())
    first = {row[0]: row[1].split(",")[0].strip() for row in lines if len(row) > 1}
    named = [first.get(wnid, wnid) for wnid in wnids]
    return tuple(name if named.count(name) == 1 else wnid for name, wnid in zip(named, wnids, strict=True))
