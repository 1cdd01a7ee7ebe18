"""Arguments of `load_dataset` that are out of range are named with the value got and the values allowed."""

from __future__ import annotations

import pytest

from gmmvit.data import DataError, load_dataset


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, r"val_fraction must be at least 0 and below 1, got 1\.0"),
        ({"val_fraction": -0.1}, r"val_fraction .* got -0\.1"),
        ({"test_fraction": 1.5}, r"test_fraction .* got 1\.5"),
        ({"test_fraction": float("nan")}, r"test_fraction .* got nan"),
        ({"split_seed": -1}, r"split_seed .* got -1"),
        ({"split_seed": 1.0}, r"split_seed .* got 1\.0"),
        ({"image_size": 0}, r"image_size .* got \(0, 0\)"),
        ({"image_size": (8, 8, 8)}, r"image_size .* got \(8, 8, 8\)"),
        ({"image_size": "big"}, r"image_size .* got 'big'"),
        ({"channels": 4}, r"channels must be 1 \(grey\) or 3 \(RGB\), got 4"),
        ({"fit": "squeeze"}, r"fit must be one of crop, stretch, pad, got 'squeeze'"),
        ({"name": "folder:"}, r"'folder:' names no path"),
        ({"name": "hf:"}, r"'hf:' names no data set"),
        ({"name": "zip:x"}, r"dataset must be .* got 'zip:x'"),
    ],
)
def test_out_of_range(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_dataset(**options)
    assert not isinstance(caught.value, DataError)
