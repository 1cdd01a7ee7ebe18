"""A trained model as a file for other programs: ONNX, a program of torch.export, or OpenVINO's two files.

It takes images float32 [batch, channels, height, width] from 0 to 1, of the run's size, and returns logits [batch,
classes]; the normalisation is inside. The file names classes and image size: in the metadata of ONNX, in the
extra file `gmmvit.json` of torch, and in the runtime information of OpenVINO.
"""

from pathlib import Path
from typing import Any, NamedTuple

from gmmvit.runs.checkpoint import LoadedRun, load_run
from gmmvit.runs.claim import own_if_run
from gmmvit.runs.evaluate import load_parts
from gmmvit.runs.export import onnx_file, openvino_file, torch_file
from gmmvit.runs.export.check import Check, Comparison, calibration_images, compare, measure
from gmmvit.runs.export.source import Made, Normalised, Precision, Source, describe, noise
from gmmvit.runs.files import RunError, check_new, naming_faults, write_whole
from gmmvit.runs.run_folder import EXPORTS, export_name

MAKERS = {"onnx": onnx_file.make, "torch": torch_file.make, "openvino": openvino_file.make}
# Of the logits, of their largest where that is above 1; int8 is judged by its answers alone.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "int8": float("inf")}
DTYPES, MAX_DROP = ("float32", "float16"), 0.01


class Exported(NamedTuple):
    """The main file and all files; how they compare with the model, on noise or for int8 on validation images (None if
    nothing is installed that could run them); their accuracy, where that was asked for; what a program has to know."""

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
    """Writes the model of a run as a file, after checking that it computes what the model computes.

    Args:
        folder: run folder.
        out: the file; model.onnx, model.pt2 or model.xml in the run's folder by default, with the precision in the
            name where it is not float32.
        format: "onnx" (needs onnx and onnxscript; checked where onnxruntime is installed), "torch" (torch.export) or
            "openvino" (needs those of ONNX and openvino), an .xml file and a .bin of the same name beside it.
        dtype: "float32", or of ONNX and OpenVINO "float16": in ONNX, masks, softmax, input and output stay float32; in
            OpenVINO the weights alone are halved.
        quantize: "int8" of ONNX and OpenVINO: products of weights in int8, calibrated on the validation part.
        weights: "best" on validation, or "last".
        check: measure top-1 of model and file.
        part: of "test" or "val"; the test part by default, or without one the validation part.
        max_drop: how far top-1 may fall, as a fraction of the images.
        data_dir: where the data lies now, if it moved; of a folder of images, the folder itself.
        overwrite: replace a file that is there.

    Raises:
        RunError: the folder is no run, the file exists or cannot be written, its data lacks what is asked for, or the
            model cannot be exported or comes out different, and then nothing is written.
        ModuleNotFoundError: a package that the format needs is not installed.
        ValueError: arguments that do not go together.
    """
    precision = _precision(format, dtype, quantize)
    if part not in (None, "test", "val"):
        raise ValueError(f"part must be 'test' or 'val', got {part!r}")
    if not 0 <= max_drop <= 1:
        raise ValueError(f"max_drop must be a fraction from 0 to 1, got {max_drop!r}")
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
        # Batches of other sizes than the tracer saw.
        batches = [noise(run, 1), noise(run, 5)] if images is None else list(images.split(50))
        comparison = compare(model, made.compute, batches)
        _refuse_different(comparison.difference, precision, path)
    if check:
        found = _checked(run, data, made, part, max_drop, path)
    _write(path, made)
    return Exported(path, _places(path, format), comparison, found, facts)


def _precision(format: str, dtype: str, quantize: str | None) -> Precision:
    if format not in EXPORTS:
        raise ValueError(f"format must be one of {list(EXPORTS)}, got {format!r}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {list(DTYPES)}, got {dtype!r}")
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize must be 'int8' or None, got {quantize!r}")
    if quantize is not None and dtype != "float32":
        raise ValueError(
            f"one of quantize={quantize!r} and dtype={dtype!r} can be had: int8 leaves the rest in float32"
        )
    precision: Any = quantize or dtype
    if format == "torch" and precision != "float32":
        raise ValueError(f"{precision} is for ONNX and OpenVINO: a program of torch stays float32")
    return precision


def _place(place: Path, name: str, is_run: bool) -> Path:
    """The main file's path; in a folder it gets the usual name."""
    return place / name if is_run or place.is_dir() else place


def _places(path: Path, format: str) -> list[Path]:
    """All files that will be written."""
    if format != "openvino":
        return [path]
    if path.suffix != ".xml":
        raise ValueError(f"a file of OpenVINO ends in .xml, with its weights beside it in .bin, got {path}")
    return [path, path.with_suffix(".bin")]


def _refuse_different(difference: float, precision: Precision, path: Path) -> None:
    allowed = TOLERANCE[precision]
    if not difference <= allowed or difference == float("inf"):
        raise RunError(
            f"the exported model's logits differ from the model's by {difference:.1e} "
            f"({f'allowed {allowed:g}' if precision != 'int8' else 'they must be numbers'}): {path} is not written"
        )


def _checked(run: LoadedRun, data: Any, made: Made, part: str | None, max_drop: float, path: Path) -> Check:
    """The accuracy, where it is within what is allowed."""
    if made.compute is None:
        raise ModuleNotFoundError("--check needs onnxruntime to run the file; install it: pip install onnxruntime")
    found = measure(run, data, made.compute, part)
    if found.drop > max_drop + 1e-9:
        raise RunError(
            f"top-1 on the {found.images} images of the {found.part} part falls from {found.before} to {found.after} "
            f"right, by {100 * found.drop:.2f} points ({100 * max_drop:g} are allowed, see --max-drop, in Python "
            f"max_drop=): {path} is not written"
        )
    return found


def _write(path: Path, made: Made) -> None:
    """Each file in one step. Of two the main one goes first and comes last, so that a kill pairs no two models."""
    path.parent.mkdir(parents=True, exist_ok=True)
    main, *others = made.contents
    places = [(path.with_suffix(ending), made.contents[ending]) for ending in others]
    if others:
        with naming_faults(path, "replace"):
            path.unlink(missing_ok=True)
    for place, content in [*places, (path, made.contents[main])]:
        own_if_run(place)
        write_whole(place, content)
