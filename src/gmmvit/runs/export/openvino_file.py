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
    """An .xml file and its .bin of weights; the section `framework` of its runtime information says what it is.

    In float16 the weights are halved; a device computes in the precision that it is asked for. Raises as `onnx_bytes`.
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
    """What OpenVINO computes on the CPU, in float32 where the file does not say int8: its own choice can be less."""
    core = openvino.Core()
    model = core.read_model(contents[".xml"], contents[".bin"])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


def _openvino() -> Any:
    """The package, loaded so that it reports nothing to its makers: by itself it sends an event when it is imported."""
    try:
        with _without(_TELEMETRY):
            import openvino
            import openvino.tools.ovc
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("--format openvino needs openvino; install it: pip install openvino") from error
    return openvino


@contextmanager
def _without(package: str) -> Iterator[None]:
    """A package that is loaded inside finds `package` not installed."""
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before
