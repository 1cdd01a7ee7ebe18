"""Muon: its numbers against torch's, what counts as a matrix, and use with GradScaler and checkpoints."""

import copy

import pytest
import torch
from torch import nn

import gmmvit
from gmmvit.config import RecipeError
from gmmvit.training.muon import Muon, hidden_matrices, orthogonal_factors
from gmmvit.training.optim import make_optimizer, parameter_groups


def muon(weights, **options):
    return Muon([{"params": weights, "weight_decay": 0.1, "muon": True}], lr=0.02, **options)


def with_gradients(weights, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)


def weights_of(*shapes, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("shape", [(8, 8), (8, 40), (40, 8), (1, 5), (64, 27)], ids=str)
def test_factors_have_the_singular_vectors_of_the_matrix_and_values_near_one(shape):
    torch.manual_seed(0)
    x = torch.randn(3, *sorted(shape), dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonal_factors(x))
    assert values.min() > 0.3
    assert values.max() < 1.3
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    overlap = left.mT @ orthogonal_factors(x) @ right.mT
    torch.testing.assert_close(overlap, torch.diag_embed(overlap.diagonal(dim1=1, dim2=2)), atol=1e-6, rtol=0)
    assert (overlap.diagonal(dim1=1, dim2=2) > 0).all()


def test_a_zero_gradient_moves_nothing_but_the_decay():
    (weight,) = weights_of((4, 6))
    before, weight.grad = weight.detach().clone(), torch.zeros(4, 6)
    muon([weight], dtype=torch.float32).step()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.02 * 0.1))


def test_the_numbers_are_torchs():
    ours, theirs = weights_of((8, 8), (8, 20), (20, 8), (12, 8)), weights_of((8, 8), (8, 20), (20, 8), (12, 8))
    optimizer = muon(ours)
    oracle = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for weights, stepped in ((ours, optimizer), (theirs, oracle)):
            with_gradients(weights, step)
            stepped.step()
    for weight, expected, start in zip(ours, theirs, weights_of((8, 8), (8, 20), (20, 8), (12, 8)), strict=True):
        moved = (expected - start).norm()
        assert (weight - expected).norm() < 0.02 * moved  # both multiply in bfloat16


def test_queries_keys_and_values_are_three_matrices_and_a_convolution_is_one():
    (stacked,), (plain,) = weights_of((24, 8)), weights_of((24, 8))
    parts = [nn.Parameter(part.clone()) for part in plain.detach().chunk(3)]
    with_gradients([stacked])
    for part, gradient in zip(parts, stacked.grad.chunk(3), strict=True):
        part.grad = gradient.clone()
    muon([stacked], dtype=torch.float32).step()
    muon(parts, dtype=torch.float32).step()
    torch.testing.assert_close(stacked, torch.cat(parts))
    (kernel,) = weights_of((6, 4, 3, 3))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    with_gradients([kernel])
    matrix.grad = kernel.grad.flatten(1).clone()
    muon([kernel], dtype=torch.float32).step()
    muon([matrix], dtype=torch.float32).step()
    torch.testing.assert_close(kernel.flatten(1), matrix)


def test_the_other_groups_get_adamw_bit_for_bit():
    ours, theirs, matrices = weights_of((5, 3), (7,)), weights_of((5, 3), (7,)), weights_of((4, 4))
    optimizer = Muon([{"params": matrices, "muon": True}, {"params": ours, "weight_decay": 0.3}], lr=0.01)
    oracle = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.3, fused=True)
    for step in range(3):
        for weights, stepped in ((ours + matrices, optimizer), (theirs, oracle)):
            with_gradients(weights, step)
            stepped.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("unscaled_first", [False, True])
def test_scaled_gradients_move_as_plain_ones_and_infinite_ones_move_nothing(unscaled_first):
    scaled, plain = weights_of((4, 6), (3,)), weights_of((4, 6), (3,))

    def made(weights):
        return Muon([{"params": weights[:1], "muon": True}, {"params": weights[1:]}], lr=0.1, dtype=torch.float32)

    first, second = made(scaled), made(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.zeros(()))  # makes its tensors
    for step in range(3):
        with_gradients(plain, step)
        second.step()
        with_gradients(scaled, step)
        for weight in scaled:
            weight.grad *= scaler.get_scale()
        if unscaled_first:
            scaler.unscale_(first)
        scaler.step(first)
        scaler.update()
    for a, b in zip(scaled, plain, strict=True):
        torch.testing.assert_close(a, b)
    before, state = [w.detach().clone() for w in scaled], copy.deepcopy(first.state_dict()["state"])
    with_gradients(scaled)
    scaled[0].grad[0, 0] = torch.inf
    scaler.step(first)
    assert all(torch.equal(a, b) for a, b in zip(scaled, before, strict=True))
    assert torch.equal(first.state_dict()["state"][0]["momentum_buffer"], state[0]["momentum_buffer"])


def test_a_closure_is_refused():
    with pytest.raises(TypeError, match="no closure"):
        muon(weights_of((2, 2))).step(lambda: 0.0)


@pytest.mark.parametrize("family", ["vit", "swin", "cait", "pit", "t2t", "resnet"])
def test_hidden_layers_alone_belong_to_it(family):
    model = gmmvit.create_model(family, mask="gmm" if family != "resnet" else "none", num_classes=7)
    recipe = gmmvit.load_recipe("small", optimizer="muon")
    names = {id(p): name for name, p in model.named_parameters()}
    groups = {group["name"]: {names[id(p)] for p in group["params"]} for group in parameter_groups(model, recipe)}
    assert set().union(*groups.values()) == set(names.values())
    assert groups["muon"]
    assert all(model.get_parameter(name).dim() in (2, 4) for name in groups["muon"])
    assert not any(name.startswith("head.") or "mask." in name for name in groups["muon"])
    assert next(iter(names.values())) not in groups["muon"]
    assert len(groups["decay"]) < len(groups["muon"])


def test_first_last_grouped_and_frozen_layers_stay_with_adamw():
    layers = [nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 1), nn.Linear(8, 8), nn.Linear(8, 2)]
    model = nn.Sequential(*layers)
    model[3].weight.requires_grad_(False)
    assert [id(w) for w in hidden_matrices(model)] == [id(model[2].weight)]


def test_a_shared_matrix_moves_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[2].weight = model[1].weight
    recipe = gmmvit.load_recipe("small", optimizer="muon")
    groups = {group["name"]: group["params"] for group in parameter_groups(model, recipe)}
    assert [id(p) for p in groups["muon"]] == [id(model[1].weight)]


def test_its_matrices_have_a_rate_of_their_own():
    model = gmmvit.create_model("vit", mask="gmm", dim=16, depth=1, num_heads=2)
    recipe = gmmvit.load_recipe("small", optimizer="muon", muon_lr_scale=3)
    assert {group["name"]: group["lr_scale"] for group in parameter_groups(model, recipe)} == {
        "decay": 1.0,
        "no_decay": 1.0,
        "mask": 1.0,
        "muon": 3.0,
    }


def test_products_have_the_precision_of_the_forward_pass():
    model, recipe = (
        gmmvit.create_model("vit", dim=16, depth=1, num_heads=2),
        gmmvit.load_recipe("small", optimizer="muon"),
    )
    assert make_optimizer(model, recipe, torch.float32).product_dtype == torch.float32
    assert make_optimizer(model, recipe, torch.float16).product_dtype == torch.bfloat16


def test_split_matrices_are_refused():
    with pytest.raises(RecipeError, match="optimizer muon needs whole matrices"):
        gmmvit.load_recipe("small", optimizer="muon", shard=True)
