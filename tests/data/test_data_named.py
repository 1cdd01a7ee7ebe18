"""The named data sets in each of their layouts."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from gmmvit.data import dataset_names, decode_image, load_dataset

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_names():
    assert dataset_names() == ("digits", "cifar10", "cifar100", "svhn", "tiny-imagenet", "flowers102")


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"digits, cifar10, .*folder:PATH or hf:NAME_OR_PATH, got 'cifar'"):
        load_dataset("cifar")


def test_digits_have_a_fixed_test_part_of_360():
    data, other = load_dataset(), load_dataset(split_seed=1)
    assert [len(part) for part in (data.train, data.val, data.test)] == [1293, 144, 360]
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    assert data.test.names == other.test.names
    assert data.val.names != other.val.names
    assert not set(data.train.names) & {*data.val.names, *data.test.names}
    assert torch.bincount(data.test.labels).min() >= 34
    assert (data.policy, data.flip, len(data.classes)) == ("none", False, 10)


def test_digits_keep_scikit_learns_labels_and_pixels():
    from sklearn.datasets import load_digits

    raw, part = load_digits(), load_dataset(val_fraction=0).train
    for image, label, name in zip(part.images[:50], part.labels, part.names, strict=False):
        index = int(name.split("#")[1])
        assert label == raw.target[index]
        assert np.abs(image[0].numpy() - raw.images[index] * 255 / 16).max() <= 0.5


def test_digits_in_another_size_and_colour():
    assert load_dataset(image_size=(12, 16), channels=3).train.images.shape[1:] == (3, 12, 16)


@pytest.mark.parametrize(
    ("name", "classes", "image", "label", "folder", "size", "policy", "flip"),
    [
        ("cifar10", 10, "img", "label", "plain_text", 32, "cifar10", True),
        ("cifar100", 100, "img", "fine_label", "cifar100", 32, "cifar10", True),
        ("svhn", 10, "image", "label", "cropped_digits", 32, "svhn", False),
        ("tiny-imagenet", 4, "image", "label", "data", 64, "imagenet", True),
    ],
)
def test_parquet_shards(load, tmp_path, write_parquet, name, classes, image, label, folder, size, policy, flip):
    place = tmp_path / name / folder
    labels = list(range(classes))
    for shard in range(2):
        write_parquet(place / f"train-0000{shard}-of-00002.parquet", labels, image=image, label=label)
    held_out = "valid" if name == "tiny-imagenet" else "test"
    write_parquet(place / f"{held_out}-00000-of-00001-abc123.parquet", labels[::-1], image=image, label=label)
    data = load(name, data_dir=tmp_path, image_size=None, val_fraction=0)
    assert data.train.images.shape == (2 * classes, 3, size, size)
    assert data.train.labels.tolist() == labels * 2
    assert data.train.names[classes] == f"{name}/train-00001#0"
    assert data.test.labels.tolist() == labels[::-1]
    assert data.test.names[1] == f"{name}/{held_out}-00000#1"
    assert (data.policy, data.flip, data.val, len(data.classes)) == (policy, flip, None, classes)


def test_parquet_classes_come_from_the_schema_else_from_what_is_known(load, tmp_path, write_parquet):
    place = tmp_path / "cifar10"
    write_parquet(place / "train-00000-of-00001.parquet", list(range(10)) * 3)
    write_parquet(place / "test-00000-of-00001.parquet", list(range(10)))
    assert load("cifar10", data_dir=tmp_path).classes[:2] == ("airplane", "automobile")
    named = [f"class {number}" for number in range(10)]
    write_parquet(place / "train-00000-of-00001.parquet", list(range(10)) * 3, classes=named)
    assert load("cifar10", data_dir=tmp_path / "cifar10").classes == tuple(named)


def test_faults_of_parquet_folders(data_error, load, tmp_path, write_parquet):
    place = tmp_path / "cifar10" / "plain_text"
    write_parquet(place / "train-00000-of-00002.parquet", [0, 1])
    assert "has 1 of 2 shards" in data_error(load, "cifar10", data_dir=tmp_path)
    write_parquet(place / "train-00001-of-00002.parquet", [0, 1])
    assert "has no test part: add it as SPLIT-*.parquet" in data_error(load, "cifar10", data_dir=tmp_path)
    write_parquet(place / "test-00000-of-00001.parquet", [0, 1], image="photo")
    assert "no column of images" in data_error(load, "cifar10", data_dir=tmp_path)
    write_parquet(place / "test-00000-of-00001.parquet", [0, 1], label="kind")
    assert "no column of labels" in data_error(load, "cifar10", data_dir=tmp_path)
    (place / "test-00000-of-00001.parquet").write_bytes(b"PAR1 cut")
    assert "is not a whole parquet file, copy it again" in data_error(load, "cifar10", data_dir=tmp_path)


def test_png_class_folders(load, tmp_path, fill):
    for part, count in (("train", 4), ("test", 2)):
        fill(tmp_path / "cifar100" / part, {"apple": count, "worm": count})
    data = load("cifar100", data_dir=tmp_path, image_size=None)
    assert data.classes == ("apple", "worm")
    assert data.train.images.shape[1:] == (3, 32, 32)
    assert data.policy == "cifar10"
    assert data.test.names[0] == "test/apple/000.png"


def test_absent_set_says_what_to_put_where(data_error, load, tmp_path):
    message = data_error(load, "cifar100", data_dir=tmp_path)
    assert f"cifar100 is not in {tmp_path}: put cifar-100-python/" in message
    assert "cifar100/plain_text/ with train-*.parquet and test-*.parquet" in message


@pytest.mark.parametrize("name", ["cifar10", "svhn", "tiny-imagenet", "flowers102"])
def test_failed_download_says_why_and_what_to_put_where(data_error, load, tmp_path, monkeypatch, name):
    def no_network(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    message = data_error(load, name, data_dir=tmp_path / "new", download=True)
    assert f"{name} is not in {tmp_path / 'new'} and could not be downloaded (no route to host): put " in message


@pytest.fixture
def cifar10_batches(tmp_path, monkeypatch) -> Path:
    """CIFAR-10 as published, with twenty images per file, and matching checksums for torchvision."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def pickled(name: str, content: dict) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    random = np.random.RandomState(0)
    batches = [
        pickled(name, {"data": random.randint(0, 256, (20, 3072), dtype=np.uint8), "labels": list(range(10)) * 2})
        for name in ("data_batch_1", "test_batch")
    ]
    meta = pickled("batches.meta", {"label_names": [f"name {number}" for number in range(10)]})
    monkeypatch.setattr(CIFAR10, "train_list", batches[:1])
    monkeypatch.setattr(CIFAR10, "test_list", batches[1:])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": meta[1]})
    return folder


@pytest.mark.parametrize("inside", [False, True])
def test_cifar_as_torchvision_unpacks_it(load, tmp_path, cifar10_batches, inside):
    raw = pickle.loads((cifar10_batches / "test_batch").read_bytes())["data"].reshape(-1, 3, 32, 32)
    if inside:
        (tmp_path / "cifar10").mkdir()
        cifar10_batches.rename(tmp_path / "cifar10" / cifar10_batches.name)
    data = load("cifar10", data_dir=tmp_path, image_size=None)
    assert [len(part) for part in (data.train, data.val, data.test)] == [18, 2, 20]
    assert torch.equal(data.test.images, torch.from_numpy(raw))
    assert data.test.names[3] == "cifar10/test#3"
    assert data.classes[0] == "name 0"


def test_damaged_torchvision_files(data_error, load, tmp_path, cifar10_batches):
    (cifar10_batches / "test_batch").write_bytes(b"cut")
    assert "cifar10 in" in (message := data_error(load, "cifar10", data_dir=tmp_path))
    assert "is incomplete or damaged: remove cifar-10-batches-py" in message


def test_a_label_beyond_the_classes_ends_decoding_and_leaves_no_file(
    data_error, load, tmp_path, cifar10_batches, monkeypatch
):
    from torchvision.datasets import CIFAR10

    file = cifar10_batches / "data_batch_1"
    content = pickle.loads(file.read_bytes())
    content["labels"][1] = 99
    file.write_bytes(pickle.dumps(content))
    monkeypatch.setattr(CIFAR10, "train_list", [[file.name, hashlib.md5(file.read_bytes()).hexdigest()]])
    fault = "label 99 of cifar10/train#1 is outside of 0..9 (1 such labels)"
    assert fault in data_error(load, "cifar10", data_dir=tmp_path)
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".lock"]


def test_svhn_as_torchvision_unpacks_it(load, tmp_path, monkeypatch):
    io = pytest.importorskip("scipy.io")
    from torchvision.datasets import SVHN

    listed = {}
    pixels = np.random.RandomState(0).randint(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    for part in ("train", "test"):
        file = tmp_path / f"{part}_32x32.mat"
        io.savemat(file, {"X": pixels, "y": np.arange(1, 21)[:, None] % 10 + 1})
        listed[part] = ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", listed)
    data = load("svhn", data_dir=tmp_path, image_size=None)
    assert data.classes == tuple("0123456789")
    assert torch.equal(data.test.images, torch.from_numpy(pixels.transpose(3, 2, 0, 1).copy()))
    assert data.test.labels.tolist() == [2, 3, 4, 5, 6, 7, 8, 9, 0, 1] * 2


def test_flowers_as_torchvision_unpacks_them(load, tmp_path, monkeypatch, draw):
    io = pytest.importorskip("scipy.io")
    from torchvision.datasets import Flowers102

    folder = tmp_path / "flowers-102"
    for number in range(1, 307):
        draw(folder / "jpg" / f"image_{number:05d}.jpg", shade=number % 256)
    ids = np.arange(1, 307)
    io.savemat(folder / "imagelabels.mat", {"labels": (ids - 1) % 102 + 1})
    io.savemat(folder / "setid.mat", {"trnid": ids[:102], "valid": ids[102:204], "tstid": ids[204:]})
    sums = {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in ("imagelabels.mat", "setid.mat")}
    files = {"image": ("", ""), "label": ("imagelabels.mat", sums["imagelabels.mat"])}
    monkeypatch.setattr(Flowers102, "_file_dict", {**files, "setid": ("setid.mat", sums["setid.mat"])})
    data = load("flowers102", data_dir=tmp_path, image_size=None)
    assert [len(part) for part in (data.train, data.val, data.test)] == [102, 102, 102]
    assert data.classes[0] == "pink primrose"
    assert data.train.images.shape[1:] == (3, 64, 64)
    assert data.val.names[0] == "flowers-102/jpg/image_00103.jpg"


@pytest.mark.parametrize("layout", ["annotations", "folders"])
def test_tiny_imagenet_uses_its_validation_part_as_test(load, tmp_path, draw, layout, lines):
    root = tmp_path / "tiny-imagenet-200"
    for wnid in ("n01", "n02", "n03"):
        for index in range(4):
            draw(root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\tcrane\n")
    rows = [("val_0.JPEG", "n02"), ("val_1.JPEG", "n01")]
    for file, wnid in rows:
        draw(root / "val" / ("images" if layout == "annotations" else wnid) / file)
    if layout == "annotations":
        (root / "val" / "val_annotations.txt").write_text("".join(f"{row[0]}\t{row[1]}\t0\t0\t9\t9\n" for row in rows))
    draw(root / "test" / "images" / "unlabelled.JPEG")
    (root / "train" / "n01" / "n01_boxes.txt").write_text("n01_0.JPEG\t0\t0\t9\t9\n")
    data = load("tiny-imagenet", data_dir=tmp_path, image_size=None)
    assert data.classes == ("goldfish", "n02", "n03")
    assert sorted(zip(data.test.labels.tolist(), [Path(name).name for name in data.test.names], strict=True)) == [
        (0, "val_1.JPEG"),
        (1, "val_0.JPEG"),
    ]
    assert [len(data.train), len(data.val)] == [10, 2]
    assert data.train.images.shape[1:] == (3, 64, 64)
    assert not any("ignored" in line for line in lines)


@pytest.mark.skipif(not (REAL / "cifar10").is_dir(), reason="no copy of CIFAR-10 in ../shared/data")
def test_real_cifar10_test_shard(load, tmp_path):
    import pyarrow.parquet as pq

    place = tmp_path / "cifar10" / "plain_text"
    place.mkdir(parents=True)
    [shard] = (REAL / "cifar10" / "plain_text").glob("test-*.parquet")
    table = pq.read_table(shard)
    # The first rows only: all 60,000 take a quarter of a minute to decode.
    for part, first in (("train", 0), ("test", 500)):
        pq.write_table(table.slice(first, 500), place / f"{part}-00000-of-00001.parquet")
    data = load("cifar10", data_dir=tmp_path, image_size=None)
    assert [len(part) for part in (data.train, data.val, data.test)] == [450, 50, 500]
    assert (data.classes[0], data.classes[9]) == ("airplane", "truck")
    assert data.test.labels.tolist() == table["label"].to_pylist()[500:1000]
    cell = table["img"][507].as_py()["bytes"]
    assert torch.equal(data.test.images[7], decode_image(cell, size=(32, 32)))
    assert data.mean == pytest.approx((0.49, 0.48, 0.45), abs=0.03)


def test_a_copy_in_another_layout_is_told(load, tmp_path, write_parquet, cifar10_batches, fill, lines):
    place = tmp_path / "cifar10" / "plain_text"
    for part in ("train", "test"):
        write_parquet(place / f"{part}-00000-of-00001.parquet", list(range(10)) * 3)
        write_parquet(tmp_path / "cifar10" / "other" / f"{part}-00000-of-00001.parquet", list(range(10)))
        fill(tmp_path / "cifar10" / part, {"cat": 2, "dog": 2})
    assert len(load("cifar10", data_dir=tmp_path).test) == 30
    told = [line for line in lines if "decoding" not in line]
    assert told == [
        f"ignored the parquet files in {tmp_path}/cifar10/other: those in {place} are read",
        f"cifar10 lies there twice: {place} is read, {tmp_path}/cifar10 is not",
        f"cifar10 lies there twice: {place} is read, {tmp_path} is not",
    ]
