"""A run's model as ONNX, in float32 or smaller."""

import importlib
import json
import warnings
from typing import Any

import torch

from gmmvit.runs.export.source import DYNAMIC, Compute, Made, Source, traced
from gmmvit.runs.files import RunError

_INSTALL = "install it: pip install onnx onnxscript onnxruntime"


def make(source: Source) -> Made:
    """An .onnx file with its facts in the metadata (lists as JSON)."""
    content = onnx_bytes(source)
    return Made({".onnx": content}, session(content))


def onnx_bytes(source: Source) -> bytes:
    """The model as ONNX in the precision of the source.

    Raises:
        ModuleNotFoundError: onnx or onnxscript is not installed, or onnxruntime if the precision needs it.
        RunError: the exporter cannot express the model.
    """
    packages = ("onnx", "onnxscript") if source.precision == "float32" else ("onnx", "onnxscript", "onnxruntime")
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            what = "--format onnx" if package != "onnxruntime" else source.precision
            raise ModuleNotFoundError(f"{what} needs {package}; {_INSTALL}") from error
    model = _graph(source)
    if source.precision != "float32":
        from gmmvit.runs.export.precision import to_float16, to_int8

        if source.precision == "float16":
            model = to_float16(model)
        else:
            assert source.calibration is not None
            model = to_int8(model, source.calibration)
    del model.metadata_props[:]  # the exporter's and the quantiser's own
    for name, value in source.facts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    content: bytes = model.SerializeToString()
    return content


def _graph(source: Source) -> Any:
    """The exporter's float32 model."""
    program = traced(source)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": DYNAMIC}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's, about itself
            exported = torch.onnx.export(program, dynamo=True, verbose=False, **names)
    except Exception as error:
        raise RunError(f"{source.name} cannot be exported to ONNX: {str(error).strip().splitlines()[0]}") from error
    assert exported is not None
    return exported.model_proto


def session(content: bytes) -> Compute | None:
    """A function that runs the file in onnxruntime; None if it is not installed."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return None
    runtime = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(runtime.run(["logits"], {"images": images.numpy()})[0])
