"""A trained model as one file for other programs: ONNX, or a program of torch.export.

It takes images float32 [batch, channels, height, width] from 0 to 1, of the run's size, and returns logits [batch,
classes]; the normalisation is inside. The file names classes and image size: in the metadata of ONNX, and in the
extra file `gmmvit.json` of torch.
"""

import importlib
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gmmvit.runs.checkpoint import LoadedRun, load_run
from gmmvit.runs.claim import own_if_run
from gmmvit.runs.files import RunError, check_new, replace_file
from gmmvit.runs.run_folder import EXPORTS
from gmmvit.version import __version__

TOLERANCE = 1e-4  # of the logits, of their largest where that is above 1
EXTRA_FILE = "gmmvit.json"
_DYNAMIC = {"images": {0: torch.export.Dim("batch")}}


class _Normalised(nn.Module):
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


def export_run(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    format: str = "onnx",
    weights: str = "best",
    overwrite: bool = False,
) -> tuple[Path, float | None]:
    """Writes the model of a run as one file, after checking that it computes what the model computes.

    Args:
        folder: run folder.
        out: the file; model.onnx or model.pt2 in the run's folder by default.
        format: "onnx" (needs onnx and onnxscript; checked where onnxruntime is installed) or "torch" (torch.export).
        weights: "best" on validation, or "last".
        overwrite: replace a file that is there.

    Returns:
        The path, and the largest difference of the logits from the model's; None where nothing could check it.

    Raises:
        RunError: the folder is no run, the file exists or cannot be written, or the model cannot be exported or comes
            out different, and then nothing is written. ModuleNotFoundError: onnx or onnxscript is not installed.
    """
    if format not in EXPORTS:
        raise ValueError(f"format must be one of {list(EXPORTS)}, got {format!r}")
    run = load_run(folder, weights=weights)
    path = Path(folder) / EXPORTS[format] if out is None else Path(out)
    if path.is_dir():
        path = path / EXPORTS[format]
    check_new(path, overwrite)
    write = _onnx if format == "onnx" else _torch
    model = _Normalised(run).eval()
    content, compute = write(model, _example(run, 2), describe(run), run.recipe.model)
    difference = None if compute is None else _difference(model, compute, run)
    if difference is not None and not difference <= TOLERANCE:
        raise RunError(
            f"the exported model's logits differ from the model's by {difference:.1e} (allowed {TOLERANCE:g}): "
            f"{path} is not written"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    own_if_run(path)
    replace_file(path, lambda file: file.write(content))
    return path, difference


def describe(run: LoadedRun) -> dict[str, Any]:
    """What a program that runs the file has to know."""
    return {
        "gmmvit": __version__,
        "model": run.recipe.model,
        "mask": run.recipe.mask,
        "classes": list(run.classes),
        "image_size": list(run.image_size),
        "channels": run.channels,
        "fit": run.fit,
        "input": "images: float32 [batch, channels, height, width], pixels from 0 to 1, not normalised",
        "output": "logits: float32 [batch, classes]",
    }


def _example(run: LoadedRun, count: int) -> Tensor:
    """Noise for images."""
    return torch.rand(count, run.channels, *run.image_size, generator=torch.Generator().manual_seed(count))


@torch.no_grad()
def _difference(model: nn.Module, compute: Callable[[Tensor], Tensor], run: LoadedRun) -> float:
    """The largest difference of logits, on batches of other sizes than the export saw; as a part of the largest logit
    where that is above 1."""
    worst = 0.0
    for count in (1, 5):
        images = _example(run, count)
        expected = model(images)
        error = (compute(images) - expected).abs().max() / expected.abs().max().clamp_min(1)
        worst = max(worst, error.nan_to_num(float("inf")).item())
    return worst


def _program(model: nn.Module, images: Tensor, name: str) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad():
            return torch.export.export(model, (images,), dynamic_shapes=_DYNAMIC)
    except Exception as error:  # of the tracer, about code of any library
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{name} cannot be exported by torch.export: {reason}") from error


def _torch(
    model: nn.Module, images: Tensor, told: dict[str, Any], name: str
) -> tuple[bytes, Callable[[Tensor], Tensor] | None]:
    file = io.BytesIO()
    torch.export.save(_program(model, images, name), file, extra_files={EXTRA_FILE: json.dumps(told)})
    content = file.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module()


def _onnx(
    model: nn.Module, images: Tensor, told: dict[str, Any], name: str
) -> tuple[bytes, Callable[[Tensor], Tensor] | None]:
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"--format onnx needs {package}; install it: pip install onnx onnxscript onnxruntime"
            ) from error
    program = _program(model, images, name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": _DYNAMIC}
            exported = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except Exception as error:
        raise RunError(f"{name} cannot be exported to ONNX: {str(error).strip().splitlines()[0]}") from error
    assert exported is not None
    exported.model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in told.items()})
    content: bytes = exported.model_proto.SerializeToString()
    return content, _onnxruntime(content)


def _onnxruntime(content: bytes) -> Callable[[Tensor], Tensor] | None:
    """What onnxruntime computes; None where it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
