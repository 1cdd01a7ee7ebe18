"""Cross-validation: which images a fold measures, and which it trains on."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from gmmvit.data.records import DataError, listing
from gmmvit.data.several import class_counts
from gmmvit.data.stratify import deal
from gmmvit.text import short


def check_folds(folds: int | None, fold: int | None) -> None:
    """Raise ValueError unless both are None, or `folds` is at least 2 and `fold` is None or one of 1..folds."""
    for name, value in (("folds", folds), ("fold", fold)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{name} must be a whole number, got {short(value)}")
    if folds is not None and folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    if fold is not None and (folds is None or not 1 <= fold <= folds):
        raise ValueError(f"fold must be one of 1 to folds, got {fold} of {folds}")


def measured_by(
    fold: int, folds: int, labels: np.ndarray, groups: np.ndarray | None, classes: Sequence[str], seed: int
) -> np.ndarray:
    """Which images a fold measures, bool `[N]`: each image is in one of `folds`, which share every class evenly.

    Args:
        fold: 1..folds.
        labels: int64 `[N]`, or uint8 `[N, K]`, spread as evenly as `deal` can.
        groups: int64 `[N]`, equal for copies of a picture, which stay in one fold; None if copies do not matter.
        classes: class names, for the errors.
        seed: decides the folds.

    Raises:
        DataError: a class has fewer images than there are folds, or only copies of one picture.
    """
    counts = class_counts(labels, len(classes))
    few = [f"{name!r} ({count})" for name, count in zip(classes, counts, strict=True) if count < folds]
    if few:
        raise DataError(
            f"{folds} folds need at least {folds} images of every class, and there are fewer of {listing(few)}: add "
            "images, remove the class, or take fewer --folds"
        )
    if labels.ndim == 2:
        held = deal(labels, (1 / folds,) * folds, seed % 2**32, groups) == fold - 1
    else:
        held = _of_one_label(fold, folds, labels, groups, seed)
    missing = np.flatnonzero((counts > 0) & (class_counts(labels[~held], len(classes)) == 0))
    if len(missing):
        names = listing([repr(classes[label]) for label in missing.tolist()])
        raise DataError(
            f"class {names} is not in the training part of fold {fold}: all of its images are copies of one picture; "
            "add images, or drop --dedupe"
        )
    return held


def _of_one_label(fold: int, folds: int, labels: np.ndarray, groups: np.ndarray | None, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    options = {"n_splits": folds, "shuffle": True, "random_state": seed % 2**32}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about classes with fewer groups than folds
        if groups is None:
            splits = StratifiedKFold(**options).split(labels, labels)
        else:
            splits = StratifiedGroupKFold(**options).split(labels, labels, groups)
        _, measured = list(splits)[fold - 1]
    held = np.zeros(len(labels), dtype=bool)
    held[measured] = True
    return held
