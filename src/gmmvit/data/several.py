"""Labels as numbers: int64 `[N]`, one per image, or uint8 `[N, K]` with 1 for each of K classes that the image has.

These functions take both kinds, so that callers need not know which one they have.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch

Array = TypeVar("Array", np.ndarray, torch.Tensor)
SEPARATORS = ("|", ";", ",")  # between labels in a table cell
NO_LABEL = "no label"


def multi_hot(rows: Sequence[Iterable[int]], classes: int) -> np.ndarray:
    """uint8 `[N, classes]` from the numbers of each image's labels."""
    labels = np.zeros((len(rows), classes), dtype=np.uint8)
    for row, numbers in zip(labels, rows, strict=True):
        row[list(numbers)] = 1
    return labels


def class_counts(labels: np.ndarray | torch.Tensor, classes: int) -> np.ndarray:
    """How many images have each class, int64 `[classes]`."""
    labels = np.asarray(labels.cpu()) if isinstance(labels, torch.Tensor) else labels
    return labels.sum(0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels, minlength=classes)


def has_class(labels: Array, number: int) -> Array:
    """Which images have a class, bool `[N]`."""
    return labels[:, number] > 0 if labels.ndim == 2 else labels == number


def numbers_of(label: np.ndarray | np.generic | torch.Tensor) -> tuple[int, ...]:
    """The numbers of one image's classes, from a label on the CPU."""
    return tuple(np.flatnonzero(np.asarray(label)).tolist()) if label.ndim else (int(label),)


def words_of(label: np.ndarray | np.generic | torch.Tensor, classes: Sequence[str]) -> str:
    """The names of one image's classes, separated by commas; `NO_LABEL` if it has none."""
    return ", ".join(classes[number] for number in numbers_of(label)) or NO_LABEL


def cell_of(names: Sequence[str]) -> str:
    """Labels as a table cell for `read_table`: separated by |, or a JSON list if a name contains a separator."""
    plain = not any(mark in name for name in names for mark in (*SEPARATORS, "["))
    return "|".join(names) if plain else json.dumps(list(names), ensure_ascii=False)
