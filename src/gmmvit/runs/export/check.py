"""Compares an exported file with the float32 model on the run's own images."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmvit.augment import from_0_to_1, take_rows
from gmmvit.data import Dataset, Split
from gmmvit.runs.checkpoint import LoadedRun
from gmmvit.runs.evaluate import check_unchanged, part_of
from gmmvit.runs.export.source import Compute
from gmmvit.runs.files import RunError
from gmmvit.tasks import ONE_LABEL, Task

CALIBRATION_IMAGES = 256
_BATCH = 64


class Check(NamedTuple):
    """Images of a part, how many of them the model and the file get right, the largest difference of their logits, and
    the metric that judges them with its values as fractions."""

    part: str
    images: int
    before: int
    after: int
    difference: float
    metric: str
    values: tuple[float, float]

    @property
    def drop(self) -> float:
        """The fall of the metric as a fraction; negative if the file is better."""
        return self.values[0] - self.values[1]


class Comparison(NamedTuple):
    """The largest difference of logits, and how many of how many images keep their prediction."""

    difference: float
    same: int
    images: int


@torch.no_grad()
def measure(run: LoadedRun, data: Dataset, compute: Compute, part: str | None) -> Check:
    """Measures model and file by top-1, or by mAP if an image may have several labels. `part` None takes the test part,
    or the validation part if there is no test part. Raises RunError if the part does not exist or was used in
    training."""
    name, split = _chosen(run, data, part)
    labels = split.labels.cpu()
    batches = split.images.split(_BATCH)
    expected = torch.cat([run.logits(images) for images in batches])
    got = torch.cat([compute(from_0_to_1(images.cpu())) for images in batches])
    before, after = (int(run.task.right(logits, labels).sum()) for logits in (expected, got))
    main = run.task.main
    model, file = (run.task.metric_values(logits, labels)[main] for logits in (expected, got))
    return Check(name, len(split), before, after, _largest(got - expected), main, (model, file))


@torch.no_grad()
def compare(model: torch.nn.Module, compute: Compute, batches: list[Tensor], task: Task = ONE_LABEL) -> Comparison:
    """Compares model and file on images from 0 to 1. The difference is relative to the largest logit if that exceeds 1,
    and infinite for NaN."""
    worst, same = 0.0, 0
    for images in batches:
        expected, got = model(images), compute(images)
        worst = max(worst, _largest(got - expected) / max(1.0, expected.abs().max().item()))
        same += int(task.same(task.answers(got), task.answers(expected)).sum())
    return Comparison(worst, same, sum(map(len, batches)))


def _largest(difference: Tensor) -> float:
    return difference.abs().max().nan_to_num(float("inf")).item()


def _chosen(run: LoadedRun, data: Dataset, part: str | None) -> tuple[str, Split]:
    """The part to measure on, and its name."""
    name = part or ("val" if data.test is None or not len(data.test) else "test")
    if run.recipe.folds and not run.recipe.fold and (name != "test" or data.test is None):
        raise RunError(
            f"{run.folder} was trained on every image of {data.name} in one of its folds, so no image is left to check "
            "the file on; the results of the folds are in folds.csv"
        )
    return name, part_of(run, data, name)


def calibration_images(run: LoadedRun, data: Dataset) -> Tensor:
    """Some validation images, drawn with a fixed seed: float32 [B, C, H, W] from 0 to 1.

    Raises RunError if the run has no validation part or it differs from that of the training.
    """
    if data.val is None or not len(data.val):
        raise RunError(
            f"int8 is calibrated on validation images, and {data.name} has no val part in this run: export float32 or "
            "float16"
        )
    check_unchanged(run, data, "val")
    order = torch.randperm(len(data.val), generator=torch.Generator().manual_seed(0))[:CALIBRATION_IMAGES]
    return from_0_to_1(take_rows(data.val.images, order).cpu())


def as_json(check: Check) -> dict[str, Any]:
    """The figures of a check by name."""
    known = {name: value for name, value in check._asdict().items() if name != "values"}
    before, after = check.values
    return known | {f"{check.metric}_before": before, f"{check.metric}_after": after}
