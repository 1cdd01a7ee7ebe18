"""Several labels per image: how tables and lists give them, and how such a set is split, cached and compared."""

from __future__ import annotations

import numpy as np
import pytest

from gmmvit.data import inspect_dataset
from gmmvit.data.several import cell_of, words_of
from gmmvit.data.split import hold_out
from gmmvit.data.stratify import deal

CELLS = ["cat|dog", "dog", "", "cat", "tree|cat|dog", "", "tree", "dog|tree"]
HOT = [[1, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1], [0, 1, 1]]
ALL = {"val_fraction": 0, "test_fraction": 0}


@pytest.fixture
def table(tmp_path, draw):
    """Writes a table beside eight images 0.png to 7.png and returns the folder."""

    def write(text: str, name: str = "metadata.csv"):
        for index in range(8):
            draw(tmp_path / "set" / f"{index}.png", shade=30 * index)
        (tmp_path / "set" / name).write_text(text)
        return tmp_path / "set"

    return write


def rows(cells, quote='"'):
    return "file_name,labels\n" + "".join(f"{i}.png,{quote}{cell}{quote}\n" for i, cell in enumerate(cells))


def names_as(form):
    """The cells as lists of names in another form."""
    return [form([name for name in cell.split("|") if name]) for cell in CELLS]


@pytest.mark.parametrize(
    "text",
    [
        rows(CELLS),
        rows([cell.replace("|", " , ") for cell in CELLS]),
        rows([cell.replace("|", ";") for cell in CELLS], quote=""),
        rows(names_as(lambda names: str(names).replace("'", '""'))),
        rows(names_as(str)),
    ],
    ids=["bars", "commas", "semicolons", "JSON", "pandas"],
)
def test_cells_in_every_form(load, table, text):
    data = load(table(text), **ALL)
    assert data.several
    assert data.classes == ("cat", "dog", "tree")
    assert data.train.labels.tolist() == HOT
    assert load(table(text), **ALL).train.labels.tolist() == HOT  # from the cache


def test_json_lines_and_columns_of_0_and_1(load, table, lines):
    named = [f'{{"file_name": "{i}.png", "labels": {cell}}}' for i, cell in enumerate(names_as(str))]
    folder = table("\n".join(named).replace("'", '"'), "metadata.jsonl")
    assert load(folder, **ALL).train.labels.tolist() == HOT
    (folder / "metadata.jsonl").unlink()
    columns = "".join(f"{i}.png,{','.join(map(str, row))}\n" for i, row in enumerate(HOT))
    data = load(table("file_name,cat,dog,tree\n" + columns), **ALL)
    assert (data.classes, data.train.labels.tolist()) == (("cat", "dog", "tree"), HOT)
    assert any("its columns of 0 and 1 are the labels, cat, dog, tree" in line for line in lines)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("file_name,label,labels\n0.png,a,a|b\n", "columns label and labels: keep label where every image has one"),
        (rows(["a|b", "c,d"]), "labels have '|' in them (row 2) and ',' (row 3), and one of these separates"),
        (rows(["haze primary", "clear"]), "row 2: labels are 'haze primary', which may be one label or several"),
        (rows(['[""a""]', "b"]), "row 3: labels are 'b', and a list in row 2"),
        (rows(["a|b", "a||b"]), "row 3: labels 'a||b' has an empty label"),
        (rows(["a|b", "a|a"]), "row 3: labels 'a|a' names a label twice"),
        (rows(["[1.5]", ""]), "row 2: labels '[1.5]' is not a list of texts or whole numbers"),
        (rows(["[oops", ""]), "row 2: labels '[oops' is not a list"),
        (rows(["a", "", "a"]), "only class 'a'"),
        (rows(["", ""]), "has no class"),
        (rows(["cat|Cat"]), "classes 'Cat' and 'cat' in"),
        ("file_name,labels,split\n0.png,a|b,train\n1.png,c,test\n", "the test part of"),
        (
            "file_name,labels,split\n0.png,a|b,train\n2.png,a,train\n1.png,,test\n",
            "no image of the test part has a label",
        ),
        ("file_name,cat,dog\n0.png,1,0\n1.png,1,0\n", "no image has the label dog, a column of 0 alone"),
        ("file_name,cat,dog\n0.png,1,0\n1.png,1,2\n", "it needs file_name and label (and may have split), or labels"),
    ],
)
def test_faults(data_error, load, table, text, fault):
    assert fault in data_error(load, table(text))


def test_a_table_of_labels_in_one_part_alone_is_refused(data_error, load, tmp_path, fill, draw):
    fill(tmp_path / "set" / "train", {"a": 3, "b": 3})
    draw(tmp_path / "set" / "test" / "0.png")
    (tmp_path / "set" / "test" / "metadata.csv").write_text("file_name,labels\n0.png,a|b\n")
    assert "images have several labels in test alone" in data_error(load, tmp_path / "set")


def parquet(path, write_parquet, lists, classes=None):
    file = write_parquet(path, lists, label="labels", classes=classes)
    return f"hf:{file.parent}"


def test_lists_in_parquet(load, tmp_path, write_parquet, lines):
    words = [[name for name in cell.split("|") if name] for cell in CELLS]
    data = load(parquet(tmp_path / "a" / "0.parquet", write_parquet, words), **ALL)
    assert (data.classes, data.train.labels.tolist()) == (("cat", "dog", "tree"), HOT)
    numbers = [np.flatnonzero(row).tolist() for row in HOT]
    named = load(parquet(tmp_path / "b" / "train.parquet", write_parquet, numbers, ["x", "y", "z"]), **ALL)
    assert (named.classes, named.train.labels.tolist()) == (("x", "y", "z"), HOT)
    one = load(parquet(tmp_path / "c" / "0.parquet", write_parquet, [["a"], ["b"]] * 4), **ALL)
    assert not one.several
    parquet(tmp_path / "b" / "test.parquet", write_parquet, [[-1]] * 4)
    assert load(f"hf:{tmp_path / 'b'}", val_fraction=0).test is not None  # cut from the training part
    assert any("the test part carries no labels and is left out" in line for line in lines)


@pytest.mark.parametrize(
    ("lists", "fault"),
    [
        ([[0, 1, 0], [1, 1, 0]], "row 0 of the all part are [0, 1, 0], with one of them twice"),
        ([["a"], None, ["a", "b"]], "the labels in row 1 of the all part are missing: no label is an empty list"),
        (
            [[0, 1], [-1]],
            "label -1 in row 1 of the all part is negative: number the classes from 0, and give images without",
        ),
        ([[0.5, 1.0], [1.0]], "label 0.5 in row 0 of the all part is neither a whole number"),
    ],
)
def test_faults_of_lists(data_error, load, tmp_path, write_parquet, lists, fault):
    assert fault in data_error(load, parquet(tmp_path / "a" / "0.parquet", write_parquet, lists), **ALL)


def test_lists_in_a_column_of_another_name_say_what_it_must_be_called(data_error, load, tmp_path, write_parquet):
    write_parquet(tmp_path / "a" / "0.parquet", [["a", "b"], ["a"]])
    assert "2 labels in row 0 of the all part: one is needed, or a column called labels for several" in data_error(
        load, f"hf:{tmp_path / 'a'}"
    )


def test_a_saved_data_set_of_the_hub(load, tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [np.full((4, 4, 3), 30 * i, dtype=np.uint8) for i in range(8)]
    kinds = datasets.Features(
        {"image": datasets.Image(), "labels": datasets.List(datasets.ClassLabel(names=["x", "y", "z"]))}
    )
    numbers = [np.flatnonzero(row).tolist() for row in HOT]
    datasets.Dataset.from_dict({"image": images, "labels": numbers}, kinds).save_to_disk(tmp_path / "saved")
    data = load(f"hf:{tmp_path / 'saved'}", **ALL)
    assert (data.classes, data.train.labels.tolist()) == (("x", "y", "z"), HOT)


def uneven(count=400):
    """Labels: one rare, one common, and two that occur together."""
    random = np.random.default_rng(0)
    labels = (random.random((count, 5)) < [0.02, 0.1, 0.3, 0.8, 0]).astype(np.uint8)
    labels[:, 4] = labels[:, 2] & (random.random(count) < 0.5)
    return labels


def test_every_part_gets_its_share_of_every_label():
    labels = uneven()
    home = deal(labels, (0.2, 0.3, 0.5), 1)
    for subset, share in enumerate((0.2, 0.3, 0.5)):
        mine = labels[home == subset]
        assert abs(len(mine) - share * len(labels)) <= 3
        assert np.abs(mine.sum(0) - share * labels.sum(0)).max() <= 2
    assert np.array_equal(home, deal(labels, (0.2, 0.3, 0.5), 1))
    assert not np.array_equal(home, deal(labels, (0.2, 0.3, 0.5), 2))


def test_groups_stay_together_and_the_training_part_keeps_every_label():
    labels = uneven()
    groups = np.arange(len(labels)) // 3
    home = deal(labels, (0.5, 0.5), 0, groups)
    assert all(len(set(home[groups == group])) == 1 for group in range(groups.max() + 1))
    assert abs((home == 0).sum() - 200) <= 3
    held = hold_out(np.eye(4, dtype=np.uint8), 0.9, 0)
    assert not held.any()


def test_folds_and_what_does_not_go(load, table, data_error):
    folder = table(rows(["a|b", "a", "b", "", "a|b", "a", "b", ""]))
    seen = []
    for fold in (1, 2):
        data = load(folder, folds=2, fold=fold, val_fraction=0)
        assert data.test.labels.sum(0).tolist() == [2, 2]
        seen += data.test.names
    assert sorted(seen) == [f"{i}.png" for i in range(8)]
    assert "train_per_class takes the first images of each class" in data_error(load, folder, train_per_class=2)
    assert "5 folds need at least 5 images of every class" in data_error(load, folder, folds=5, fold=1)


def test_copies_of_other_labels_are_told(load, tmp_path, draw, lines):
    for index in range(8):
        draw(tmp_path / "set" / f"{index}.png", shade=100 if index < 2 else 30 * index)
    (tmp_path / "set" / "metadata.csv").write_text(rows(["a|b", "a", "b", "a", "a|b", "b", "a", "b"]))
    load(tmp_path / "set", val_fraction=0)
    assert any("copies with different classes" in line for line in lines)


def test_an_inspection_counts_labels(table, tmp_path):
    found = inspect_dataset(f"folder:{table(rows(CELLS))}", image_size=8, cache_dir=tmp_path / "cache", **ALL)
    assert found.counts("train") == [3, 4, 3]
    assert found.labels_an_image == [2, 3, 2, 1]


def test_words_and_cells(load, table):
    data = load(table(rows(CELLS)), **ALL)
    assert [words_of(row, data.classes) for row in data.train.labels[:3]] == ["cat, dog", "dog", "no label"]
    assert (cell_of(["a", "b"]), cell_of([]), cell_of(["a,b", "c"])) == ("a|b", "", '["a,b", "c"]')


def test_a_changed_cache_of_several_labels_is_noticed(load, table, tmp_path, lines):
    folder = table(rows(CELLS))
    load(folder, **ALL)
    [file] = (tmp_path / "cache").glob("*.images")
    content = bytearray(file.read_bytes())
    content[8 * 8 * 8 * 3] ^= 1  # the first label
    file.write_bytes(content)
    assert load(folder, **ALL).train.labels.tolist() == HOT
    assert any("was changed after it was written" in line for line in lines)
