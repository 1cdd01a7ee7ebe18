"""Parameter groups and the learning rate."""

import itertools

import pytest

import gmmvit
from gmmvit.config import load_recipe
from gmmvit.training.optim import learning_rate, parameter_groups


def test_only_matrices_decay_and_the_mask_has_its_own_rate():
    model = gmmvit.create_model("vit", mask="gmm", pool="cls", dim=24, depth=2, num_heads=2)
    recipe = load_recipe("paper", mask_lr_scale=5, mask_weight_decay=0.01)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {g["name"]: g for g in parameter_groups(model, recipe)}
    members = {name: {names[id(p)] for p in g["params"]} for name, g in groups.items()}
    assert set().union(*members.values()) == set(names.values())
    assert all(name.endswith("weight") for name in members["decay"])
    assert {"pos_embed", "cls_token", "blocks.0.norm1.weight", "head.bias"} <= members["no_decay"]
    assert members["mask"] == {f"blocks.{i}.attn.mask.{part}" for i in range(2) for part in ("sigma", "alpha")}
    assert [groups[n]["weight_decay"] for n in ("decay", "no_decay", "mask")] == [0.05, 0.0, 0.01]
    assert [groups[n]["lr_scale"] for n in ("decay", "no_decay", "mask")] == [1.0, 1.0, 5]


def test_the_rate_warms_up_peaks_and_ends_at_the_minimum():
    recipe = load_recipe("paper", epochs=10, warmup_epochs=2, lr=1e-3, min_lr=1e-6)
    rates = [learning_rate(step, 50, recipe) for step in range(500)]
    assert rates[0] < 2e-5
    assert max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) in (99, 100)
    assert rates[-1] == pytest.approx(1e-6, abs=1e-7)
    assert all(a >= b for a, b in itertools.pairwise(rates[100:]))


def test_the_warm_up_is_a_quarter_of_the_training_at_most():
    recipe = load_recipe("paper", epochs=3, warmup_epochs=10, lr=1e-3)
    rates = [learning_rate(step, 40, recipe) for step in range(120)]
    assert rates.index(max(rates)) in (29, 30)
    assert rates[-1] < 1e-5


def test_a_warm_up_longer_than_the_training_still_trains():
    recipe = load_recipe("paper", epochs=1, warmup_epochs=10)
    assert all(learning_rate(step, 3, recipe) > 0 for step in range(3))
    assert learning_rate(0, 1, recipe) > 0
