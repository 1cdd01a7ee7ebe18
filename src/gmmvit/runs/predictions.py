"""A model's predictions for images, and their CSV file. Letters: N images, K classes."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from torch import Tensor

from gmmvit.checks import integer
from gmmvit.data.several import cell_of
from gmmvit.runs.files import RunError, check_new, naming_faults, replace_file
from gmmvit.text import short, shown

UNKNOWN = "unknown"  # predicted for images of no known class


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions for N images.

    Attributes:
        classes: the names of the model's K classes.
        probabilities: float32 [N, K] on the CPU, in the order of `classes`; rows sum to 1, except with several labels.
        unknown_below: an image whose highest probability is below it is "unknown"; None: never.
        threshold: with several labels an image, the least probability of a predicted label; None: one label an image.

    Raises:
        TypeError: `classes` or `probabilities` are of another kind.
        ValueError: there are no classes, or not K of them; `unknown_below` is not above 0 and at most 1, the model
            has a class "unknown", or images may have several labels.
    """

    classes: tuple[str, ...]
    probabilities: Tensor
    unknown_below: float | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        words = isinstance(self.classes, Sequence) and all(isinstance(name, str) for name in self.classes)
        if isinstance(self.classes, str) or not words:
            raise TypeError(f"classes must be the names of the classes, got {short(self.classes)}")
        if not isinstance(self.probabilities, Tensor) or not self.probabilities.is_floating_point():
            raise TypeError(f"probabilities must be a tensor of floats [N, K], got {short(self.probabilities)}")
        if not self.classes or self.probabilities.shape[1:] != (len(self.classes),):
            raise ValueError(
                f"probabilities must have a column for each of {len(self.classes)} classes and there must be some, "
                f"got {list(self.probabilities.shape)}"
            )
        limit = self.unknown_below
        if limit is None:
            return
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 < limit <= 1:
            raise ValueError(f"unknown_below must be a number above 0 and at most 1, got {short(limit)}")
        if self.threshold is not None:
            raise ValueError(
                "unknown_below needs one label an image: with several, an image has none of the labels if no "
                "probability reaches the threshold"
            )
        if UNKNOWN in self.classes:
            raise ValueError(
                f"the model has a class {UNKNOWN!r} of its own, so the answer would be ambiguous: omit "
                "--unknown-below (in Python unknown_below=)"
            )

    def __len__(self) -> int:
        return len(self.probabilities)

    @property
    def confidence(self) -> Tensor:
        """The highest probability of each image, float32 [N]."""
        return self.probabilities.amax(1)

    @property
    def predicted(self) -> list[str] | list[list[str]]:
        """The likeliest class of each image, or "unknown" if its probability is below `unknown_below`; with several
        labels an image, its labels, the likeliest first."""
        if self.threshold is not None:
            return [[name for name, p in likely if p >= self.threshold] for likely in self.top(len(self.classes))]
        limit = self.unknown_below or 0
        likeliest = zip(self.confidence.tolist(), self.probabilities.argmax(1).tolist(), strict=True)
        return [UNKNOWN if sure < limit else self.classes[index] for sure, index in likeliest]

    @property
    def cells(self) -> list[str]:
        """`predicted` as cells of a table."""
        return [answer if isinstance(answer, str) else cell_of(answer) for answer in self.predicted]

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """The k likeliest classes of each image with their probabilities, likeliest first; all K if k is larger."""
        integer("k", k)
        found = self.probabilities.topk(min(k, len(self.classes)))
        return [
            [(self.classes[i], p) for p, i in zip(values, indices, strict=True)]
            for values, indices in zip(found.values.tolist(), found.indices.tolist(), strict=True)
        ]


def check_csv(path: str | Path, overwrite: bool) -> None:
    """Raises RunError if the CSV cannot be written, before any work is done."""
    with naming_faults(Path(path), "write"):
        is_folder = Path(path).is_dir()
    if is_folder:
        raise RunError(f"{path} is a folder; give a file with --csv (in Python csv=)")
    check_new(Path(path), overwrite, "--csv")


def write_csv(
    path: str | Path, files: Sequence[str], predictions: Predictions, true: Sequence[str] | None = None
) -> None:
    """Writes one row per image as UTF-8, atomically.

    Columns: `file`, `true` if classes are given, `predicted`, and `p_CLASS` for each class. Several labels share a
    cell, as `cell_of` writes them. Unprintable characters in file names become `\\xNN`.
    """
    known = [] if true is None else [true]
    header = ["file", *(["true"] if known else []), "predicted", *(f"p_{name}" for name in predictions.classes)]

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        columns = [list(map(shown, files)), *known, predictions.cells]
        for *words, row in zip(*columns, predictions.probabilities.tolist(), strict=True):
            writer.writerow([*words, *(f"{value:.6g}" for value in row)])
        text.flush()
        text.detach()

    with naming_faults(Path(path), "write"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace_file(Path(path), write)
