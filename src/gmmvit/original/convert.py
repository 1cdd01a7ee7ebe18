"""Converts a checkpoint of the original code to a run folder for `predict`, `eval` and `report`."""

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gmmvit.checks import one_of, pair
from gmmvit.config import Recipe
from gmmvit.data import class_names, load_dataset, numbered_classes
from gmmvit.original.weights import MASK_TENSORS, NAMES, is_named, load_reference
from gmmvit.runs import claim, files, run_folder
from gmmvit.runs.checkpoint import save_weights
from gmmvit.weight_files import WeightsError, not_finite, read_tensors, without_prefix


class TrainedOn(NamedTuple):
    """A data set as the original code trains on it: square images, `pixels` wide, normalised with `mean` and `std`."""

    pixels: int
    classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


DATASETS = {  # among data sets of one shape, the likeliest first
    "cifar10": TrainedOn(32, 10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": TrainedOn(32, 100, (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": TrainedOn(32, 10, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "tiny-imagenet": TrainedOn(64, 200, (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
}


def convert(
    file: str | Path,
    out: str | Path,
    *,
    family: str,
    mask: str,
    dataset: str | None = None,
    data_dir: str | None = None,
    overwrite: bool = False,
    report: Callable[[str], object] = warnings.warn,
    **sizes: Any,
) -> Path:
    """Reads a checkpoint that the original code saved and writes it as a run folder.

    Args:
        file: .pth file; only its tensors are read.
        out: run folder, which must be empty or new.
        family, mask: of the model.
        dataset: what it was trained on, a key of `DATASETS`; sets normalisation and class names. Default: the likeliest
            one with the model's image size and number of classes.
        data_dir: the folder of the data set, for class names that only its files contain.
        overwrite: replaces an old run.
        report: called with each assumption: the chosen data set, unknown class names.
        sizes: as in `load_reference`, for sizes that the tensors do not show.

    Returns:
        The run folder.

    Raises:
        ValueError: names the tensor or size that does not fit.
        RunError: the folder cannot be used.
    """
    one_of("family", family, NAMES)
    one_of("mask", mask, MASK_TENSORS)
    if dataset is not None:
        one_of("dataset", dataset, DATASETS)
    folder = Path(out)
    claim.check_free(folder, overwrite=overwrite)
    state = without_prefix(read_tensors(file, report=report), lambda name: is_named(name, family), report)
    model = load_reference(state, family=family, mask=mask, **sizes)
    if (name := not_finite(state)) is not None:
        raise WeightsError(f"tensor {name!r} of {file} is not finite: the training diverged")
    options = json.loads(json.dumps({"family": family, **model.config}))
    size = pair(options["image_size"], "image_size")
    if dataset is None:
        dataset = _likeliest(file, size, options["num_classes"], report)
    classes = _class_names(file, dataset, data_dir, options["num_classes"], report)
    recipe = Recipe(
        dataset=dataset,
        data_dir=data_dir and os.path.abspath(data_dir),
        model=family,
        mask=mask,
        image_size=size,
        mask_init="paper",
    )
    data = {"classes": classes, "image_size": list(size), "channels": options["channels"]}
    data |= {"mean": list(DATASETS[dataset].mean), "std": list(DATASETS[dataset].std)}
    data |= {"fit": recipe.fit, "fingerprints": {}}
    with claim.locked(folder):
        claim.clear(folder)
        claim.own(folder, *claim.TRAINED)
        run_folder.save_config(folder, recipe, options, data)
        for name in run_folder.WEIGHTS.values():
            save_weights(folder / name, model.state_dict(), {"family": family, "mask": mask})
        parameters = {name: p.numel() for name, p in model.named_parameters()}
        summary: dict[str, Any] = {"model": family, "mask": mask, "dataset": dataset, "converted_from": str(file)}
        summary |= {"num_parameters": sum(parameters.values()), "versions": run_folder.versions()}
        files.write_json(folder / run_folder.SUMMARY, summary)
    return folder


def _likeliest(file: str | Path, size: tuple[int, int], num_classes: int, report: Callable[[str], object]) -> str:
    """The data set that a model was most likely trained on, judged by image size and number of classes."""
    shape = f"{num_classes} classes of {size[0]} x {size[1]} pixels"
    alike = [name for name, known in DATASETS.items() if ((known.pixels,) * 2, known.classes) == (size, num_classes)]
    if not alike:
        raise ValueError(
            f"{file} has {shape}, unlike {list(DATASETS)}: name one of these with --dataset if "
            "that training resized it, or load only the model with gmmvit.load_reference"
        )
    others = "" if len(alike) == 1 else f" ({', '.join(alike[1:])} looks the same: choose with --dataset)"
    report(f"{shape}: assumed to be {alike[0]}{others}")
    return alike[0]


def _class_names(
    file: str | Path, dataset: str, data_dir: str | None, num_classes: int, report: Callable[[str], object]
) -> list[str]:
    if num_classes != DATASETS[dataset].classes:
        raise ValueError(f"{file} has {num_classes} classes, {dataset} has {DATASETS[dataset].classes}")
    known = class_names(dataset)
    if known is None and data_dir is not None:
        return list(load_dataset(dataset, data_dir=data_dir).classes)
    if known is None:
        report(f"the class names are in the files of {dataset}: give --data-dir to see them in predictions")
    return known or numbered_classes(num_classes)
