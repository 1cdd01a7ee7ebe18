"""Images in parquet shards, as the Hugging Face Hub lays them out."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gmmvit.data.classes import one_naming
from gmmvit.data.columns import IMAGE_COLUMNS, LABEL_COLUMNS, known_columns, one_column, tell_unread
from gmmvit.data.division import divide, texts_of
from gmmvit.data.labels import SEVERAL_COLUMN, number_labels
from gmmvit.data.parts import PARTS, part_in, part_of
from gmmvit.data.records import Contents, DataError, Part, Report, listing, silent
from gmmvit.data.walk import PassedOver, files_below

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET_EXTENSIONS = (".parquet", ".pq")

_SERIES = re.compile(r"(?P<name>.*)-(?P<index>\d+)-of-(?P<count>\d+)")
_ROWS = 256

# Part (`train`, `val`, `test`, or None where no name gives it) -> the files of it, in order.
Shards = dict[str | None, list[Path]]


def find_shards(root: Path, report: Report = silent) -> dict[Path, Shards]:
    """The parquet files in a folder and below it, by the folder of the configuration that they belong to.

    A part is known by the name of a file (`data/train-00000-of-00002.parquet`), else by that of a folder
    (`default/train/0000.parquet`); the configuration is what lies round it. Links that lead nowhere or in a circle are
    reported.

    Raises:
        DataError: a shard of a series is missing, or a folder cannot be read.
    """
    found: dict[Path, Shards] = {}
    passed = PassedOver()
    files = [Path(path) for path in parquet_files(root, passed)]
    passed.report_links(root, report)
    for file in sorted(files, key=lambda file: (len(file.parts), file)):
        folders = file.relative_to(root).parts[:-1]
        part = part_in(file.stem)
        if part is None:
            depth = next((i for i in reversed(range(len(folders))) if part_in(folders[i])), len(folders))
            part = part_in(folders[depth]) if depth < len(folders) else None
            folders = folders[:depth]
        elif folders and part_of(folders[-1]) == part:  # train/train.parquet
            folders = folders[:-1]
        found.setdefault(root.joinpath(*folders), {}).setdefault(part, []).append(file)
    for shards in found.values():
        for files in shards.values():
            _check_series(files)
    return found


def parquet_files(root: Path, passed: PassedOver) -> Iterator[str]:
    """The parquet files among `files_below`."""
    return (file.path for file in files_below(root, passed) if file.name.lower().endswith(PARQUET_EXTENSIONS))


def _check_series(files: Sequence[Path]) -> None:
    series: dict[tuple[Path, str, str], list[str]] = {}
    for file in files:
        if match := _SERIES.match(file.stem):
            series.setdefault((file.parent, match["name"], match["count"]), []).append(file.name)
    for (folder, _, count), names in series.items():
        if len(names) != int(count):
            raise DataError(f"{folder} has {len(names)} of {int(count)} shards ({listing(names)}): add the rest")


def known_parts(shards: Shards, report: Report) -> dict[str, list[Path]]:
    """The files of each part, or all of them under `all` if no name gives a part.

    Reports which files are left out, and which of different names are put together."""
    parts: dict[str, list[Path]] = {part: shards[part] for part in PARTS if part in shards}
    rest = [str(file) for file in shards.get(None, ())]
    if not parts:
        return {"all": shards[None]}
    if rest:
        report(f"ignored {listing(rest)}: its name gives no part, while others are {listing(list(parts))}")
    for part, files in parts.items():
        kinds = sorted(
            {re.sub(r"\d+", "", match["name"] if (match := _SERIES.match(f.stem)) else f.stem) for f in files}
        )
        if len(kinds) > 1:
            names = [file.name for file in files]
            report(f"the {part} part is put together of files of different names: {listing(names)}")
    return parts


def read_shards(name: str, shards: Mapping[str, Sequence[Path]], classes: Sequence[str] | None = None) -> Contents:
    """Open the shards of all parts; images are read when they are decoded.

    Args:
        name: what the names of the images start with.
        shards: part name -> files; the key may be `all`.
        classes: class names for whole-number labels where the files do not carry them.

    Raises:
        DataError: a file cannot be read, has no column of images or of labels, a label is neither number nor text, or a
            column of parts contradicts the files.
    """
    notices: list[str] = []
    report = notices.append
    schemas = {str(file): _schema(file) for files in shards.values() for file in files}
    images = {file: known_columns(schema.names, IMAGE_COLUMNS, "images", file) for file, schema in schemas.items()}
    labels = {
        file: known_columns(schema.names, LABEL_COLUMNS, "labels", file, _numeric(schema))
        for file, schema in schemas.items()
    }
    image, label = one_column(images, "images", report), one_column(labels, "labels", report)
    taken = {*image.values(), *label.values()}
    read = {part: _read_labels(files, label) for part, files in shards.items()}
    given = {part: (len(values), _part_columns(shards[part], taken)) for part, (values, _) in read.items()}
    parts, divided = divide(name, given, report)
    there = [column for schema in schemas.values() for column in schema.names]
    tell_unread(name, [*image.values(), *label.values(), *divided], there, report)
    described = one_naming((f"the {part} part of {name}", names) for part, (_, names) in read.items())
    names, numbers = number_labels(
        name,
        {part: _chosen(read[origin][0], rows) for part, (origin, rows) in parts.items()},
        described or classes,
        report,
        SEVERAL_COLUMN if SEVERAL_COLUMN in label.values() else "",
    )
    return Contents(
        names,
        {part: _part(name, values, shards[parts[part][0]], parts[part][1], image) for part, values in numbers.items()},
        notices,
    )


def _numeric(schema: pa.Schema) -> list[str]:
    """The columns of numbers and truth values."""
    import pyarrow as pa

    checks = pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean
    return [field.name for field in schema if any(check(field.type) for check in checks)]


def _part(name: str, labels: np.ndarray, files: Sequence[Path], rows: np.ndarray, image: Mapping[str, str]) -> Part:
    """Those rows of the files."""
    names, images = _row_names(name, files), _row_images(files, image)
    if len(rows) == len(names):
        return Part(labels, names, images)
    chosen = np.isin(np.arange(len(names)), rows)
    return Part(labels, _chosen(names, rows), lambda: itertools.compress(images(), chosen))


def _chosen(values: Any, rows: np.ndarray) -> Any:
    """Those rows of an array or a list."""
    return values[rows] if isinstance(values, np.ndarray) else [values[row] for row in rows.tolist()]


def _part_columns(files: Sequence[Path], others: Container[str]) -> dict[str, list[str]]:
    """The columns of texts or categories that all files have, except the `others`, and that may say parts -> values."""
    first, *rest = [_schema(file) for file in files]
    found: dict[str, list[str]] = {}
    for column in first.names:
        if column in others or not all(column in schema.names for schema in rest):
            continue
        parts = [_texts(file, column) for file in files]
        if None not in parts:
            found[column] = [text for texts in parts if texts is not None for text in texts]
    return found


def _texts(file: Path, column: str) -> list[str] | None:
    """The values of a column of texts or categories as texts; None for another one, or where they cannot say parts."""
    import pyarrow as pa

    with _open(file) as shard:
        schema = shard.schema_arrow
        kind, names = schema.field(column).type, _class_names(schema, column)
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not (pa.types.is_integer(kind) if names else pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            return None
        try:
            head = next(shard.iter_batches(_ROWS, columns=[column]), None)
            first = [] if head is None else head.column(0).to_pylist()
            return texts_of(first, lambda: shard.read([column])[column].to_pylist(), names)
        except (OSError, pa.ArrowException) as error:
            raise _damaged(file, error) from error


def _open(file: Path) -> pa.parquet.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> DataError:
    return DataError(f"{file} is not a whole parquet file, copy it again: {' '.join(str(error).split())[:120]}")


def _schema(file: Path) -> pa.Schema:
    with _open(file) as shard:
        return shard.schema_arrow


def _read_labels(files: Sequence[Path], column: Mapping[str, str]) -> tuple[Any, Sequence[str] | None]:
    """The labels of all shards of a part, from the `column` of each, and the class names that they carry."""
    import pyarrow as pa

    columns: list[Any] = []
    named: list[tuple[str, list[str] | None]] = []
    for file in files:
        label = column[str(file)]
        with _open(file) as shard:
            named.append((str(file), _class_names(shard.schema_arrow, label)))
            try:
                values = shard.read([label])[label]
            except (OSError, pa.ArrowException) as error:
                raise _damaged(file, error) from error
            whole = pa.types.is_integer(values.type) and not values.null_count
            columns.append(values.to_numpy() if whole else values.to_pylist())
    names = one_naming(named)
    if all(isinstance(values, np.ndarray) for values in columns):
        return np.concatenate(columns), names
    return [value for values in columns for value in values], names


def _class_names(schema: pa.Schema, column: str) -> list[str] | None:
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    feature = described.get("info", {}).get("features", {}).get(column, {})
    while isinstance(feature, dict) and "feature" in feature:  # a list of one
        feature = feature["feature"]
    return feature.get("names") if isinstance(feature, dict) else None


def _row_names(name: str, files: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for file in files:
        with _open(file) as shard:
            short = file.stem.split("-of-")[0]
            names.extend(f"{name}/{short}#{row}" for row in range(shard.metadata.num_rows))
    return names


def _row_images(files: Sequence[Path], column: Mapping[str, str]) -> Callable[[], Iterator[bytes]]:
    import pyarrow as pa

    def sources() -> Iterator[bytes]:
        for file in files:
            with _open(file) as shard:
                try:
                    for batch in shard.iter_batches(_ROWS, columns=[column[str(file)]]):
                        yield from map(image_bytes, batch.column(0).to_pylist())
                except (OSError, pa.ArrowException) as error:
                    raise _damaged(file, error) from error

    return sources


def image_bytes(value: object) -> bytes:
    """The encoded image of a cell: plain bytes or a struct with `bytes`; empty where there is none."""
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if isinstance(value, bytes) else b""
