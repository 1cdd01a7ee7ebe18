"""Small image files and data sets for the tests of `gmmvit.data`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gmmvit.data import DataError, Dataset, load_dataset


def _draw(path: Path, shade: int = 128, size: tuple[int, int] = (12, 10)) -> Path:
    """Write an image of one colour; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, 0)).save(path)
    return path


def _fill(root: Path, counts: dict[str, int]) -> Path:
    """Write `counts[class]` different images for each class."""
    for number, (name, count) in enumerate(counts.items()):
        for index in range(count):
            _draw(root / name / f"{index:03d}.png", shade=(40 * number + index) % 256)
    return root


def _encoded(shade: int, size: tuple[int, int] = (32, 32)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, shade, 255 - shade)).save(stream, "PNG")
    return stream.getvalue()


def _write_parquet(
    path: Path, labels: list, *, image: str = "img", label: str = "label", classes: list[str] | None = None
) -> Path:
    """A shard with one encoded image of 32 x 32 for each label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": _encoded(row * 7 % 256), "path": None} for row in range(len(labels))]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(cells, kind), label: pa.array(labels)})
    if classes:
        features = {label: {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


@pytest.fixture
def lines() -> list[str]:
    """What was reported."""
    return []


@pytest.fixture
def load(tmp_path: Path, lines: list[str]) -> Callable[..., Dataset]:
    """`load_dataset` with a cache of its own, small images and no network."""

    def load_here(name: str | Path, **options) -> Dataset:
        if isinstance(name, Path):
            name = f"folder:{name}"
        defaults = {"image_size": 8, "cache_dir": tmp_path / "cache", "report": lines.append, "download": False}
        return load_dataset(name, **{**defaults, **options})

    return load_here


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """PATH/CLASS/* with 20 cats and 30 dogs."""
    return _fill(tmp_path / "pets", {"cat": 20, "dog": 30})


@pytest.fixture
def gradient() -> np.ndarray:
    """uint8 [40, 40]: dark on the left, bright on the right."""
    return np.tile(np.linspace(0, 255, 40).astype(np.uint8), (40, 1))


@pytest.fixture
def draw() -> Callable[..., Path]:
    return _draw


@pytest.fixture
def fill() -> Callable[..., Path]:
    return _fill


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    return _write_parquet


@pytest.fixture
def data_error() -> Callable[..., str]:
    """Calls and returns the one line of the DataError that must come."""

    def message_of(function: Callable, *arguments, **options) -> str:
        with pytest.raises(DataError) as caught:
            function(*arguments, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message_of
