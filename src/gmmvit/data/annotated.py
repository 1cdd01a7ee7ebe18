"""Recognises images that lie beside masks, boxes or notes instead of in classes, by the names of the folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gmmvit.data.parts import other_words, part_of
from gmmvit.data.records import DataError, listing
from gmmvit.data.walk import holds_images, visible_folders

_PICTURES = frozenset(
    """data dataset frames image images img imgs input inputs jpeg jpegs jpg original originals photo photos picture
    pictures raw rgb set""".split()  # noqa: SIM905
)
_MARKS = frozenset(
    """anno annos annot annotation annotations annots bbox bboxes depth depths groundtruth gt label labels mask masks
    seg segmentation segmentations target targets trimap trimaps truth""".split()  # noqa: SIM905
)
_WITH_MARKS = frozenset("binary class color colored ground instance instances object objects semantic".split())  # noqa: SIM905


def check_not_annotated(root: Path) -> None:
    """Raises DataError if the folders of `root` are pictures on one side and what belongs to them on the other, such as
    `images` and `masks`, unless a folder of another name holds images too: then all are classes."""
    folders = visible_folders(root)
    marks = [folder for folder in folders if _are_marks(folder.name)]
    pictures = [folder for folder in folders if _are_pictures(folder.name)]
    others = [folder for folder in folders if folder not in marks and folder not in pictures]
    if not marks or not pictures or any(holds_images(folder) for folder in others):
        return
    right = (
        f"put each class into a folder of its own ({root}/CLASS/*.jpg), or list the images with their classes in "
        f"{root / 'metadata.csv'}"
    )
    for folder in pictures:
        inside = visible_folders(folder)
        if inside and all(part_of(sub.name) is None or visible_folders(sub) for sub in inside):
            right = f"give folder:{folder} if it holds the class folders"
    raise DataError(
        f"{root} holds {_names(pictures)} beside {_names(marks)}, as data for segmentation or detection do, and "
        f"no classes: {right}"
    )


def _are_pictures(name: str) -> bool:
    words = set(other_words(name))
    return words <= _PICTURES and bool(words or part_of(name))


def _are_marks(name: str) -> bool:
    words = set(other_words(name))
    return bool(words & _MARKS) and words <= _MARKS | _WITH_MARKS | _PICTURES


def _names(folders: Sequence[Path]) -> str:
    return listing([folder.name for folder in folders])
