"""`hf:NAME_OR_PATH`: folders of the Hub's formats, with and without the `datasets` library."""

from __future__ import annotations

import builtins
import sys

import pytest
import torch
from PIL import Image

IMAGES = [Image.new("RGB", (10, 10), (shade * 10, 0, 0)) for shade in range(20)]


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    return pytest.importorskip("datasets")


def test_saved_parts(load, tmp_path, datasets):
    features = datasets.Features(
        {"photo": datasets.Image(), "note": datasets.Value("int64"), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )
    whole = datasets.Dataset.from_dict(
        {"photo": IMAGES, "note": list(range(20)), "kind": [index % 2 for index in range(20)]}, features=features
    )
    parts = {
        "train": whole.select(range(12)),
        "validation": whole.select(range(12, 16)),
        "test": whole.select(range(16, 20)),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    data = load(f"hf:{tmp_path / 'saved'}")
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 4, 4]
    assert data.test.labels.tolist() == [0, 1, 0, 1]
    assert data.test.images[:, 0, 0, 0].tolist() == [160, 170, 180, 190]


def test_saved_single_set_with_text_labels_is_split(load, tmp_path, datasets):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    labels = ["dog" if index % 2 else "cat" for index in range(20)]
    datasets.Dataset.from_dict({"image": IMAGES, "label": labels}, features=features).save_to_disk(tmp_path / "saved")
    data = load(f"hf:{tmp_path / 'saved'}")
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [14, 2, 4]
    assert torch.equal(data.train.labels, data.train.images[:, 0, 0, 0].long() // 10 % 2)


def test_images_saved_as_paths_alone(load, tmp_path, datasets, draw):
    files = [str(draw(tmp_path / f"{index}.png", shade=index)) for index in range(8)]
    features = datasets.Features({"image": datasets.Image(decode=False), "label": datasets.Value("int64")})
    cells = [{"bytes": None, "path": file} for file in files]
    whole = datasets.Dataset.from_dict({"image": cells, "label": [0, 1] * 4}, features=features)
    whole.save_to_disk(tmp_path / "saved")
    data = load(f"hf:{tmp_path / 'saved'}", val_fraction=0, test_fraction=0)
    assert data.classes == ("0", "1")
    assert data.train.images[:, 0, 0, 0].tolist() == list(range(8))


def test_columns_that_cannot_be_found(data_error, load, tmp_path, datasets):
    datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]}).save_to_disk(tmp_path / "saved")
    assert "no column of images in hf:" in data_error(load, f"hf:{tmp_path / 'saved'}")


def test_name_that_the_hub_does_not_give(data_error, load, monkeypatch, datasets):
    def unreachable(name):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert "hf:someone/pets cannot be loaded: Couldn't reach 'someone/pets'" in data_error(load, "hf:someone/pets")


def test_library_that_is_not_installed(data_error, load, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in data_error(load, "hf:someone/pets")


@pytest.fixture
def no_library(monkeypatch):
    real = builtins.__import__

    def refuse(name, *arguments, **options):
        assert name.split(".")[0] != "datasets"
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.usefixtures("no_library")
def test_parquet_folder_needs_no_library(load, tmp_path, write_parquet):
    write_parquet(tmp_path / "pets" / "data" / "train-00000-of-00001.parquet", ["dog", "cat"] * 10, image="image")
    data = load(f"hf:{tmp_path / 'pets'}")
    assert data.classes == ("cat", "dog")
    assert [len(part) for part in (data.train, data.val, data.test)] == [14, 2, 4]
    assert data.train.names[0].startswith("pets/train-00000#")


def test_parquet_files_without_part_names_are_split(load, tmp_path, write_parquet):
    write_parquet(tmp_path / "pets" / "0000.parquet", [0, 1] * 10)
    assert [len(part) for part in (load(f"hf:{tmp_path / 'pets'}").train, load(f"hf:{tmp_path / 'pets'}").test)] == [
        14,
        4,
    ]


def test_unlabelled_test_part_is_left_out(load, tmp_path, write_parquet, lines):
    write_parquet(tmp_path / "pets" / "train.parquet", [0, 1] * 10)
    write_parquet(tmp_path / "pets" / "test.parquet", [-1] * 4)
    data = load(f"hf:{tmp_path / 'pets'}")
    assert len(data.test) == 4
    assert data.test.names[0].startswith("pets/train#")
    assert any("the test part carries no labels" in line for line in lines)


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        ([0, 1, None], "the label in row 2 of the all part is missing: fill it in"),
        (["a", None], "label in row 1 of the all part is missing"),
        ([0, 1, -1, 1], "label -1 in row 2 of the all part is negative: number the classes from 0"),
        (["Cat", "cat"], "differ by case only"),
        ([0.5, 1.5], "label 0.5 in row 0"),
        ([0, 0], "at least two classes are needed"),
    ],
)
def test_faulty_labels(data_error, load, tmp_path, write_parquet, labels, fault):
    write_parquet(tmp_path / "pets" / "0.parquet", labels)
    assert fault in data_error(load, f"hf:{tmp_path / 'pets'}")


def test_class_that_train_lacks(data_error, load, tmp_path, write_parquet):
    write_parquet(tmp_path / "pets" / "train.parquet", ["a", "b"])
    write_parquet(tmp_path / "pets" / "test.parquet", ["a", "c"])
    assert "class 'c', which the training part lacks" in data_error(load, f"hf:{tmp_path / 'pets'}")


def test_nothing_there(data_error, load, tmp_path):
    assert "does not exist" in data_error(load, f"hf:{tmp_path / 'none'}")
    (tmp_path / "empty").mkdir()
    assert "holds no data set" in data_error(load, f"hf:{tmp_path / 'empty'}")


def saved(datasets, place, parts, **kinds):
    """Saves parts, each given as its columns beside the images; returns what loads them."""
    made, first = {}, 0
    for part, columns in parts.items():
        count = len(next(iter(columns.values())))
        known = {name: kinds.get(name, datasets.Value("string")) for name in columns}
        features = datasets.Features({"image": datasets.Image(), **known})
        columns = {"image": IMAGES[first : first + count], **columns}
        made[part], first = datasets.Dataset.from_dict(columns, features=features), first + count
    (datasets.DatasetDict(made) if len(made) > 1 else made[part]).save_to_disk(place)
    return f"hf:{place}"


@pytest.mark.parametrize("named", [False, True])
def test_a_column_of_parts_divides_a_saved_set(load, tmp_path, lines, datasets, named):
    says = ["train"] * 6 + ["valid"] * 2 + ["test"] * 2
    kinds = {"subset": datasets.ClassLabel(names=["test", "train", "valid"])} if named else {}
    columns = {"label": ["cat", "dog"] * 5, "subset": says, "note": list("abcdefghij")}
    data = load(saved(datasets, tmp_path / "a", {"all": columns}, **kinds))
    assert [len(part) for part in (data.train, data.val, data.test)] == [6, 2, 2]
    assert data.test.images[:, 0, 0, 0].tolist() == [80, 90]
    assert f"hf:{tmp_path / 'a'}: the column subset makes the parts, train 6, val 2, test 2" in lines
    assert f"ignored columns of hf:{tmp_path / 'a'}: note (image, label, subset are read)" in lines


def test_columns_that_the_parts_of_a_saved_set_do_not_share(data_error, load, tmp_path, lines, datasets):
    train, test = ["cat", "dog"] * 4, ["dog", "cat"]
    data = load(saved(datasets, tmp_path / "a", {"train": {"label": train}, "test": {"target": test}}), val_fraction=0)
    assert data.test.labels.tolist() == [1, 0]
    assert any("labels are read from columns of different names: label in train and target in test" in x for x in lines)
    name = saved(datasets, tmp_path / "b", {"train": {"label": train}, "test": {"breed": test}})
    assert f"no column of labels in the test part of {name}: it has image, breed" in data_error(load, name)
    name = saved(datasets, tmp_path / "c", {"train": {"label": train}, "test": {"label": test, "split": ["train"] * 2}})
    assert "row 0: split says train, and train is a part of its own" in data_error(load, name)


def test_how_a_set_was_read_is_said_where_its_images_are_cached(load, tmp_path, write_parquet, lines):
    write_parquet(tmp_path / "pets" / "0.parquet", [0, 1] * 10, more={"note": list("abcdefghijabcdefghij")})
    for _ in range(2):
        load(f"hf:{tmp_path / 'pets'}")
    assert [line for line in lines if "decoding" not in line] == [
        "ignored columns of pets: note (img, label are read)"
    ] * 2
