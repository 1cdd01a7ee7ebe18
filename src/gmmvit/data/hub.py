"""`hf:NAME_OR_PATH`: data sets of the Hugging Face Hub, or local ones in its formats."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gmmvit.data.classes import one_naming
from gmmvit.data.labels import number_labels
from gmmvit.data.layout import tell_other_parts
from gmmvit.data.parquet import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    find_column,
    find_shards,
    image_bytes,
    known_parts,
    read_shards,
)
from gmmvit.data.parts import part_of
from gmmvit.data.records import Contents, DataError, Part, Report, Source, expanded, listing
from gmmvit.data.walk import DATA_EXTENSIONS, EXTENSIONS, PassedOver, files_below, images_below

_SAVED = ("dataset_dict.json", "state.json")


def hub_source(name: str, report: Report) -> Source:
    """Find `hf:NAME_OR_PATH`.

    A folder saved by `save_to_disk` or a name on the Hub is opened with the `datasets` library, a folder of parquet
    files of one configuration (see `find_shards`) without. The columns are found from the features.

    Raises:
        DataError: nothing there, several configurations, or the columns cannot be found.
    """
    given = expanded(name)
    path = Path(os.path.realpath(given))
    if not path.exists():
        if name.startswith((".", "/", "~")):
            raise DataError(f"{path} does not exist")
        return _library_source(name, name, report)
    tell_other_parts(given, "hf", report)
    if any((path / file).is_file() for file in _SAVED):
        if others := [str(folder) for folder in find_shards(path)]:
            report(f"ignored the parquet files in {listing(others)}: {path} was saved by save_to_disk, which is read")
        return _library_source(name, str(path), report)
    if not path.is_dir():
        raise DataError(f"{path} is a file; give the folder that holds it")
    found = find_shards(path, report)
    if len(found) > 1:
        places = [f"hf:{folder}" if folder != path else f"files directly in {path}" for folder in found]
        raise DataError(
            f"{path} holds {len(found)} data sets (configurations): give one of them, {' or '.join(places[:5])}"
        )
    if not found:
        passed = PassedOver()
        hint = f"; it has images: did you mean folder:{name}?" if any(images_below(path, passed)) else ""
        raise DataError(f"{path} holds no data set: expected a folder of save_to_disk or SPLIT-*.parquet files{hint}")
    [(folder, shards)] = found.items()
    parts = known_parts(shards, report)
    _report_others(path, report)
    return Source(
        name=f"hf-{path.name}",
        location=os.path.realpath(folder),
        files=[str(file) for files in parts.values() for file in files],
        read=partial(read_shards, path.name, parts, report),
    )


def _report_others(path: Path, report: Report) -> None:
    """A notice about data beside the parquet files that is not read."""
    known = (DATA_EXTENSIONS | EXTENSIONS) - {".parquet", ".json"}
    extensions = [os.path.splitext(file.name)[1].lower() for file in files_below(path, PassedOver())]
    others = Counter(extension for extension in extensions if extension in known)
    if others:
        kinds = [f"{extension} {others[extension]}" for extension in sorted(others)]
        report(f"ignored beside the parquet files of {path}: {listing(kinds)}")


def _library_source(name: str, location: str, report: Report) -> Source:
    parts = _open_parts(name, location, report)
    files = sorted({os.path.abspath(file["filename"]) for part in parts.values() for file in part.cache_files})
    return Source(name=f"hf-{Path(name).name}", location=location, files=files, read=lambda: _read(name, parts, report))


def _open_parts(name: str, location: str, report: Report) -> dict[str, Any]:
    import datasets

    try:
        opened = datasets.load_from_disk(location) if Path(location).is_dir() else datasets.load_dataset(location)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"hf:{name} cannot be loaded: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(opened, Mapping):
        return {"all": opened}
    parts: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for split, part in opened.items():
        ours = part_of(str(split))
        if ours in origin:
            raise DataError(f"hf:{name} has two {ours} parts, {origin[ours]} and {split}: save one of them alone")
        if ours is not None and len(part):
            parts[ours], origin[ours] = part, str(split)
    others = [str(split) for split in opened if str(split) not in origin.values()]
    if "train" not in parts:
        if len(opened) == 1:
            [(split, part)] = opened.items()
            report(f"hf:{name} has one part, {split}: it is cut into three")
            return {"all": part}
        raise DataError(f"hf:{name} has no train part: it has {', '.join(map(str, opened))}")
    if others:
        report(f"ignored {listing(others)} of hf:{name}: empty, or no part called train, val or test")
    return parts


def _read(name: str, parts: Mapping[str, Any], report: Report) -> Contents:
    features = parts["all" if "all" in parts else "train"].features
    image, label = _columns(name, features, report)
    labels = {part: data.with_format(None)[label][:] for part, data in parts.items()}
    named = one_naming(
        (f"the {part} part of hf:{name}", _class_names(data.features[label])) for part, data in parts.items()
    )
    names, numbers = number_labels(f"hf:{name}", labels, named, report, label)
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


def _class_names(feature: Any) -> list[str] | None:
    while hasattr(feature, "feature"):  # a list of labels
        feature = feature.feature
    return getattr(feature, "names", None)


def _columns(name: str, features: Mapping[str, Any], report: Report) -> tuple[str, str]:
    """The columns of images and labels: by their type where that decides, else by their name."""
    import datasets

    where = f"hf:{name}"
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    image = images[0] if len(images) == 1 else find_column(images, IMAGE_COLUMNS, "images", where, report)
    labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(labels) == 1:
        return image, labels[0]
    return image, find_column(labels or list(features), LABEL_COLUMNS, "labels", where, report)


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
