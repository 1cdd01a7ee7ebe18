"""The data of a run: loaded by its recipe, described in its config.yaml, recognised by its fingerprints."""

import dataclasses
import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gmmvit.config import Recipe, fields_of, library_of
from gmmvit.data import Dataset, Inspection, Split, inspect_dataset, load_dataset
from gmmvit.tasks import task_of


def load_data(recipe: Recipe, report: Callable[[str], None] | None = None, *, download: bool = True) -> Dataset:
    """The data set of a recipe, split and at training size; fetched if it is missing and `download` allows."""
    options = _data_options(recipe)
    return load_dataset(recipe.dataset, **options, skip_broken=recipe.skip_broken, download=download, report=report)


def inspect_data(recipe: Recipe, report: Callable[[str], None] | None = None) -> Inspection:
    """The findings about a recipe's data set before training; raises as `inspect_dataset`."""
    return inspect_dataset(recipe.dataset, **_data_options(recipe), report=report)


def _data_options(recipe: Recipe) -> dict[str, Any]:
    size = recipe.image_size
    others = {"dataset", "skip_broken"}
    options = {name: getattr(recipe, name) for name in fields_of("Data") if name not in others}
    return options | {"image_size": None if size is None else (size[0], size[-1])}


def fingerprint(split: Split) -> str:
    """A short hash of a part's image names and labels, which changes with the split."""
    content = "\n".join(split.names) + str(split.labels.tolist())
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()[:16]


def pixel_sum(split: Split) -> int:
    """A checksum of a part's pixels: a resumed training notices changed images under the old names."""
    total = 0
    for batch in split.images.split(4096):
        total = zlib.crc32(batch.cpu().contiguous().numpy().data, total)
    return total


def with_data_at(recipe: Recipe, data_dir: str | None) -> Recipe:
    """The recipe with its data at `data_dir` (for a folder of images, that folder); None changes nothing."""
    if data_dir is None:
        return recipe
    if recipe.dataset.startswith("folder:"):
        return dataclasses.replace(recipe, dataset=f"folder:{data_dir}")
    return dataclasses.replace(recipe, data_dir=data_dir)


def with_recorded_pixels(recipe: Recipe, recorded: dict[str, Any]) -> Recipe:
    """The recipe with size, channels and bits as the data in a run's config.yaml has them."""
    size, channels, bits = (recorded[name] for name in ("image_size", "channels", "bits"))
    return dataclasses.replace(recipe, image_size=tuple(size), channels=channels, bits=bits)


def describe_data(data: Dataset, fit: str) -> dict[str, Any]:
    """What config.yaml records about the data: all that predictions need, and the parts' fingerprints."""
    channels, height, width = data.train.images.shape[1:]
    parts = {"train": data.train, "val": data.val, "test": data.test}
    return {
        "classes": list(data.classes),
        "task": task_of(data.train.labels).name,
        "image_size": [height, width],
        "channels": channels,
        "bits": 8 * data.train.images.element_size(),
        "mean": list(data.mean),
        "std": list(data.std),
        "fit": fit,
        "pixels": pixel_sum(data.train),
        "fingerprints": {name: fingerprint(part) for name, part in parts.items() if part is not None},
    }


def absolute_paths(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that its run finds the same data from every directory."""
    changes: dict[str, Any] = {}
    kind, _, place = recipe.dataset.partition(":")
    if place and (kind == "folder" or (kind == "hf" and Path(place).exists())):
        changes["dataset"] = f"{kind}:{os.path.abspath(os.path.expanduser(place))}"
    library = library_of(recipe.model)
    if library is not None and library[0] == "hf" and (Path(library[1]).expanduser() / "config.json").is_file():
        changes["model"] = f"hf:{os.path.abspath(os.path.expanduser(library[1]))}"
    for name in fields_of("path"):
        value = getattr(recipe, name)
        if isinstance(value, str):
            changes[name] = os.path.abspath(os.path.expanduser(value))
    return dataclasses.replace(recipe, **changes)
