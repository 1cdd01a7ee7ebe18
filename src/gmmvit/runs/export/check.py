"""How well an exported file answers: on the run's own images, beside the model in float32."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gmmvit.data import Dataset, Split
from gmmvit.runs.checkpoint import LoadedRun
from gmmvit.runs.evaluate import check_unchanged, part_of
from gmmvit.runs.export.source import Compute
from gmmvit.runs.files import RunError

CALIBRATION_IMAGES = 256
_BATCH = 64


class Check(NamedTuple):
    """Images of a part of the data, how many of them the model and the file get right, and the largest difference of
    their logits."""

    part: str
    images: int
    before: int
    after: int
    difference: float

    @property
    def drop(self) -> float:
        """The fall of top-1, as a fraction; negative where the file is better."""
        return (self.before - self.after) / self.images


class Comparison(NamedTuple):
    """The largest difference of logits, and of how many images the class stays, out of how many."""

    difference: float
    same: int
    images: int


@torch.no_grad()
def measure(run: LoadedRun, data: Dataset, compute: Compute, part: str | None) -> Check:
    """The top-1 of the model and of the file; of the test part, or without one of the validation part, where `part` is
    None. Raises RunError where there is no such part, or it was learned."""
    name, split = _chosen(run, data, part)
    labels = split.labels.cpu()
    before, after, worst = 0, 0, 0.0
    for images, truth in zip(split.images.split(_BATCH), labels.split(_BATCH), strict=True):
        expected, got = run.logits(images), compute(images.cpu().float() / 255)
        before += int((expected.argmax(1) == truth).sum())
        after += int((got.argmax(1) == truth).sum())
        worst = max(worst, _largest(got - expected))
    return Check(name, len(split), before, after, worst)


@torch.no_grad()
def compare(model: torch.nn.Module, compute: Compute, batches: list[Tensor]) -> Comparison:
    """The model and the file on images from 0 to 1; the difference as a part of the largest logit where that is above
    1, infinite for what is no number."""
    worst, same = 0.0, 0
    for images in batches:
        expected, got = model(images), compute(images)
        worst = max(worst, _largest(got - expected) / max(1.0, expected.abs().max().item()))
        same += int((got.argmax(1) == expected.argmax(1)).sum())
    return Comparison(worst, same, sum(map(len, batches)))


def _largest(difference: Tensor) -> float:
    return difference.abs().max().nan_to_num(float("inf")).item()


def _chosen(run: LoadedRun, data: Dataset, part: str | None) -> tuple[str, Split]:
    """The part to measure on, and its name."""
    name = part or ("val" if data.test is None or not len(data.test) else "test")
    if run.recipe.folds and not run.recipe.fold and (name != "test" or data.test is None):
        raise RunError(
            f"{run.folder} has learned every image of {data.name} in one of its folds, so no image is left to check "
            "the file on; what the folds measured stands in folds.csv"
        )
    return name, part_of(run, data, name)


def calibration_images(run: LoadedRun, data: Dataset) -> Tensor:
    """Some images of the validation part, drawn by a seed: float32 [B, C, H, W] from 0 to 1.

    Raises RunError where the run has no such part, or another one than in training.
    """
    if data.val is None or not len(data.val):
        raise RunError(
            f"int8 is calibrated on validation images, and {data.name} has no val part in this run: export float32 or "
            "float16"
        )
    check_unchanged(run, data, "val")
    order = torch.randperm(len(data.val), generator=torch.Generator().manual_seed(0))[:CALIBRATION_IMAGES]
    return data.val.images[order].cpu().float() / 255


def as_json(check: Check) -> dict[str, Any]:
    """The figures of a check under their names."""
    return check._asdict() | {"top1_before": check.before / check.images, "top1_after": check.after / check.images}
