"""The files of a run folder, written atomically; reading names a damaged file."""

import json
import math
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gmmvit.config import Recipe, RecipeError, as_dict, make_recipe
from gmmvit.runs.files import RunError, is_there, naming_faults, write_whole
from gmmvit.tasks import ONE_LABEL, TASKS, WORDS
from gmmvit.text import short, shown
from gmmvit.version import __version__
from gmmvit.yaml_files import YamlError, read_yaml, yaml_bytes

# The advice for a run that cannot continue.
ANEW = "train again with --overwrite (in Python overwrite=True)"
CONFIG, METRICS, SUMMARY, CHECKPOINT = "config.yaml", "metrics.jsonl", "summary.json", "checkpoint.pt"
LOCK, OWN = ".lock", ".files"  # locked by a training; names of the files the run wrote
WEIGHTS = {"best": "model.safetensors", "last": "last.safetensors"}
EXPORTS = {"onnx": "model.onnx", "torch": "model.pt2", "openvino": "model.xml"}
# Files of a cross-validation, beside its run folders fold-1, fold-2 ...
FOLDS, FOLDS_TABLE, REPORT = "folds.yaml", "folds.csv", "report.html"
_DIGITS = 18  # an integer of so many digits fits in 64 bits


def export_name(format: str, precision: str = "float32") -> str:
    """The usual name of an exported file, such as model.onnx or model.int8.onnx."""
    path = Path(EXPORTS[format])
    return path.name if precision == "float32" else f"{path.stem}.{precision}{path.suffix}"


_EXPORTED = [export_name(format, precision) for format in EXPORTS for precision in ("float32", "float16", "int8")]
_EXPORTED += [name.replace(".xml", ".bin") for name in _EXPORTED if name.endswith(".xml")]
FILES = (CONFIG, METRICS, SUMMARY, CHECKPOINT, *WEIGHTS.values(), REPORT, *_EXPORTED)


def _list_of(fits: Callable[[Any], bool], least: int, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(fits, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# The numeric columns of metrics.jsonl.
_MEASURED = re.compile(rf"(train|val)_(loss|{'|'.join(WORDS)})|lr$|images_per_s|wall_s")
# The data entries of config.yaml: a description, and whether a value matches it.
_DATA_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "classes": (
        "a list of two or more names without control characters",
        _list_of(lambda value: isinstance(value, str) and shown(value) == value, 2),
    ),
    "image_size": ("[height, width] in pixels", _list_of(lambda value: type(value) is int and value > 0, 2, 2)),
    "channels": ("1 to 12", lambda value: type(value) is int and 1 <= value <= 12),
    "bits": ("8 or 16", lambda value: type(value) is int and value in (8, 16)),
    "mean": ("a list of finite numbers", _list_of(_is_number, 1)),
    "std": ("a list of finite numbers above 0", _list_of(lambda value: _is_number(value) and value > 0, 1)),
    "fit": ("crop, stretch or pad", lambda value: value in ("crop", "stretch", "pad")),
    "fingerprints": ("a mapping", lambda value: isinstance(value, dict)),
    "task": (" or ".join(TASKS), lambda value: isinstance(value, str) and value in TASKS),
}
# The data sizes in the model's description: for our families, timm and transformers.
_MODEL_SIZES = {
    "": {"classes": "num_classes", "channels": "channels", "image_size": "image_size"},
    "timm": {"classes": "num_classes", "channels": "in_chans"},
    "hf": {"classes": "num_labels"},
}


def as_folder(folder: str | Path) -> Path:
    """A run folder as a path; raises TypeError if it is not a path."""
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"a run folder must be given as a path, got {short(folder)}")
    return Path(folder)


def holds_nothing(folder: Path) -> bool:
    """Whether a folder holds at most the leftovers of trainings that ended before they began or while they wrote."""
    return all(path.name in (LOCK, OWN) or is_leftover(path.name) for path in folder.iterdir())


def is_leftover(name: str) -> bool:
    """Whether this is the temporary file of a killed training."""
    return name.endswith(".tmp") and any(name.startswith(f".{whole}.") for whole in (*FILES, FOLDS, FOLDS_TABLE))


def versions() -> dict[str, str]:
    """The versions that a result depends on, with timm and transformers if their models were built."""
    libraries: dict[str, str] = {
        name: sys.modules[name].__version__ for name in ("timm", "transformers") if name in sys.modules
    }
    return {"gmmvit": __version__, "torch": str(torch.__version__), "python": platform.python_version(), **libraries}


def save_config(folder: Path, recipe: Recipe, model: dict[str, Any], data: dict[str, Any]) -> None:
    """Writes config.yaml: the recipe, the description for `build_model`, facts about the data, versions."""
    content = {"recipe": as_dict(recipe), "model": model, "data": data, "versions": versions()}
    write_whole(folder / CONFIG, yaml_bytes(content))


def load_config(folder: str | Path) -> dict[str, Any]:
    """The content of a run's config.yaml: the mappings "recipe", "model", "data" and "versions".

    Raises RunError if the folder is not a run, or the file is damaged.
    """
    path = as_folder(folder) / CONFIG
    with naming_faults(path, "read"):
        if not path.is_file():
            inside = sorted(file.parent for file in path.parent.glob(f"*/{CONFIG}"))
            hint = f"; it holds {len(inside)} run folders, such as {inside[0]}" if inside else ""
            if not inside and path.parent.is_dir() and holds_nothing(path.parent):
                hint = "; its training ended before it began: train again with --out (in Python out=)"
            what = f"it has no {CONFIG}" if path.parent.is_dir() else "there is no such folder"
            raise RunError(f"{folder} is not a run folder: {what}{hint}")
        try:
            content = read_yaml(path)
        except YamlError as error:
            raise RunError(f"{path} {error}") from None
    for name in ("recipe", "model", "data", "versions"):
        if not isinstance(content, dict) or not isinstance(content.get(name), dict):
            raise RunError(f"{path} is not the configuration of a run: it has no mapping {name!r}")
    if not all(isinstance(text, str) and len(text) <= 100 for pair in content["versions"].items() for text in pair):
        raise RunError(f"{path} is damaged: versions must be names of libraries and their versions")
    content["data"].setdefault("task", ONE_LABEL.name)  # missing in the runs of older versions
    _check_data(path, content["data"])
    _check_same_sizes(path, content["model"], content["data"])
    return content


def _check_data(path: Path, data: dict[str, Any]) -> None:
    """Raises a RunError that names the first impossible data entry of config.yaml."""
    data.setdefault("bits", 8)  # all that older versions knew
    for name, (wanted, fits) in _DATA_RULES.items():
        if not fits(data.get(name)):
            raise RunError(f"{path} is damaged: data.{name} must be {wanted}, got {short(data.get(name))}")
    for name in ("mean", "std"):
        if len(data[name]) != data["channels"]:
            raise RunError(
                f"{path} is damaged: data.{name} must hold a number for each of {data['channels']} channels, got "
                f"{short(data[name])}"
            )


def _check_same_sizes(path: Path, model: dict[str, Any], data: dict[str, Any]) -> None:
    """Raises RunError if the data's classes, channels or image size differ from those the model was made for."""
    arguments = model.get("arguments", model)
    known = _MODEL_SIZES.get(str(model.get("library", "")), {}) if isinstance(arguments, dict) else {}
    for name, argument in known.items():
        value = len(data[name]) if name == "classes" else data[name]
        given = arguments.get(argument, value)
        if given != value and [given, given] != value:  # one int for a square
            raise RunError(
                f"{path} is damaged: its model was made with {argument} {short(given)}, and data.{name} says {value}"
            )


def recipe_of(folder: str | Path) -> Recipe:
    """The recipe of a run."""
    try:
        return make_recipe(load_config(folder)["recipe"], f"{Path(folder) / CONFIG}")
    except RecipeError as error:
        raise RunError(f"{error} (was it written by another version of gmmvit?)") from None


def is_folds(folder: str | Path) -> bool:
    """Whether a folder holds a cross-validation."""
    path = as_folder(folder) / FOLDS
    with naming_faults(path, "read"):
        return path.is_file()


def fold_folder(folder: str | Path, fold: int) -> Path:
    """The run folder of a fold of a cross-validation, counted from 1."""
    return Path(folder) / f"fold-{fold}"


def fold_folders(folder: str | Path) -> list[Path]:
    """The run folders of all folds, started or not. Raises as `recipe_of_folds`."""
    folds = recipe_of_folds(folder).folds or 0
    return [fold_folder(folder, fold) for fold in range(1, folds + 1)]


def save_folds(folder: Path, recipe: Recipe) -> None:
    """Writes folds.yaml: the common recipe of all folds, and versions."""
    write_whole(folder / FOLDS, yaml_bytes({"recipe": as_dict(recipe), "versions": versions()}))


def recipe_of_folds(folder: str | Path) -> Recipe:
    """The common recipe of all folds. Raises RunError if the folder is not a cross-validation or is damaged."""
    path = as_folder(folder) / FOLDS
    if not is_there(path):
        raise RunError(f"{folder} is not the folder of a cross-validation: it has no {FOLDS}")
    try:
        with naming_faults(path, "read"):
            content = read_yaml(path)
        values = content.get("recipe") if isinstance(content, dict) else None
        if not isinstance(values, dict):
            raise RunError(f"{path} is damaged: it has no mapping 'recipe'")
        recipe = make_recipe(values, str(path))
    except (YamlError, RecipeError) as error:
        raise RunError(f"{path} is damaged: {error}") from None
    if recipe.folds is None or recipe.fold is not None:
        raise RunError(f"{path} is damaged: its recipe must have folds but no fold")
    return recipe


def read_summary(folder: str | Path) -> dict[str, Any] | None:
    """The content of summary.json, None if the training has not ended. Raises RunError for a damaged file."""
    path = Path(folder) / SUMMARY
    if not is_there(path):
        return None
    with naming_faults(path, "read"):
        content = path.read_bytes()
    try:
        summary = _from_json(content)
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(summary, dict):
        raise RunError(f"{path} is not the summary of a run")
    return summary


def _from_json(content: bytes) -> Any:
    """The parsed JSON; raises ValueError for every kind of error."""

    def number(text: str) -> int | float:
        value = float(text) if len(text) > _DIGITS or not text.lstrip("-").isdecimal() else int(text)
        if not math.isfinite(value):
            raise ValueError(f"it holds {text[:_DIGITS]}, which is too large for a number")
        return value

    try:
        return json.loads(content, parse_int=number, parse_float=number, parse_constant=number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def append_row(folder: Path, row: dict[str, Any]) -> None:
    """Appends a line to metrics.jsonl."""
    path = folder / METRICS
    with naming_faults(path, "write"), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, without a last line that a kill cut short.

    Raises RunError for an earlier damaged line.
    """
    path = Path(folder) / METRICS
    there = is_there(path)
    with naming_faults(path, "read"):
        lines = path.read_bytes().splitlines() if there else []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = _from_json(line)
            if (
                not isinstance(row, dict)
                or type(row.get("epoch")) is not int
                or not all(_is_number(value) for name, value in row.items() if _MEASURED.match(name))
            ):
                raise ValueError("not a row of an epoch")
        except ValueError:
            if number < len(lines):
                raise RunError(f"{path} is damaged in line {number}") from None
            break
        rows.append(row)
    return rows


def rewind_rows(folder: Path, epoch: int) -> None:
    """Removes the rows of epochs after the checkpoint."""
    rows = [row for row in read_rows(folder) if row["epoch"] <= epoch]
    write_whole(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())


def all_finite(values: dict[str, Any]) -> bool:
    """Whether no number among the values is NaN or infinite."""
    return all(math.isfinite(value) for value in values.values() if isinstance(value, int | float))
