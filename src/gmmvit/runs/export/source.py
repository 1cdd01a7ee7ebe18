"""The source of every format: the traced model with its normalisation, and the facts that programs need.

Shape letters: B batch, C channels, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gmmvit.runs.checkpoint import LoadedRun
from gmmvit.runs.files import RunError
from gmmvit.version import __version__

Precision = Literal["float32", "float16", "int8"]
Compute = Callable[[Tensor], Tensor]  # images [B, C, H, W] from 0 to 1 -> logits [B, classes]
DYNAMIC = {"images": {0: torch.export.Dim("batch")}}


@dataclass(frozen=True)
class Source:
    """A model to export.

    `facts` go into the file. `calibration` holds images [B, C, H, W] from 0 to 1 for the range of each value.
    """

    model: nn.Module
    name: str
    facts: dict[str, Any]
    example: Tensor
    precision: Precision = "float32"
    calibration: Tensor | None = None


@dataclass(frozen=True)
class Made:
    """The content of each file by suffix, main file first, and a function that runs them, None if no installed package
    can."""

    contents: dict[str, bytes]
    compute: Compute | None


class Normalised(nn.Module):
    """The model preceded by its run's normalisation."""

    mean: Tensor
    std: Tensor

    def __init__(self, run: LoadedRun) -> None:
        super().__init__()
        self.model = run.model
        self.register_buffer("mean", torch.tensor(run.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(run.std).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images - self.mean) / self.std)


def describe(run: LoadedRun, precision: Precision = "float32") -> dict[str, Any]:
    """The facts that a program needs to run the file."""
    return {
        "gmmvit": __version__,
        "model": run.recipe.model,
        "mask": run.recipe.mask,
        "precision": precision,
        "classes": list(run.classes),
        "image_size": list(run.image_size),
        "channels": run.channels,
        "bits": run.bits,
        "fit": run.fit,
        "input": "images: float32 [batch, channels, height, width], pixels from 0 to 1, not normalised",
        "output": f"logits: float32 [batch, classes], {run.task.reading}",
        "task": run.task.name,
    }


def noise(run: LoadedRun, count: int) -> Tensor:
    """`count` images of noise, from 0 to 1."""
    return torch.rand(count, run.channels, *run.image_size, generator=torch.Generator().manual_seed(count))


def traced(source: Source) -> torch.export.ExportedProgram:
    """The model as a program for any batch size; raises RunError if torch.export cannot trace it."""
    try:
        with torch.no_grad():
            return torch.export.export(source.model, (source.example,), dynamic_shapes=DYNAMIC)
    except Exception as error:  # the tracer may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{source.name} cannot be exported by torch.export: {reason}") from error
