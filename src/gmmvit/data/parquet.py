"""Images in parquet shards, as the Hugging Face Hub lays them out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gmmvit.data.folder import check_classes, check_names
from gmmvit.data.records import PART_NAMES, Contents, DataError, Part, Report, listing

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE_COLUMNS = ("img", "image", "images", "pixel_values", "picture")
LABEL_COLUMNS = ("label", "fine_label", "labels", "class", "category", "target")

_SHARD = re.compile(r"(?P<split>[A-Za-z]+)(?:-(?P<index>\d+)-of-(?P<count>\d+))?(?:[-.].*)?\.parquet$")
_ROWS = 256


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """The shards `SPLIT-*.parquet` of a folder by part (`train`, `val`, `test`), in order; others are left out.

    Raises:
        DataError: a shard of a series is missing.
    """
    shards: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet")):
        match = _SHARD.match(file.name)
        part = PART_NAMES.get(match["split"].lower()) if match else None
        if match and part and not file.name.startswith("."):
            shards.setdefault(part, []).append(file)
    for files in shards.values():
        match = _SHARD.match(files[0].name)
        if match and match["count"] and len(files) != int(match["count"]):
            there = listing([file.name for file in files])
            raise DataError(f"{folder} has {len(files)} of {int(match['count'])} shards ({there}): add the rest")
    return {part: shards[part] for part in ("train", "val", "test") if part in shards}


def read_shards(
    name: str, shards: Mapping[str, Sequence[Path]], report: Report, classes: Sequence[str] | None = None
) -> Contents:
    """Open the shards of all parts; images are read when they are decoded.

    Args:
        name: what the names of the images start with.
        shards: part name -> files; the key may be `all`.
        report: told of a part that carries no labels and is left out.
        classes: class names for whole-number labels where the files do not carry them.

    Raises:
        DataError: a file cannot be read, has no column of images or of labels, or a label is neither number nor text.
    """
    labels = {part: _read_labels(files) for part, files in shards.items()}
    described = next((names for _, names in labels.values() if names), None)
    names, numbers = number_labels(
        name, {part: values for part, (values, _) in labels.items()}, described or classes, report
    )
    return Contents(
        names,
        {
            part: Part(values, _row_names(name, shards[part]), _row_images(shards[part]))
            for part, values in numbers.items()
        },
    )


def number_labels(
    name: str, labels: Mapping[str, np.ndarray], classes: Sequence[str] | None, report: Report
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Class names, and int64 labels `[N]` of every labelled part, from labels that are whole numbers or text.

    Without `classes`, whole numbers are named by themselves up to the largest. Parts that are empty, or whose labels
    are all -1 (how the Hub marks a test part without labels), are left out.

    Raises:
        DataError: a label is missing or of another type, or only the training part lacks a class.
    """
    if all(values.dtype.kind in "iu" for values in labels.values()):
        unlabelled = [part for part, values in labels.items() if len(values) and (values == -1).all()]
        for part in unlabelled:
            report(f"{name}: the {part} part carries no labels and is left out")
        kept = {part: values.astype(np.int64) for part, values in labels.items() if (values != -1).any()}
        check_names(classes or (), name)
        top = max((int(values.max()) for values in kept.values()), default=-1)
        return tuple(classes or (str(number) for number in range(top + 1))), kept
    texts = {part: values.tolist() for part, values in labels.items() if len(values)}
    for part, values in texts.items():
        # Missing ones first: they turn a column of whole numbers into floats or objects.
        missing = (row for row, value in enumerate(values) if value is None or value != value)
        other = (row for row, value in enumerate(values) if not isinstance(value, str))
        wrong = next(missing, next(other, None))
        if wrong is not None:
            raise DataError(
                f"{name}: label {values[wrong]!r} in row {wrong} of the {part} part is neither a whole number nor text"
            )
    training = "all" if "all" in texts else "train"
    names = check_classes({part: set(values) for part, values in texts.items()}, training, name)
    index = {label: number for number, label in enumerate(names)}
    return names, {part: np.array([index[value] for value in values], dtype=np.int64) for part, values in texts.items()}


def find_column(columns: Sequence[str], known: Sequence[str], what: str, where: str) -> str:
    """The first of the `known` columns that is there.

    Raises:
        DataError: none is.
    """
    for name in known:
        if name in columns:
            return name
    raise DataError(f"no column of {what} in {where}: it has {listing(columns, 9)}; expected {' or '.join(known)}")


def _open(file: Path) -> pa.parquet.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} is not a whole parquet file, copy it again: {' '.join(str(error).split())[:120]}")


def _read_labels(files: Sequence[Path]) -> tuple[np.ndarray, list[str] | None]:
    """The labels of all shards of a part, and the class names that the first one carries."""
    import pyarrow as pa

    columns = []
    names: list[str] | None = None
    for file in files:
        with _open(file) as shard:
            column = find_column(shard.schema_arrow.names, LABEL_COLUMNS, "labels", str(file))
            names = names or _class_names(shard.schema_arrow, column)
            try:
                columns.append(shard.read([column])[column].to_numpy())
            except (OSError, pa.ArrowException) as error:
                raise _damaged(file, error) from error
    return np.concatenate(columns), names


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    return described.get("info", {}).get("features", {}).get(column, {}).get("names")


def _row_names(name: str, files: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for file in files:
        with _open(file) as shard:
            short = file.stem.split("-of-")[0]
            names.extend(f"{name}/{short}#{row}" for row in range(shard.metadata.num_rows))
    return names


def _row_images(files: Sequence[Path]) -> Callable[[], Iterator[bytes]]:
    import pyarrow as pa

    def sources() -> Iterator[bytes]:
        for file in files:
            with _open(file) as shard:
                column = find_column(shard.schema_arrow.names, IMAGE_COLUMNS, "images", str(file))
                try:
                    for batch in shard.iter_batches(_ROWS, columns=[column]):
                        yield from map(image_bytes, batch.column(0).to_pylist())
                except (OSError, pa.ArrowException) as error:
                    raise _damaged(file, error) from error

    return sources


def image_bytes(value: object) -> bytes:
    """The encoded image of a cell: plain bytes or a struct with `bytes`; empty where there is none."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else b""
