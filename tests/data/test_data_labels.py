"""Labels of every type that tables hold become classes, or are refused with the row; each with the report of it."""

from __future__ import annotations

import datetime
import decimal
import io
import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

COUNT = 8
ALL = {"val_fraction": 0, "test_fraction": 0}


def write(path, labels: pa.Array | pa.ChunkedArray):
    """A parquet file of small images with that column of labels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = []
    for row in range(len(labels)):
        stream = io.BytesIO()
        Image.new("RGB", (4, 4), (row * 9 % 256, 0, 0)).save(stream, "PNG")
        cells.append(stream.getvalue())
    pq.write_table(pa.table({"image": pa.array(cells), "label": labels}), path)


ZERO_ONE, TEXT = [0, 1] * (COUNT // 2), ["no", "yes"] * (COUNT // 2)
LABELS = {
    "lale#364, seqdataloader#12: truth values": (pa.array([False, True] * 4), ("False", "True")),
    "datasets#5706: categories of texts": (pa.array(TEXT).dictionary_encode(), ("no", "yes")),
    "datasets#6892: categories of pandas": (pa.array(pd.Categorical(TEXT, ["yes", "no"])), ("no", "yes")),
    "categories of numbers": (pa.array(pd.Categorical(ZERO_ONE)), ("0", "1")),
    "pandas numbers that had gaps: whole floats": (pa.array([0.0, 1.0] * 4), ("0", "1")),
    "whole floats of 16 bits": (pa.array([0.0, 1.0] * 4, pa.float16()), ("0", "1")),
    "whole decimals": (pa.array([decimal.Decimal(0), decimal.Decimal(1)] * 4), ("0", "1")),
    "datasets#6267, #8645: lists of one number": (pa.array([[0], [1]] * 4), ("0", "1")),
    "lists of one text": (pa.array([["no"], ["yes"]] * 4), ("no", "yes")),
    "lists of one, of a fixed size": (pa.array([[0], [1]] * 4, pa.list_(pa.int64(), 1)), ("0", "1")),
    "lists of one in lists of one": (pa.array([[[False]], [[True]]] * 4), ("False", "True")),
    "large texts": (pa.array(TEXT, pa.large_string()), ("no", "yes")),
    "texts as bytes": (pa.array([text.encode() for text in TEXT]), ("no", "yes")),
    "numbers of 8 bits": (pa.array(ZERO_ONE, pa.uint8()), ("0", "1")),
    "numbers of 64 bits without a sign": (pa.array(ZERO_ONE, pa.uint64()), ("0", "1")),
}


# Numbers that are not 0, 1, 2: each is a class of its own.
NUMBERS = {
    "nnUNet#274: a gap": (pa.array([3, 5] * 4), ("3", "5")),
    "LightCNN#5: from 1": (pa.array([1, 2] * 4), ("1", "2")),
    "DIGITS#1065: spread over a byte": (pa.array([0, 255] * 4, pa.uint8()), ("0", "255")),
    "maskrcnn-benchmark#1169, tensorflow/models#6641: above a byte": (pa.array([255, 256] * 4), ("255", "256")),
    "deeplabv3#15: values of pixels": (pa.array([1, 78] * 4), ("1", "78")),
    "caffe#648: from 21": (pa.array([21.0, 22.0] * 4), ("21", "22")),
    "continuum#130: numbers of a catalogue": (pa.array([0, 2**40] * 4), ("0", str(2**40))),
    "the largest of 64 bits without a sign": (pa.array([1, 2**64 - 1] * 4, pa.uint64()), ("1", str(2**64 - 1))),
    "categories of numbers with a gap": (pa.array([3, 5] * 4).dictionary_encode(), ("3", "5")),
}


@pytest.mark.parametrize(("labels", "classes"), NUMBERS.values(), ids=NUMBERS)
def test_numbers_with_gaps_are_classes_and_reported(load, tmp_path, lines, labels, classes):
    write(tmp_path / "set" / "0.parquet", labels)
    data = load(f"hf:{tmp_path / 'set'}", **ALL)
    assert data.classes == classes
    assert data.train.labels.tolist() == ZERO_ONE
    assert f"set: the labels are {', '.join(classes)}, not 0 to 1: each of them is a class" in lines


# Texts that other readers take for something else.
TEXTS = {
    "pandas#11839: a text NA": ("EUR", "NA"),
    "pandas#24681: a text n/a": ("n/a", "test/ok"),
    "cellxgene#1115: a text nan": ("nan", "other"),
    "datasets#1989: one within the other": ("not nurse", "nurse"),
    "evidently#1872: texts that look like numbers among others": ("101", "foo"),
    "fastai#1008: leading zeros": ("007", "8"),
    "vision#714, pytorch-image-models#222: numbers in order": ("9", "10"),
    "flair#2068: NONE": ("NONE", "some"),
}


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("classes", TEXTS.values(), ids=TEXTS)
def test_texts_stay_as_they_are(load, tmp_path, draw, classes, kind):
    labels = [classes[number] for number in ZERO_ONE]
    if kind == "parquet":
        write(tmp_path / "set" / "0.parquet", pa.array(labels))
    else:
        files = [draw(tmp_path / "set" / f"{row}.png", shade=row * 9).name for row in range(COUNT)]
        rows = [f"{file},{label}" for file, label in zip(files, labels, strict=True)]
        if kind == "jsonl":
            rows = [json.dumps({"file_name": f, "label": b}) for f, b in zip(files, labels, strict=True)]
        (tmp_path / "set" / f"metadata.{kind}").write_text("\n".join([*["file_name,label"][: kind == "csv"], *rows]))
    data = load(f"{'hf' if kind == 'parquet' else 'folder'}:{tmp_path / 'set'}", **ALL)
    assert data.classes == classes
    assert data.train.labels.tolist() == ZERO_ONE


SPELLED = {
    "FARM#66, sparkling-water#2711: truth in capitals": (("True", "TRUE"), "case"),
    "frictionless-py#1172: a space behind": (("english", "english "), "case, spaces or the encoding of letters"),
    "affinity-vae#156: a space before": (("item2", " item2"), "case, spaces or the encoding of letters"),
    "fuse-t#16: accents in two encodings": (("caf\u00e9", "cafe\u0301"), "case, spaces or the encoding of letters"),
}


@pytest.mark.parametrize("kind", ["hf", "folder"])
@pytest.mark.parametrize(("labels", "by"), SPELLED.values(), ids=SPELLED)
def test_one_class_in_two_spellings_is_refused(data_error, load, tmp_path, fill, kind, labels, by):
    if kind == "hf":
        write(tmp_path / "set" / "0.parquet", pa.array([*labels] * 4))
    else:
        fill(tmp_path / "set", dict.fromkeys(labels, 4))
    assert f"differ by {by} only: merge them" in data_error(load, f"{kind}:{tmp_path / 'set'}", **ALL)


def with_names(path, names):
    """The class names that the datasets library writes into a parquet file."""
    described = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({b"huggingface": json.dumps(described).encode()}), path)


@pytest.mark.parametrize("seen", ["CLIP#235", "vision#1734", "OverFeat#28"])
def test_classes_of_one_name_get_their_numbers(load, tmp_path, lines, seen):
    names = {"CLIP#235": ["missile", "missile", "hen"], "vision#1734": ["crane", "hen", "crane"]}
    names = names.get(seen, ["hen", "crane", "crane"])
    write(tmp_path / "set" / "0.parquet", pa.array([0, 1, 2] * 3))
    with_names(tmp_path / "set" / "0.parquet", names)
    twice = max(names, key=names.count)
    data = load(f"hf:{tmp_path / 'set'}", **ALL)
    assert data.classes == tuple(f"{n} ({i})" if n == twice else n for i, n in enumerate(names))
    assert any(f"several classes are called {twice}: their numbers are put behind" in line for line in lines)


def test_numbers_without_a_name_are_refused(data_error, load, tmp_path):
    """datasets#8596, #8494: numbers beyond the class names went unseen."""
    write(tmp_path / "set" / "0.parquet", pa.array([0, 1, 5, 1]))
    with_names(tmp_path / "set" / "0.parquet", ["neg", "pos", "oth"])
    assert "label 5 in row 2 of the all part is outside of 0..2" in data_error(load, f"hf:{tmp_path / 'set'}", **ALL)


@pytest.mark.parametrize(("labels", "classes"), LABELS.values(), ids=LABELS)
def test_labels_of_every_type_become_classes(load, tmp_path, lines, labels, classes):
    write(tmp_path / "set" / "0.parquet", labels)
    data = load(f"hf:{tmp_path / 'set'}", **ALL)
    assert data.classes == classes
    assert data.train.labels.tolist() == ZERO_ONE
    assert data.train.images[:, 0, 0, 0].tolist() == [row * 9 for row in range(COUNT)]
    assert not [line for line in lines if "decoding" not in line]


@pytest.mark.parametrize(
    "unlabelled",
    [
        pa.nulls(4),
        pa.nulls(4, pa.int64()),
        pa.nulls(4, pa.string()),
        pa.array([-1] * 4),
        pa.array([-1.0] * 4),
        pa.array([float("nan")] * 4),
        pa.array([[None]] * 4, pa.list_(pa.int64())),
        pa.array([""] * 4),
    ],
    ids=lambda array: f"{array.type} {array[0]}",
)
def test_a_part_without_labels_is_left_out_and_told(load, tmp_path, lines, unlabelled):
    """datasets#183, #245, #5624, #6506, tensorflow/datasets#1356: test parts whose labels are all -1."""
    write(tmp_path / "set" / "train.parquet", pa.array(ZERO_ONE))
    write(tmp_path / "set" / "test.parquet", unlabelled)
    data = load(f"hf:{tmp_path / 'set'}", test_fraction=0.25, val_fraction=0)
    assert (len(data.train), len(data.test)) == (6, 2)
    assert any("the test part carries no labels and is left out" in line for line in lines)


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (pa.array([0, None, 1]), "the label in row 1 of the all part is missing: fill it in, or remove the row"),
        (pa.array([0.0, 1.0, float("nan")]), "the label in row 2 of the all part is missing"),
        (pa.array([True, None]), "the label in row 1 of the all part is missing"),
        (pa.array([[0], []]), "0 labels in row 1 of the all part: one is needed"),
        (pa.array([[0], [0, 1]]), "2 labels in row 1 of the all part: one is needed"),
        # PaddleClas#2918, icevision#820: several at once, by number or one-hot.
        (pa.array([[0, 4], [1, 5]]), "2 labels in row 0 of the all part: one is needed"),
        (pa.array([[0, 1, 0], [1, 0, 0]]), "one is needed, and this looks one-hot: give the number of the class"),
        (pa.array([[False, True]] * 2), "one is needed, and this looks one-hot: give the number of the class"),
        # projection-space-explorer#140, cartodb#9366, arkouda#1298: empty texts are no class.
        (pa.array(["", "a", "b"]), "the label in row 0 of the all part is missing: fill it in, or remove the row"),
        (pa.array(["a", "  ", "b"]), "the label in row 1 of the all part is missing"),
        # pytorch#1204: -1 among others.
        (
            pa.array([0, 1, -1, 1]),
            "label -1 in row 2 of the all part is negative: number the classes from 0, and remove unlabelled rows",
        ),
        (
            pa.array([0.0, 0.5]),
            "label 0.5 in row 1 of the all part is neither a whole number nor text nor True or False",
        ),
        (pa.array([float("inf"), 1.0]), "label inf in row 0"),
        (pa.array([datetime.date(2026, 1, 1)] * 2), "label datetime.date(2026, 1, 1) in row 0"),
        (pa.array([{"name": "a"}, {"name": "b"}]), "label {'name': 'a'} in row 0"),
        (pa.nulls(4), "has no labelled training part: it needs a part called train"),
        (pa.array([-1] * 4), "has no labelled training part"),
    ],
)
def test_labels_that_are_none_are_refused_with_their_row(data_error, load, tmp_path, labels, fault):
    write(tmp_path / "set" / "0.parquet", labels)
    assert fault in data_error(load, f"hf:{tmp_path / 'set'}", **ALL)


def test_parts_of_several_types_are_refused(data_error, load, tmp_path):
    write(tmp_path / "set" / "train.parquet", pa.array(ZERO_ONE))
    write(tmp_path / "set" / "test.parquet", pa.array(TEXT))
    message = data_error(load, f"hf:{tmp_path / 'set'}")
    assert "the labels are of several types (int in train, str in test): give all parts one" in message


def test_shards_of_several_types_of_numbers_are_one_column(load, tmp_path):
    write(tmp_path / "set" / "train-00000-of-00002.parquet", pa.array(ZERO_ONE))
    write(tmp_path / "set" / "train-00001-of-00002.parquet", pa.array([0.0, 1.0] * 4))
    assert load(f"hf:{tmp_path / 'set'}", **ALL).train.labels.tolist() == ZERO_ONE * 2


def test_the_column_that_is_read_is_told_where_there_are_several(load, tmp_path, lines, write_parquet):
    """datasets#8494 and others: a first match never wins in silence."""
    file = write_parquet(tmp_path / "set" / "0.parquet", ZERO_ONE, label="fine_label")
    table = pq.read_table(file)
    pq.write_table(table.append_column("class", pa.array(TEXT)).append_column("picture", table["img"]), file)
    assert load(f"hf:{tmp_path / 'set'}", **ALL).classes == ("0", "1")
    assert "ignored columns of set: class, picture (img, fine_label are read)" in lines


FEATURES = {
    "truth values": ("bool", [False, True], ("False", "True")),
    "whole floats": ("float32", [0.0, 1.0], ("0", "1")),
    "texts": ("string", ["no", "yes"], ("no", "yes")),
}


@pytest.mark.parametrize("in_list", [False, True])
@pytest.mark.parametrize(("kind", "values", "classes"), [*FEATURES.values(), (None, [0, 1], ("no", "yes"))])
def test_labels_of_the_datasets_library(load, tmp_path, monkeypatch, kind, values, classes, in_list):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    datasets = pytest.importorskip("datasets")
    feature = datasets.Value(kind) if kind else datasets.ClassLabel(names=list(classes))
    features = datasets.Features({"image": datasets.Image(), "label": [feature] if in_list else feature})
    labels = [[value] if in_list else value for value in values * 4]
    images = [Image.new("RGB", (4, 4), (row, 0, 0)) for row in range(8)]
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).save_to_disk(tmp_path / "saved")
    data = load(f"hf:{tmp_path / 'saved'}", **ALL)
    assert data.classes == classes
    assert data.train.labels.tolist() == ZERO_ONE


def test_parts_of_the_datasets_library_that_are_not_read_are_told(data_error, load, tmp_path, monkeypatch, lines):
    """datasets#4184: splits of other names; two that mean one part."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    datasets = pytest.importorskip("datasets")
    whole = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (4, 4), (row, 0, 0)) for row in range(8)], "label": ZERO_ONE},
        features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
    )
    datasets.DatasetDict({"train": whole, "extra": whole, "dev": whole}).save_to_disk(tmp_path / "a")
    data = load(f"hf:{tmp_path / 'a'}")
    assert (len(data.train), len(data.val), data.test) == (8, 8, None)
    assert any(f"ignored extra of hf:{tmp_path / 'a'}" in line for line in lines)
    datasets.DatasetDict({"train": whole, "validation": whole, "dev": whole}).save_to_disk(tmp_path / "b")
    assert "has two val parts, validation and dev" in data_error(load, f"hf:{tmp_path / 'b'}")
    datasets.DatasetDict({"test": whole}).save_to_disk(tmp_path / "c")
    load(f"hf:{tmp_path / 'c'}")
    assert any("has one part, test: it is cut into three" in line for line in lines)


def test_a_space_of_no_width_makes_no_other_class():
    from gmmvit.data.labels import number_labels
    from gmmvit.data.records import DataError

    with pytest.raises(DataError, match="differ by case, spaces or the encoding of letters only"):
        number_labels("data", {"train": ["a", "a\u200b", "b"]}, None, print)


def test_numbers_that_two_places_name_differently_are_refused():
    from gmmvit.data.classes import one_naming
    from gmmvit.data.records import DataError

    assert one_naming([("train", ["cat", "dog"]), ("test", None), ("val", ["cat", "dog"])]) == ["cat", "dog"]
    with pytest.raises(DataError, match=r"^train calls its classes cat, dog, test dog, cat: a number would mean two"):
        one_naming([("train", ["cat", "dog"]), ("test", ["dog", "cat"])])


def test_rows_of_zero_and_one_are_no_lists_of_labels():
    from gmmvit.data.labels import number_labels
    from gmmvit.data.records import DataError

    with pytest.raises(DataError, match="every training image has all 2 labels, so there is nothing to learn"):
        number_labels("data", {"train": [[0, 1], [1, 0], [0, 1]]}, None, print, "labels")


def test_a_number_without_a_class_name_is_said_with_its_row():
    from gmmvit.data.labels import number_labels
    from gmmvit.data.records import DataError

    with pytest.raises(DataError, match=r"label -1 in row 1 of the train part is outside of 0\.\.1"):
        number_labels("data", {"train": [0, -1, 1]}, ["cat", "dog"], print)


@pytest.mark.parametrize("name", ["test.PARQUET", "test.pq"])
def test_a_part_in_a_parquet_file_of_another_ending_is_read(load, tmp_path, name):
    write(tmp_path / "set" / "train.parquet", pa.array([0, 1, 0, 1]))
    write(tmp_path / "set" / name, pa.array([0, 1]))
    data = load(f"hf:{tmp_path / 'set'}", val_fraction=0)
    assert (len(data.train), len(data.test)) == (4, 2)
