"""Chooses the images held out for validation and test, stratified and seeded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from gmmvit.data.records import DataError, listing
from gmmvit.data.several import class_counts, has_class
from gmmvit.data.stratify import deal
from gmmvit.text import short

# Independent random streams, so that the validation cut does not depend on whether a test cut came before it.
_TEST_STREAM, _VAL_STREAM = 1, 2


def check_fraction(name: str, value: float) -> None:
    """Raise ValueError unless 0 <= value < 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {short(value)}")


def check_seed(value: int) -> None:
    """Raise ValueError unless the seed is a whole number in 0..2**63-1."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ValueError(f"split_seed must be a whole number from 0 to {2**63 - 1}, got {short(value)}")


def hold_out(labels: np.ndarray, fraction: float, seed: int | Sequence[int]) -> np.ndarray:
    """Choose `ceil(fraction * N)` of N images, from every class the same share to within one image.

    Every class keeps at least one image that is not chosen, so classes of one or two images can make the total smaller.
    With several labels per image, number and shares are as close as `deal` gets.

    Args:
        labels: int64 `[N]`, or uint8 `[N, K]`.
        fraction: at least 0 and below 1.
        seed: whole numbers in 0..2**32-1; the same seed gives the same choice on every machine and numpy version.

    Returns:
        bool `[N]`, True for the images held out.
    """
    wanted = math.ceil(fraction * len(labels) - 1e-9)
    if labels.ndim == 2:
        return _hold_out_of_several(labels, wanted, seed)
    # RandomState's stream is frozen by numpy's policy; Generator's is not.
    random = np.random.RandomState(seed)
    values, counts = np.unique(labels, return_counts=True)
    shares = fraction * counts
    quotas = np.minimum(np.floor(shares + 1e-9).astype(np.int64), counts - 1)
    # Classes with the largest remainders get what rounding down left over.
    for index in np.argsort(quotas - shares, kind="stable"):
        if quotas.sum() >= wanted:
            break
        quotas[index] = min(quotas[index] + 1, counts[index] - 1)
    held = np.zeros(len(labels), dtype=bool)
    for value, quota in zip(values, quotas, strict=True):
        members = np.flatnonzero(labels == value)
        held[random.permutation(members)[:quota]] = True
    return held


def _hold_out_of_several(labels: np.ndarray, wanted: int, seed: int | Sequence[int]) -> np.ndarray:
    part = wanted / max(1, len(labels))
    held = deal(labels, (part, 1 - part), seed) == 0
    for number in range(labels.shape[1]):
        mine = np.flatnonzero(has_class(labels, number))
        if len(mine) and held[mine].all():
            held[mine[0]] = False
    return held


def choose_parts(
    labels: Mapping[str, np.ndarray],
    classes: Sequence[str],
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    per_class: int | None = None,
) -> dict[str, tuple[str, np.ndarray]]:
    """Decide which images make up `train`, `val` and `test`.

    Given parts stay as they are. With neither `val` nor `test`, `test_fraction` first cuts the test part; without
    `val`, `val_fraction` then cuts the validation part from the rest. With `per_class`, training and validation get
    only the first `per_class` images of each class, or all if there are fewer.

    Args:
        labels: the labels of each given part, int64 `[N]` or uint8 `[N, K]`; the keys are `all`, or `train` with or
            without `val`, `test`.
        classes: class names, for the errors.

    Returns:
        For every resulting part, the given part that it comes from and the sorted indices in it, int64.

    Raises:
        DataError: a class has no image for training, or too few to split; or `per_class` with several labels.
    """
    origin = "all" if "all" in labels else "train"
    pool = labels[origin]
    cuts = [
        ("test", test_fraction, _TEST_STREAM, "val" not in labels and "test" not in labels),
        ("val", val_fraction, _VAL_STREAM, "val" not in labels),
    ]
    cuts = [cut for cut in cuts if cut[3] and cut[1] > 0]
    _check_counts(pool, classes, split=bool(cuts))
    left = np.arange(len(pool))
    chosen = {name: (name, np.arange(len(part))) for name, part in labels.items() if name != origin}
    for name, fraction, stream, _ in cuts:
        if name == "val":
            left = first_of_each(pool, left, per_class)
        held = hold_out(pool[left], fraction, (*_words(seed), stream))
        chosen[name], left = (origin, left[held]), left[~held]
    left = first_of_each(pool, left, per_class)
    chosen["train"] = (origin, left)
    return {name: part for name, part in chosen.items() if len(part[1])}


def _words(seed: int) -> tuple[int, ...]:
    """The seed in 32-bit words, as numpy takes it."""
    return (seed,) if seed < 2**32 else (seed % 2**32, seed // 2**32)


def cut_validation(labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The images held out for validation, bool `[N]`, chosen as in `choose_parts`."""
    return hold_out(labels, fraction, (*_words(seed), _VAL_STREAM))


def first_of_each(labels: np.ndarray, rows: np.ndarray, per_class: int | None) -> np.ndarray:
    """The first `per_class` of `rows` in each class, still in order; None keeps all.

    Raises:
        DataError: images have several labels.
    """
    if per_class is None:
        return rows
    if labels.ndim == 2:
        raise DataError(
            "train_per_class takes the first images of each class, and here an image may have several labels: drop it, "
            "or list fewer images in the table"
        )
    of_class = labels[rows]
    return np.sort(np.concatenate([rows[of_class == label][:per_class] for label in np.unique(of_class)]))


def check_per_class(value: int | None) -> None:
    """Raise ValueError unless it is None or a whole number of at least 1."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(
            f"train_per_class must be a whole number of at least 1, or None for all images, got {short(value)}"
        )


def _check_counts(pool: np.ndarray, classes: Sequence[str], *, split: bool) -> None:
    counts = class_counts(pool, len(classes))
    missing = [repr(name) for name, count in zip(classes, counts, strict=True) if count == 0]
    if missing:
        raise DataError(f"no readable training image in class {listing(missing)}: add images or remove the class")
    single = [repr(name) for name, count in zip(classes, counts, strict=True) if count == 1]
    if single and split and pool.ndim == 1:
        raise DataError(
            f"too few images to split class {listing(single)}: each has one and needs at least two; "
            "add images, remove the class, or set val_fraction and test_fraction to 0"
        )
