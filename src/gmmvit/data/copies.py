"""Finds the same picture in several places of a data set: a copy in the training part makes a test image too easy.

Letters: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

_ROWS = 1024
_FLAT = 4.0  # with a smaller standard deviation in grey levels, only exact copies count: too little is in the picture
_BITS, _LEVELS = 6, 2.0  # how far near copies may differ: bits of the 64-bit outline, and mean grey levels
_NEIGHBOURS = 4  # compared in the order of each quarter of the outline
_PARTS = ("test", "val", "train")


def find_copies(images: np.ndarray) -> np.ndarray:
    """For each image [N, C, H, W] the row of its first exact or near copy: int64 [N].

    Near copies are, for example, the same picture in another format or slightly larger: their outlines (the signs of
    differences between neighbouring cells, 64 bits, as in dHash) differ in a few bits and their grey levels little.
    """
    small, outline = _described(images)
    first = np.arange(len(images))
    codes = np.packbits(outline, axis=1)
    shown = small.std(1) >= _FLAT
    for quarter in range(4):
        # Near copies mostly agree in at least one quarter, and then are neighbours in its order.
        keys = np.roll(codes, -2 * quarter, axis=1)
        order = np.lexsort(keys.T[::-1])
        for step in range(1, _NEIGHBOURS + 1):
            one, other = order[:-step], order[step:]
            near = (outline[one] != outline[other]).sum(1) <= _BITS
            one, other = one[near], other[near]
            alike = np.abs(small[one] - small[other]).mean(1) <= _LEVELS
            alike &= (shown[one] & shown[other]) | _same(images, one, other)
            _join(first, one[alike], other[alike])
    return np.array([_root(first, row) for row in range(len(first))], dtype=np.int64)


def _described(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Grey thumbnails float32 [N, 64], and outlines bool [N, 64]."""
    small, outline = [], []
    for start in range(0, len(images), _ROWS):
        grey = torch.from_numpy(np.array(images[start : start + _ROWS])).float().mean(1, keepdim=True)
        grey = grey / 257 if images.dtype == np.uint16 else grey
        small.append(torch.nn.functional.adaptive_avg_pool2d(grey, 8).flatten(1).numpy())
        cells = torch.nn.functional.adaptive_avg_pool2d(grey, (8, 9))
        outline.append((cells[..., 1:] > cells[..., :-1]).flatten(1).numpy())
    return np.concatenate(small), np.concatenate(outline)


def _same(images: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.array([np.array_equal(images[i], images[j]) for i, j in zip(one, other, strict=True)], dtype=bool)


def _root(first: np.ndarray, row: int) -> int:
    while first[row] != row:
        first[row] = first[first[row]]
        row = first[row]
    return int(row)


def _join(first: np.ndarray, one: np.ndarray, other: np.ndarray) -> None:
    for i, j in zip(one.tolist(), other.tolist(), strict=True):
        a, b = sorted((_root(first, i), _root(first, j)))
        first[b] = a


def told_copies(
    groups: np.ndarray, rows: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str]
) -> list[str]:
    """Warnings about copies of training images in the other parts, and about copies with different classes."""
    lines = []
    train = {groups[row]: row for row in rows["train"].tolist()}
    for part in ("val", "test"):
        leaked = [row for row in rows.get(part, np.empty(0, np.int64)).tolist() if groups[row] in train]
        if leaked:
            seen = f"{names[leaked[0]]} is {names[train[groups[leaked[0]]]]}"
            lines.append(
                f"{len(leaked)} of {len(rows[part])} {part} images are copies of training images ({seen}), exact or "
                "near: scores on them are too good; --dedupe keeps copies in one part"
            )
    order = np.argsort(groups, kind="stable")
    differ = labels[order][1:] != labels[order][:-1]
    pairs = (groups[order][1:] == groups[order][:-1]) & (differ.any(1) if differ.ndim == 2 else differ)
    if pairs.any():
        at = int(np.flatnonzero(pairs)[0])
        lines.append(
            f"copies with different classes: {int(pairs.sum())}, such as {names[order[at + 1]]} and {names[order[at]]}"
        )
    return lines


def kept_together(groups: np.ndarray, rows: Mapping[str, np.ndarray], given: bool) -> dict[str, np.ndarray]:
    """The parts with all copies of a picture in one of them.

    Parts cut by us give held-out copies to the training part; `given` parts, on which others measure too, keep theirs,
    and the training part drops them.
    """
    order = [part for part in (_PARTS if given else _PARTS[::-1]) if part in rows]
    taken: dict[int, str] = {}
    for part in order:
        for row in rows[part].tolist():
            taken.setdefault(int(groups[row]), part)
    kept: dict[str, list[int]] = {part: [] for part in rows}
    for part, mine in rows.items():
        for row in mine.tolist():
            home = taken[int(groups[row])]
            if home == part or not given:
                kept[home].append(row)
    return {part: np.array(sorted(mine), dtype=np.int64) for part, mine in kept.items() if mine}
