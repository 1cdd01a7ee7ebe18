"""Writes small image and parquet files for tests."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def draw(path: Path, shade: int = 128, size: tuple[int, int] = (12, 10)) -> Path:
    """Write an image of one colour; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, 0)).save(path)
    return path


def fill(root: Path, counts: dict[str, int]) -> Path:
    """Write `counts[class]` different images for each class."""
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            draw(root / name / f"{index:03d}.png", shade=(40 * number + index) % 256)
    return root


def _encoded(shade: int, size: tuple[int, int] = (32, 32)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, shade, 255 - shade)).save(stream, "PNG")
    return stream.getvalue()


def write_parquet(
    path: Path,
    labels: list,
    *,
    image: str = "img",
    label: str = "label",
    classes: list[str] | None = None,
    more: dict[str, list] | None = None,
    first: int = 0,
) -> Path:
    """A shard with one encoded image of 32 x 32 for each label, and `more` columns; those of another `first` have other
    images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": _encoded((first + row) * 7 % 256), "path": None} for row in range(len(labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(cells, kind), label: pa.array(labels), **(more or {})})
    if classes:
        features = {label: {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path
