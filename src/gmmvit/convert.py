"""A checkpoint of the original code -> a run folder of ours, for `predict`, `eval` and `report`."""

import json
import os
from pathlib import Path
from typing import Any

from gmmvit import run_folder
from gmmvit.checkpoint import save_weights
from gmmvit.config import Recipe
from gmmvit.data import class_names, load_dataset
from gmmvit.reference_weights import load_reference, read_reference_checkpoint

# The statistics that the original normalises each data set with, per channel in 0..1: (mean, std).
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
    "tiny-imagenet": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
}


def convert(
    file: str | Path,
    out: str | Path,
    *,
    family: str,
    mask: str,
    dataset: str,
    data_dir: str | None = None,
    overwrite: bool = False,
    **sizes: Any,
) -> Path:
    """Reads a checkpoint that the original code saved and writes it as a run folder.

    Args:
        file: .pth file; only its tensors are read.
        out: run folder; one that holds files is refused.
        family, mask: of the model.
        dataset: what it was trained on, a key of `STATISTICS`: it decides normalisation and class names.
        data_dir: where the data set lies; class names are read there where they are not known without it.
        overwrite: replace an old run.
        sizes: as in `load_reference`, where the tensors do not tell them.

    Raises:
        ValueError: naming the tensor or size that does not fit; RunError for the folder.
    """
    if dataset not in STATISTICS:
        raise ValueError(f"dataset must be one of {list(STATISTICS)}, got {dataset!r}")
    sizes.setdefault("img_size", 64 if dataset == "tiny-imagenet" else 32)
    model = load_reference(read_reference_checkpoint(file), family=family, mask=mask, **sizes)
    options = json.loads(json.dumps({"family": family, **model.config}))
    mean, std = STATISTICS[dataset]
    if data_dir is not None:
        classes = list(load_dataset(dataset, data_dir=data_dir).classes)
    else:
        classes = class_names(dataset) or [str(index) for index in range(options["num_classes"])]
    if len(classes) != options["num_classes"]:
        raise ValueError(f"{file} tells {options['num_classes']} classes apart, {dataset} has {len(classes)}")
    size = options["image_size"]
    shape = [size, size] if isinstance(size, int) else list(size)
    folder = Path(out)
    run_folder.check_free(folder, overwrite=overwrite)
    recipe = Recipe(
        dataset=dataset,
        data_dir=data_dir and os.path.abspath(data_dir),
        model=family,
        mask=mask,
        image_size=tuple(shape),
        mask_init="paper",
    )
    data = {"classes": list(classes), "image_size": shape, "channels": options["channels"]}
    data |= {"mean": list(mean), "std": list(std), "fit": recipe.fit, "fingerprints": {}}
    folder.mkdir(parents=True, exist_ok=True)
    run_folder.clear(folder)
    run_folder.save_config(folder, recipe, options, data)
    for name in run_folder.WEIGHTS.values():
        save_weights(folder / name, model.state_dict(), {"family": family, "mask": mask})
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    summary: dict[str, Any] = {"model": family, "mask": mask, "dataset": dataset, "converted_from": str(file)}
    summary |= {"num_parameters": sum(parameters.values()), "versions": run_folder.versions()}
    run_folder.write_json(folder / run_folder.SUMMARY, summary)
    return folder
