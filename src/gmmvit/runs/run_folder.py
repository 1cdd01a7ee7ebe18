"""The run folder: its files, written so that no kill tears them, and read so that a damaged one is named."""

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
from gmmvit.text import short, shown
from gmmvit.version import __version__
from gmmvit.yaml_files import YamlError, read_yaml, yaml_bytes

# What to do about a run that cannot go on.
ANEW = "train it anew with --overwrite (in Python overwrite=True)"
CONFIG, METRICS, SUMMARY, CHECKPOINT = "config.yaml", "metrics.jsonl", "summary.json", "checkpoint.pt"
LOCK, OWN = ".lock", ".files"  # held by a training; the names of the files that the run wrote
WEIGHTS = {"best": "model.safetensors", "last": "last.safetensors"}
EXPORTS = {"onnx": "model.onnx", "torch": "model.pt2", "openvino": "model.xml"}
# Of a cross-validation, beside the run folders fold-1, fold-2 ...
FOLDS, FOLDS_TABLE, REPORT = "folds.yaml", "folds.csv", "report.html"
_DIGITS = 18  # of a whole number that is exact in every program


def export_name(format: str, precision: str = "float32") -> str:
    """The usual name of an exported file, as model.onnx or model.int8.onnx."""
    path = Path(EXPORTS[format])
    return path.name if precision == "float32" else f"{path.stem}.{precision}{path.suffix}"


_EXPORTED = [export_name(format, precision) for format in EXPORTS for precision in ("float32", "float16", "int8")]
_EXPORTED += [name.replace(".xml", ".bin") for name in _EXPORTED if name.endswith(".xml")]
FILES = (CONFIG, METRICS, SUMMARY, CHECKPOINT, *WEIGHTS.values(), REPORT, *_EXPORTED)


def _list_of(fits: Callable[[Any], bool], least: int, most: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(fits, value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# Columns of metrics.jsonl that hold numbers.
_MEASURED = re.compile(r"(train|val)_(loss|top1|macro_f1|balanced)|lr$|images_per_s|wall_s")
# What config.yaml says of the data: in words, and whether a value is that.
_DATA_RULES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "classes": (
        "a list of two names or more, without control characters",
        _list_of(lambda value: isinstance(value, str) and shown(value) == value, 2),
    ),
    "image_size": ("[height, width] in pixels", _list_of(lambda value: type(value) is int and value > 0, 2, 2)),
    "channels": ("1 or 3", lambda value: type(value) is int and value in (1, 3)),
    "mean": ("a list of finite numbers", _list_of(_is_number, 1)),
    "std": ("a list of finite numbers above 0", _list_of(lambda value: _is_number(value) and value > 0, 1)),
    "fit": ("crop, stretch or pad", lambda value: value in ("crop", "stretch", "pad")),
    "fingerprints": ("a mapping", lambda value: isinstance(value, dict)),
}
# What the model's description calls sizes of the data: of our families, of timm's models, of transformers'.
_MODEL_SIZES = {
    "": {"classes": "num_classes", "channels": "channels", "image_size": "image_size"},
    "timm": {"classes": "num_classes", "channels": "in_chans"},
    "hf": {"classes": "num_labels"},
}


def as_folder(folder: str | Path) -> Path:
    """A run folder as a path; raises TypeError for what is none."""
    if not isinstance(folder, str | os.PathLike):
        raise TypeError(f"a run folder must be given as a path, got {folder!r}")
    return Path(folder)


def holds_nothing(folder: Path) -> bool:
    """Whether a folder holds at most what trainings leave that were ended before they began, or while they wrote."""
    return all(path.name in (LOCK, OWN) or is_leftover(path.name) for path in folder.iterdir())


def is_leftover(name: str) -> bool:
    """Whether a file of that name was being written when its training was killed."""
    return name.endswith(".tmp") and any(name.startswith(f".{whole}.") for whole in (*FILES, FOLDS, FOLDS_TABLE))


def versions() -> dict[str, str]:
    """The versions that a result depends on; of timm and transformers where a model of theirs was built."""
    libraries: dict[str, str] = {
        name: sys.modules[name].__version__ for name in ("timm", "transformers") if name in sys.modules
    }
    return {"gmmvit": __version__, "torch": str(torch.__version__), "python": platform.python_version(), **libraries}


def save_config(folder: Path, recipe: Recipe, model: dict[str, Any], data: dict[str, Any]) -> None:
    """Writes config.yaml: the recipe, what `build_model` makes the model of, what is known of the data, versions."""
    content = {"recipe": as_dict(recipe), "model": model, "data": data, "versions": versions()}
    write_whole(folder / CONFIG, yaml_bytes(content))


def load_config(folder: str | Path) -> dict[str, Any]:
    """The content of a run's config.yaml: the mappings "recipe", "model", "data" and "versions".

    Raises RunError where the folder is not a run, or the file is damaged.
    """
    path = as_folder(folder) / CONFIG
    with naming_faults(path, "read"):
        if not path.is_file():
            inside = sorted(file.parent for file in path.parent.glob(f"*/{CONFIG}"))
            hint = f"; it holds {len(inside)} run folders, as {inside[0]}" if inside else ""
            if not inside and path.parent.is_dir() and holds_nothing(path.parent):
                hint = "; a training was ended before it began: train again with --out (in Python out=)"
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
    _check_data(path, content["data"])
    _check_same_sizes(path, content["model"], content["data"])
    return content


def _check_data(path: Path, data: dict[str, Any]) -> None:
    """Raises RunError that names what config.yaml says of the data and cannot be true."""
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
    """Raises RunError where classes, channels or image size of the data are not those the model was made for."""
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
    """Whether a folder is that of a cross-validation."""
    return (as_folder(folder) / FOLDS).is_file()


def fold_folder(folder: str | Path, fold: int) -> Path:
    """The run folder of a fold of a cross-validation, which are counted from 1."""
    return Path(folder) / f"fold-{fold}"


def fold_folders(folder: str | Path) -> list[Path]:
    """The run folders of all folds, those too that are not begun. Raises as `recipe_of_folds`."""
    folds = recipe_of_folds(folder).folds or 0
    return [fold_folder(folder, fold) for fold in range(1, folds + 1)]


def save_folds(folder: Path, recipe: Recipe) -> None:
    """Writes folds.yaml: the recipe that all folds share, and versions."""
    write_whole(folder / FOLDS, yaml_bytes({"recipe": as_dict(recipe), "versions": versions()}))


def recipe_of_folds(folder: str | Path) -> Recipe:
    """The recipe that all folds of a cross-validation share. Raises RunError where the folder is none or is damaged."""
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
        raise RunError(f"{path} is damaged: its recipe must have folds and no fold")
    return recipe


def read_summary(folder: str | Path) -> dict[str, Any] | None:
    """The content of summary.json; None where the training has not ended.

    Raises RunError for a damaged file.
    """
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
    """What JSON holds; raises ValueError for any fault of it."""

    def number(text: str) -> int | float:
        value = float(text) if len(text) > _DIGITS or not text.lstrip("-").isdecimal() else int(text)
        if not math.isfinite(value):
            raise ValueError(f"it holds {text[:_DIGITS]}, and no number is so large")
        return value

    try:
        return json.loads(content, parse_int=number, parse_float=number, parse_constant=number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def append_row(folder: Path, row: dict[str, Any]) -> None:
    """One line of metrics.jsonl."""
    path = folder / METRICS
    with naming_faults(path, "write"), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, allow_nan=False) + "\n")


def read_rows(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl; a last line that a kill cut short is left out.

    Raises RunError for a damaged line before the last.
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
                raise ValueError("no row of an epoch")
        except ValueError:
            if number < len(lines):
                raise RunError(f"{path} is damaged in line {number}") from None
            break
        rows.append(row)
    return rows


def rewind_rows(folder: Path, epoch: int) -> None:
    """Drops the rows of epochs that the checkpoint does not cover."""
    rows = [row for row in read_rows(folder) if row["epoch"] <= epoch]
    write_whole(folder / METRICS, "".join(json.dumps(row) + "\n" for row in rows).encode())


def all_finite(values: dict[str, Any]) -> bool:
    """Whether no number among the values is NaN or infinite."""
    return all(math.isfinite(value) for value in values.values() if isinstance(value, int | float))
