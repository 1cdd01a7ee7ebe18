"""Exports a trained model for other programs: ONNX, a torch.export program, or OpenVINO's two files.

The exported model takes images float32 [batch, channels, height, width] from 0 to 1, of the run's size, and returns
logits [batch, classes]; it includes the normalisation. The file names classes and image size: in ONNX metadata, in the
extra file `gmmvit.json` of torch, and in OpenVINO's runtime information.
"""

from pathlib import Path
from typing import Any, NamedTuple

from gmmvit.checks import booleans, is_real, one_of, paths
from gmmvit.runs.checkpoint import LoadedRun, load_run
from gmmvit.runs.claim import own_if_run
from gmmvit.runs.evaluate import load_parts
from gmmvit.runs.export import onnx_file, openvino_file, torch_file
from gmmvit.runs.export.check import Check, Comparison, calibration_images, compare, measure
from gmmvit.runs.export.source import Made, Normalised, Precision, Source, describe, noise
from gmmvit.runs.files import RunError, check_new, naming_faults, write_whole
from gmmvit.runs.run_folder import EXPORTS, export_name
from gmmvit.tasks import ONE_LABEL, WORDS
from gmmvit.text import short

MAKERS = {"onnx": onnx_file.make, "torch": torch_file.make, "openvino": openvino_file.make}
# Allowed difference of logits, relative to the largest if that exceeds 1; int8 is judged only by its predictions.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "int8": float("inf")}
DTYPES, MAX_DROP = ("float32", "float16"), 0.01


class Exported(NamedTuple):
    """The main file and all files; their comparison with the model, on noise or for int8 on validation images (None if
    no installed package can run them); their accuracy, if requested; the facts a program needs."""

    path: Path
    files: list[Path]
    comparison: Comparison | None
    check: Check | None
    facts: dict[str, Any]


def export_run(
    folder: str | Path,
    out: str | Path | None = None,
    *,
    format: str = "onnx",
    dtype: str = "float32",
    quantize: str | None = None,
    weights: str = "best",
    check: bool = False,
    part: str | None = None,
    max_drop: float = MAX_DROP,
    data_dir: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes a run's model as a file, after checking that file and model agree.

    Args:
        folder: run folder.
        out: the file; default: model.onnx, model.pt2 or model.xml in the run's folder, with the precision in the name
            unless it is float32.
        format: "onnx" (needs onnx and onnxscript; checked if onnxruntime is installed), "torch" (torch.export) or
            "openvino" (needs ONNX's packages and openvino), an .xml file and a .bin of the same name beside it.
        dtype: "float32", or for ONNX and OpenVINO "float16": in ONNX, masks, softmax, input and output stay float32; in
            OpenVINO only the weights are halved.
        quantize: "int8" for ONNX and OpenVINO: weight products in int8, calibrated on the validation part.
        weights: "best" on validation, or "last".
        check: measures top-1 of model and file (mAP if an image may have several labels).
        part: "test" or "val" for the check; default: the test part, or the validation part if there is no test part.
        max_drop: how far that may fall, as a fraction.
        data_dir: where the data is now, if it moved; for a folder of images, that folder.
        overwrite: replaces an existing file.

    Raises:
        RunError: the folder is not a run, the file exists or cannot be written, the data lacks the part, or the model
            cannot be exported or differs after export; then nothing is written.
        ModuleNotFoundError: a package that the format needs is not installed.
        ValueError: an argument is invalid, or two do not fit together.
    """
    precision = _precision(format, dtype, quantize)
    paths(out=out, data_dir=data_dir)
    booleans(check=check, overwrite=overwrite)
    if part is not None and not (isinstance(part, str) and part in ("test", "val")):
        raise ValueError(f"part must be 'test' or 'val', got {short(part)}")
    if not is_real(max_drop) or not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop must be a fraction from 0 to 1, got {short(max_drop)}")
    run = load_run(folder, weights=weights)
    path = _place(Path(folder) if out is None else Path(out), export_name(format, precision), out is None)
    for place in _places(path, format):
        check_new(place, overwrite)
    data = load_parts(run, data_dir=data_dir) if check or precision == "int8" else None
    images = calibration_images(run, data) if data is not None and precision == "int8" else None
    model = Normalised(run).eval()
    facts = describe(run, precision)
    made = MAKERS[format](Source(model, run.recipe.model, facts, noise(run, 2), precision, images))
    comparison = found = None
    if made.compute is not None:
        # Batch sizes the tracer has not seen.
        batches = [noise(run, 1), noise(run, 5)] if images is None else list(images.split(50))
        comparison = compare(model, made.compute, batches, run.task)
        _refuse_different(comparison.difference, precision, path)
    if check:
        found = _checked(run, data, made, part, max_drop, path)
    _write(path, made)
    return Exported(path, _places(path, format), comparison, found, facts)


def _precision(format: str, dtype: str, quantize: str | None) -> Precision:
    one_of("format", format, EXPORTS)
    one_of("dtype", dtype, DTYPES)
    if quantize is not None and not (isinstance(quantize, str) and quantize == "int8"):
        raise ValueError(f"quantize must be 'int8' or None, got {short(quantize)}")
    if quantize is not None and dtype != "float32":
        raise ValueError(f"choose one of quantize={quantize!r} and dtype={dtype!r}: int8 leaves the rest in float32")
    precision: Any = quantize or dtype
    if format == "torch" and precision != "float32":
        raise ValueError(f"{precision} is for ONNX and OpenVINO: torch programs stay float32")
    return precision


def _place(place: Path, name: str, is_run: bool) -> Path:
    """The main file's path, with the usual name if `place` is a folder."""
    return place / name if is_run or place.is_dir() else place


def _places(path: Path, format: str) -> list[Path]:
    """All files that will be written."""
    if format != "openvino":
        return [path]
    if path.suffix != ".xml":
        raise ValueError(f"an OpenVINO file must end in .xml (its weights go to .bin beside it), got {path}")
    return [path, path.with_suffix(".bin")]


def _refuse_different(difference: float, precision: Precision, path: Path) -> None:
    allowed = TOLERANCE[precision]
    if not difference <= allowed or difference == float("inf"):
        raise RunError(
            f"the exported model's logits differ from the model's by {difference:.1e} "
            f"({f'allowed {allowed:g}' if precision != 'int8' else 'they must be numbers'}): {path} is not written"
        )


def _checked(run: LoadedRun, data: Any, made: Made, part: str | None, max_drop: float, path: Path) -> Check:
    """The accuracy; raises RunError if it fell too far."""
    if made.compute is None:
        raise ModuleNotFoundError("--check needs onnxruntime to run the file; install it: pip install onnxruntime")
    found = measure(run, data, made.compute, part)
    if found.drop > max_drop + 1e-9:
        values = " to ".join(f"{value:.2%}" for value in found.values)
        change = f"{found.before} to {found.after} right" if run.task is ONE_LABEL else values
        raise RunError(
            f"{WORDS[found.metric]} on the {found.images} images of the {found.part} part falls from {change}"
            f", by {100 * found.drop:.2f} points ({100 * max_drop:g} are allowed, see --max-drop, in Python "
            f"max_drop=): {path} is not written"
        )
    return found


def _write(path: Path, made: Made) -> None:
    """Writes each file atomically. Of two, the main one is removed first and written last, so that a kill never pairs
    files of two models."""
    path.parent.mkdir(parents=True, exist_ok=True)
    main, *others = made.contents
    places = [(path.with_suffix(ending), made.contents[ending]) for ending in others]
    if others:
        with naming_faults(path, "replace"):
            path.unlink(missing_ok=True)
    for place, content in [*places, (path, made.contents[main])]:
        own_if_run(place)
        write_whole(place, content)
