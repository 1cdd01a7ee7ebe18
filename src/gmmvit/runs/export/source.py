"""What every format is made from: the model with its normalisation inside, traced, and what programs have to know.

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
    """A model on its way into a file.

    `facts` goes into the file. `calibration` holds images [B, C, H, W] from 0 to 1 that show the range of each value.
    """

    model: nn.Module
    name: str
    facts: dict[str, Any]
    example: Tensor
    precision: Precision = "float32"
    calibration: Tensor | None = None


@dataclass(frozen=True)
class Made:
    """The content of each file by the ending of its name, the main one first, and what they compute; None where nothing
    is installed that could run them."""

    contents: dict[str, bytes]
    compute: Compute | None


class Normalised(nn.Module):
    """The model behind the normalisation of its run."""

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
    """What a program that runs the file has to know."""
    return {
        "gmmvit": __version__,
        "model": run.recipe.model,
        "mask": run.recipe.mask,
        "precision": precision,
        "classes": list(run.classes),
        "image_size": list(run.image_size),
        "channels": run.channels,
        "fit": run.fit,
        "input": "images: float32 [batch, channels, height, width], pixels from 0 to 1, not normalised",
        "output": "logits: float32 [batch, classes]",
    }


def noise(run: LoadedRun, count: int) -> Tensor:
    """So many images of noise, from 0 to 1."""
    return torch.rand(count, run.channels, *run.image_size, generator=torch.Generator().manual_seed(count))


def traced(source: Source) -> torch.export.ExportedProgram:
    """The model as a program that takes batches of any size; RunError where torch.export cannot trace it."""
    try:
        with torch.no_grad():
            return torch.export.export(source.model, (source.example,), dynamic_shapes=DYNAMIC)
    except Exception as error:  # of the tracer, about code of any library
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{source.name} cannot be exported by torch.export: {reason}") from error
