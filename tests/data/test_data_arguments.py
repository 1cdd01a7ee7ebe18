"""Errors for arguments of `load_dataset` name the argument, its value and the allowed values."""

from __future__ import annotations

import sys

import pytest

from gmmvit.data import DataError, class_names, decode_image, load_dataset
from gmmvit.data.records import packages_for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_fraction": 1.0}, r"val_fraction must be at least 0 and below 1, got 1\.0"),
        ({"val_fraction": -0.1}, r"val_fraction .* got -0\.1"),
        ({"test_fraction": 1.5}, r"test_fraction .* got 1\.5"),
        ({"test_fraction": float("nan")}, r"test_fraction .* got nan"),
        ({"split_seed": -1}, r"split_seed .* got -1"),
        ({"split_seed": 2**63}, r"split_seed .* from 0 to 9223372036854775807, got 9223372036854775808"),
        ({"split_seed": 1.0}, r"split_seed .* got 1\.0"),
        ({"image_size": 0}, r"image_size .* got \(0, 0\)"),
        ({"image_size": (8, 8, 8)}, r"image_size .* got \(8, 8, 8\)"),
        ({"image_size": "big"}, r"image_size .* got 'big'"),
        ({"channels": 13}, r"channels must be 1 \(grey\), 3 \(RGB\) or up to 12, got 13"),
        ({"bits": 12}, "bits must be 8 or 16, got 12"),
        ({"axes": "cwh"}, "axes must be hwc or chw, got 'cwh'"),
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


@pytest.mark.parametrize("name", [None, 5, ["digits"]])
def test_name_that_is_no_text(name):
    with pytest.raises(TypeError) as caught:
        load_dataset(name)
    message = str(caught.value)
    assert message.startswith("name must be the name of a data set, digits, cifar10, ")
    assert message.endswith(f"folder:PATH or hf:NAME_OR_PATH, got {name!r}")


@pytest.mark.parametrize(
    ("name", "missing", "hint"),
    [
        ("digits", "sklearn.datasets", "digits needs scikit-learn, which cannot be imported: pip install scikit-learn"),
        ("digits", "PIL", "digits needs Pillow, which cannot be imported: pip install pillow"),
        ("svhn", "torchvision", "svhn needs torchvision, which cannot be imported: pip install torchvision"),
        ("svhn", "scipy.io", "svhn needs scipy, which cannot be imported: pip install scipy"),
        ("hf:a/b", "datasets", "hf:a/b needs the datasets library, which cannot be imported: pip install datasets"),
    ],
)
def test_missing_package(data_error, monkeypatch, tmp_path, name, missing, hint):
    for file in ("train_32x32.mat", "test_32x32.mat"):
        (tmp_path / file).write_bytes(b"")
    monkeypatch.setattr("torchvision.datasets.SVHN._check_integrity", lambda self: True)
    monkeypatch.setitem(sys.modules, missing, None)
    assert data_error(load_dataset, name, data_dir=tmp_path, cache_dir=tmp_path / "cache") == hint


def test_missing_packages_of_other_functions(data_error, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert data_error(decode_image, b"", size=(8, 8)).endswith("pip install pillow")
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    assert data_error(class_names, "flowers102").endswith("pip install torchvision")


def test_damaged_package_tells_why(data_error):
    def load() -> None:
        with packages_for("cifar10"):
            raise ImportError("libjpeg.so.62: cannot open shared object file", name="PIL._imaging")

    assert "needs Pillow, which cannot be imported (libjpeg.so.62: cannot open" in data_error(load)


def test_other_failed_imports_pass_through():
    with pytest.raises(ImportError, match="no such thing"), packages_for("cifar10"):
        raise ImportError("no such thing", name="somewhere")
