"""Held-out images are a stratified, reproducible, disjoint choice that leaves training images in every class."""

from __future__ import annotations

import numpy as np
import pytest

from gmmvit.data import DataError
from gmmvit.data.split import choose_parts, hold_out

CLASSES = ("a", "b", "c")
LABELS = np.repeat([0, 1, 2], [100, 50, 10])


def choose(labels: dict[str, np.ndarray], val: float = 0.1, test: float = 0.2, seed: int = 0) -> dict:
    return choose_parts(labels, CLASSES, val_fraction=val, test_fraction=test, seed=seed)


def test_every_class_gives_its_share():
    held = hold_out(LABELS, 0.1, 0)
    assert np.bincount(LABELS[held]).tolist() == [10, 5, 1]


def test_remainders_go_to_the_largest():
    labels = np.repeat([0, 1, 2], [14, 16, 10])
    assert np.bincount(labels[hold_out(labels, 0.1, 0)]).tolist() == [1, 2, 1]


def test_total_is_rounded_up_and_exact_shares_stay_exact():
    assert hold_out(np.repeat(np.arange(10), 5000), 0.1, 0).sum() == 5000
    assert hold_out(np.zeros(30, dtype=np.int64), 0.1, 0).sum() == 3
    assert hold_out(np.zeros(31, dtype=np.int64), 0.1, 0).sum() == 4


def test_same_seed_same_choice_other_seed_other_choice():
    assert np.array_equal(hold_out(LABELS, 0.2, 7), hold_out(LABELS, 0.2, 7))
    assert not np.array_equal(hold_out(LABELS, 0.2, 7), hold_out(LABELS, 0.2, 8))


def test_seeds_of_64_bits_differ_in_both_halves_and_small_ones_stay_as_they_were():
    seeds = [1, 2**32, 2**32 + 1, 2**33 + 1, 2**63 - 1]
    tests = {tuple(choose({"all": LABELS}, seed=seed)["test"][1].tolist()) for seed in seeds}
    assert len(tests) == len(seeds)
    assert choose({"all": LABELS}, seed=7)["test"][1].tolist() == np.flatnonzero(hold_out(LABELS, 0.2, (7, 1))).tolist()


def test_choice_is_pinned():
    assert np.flatnonzero(hold_out(np.arange(20) % 2, 0.2, 0)).tolist() == [4, 7, 11, 16]


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.99])
def test_small_classes_keep_one_for_training(count, fraction):
    labels = np.repeat([0, 1], [count, 100])
    assert 0 < (~hold_out(labels, fraction, 0))[:count].sum() <= count


def test_parts_are_disjoint_and_complete():
    parts = choose({"all": LABELS})
    assert [len(parts[name][1]) for name in ("train", "val", "test")] == [115, 13, 32]
    together = np.concatenate([indices for _, indices in parts.values()])
    assert np.array_equal(np.sort(together), np.arange(len(LABELS)))


def test_zero_fractions_cut_nothing():
    assert set(choose({"all": LABELS}, val=0, test=0)) == {"train"}
    assert set(choose({"all": LABELS}, val=0)) == {"train", "test"}


def test_test_part_does_not_depend_on_the_validation_part():
    assert np.array_equal(choose({"all": LABELS}, val=0)["test"][1], choose({"all": LABELS}, val=0.3)["test"][1])


def test_given_parts_stay_whole():
    other = np.array([0, 1, 2])
    assert set(choose({"train": LABELS, "val": other})) == {"train", "val"}
    parts = choose({"train": LABELS, "test": other})
    assert parts["test"][0] == "test"
    assert parts["val"][0] == "train"
    assert len(parts["train"][1]) == 144
    assert set(choose({"train": LABELS})) == {"train", "val", "test"}
    assert len(choose({"train": LABELS, "val": other, "test": other})["train"][1]) == len(LABELS)


def test_class_of_one_image_cannot_be_split_and_is_named():
    labels = np.array([0, 0, 0, 1, 1, 1, 2])
    with pytest.raises(DataError, match=r"too few images to split class 'c'.*at least two.*val_fraction"):
        choose({"all": labels})
    assert len(choose({"all": labels}, val=0, test=0)["train"][1]) == 7


def test_two_cuts_of_a_class_of_two_leave_one():
    labels = np.repeat([0, 1, 2], 2)
    kept = labels[choose({"all": labels}, val=0.9, test=0.5)["train"][1]]
    assert set(kept.tolist()) == {0, 1, 2}


def test_class_without_images_is_named():
    with pytest.raises(DataError, match=r"no readable training image in class 'b'"):
        choose({"all": np.array([0, 0, 2, 2])})


def test_the_first_of_each_class_are_taken_before_validation_is_cut():
    parts = choose_parts(
        {"train": LABELS, "test": LABELS}, CLASSES, val_fraction=0.1, test_fraction=0.2, seed=0, per_class=20
    )
    learned = np.sort(np.concatenate([parts["train"][1], parts["val"][1]]))
    assert learned.tolist() == [*range(20), *range(100, 120), *range(150, 160)]
    assert np.bincount(LABELS[parts["val"][1]]).tolist() == [2, 2, 1]
    assert len(parts["test"][1]) == len(LABELS)


def test_the_first_of_each_class_are_those_that_a_test_cut_left():
    test = set(choose({"all": LABELS})["test"][1].tolist())
    parts = choose_parts({"all": LABELS}, CLASSES, val_fraction=0, test_fraction=0.2, seed=0, per_class=3)
    left = [row for row in range(len(LABELS)) if row not in test]
    assert parts["train"][1].tolist() == [
        row for label in range(3) for row in [r for r in left if LABELS[r] == label][:3]
    ]
    assert set(parts["test"][1].tolist()) == test
