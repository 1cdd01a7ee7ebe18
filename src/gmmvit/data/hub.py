"""`hf:NAME_OR_PATH`: data sets of the Hugging Face Hub, or local ones in its formats."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gmmvit.data.parquet import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    find_column,
    find_shards,
    image_bytes,
    number_labels,
    read_shards,
)
from gmmvit.data.records import PART_NAMES, Contents, DataError, Part, Report, Source, expanded

_SAVED = ("dataset_dict.json", "state.json")


def hub_source(name: str, report: Report) -> Source:
    """Find `hf:NAME_OR_PATH`.

    A folder saved by `save_to_disk` or a name on the Hub is opened with the `datasets` library, a folder of parquet
    files (`SPLIT-*.parquet`, in it or in a folder of it) without. The columns of images and labels are found from the
    features.

    Raises:
        DataError: nothing there, or the columns cannot be found.
    """
    path = Path(os.path.realpath(expanded(name)))
    if not path.exists():
        if name.startswith((".", "/", "~")):
            raise DataError(f"{path} does not exist")
        return _library_source(name, name, report)
    if any((path / file).is_file() for file in _SAVED):
        return _library_source(name, str(path), report)
    for folder in (path, *sorted(sub for sub in path.iterdir() if sub.is_dir())) if path.is_dir() else ():
        shards = find_shards(folder) or {"all": sorted(folder.glob("*.parquet"))}
        if any(shards.values()):
            return Source(
                name=f"hf-{path.name}",
                location=os.path.realpath(folder),
                files=[str(file) for files in shards.values() for file in files],
                read=partial(read_shards, path.name, shards, report),
            )
    raise DataError(f"{path} holds no data set: expected a folder of save_to_disk or SPLIT-*.parquet files")


def _library_source(name: str, location: str, report: Report) -> Source:
    parts = _open_parts(name, location)
    files = sorted({os.path.abspath(file["filename"]) for part in parts.values() for file in part.cache_files})
    return Source(name=f"hf-{Path(name).name}", location=location, files=files, read=lambda: _read(name, parts, report))


def _open_parts(name: str, location: str) -> dict[str, Any]:
    import datasets

    try:
        opened = datasets.load_from_disk(location) if Path(location).is_dir() else datasets.load_dataset(location)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"hf:{name} cannot be loaded: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(opened, Mapping):
        return {"all": opened}
    parts: dict[str, Any] = {}
    for split, part in opened.items():
        ours = PART_NAMES.get(str(split).lower())
        if ours is not None and len(part):
            parts[ours] = part
    if "train" not in parts:
        if len(opened) == 1:
            return {"all": next(iter(opened.values()))}
        raise DataError(f"hf:{name} has no train part: it has {', '.join(map(str, opened))}")
    return parts


def _read(name: str, parts: Mapping[str, Any], report: Report) -> Contents:
    features = parts["all" if "all" in parts else "train"].features
    image, label = _columns(name, features)
    labels = {part: np.asarray(data.with_format(None)[label][:]) for part, data in parts.items()}
    names, numbers = number_labels(f"hf:{name}", labels, getattr(features[label], "names", None), report)
    return Contents(
        names,
        {
            part: Part(
                values,
                [f"{name}/{part}#{row}" for row in range(len(values))],
                _encoded_images(parts[part], image),
            )
            for part, values in numbers.items()
        },
    )


def _columns(name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """The columns of images and labels: by their type where it tells, else by their name."""
    import datasets

    where = f"hf:{name}"
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    image = images[0] if len(images) == 1 else find_column(images, IMAGE_COLUMNS, "images", where)
    labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(labels) == 1:
        return image, labels[0]
    return image, find_column(labels or list(features), LABEL_COLUMNS, "labels", where)


def _encoded_images(data: Any, column: str) -> Callable[[], Iterator[bytes | str]]:
    import datasets

    undecoded = data.select_columns([column]).cast_column(column, datasets.Image(decode=False))

    def sources() -> Iterator[bytes | str]:
        for row in undecoded:
            cell = row[column]
            # A data set saved without its files embedded holds paths alone.
            path = cell.get("path") if isinstance(cell, dict) else None
            yield image_bytes(cell) or path or b""

    return sources
