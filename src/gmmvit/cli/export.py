"""The command export: writes a trained model for other programs."""

import json
import typing
from pathlib import Path
from typing import TYPE_CHECKING

from gmmvit.cli.app import Json, app, say
from gmmvit.config import RecipeError

if TYPE_CHECKING:
    from gmmvit.runs.export import Exported


@app.command
def export(
    run: Path,
    /,
    *,
    format: typing.Literal["onnx", "torch", "openvino"] = "onnx",
    dtype: typing.Literal["float32", "float16"] = "float32",
    quantize: typing.Literal["int8"] | None = None,
    out: Path | None = None,
    weights: typing.Literal["best", "last"] = "best",
    check: bool = False,
    part: typing.Literal["test", "val"] | None = None,
    max_drop: float | None = None,
    data_dir: str | None = None,
    overwrite: bool = False,
    as_json: Json = False,
) -> None:
    """Write a run's model as a file for other programs, and check it against the model.

    Parameters
    ----------
    run
        Folder of the run.
    format
        onnx (needs onnx, onnxscript and, for the check, onnxruntime), torch (a torch.export program) or openvino (also
        needs openvino; an .xml file and its .bin).
    dtype
        In ONNX, of weights and products (masks, softmax, input and output stay float32); in OpenVINO, of weights.
    quantize
        int8: weight products in int8, calibrated on the validation part; not for torch.
    out
        The file; default: model.onnx, model.pt2 or model.xml in the run's folder, with the precision in its name, such
        as model.int8.onnx, unless it is float32.
    weights
        The best on validation, or those of the last epoch.
    check
        Measure top-1 (mAP if an image may have several labels) of the model and the file, and write no file that lost
        too much.
    part
        Part to measure on; default: test, or val if the run has no test part.
    max_drop
        How far that may fall, as a fraction; default: 0.01.
    data_dir
        For --check and --quantize: where the data is now, if it moved; for a folder of images, that folder.
    overwrite
        Replace that file.
    as_json
        Print the figures, and the facts a program needs to use the file, as JSON.
    """
    for name, value in (("part", part), ("max-drop", max_drop)):
        if value is not None and not check:
            raise RecipeError(f"--{name} configures --check: give both, or neither")
    if data_dir is not None and not check and quantize is None:
        raise RecipeError("--data-dir is for --check and --quantize: give it with one of them")
    from gmmvit.runs.export import MAX_DROP, export_run

    allowed = MAX_DROP if max_drop is None else max_drop
    exported = export_run(
        run,
        out,
        format=format,
        dtype=dtype,
        quantize=quantize,
        weights=weights,
        check=check,
        part=part,
        max_drop=allowed,
        data_dir=data_dir,
        overwrite=overwrite,
    )
    if as_json:
        print(json.dumps(_figures(exported)))
        return
    _show(exported, allowed, quantize is not None)


def _figures(exported: "Exported") -> dict[str, object]:
    from gmmvit.runs.export.check import as_json

    comparison, check = exported.comparison, exported.check
    return {
        "path": str(exported.path),
        "difference": None if comparison is None else comparison.difference,
        "check": None if check is None else as_json(check),
        **exported.facts,
    }


def _show(exported: "Exported", allowed: float, on_images: bool) -> None:
    from gmmvit.tasks import WORDS

    comparison, check = exported.comparison, exported.check
    found = "not checked: onnxruntime is not installed"
    if comparison is not None:
        found = f"logits differ from the model by {comparison.difference:.1e} at most"
        if on_images:
            found += f", {comparison.same} of {comparison.images} validation images keep their prediction"
    size = sum(file.stat().st_size for file in exported.files) / 1e6
    say(f"{exported.path} ({size:.1f} MB; {found})")
    if check is not None:
        metric = WORDS[check.metric]
        rows = zip(("model", "file"), check.values, (check.before, check.after), strict=True)
        for name, value, hits in rows:
            say(f"{name:>6}  {metric} {value:.2%}  {hits} of {check.images} images of the {check.part} part are right")
        say(f"logits differ by {check.difference:.1e} at most; {metric} may fall by {100 * allowed:g} points")
