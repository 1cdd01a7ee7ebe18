"""Deals images with several labels to subsets, each with its share of every label.

Letters: N images, K classes, S subsets, U units that stay together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def deal(
    labels: np.ndarray, shares: Sequence[float], seed: int | Sequence[int], groups: np.ndarray | None = None
) -> np.ndarray:
    """The subset of each image, int64 `[N]`, by iterative stratification (Sechidis et al., 2011): the label with the
    fewest images left comes first, and each of these goes where that label is wanted most. Images without a label come
    last and even out the sizes. The result is the same on every machine.

    Args:
        labels: uint8 `[N, K]`.
        shares: of the subsets, with sum 1.
        seed: for `numpy.random.RandomState`.
        groups: int64 `[N]`, equal for images that stay together.
    """
    units = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(units)
    counts = np.zeros((len(sizes), labels.shape[1]), dtype=np.int64)  # [U, K]
    np.add.at(counts, units, labels)
    wanted, room = np.outer(shares, counts.sum(0)), np.multiply(shares, len(labels))  # [S, K], [S]
    order = np.random.RandomState(seed).permutation(len(sizes))
    home = np.full(len(sizes), -1, dtype=np.int64)
    while len(left := order[home[order] < 0]):
        remaining = (counts[left] > 0).sum(0)
        label = int(np.argmin(np.where(remaining > 0, remaining, len(left) + 1)))
        for unit in left[counts[left, label] > 0] if remaining.any() else left:
            asked = wanted[:, label] if remaining.any() else room
            home[unit] = np.lexsort((-room, -asked))[0]
            wanted[home[unit]] -= counts[unit]
            room[home[unit]] -= sizes[unit]
    return home[units]
