"""Small image files and data sets for the tests of `gmmvit.data`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import drawing
import numpy as np
import pytest

from gmmvit.data import DataError, Dataset, load_dataset


@pytest.fixture
def lines() -> list[str]:
    """The reported lines."""
    return []


@pytest.fixture
def load(tmp_path: Path, lines: list[str]) -> Callable[..., Dataset]:
    """`load_dataset` with its own cache, small images and no network."""

    def load_here(name: str | Path, **options) -> Dataset:
        if isinstance(name, Path):
            name = f"folder:{name}"
        defaults = {"image_size": 8, "cache_dir": tmp_path / "cache", "report": lines.append, "download": False}
        return load_dataset(name, **{**defaults, **options})

    return load_here


@pytest.fixture
def two_classes(tmp_path: Path) -> Path:
    """PATH/CLASS/* with 20 cats and 30 dogs."""
    return drawing.fill(tmp_path / "pets", {"cat": 20, "dog": 30})


@pytest.fixture
def gradient() -> np.ndarray:
    """uint8 [40, 40]: dark on the left, bright on the right."""
    return np.tile(np.linspace(0, 255, 40).astype(np.uint8), (40, 1))


@pytest.fixture
def draw() -> Callable[..., Path]:
    return drawing.draw


@pytest.fixture
def fill() -> Callable[..., Path]:
    return drawing.fill


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    return drawing.write_parquet


@pytest.fixture
def data_error() -> Callable[..., str]:
    """Returns the one-line DataError that the call must raise."""

    def message_of(function: Callable, *arguments, **options) -> str:
        with pytest.raises(DataError) as caught:
            function(*arguments, **options)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return message_of
