"""Every layout is read as what it is, or refused with what would be right; nothing is left unread in silence."""

from __future__ import annotations

import re

import pytest
from layouts import LAYOUTS, Layout, become, in_docs, table

from gmmvit.data.parts import part_in, part_of, parts_of


@pytest.fixture(scope="module")
def became() -> list[tuple[dict[str, int] | None, str]]:
    """What became of the layouts before, in their order."""
    return []


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.kind} {layout.shown} {layout.seen}")
def test_layouts_become_what_they_are(layout: Layout, tmp_path, became):
    parts, said = become(layout, tmp_path)
    became.append((parts, said))
    assert parts == layout.read, said
    assert re.search(re.escape(layout.says).replace(r"\.\*", ".*"), said)
    if parts is not None and not layout.says:
        assert said == ""


def test_the_table_in_the_docs_is_what_was_read(became):
    if len(became) != len(LAYOUTS):
        pytest.skip("needs all the tests before it")
    assert in_docs() == table(became), "python tests/data/layouts.py --write"


@pytest.mark.parametrize(
    ("names", "part"),
    [
        (
            "train training Train TRAIN training_set training-set TrainingSet trainset train_data train2017 train_1",
            "train",
        ),
        ("val valid validation Validation validate dev dev-set val_images valset val2017", "val"),
        ("test testing test_set testset Test1 test-data eval evaluation test_split", "test"),
        ("trainer trains tests contest validity cat data images devil train_and_test train_cats retest 1 set", None),
    ],
)
def test_parts_are_known_in_every_usual_spelling(names, part):
    assert {name: part_of(name) for name in names.split()} == dict.fromkeys(names.split(), part)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("train-00000-of-00002", "train"),
        ("cats-train-00000", "train"),
        ("my_data_validation_1", "val"),
        ("test.abc123", "test"),
        ("train-test", None),
        ("0000", None),
        ("latest-00000", None),
    ],
)
def test_files_may_have_other_words_in_their_names(name, part):
    assert part_in(name) == part


def test_neighbours_whose_names_differ_by_the_part_alone_are_parts():
    assert parts_of(["my_train", "my_test", "notes"]) == {"my_train": "train", "my_test": "test"}
    assert parts_of(["train_cats", "test_dogs", "old_train", "val"]) == {"val": "val"}
