"""`hf:NAME_OR_PATH`: data sets of the Hugging Face Hub, or local ones in its formats."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gmmvit.data.classes import one_naming
from gmmvit.data.columns import IMAGE_COLUMNS, LABEL_COLUMNS, known_columns, one_column, tell_unread
from gmmvit.data.division import divide, part_name, texts_of
from gmmvit.data.labels import SEVERAL_COLUMN, number_labels
from gmmvit.data.layout import tell_other_parts
from gmmvit.data.parquet import PARQUET_EXTENSIONS, find_shards, image_bytes, known_parts, read_shards
from gmmvit.data.parts import part_of
from gmmvit.data.records import Contents, DataError, Part, Report, Source, expanded, listing
from gmmvit.data.walk import PassedOver, files_below, holds_images, is_note

_HEAD = 256  # rows that show whether a column may say parts
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
        hint = f"; it has images: did you mean folder:{name}?" if holds_images(path) else ""
        raise DataError(f"{path} holds no data set: expected a folder of save_to_disk or SPLIT-*.parquet files{hint}")
    [(folder, shards)] = found.items()
    parts = known_parts(shards, report)
    _report_others(path, report)
    return Source(
        name=f"hf-{path.name}",
        location=os.path.realpath(folder),
        files=[str(file) for files in parts.values() for file in files],
        read=partial(read_shards, path.name, parts),
    )


def _report_others(path: Path, report: Report) -> None:
    """A notice about data beside the parquet files that is not read."""
    read = (*PARQUET_EXTENSIONS, ".json")  # the Hub describes data sets in .json
    names = [file.name for file in files_below(path, PassedOver()) if not is_note(file.name)]
    others = Counter(os.path.splitext(name)[1].lower() for name in names if not name.lower().endswith(read))
    if others:
        kinds = [f"{extension or 'no extension'} {others[extension]}" for extension in sorted(others)]
        report(f"ignored beside the parquet files of {path}: {listing(kinds)}")


def _library_source(name: str, location: str, report: Report) -> Source:
    parts = _open_parts(name, location, report)
    files = sorted({os.path.abspath(file["filename"]) for part in parts.values() for file in part.cache_files})
    return Source(name=f"hf-{Path(name).name}", location=location, files=files, read=lambda: _read(name, parts))


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


def _read(name: str, given: Mapping[str, Any]) -> Contents:
    notices: list[str] = []
    report = notices.append
    where = f"hf:{name}"
    features = {part: data.features for part, data in given.items()}
    image = one_column({part: _images(part_name(part, where), its) for part, its in features.items()}, "images", report)
    label = one_column({part: _labels(part_name(part, where), its) for part, its in features.items()}, "labels", report)
    taken = {*image.values(), *label.values()}
    texts = {part: (len(data), _part_columns(data.with_format(None), taken)) for part, data in given.items()}
    divided, used = divide(where, texts, report)
    tell_unread(
        where,
        [*image.values(), *label.values(), *used],
        [column for its in features.values() for column in its],
        report,
    )
    parts = {part: given[origin].select(rows) for part, (origin, rows) in divided.items()}
    label = {part: label[origin] for part, (origin, _) in divided.items()}
    labels = {part: data.with_format(None)[label[part]][:] for part, data in parts.items()}
    named = one_naming(
        (f"the {part} part of {where}", _class_names(data.features[label[part]])) for part, data in parts.items()
    )
    several = SEVERAL_COLUMN if SEVERAL_COLUMN in label.values() else ""
    names, numbers = number_labels(where, labels, named, report, several)
    return Contents(
        names,
        {
            part: Part(
                values,
                [f"{name}/{part}#{row}" for row in range(len(values))],
                _encoded_images(parts[part], image[divided[part][0]]),
            )
            for part, values in numbers.items()
        },
        notices,
    )


def _class_names(feature: Any) -> list[str] | None:
    while hasattr(feature, "feature"):  # a list of labels
        feature = feature.feature
    return getattr(feature, "names", None)


def _images(where: str, features: Mapping[str, Any]) -> list[str]:
    """The columns that may hold the images, likeliest first: by their type where that decides, else by their name."""
    import datasets

    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images:
        raise DataError(f"no column of images in {where}: it has {listing(list(features))}, none of the type Image")
    return images if len(images) == 1 else known_columns(images, IMAGE_COLUMNS, "images", where)


def _labels(where: str, features: Mapping[str, Any]) -> list[str]:
    """The columns that may hold the labels, as `_images`."""
    import datasets

    labels = [
        column
        for column, feature in features.items()
        if isinstance(feature, datasets.ClassLabel) and not all(map(part_of, feature.names))
    ]
    numeric = [
        column
        for column, feature in features.items()
        if isinstance(feature, datasets.Value) and feature.dtype.startswith(("bool", "int", "uint", "float"))
    ]
    if len(labels) == 1:
        return labels
    return known_columns(labels or list(features), LABEL_COLUMNS, "labels", where, numeric)


def _part_columns(data: Any, others: Container[str]) -> dict[str, list[str]]:
    """The columns of texts or categories, except the `others`, that may say parts -> their values."""
    texts = {column: _texts(data, column) for column in data.features if column not in others}
    return {column: values for column, values in texts.items() if values is not None}


def _texts(data: Any, column: str) -> list[str] | None:
    import datasets

    feature = data.features[column]
    names = feature.names if isinstance(feature, datasets.ClassLabel) else None
    if names is None and feature not in (datasets.Value("string"), datasets.Value("large_string")):
        return None
    return texts_of(data[column][:_HEAD], lambda: data[column][:], names)


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
