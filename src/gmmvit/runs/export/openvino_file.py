"""A run's model for OpenVINO, converted from ONNX."""

import dataclasses
import io
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from gmmvit.runs.export.onnx_file import onnx_bytes
from gmmvit.runs.export.source import Compute, Made, Precision, Source

_TELEMETRY = "openvino_telemetry"


def make(source: Source) -> Made:
    """An .xml file and its .bin of weights; section `framework` of its runtime information holds the facts.

    float16 halves the weights; the device chooses the precision of its computation. Raises as `onnx_bytes`.
    """
    openvino = _openvino()
    precision: Precision = "int8" if source.precision == "int8" else "float32"
    content = onnx_bytes(dataclasses.replace(source, precision=precision))
    model = openvino.Core().read_model(io.BytesIO(content))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=source.precision == "float16")
        contents = {".xml": path.read_bytes(), ".bin": path.with_suffix(".bin").read_bytes()}
    return Made(contents, _compiled(openvino, contents))


def _compiled(openvino: Any, contents: dict[str, bytes]) -> Compute:
    """A function that runs the file in OpenVINO on the CPU, in float32 unless the file is int8: OpenVINO itself may
    choose less."""
    core = openvino.Core()
    model = core.read_model(contents[".xml"], contents[".bin"])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


def _openvino() -> Any:
    """The package, imported without telemetry: by default the import sends an event to its makers."""
    try:
        with _without(_TELEMETRY):
            import openvino
            import openvino.tools.ovc
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--format openvino needs openvino; install it: pip install openvino") from error
    return openvino


@contextmanager
def _without(package: str) -> Iterator[None]:
    """Within this context, imports see `package` as not installed."""
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before
