"""The masks as modules: starts, grids, gradients, options that cost nothing when off."""

import copy
import re

import pytest
import torch

import gmmvit
from gmmvit.masks import COVARIANCES, ElementwiseMask, GaussianMixtureMask, create_mask


@pytest.mark.parametrize("grid", [(8, 8), (3, 7), (1, 5)])
@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("kernels", [1, 2, 5])
def test_identity_is_one_everywhere(grid, covariance, kernels):
    mask = GaussianMixtureMask(grid, 3, kernels, "identity", covariance=covariance, learn_center=True)
    table = mask.table()
    assert table.shape == (3, 2 * grid[0] - 1, 2 * grid[1] - 1)
    torch.testing.assert_close(table, torch.ones_like(table), rtol=0, atol=1e-6)
    assert mask.dense().shape == (3, grid[0] * grid[1], grid[0] * grid[1])


def test_identity_holds_on_a_larger_grid_at_run_time():
    mask = GaussianMixtureMask((4, 4), 2, init="identity")
    torch.testing.assert_close(mask.table((16, 16)), torch.ones(2, 31, 31), rtol=0, atol=1.2e-7)
    torch.testing.assert_close(mask.table((60, 70)), torch.ones(2, 119, 139), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_identity_passes_through_half_precision(dtype):
    mask = GaussianMixtureMask((4, 4), 2, init="identity").to(dtype).float()
    table = mask.table()
    torch.testing.assert_close(table, torch.ones_like(table), rtol=0, atol=1e-6)
    table.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in mask.parameters())


def test_paper_start_has_the_papers_distribution():
    torch.manual_seed(0)
    mask = GaussianMixtureMask((8, 8), 64, 64, "paper")
    assert mask.sigma.mean().item() == pytest.approx(10, abs=0.5)
    assert mask.sigma.std().item() == pytest.approx(10, abs=0.5)
    assert mask.alpha.mean().item() == pytest.approx(0, abs=0.1)
    assert mask.alpha.std().item() == pytest.approx(2, abs=0.1)
    assert (GaussianMixtureMask((8, 8), 4, 5, "paper", positive=True).table() > 0).all()


def test_local_start_is_narrow_early_and_wide_late():
    def width(depth):
        row = GaussianMixtureMask((8, 8), 1, 5, "local", depth=depth).table()[0, 7, 7:]
        return ((row - row.min()) / (row.max() - row.min())).sum().item()

    assert width(0.0) < width(0.5) < width(1.0)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("init", ["paper", "identity", "local"])
def test_every_parameter_gets_a_gradient_once_training_has_moved_it(covariance, init):
    """From the identity, alpha moves first and then the widths; the constant of that start never narrows."""
    torch.manual_seed(0)
    mask = GaussianMixtureMask((4, 5), 2, 3, init, covariance=covariance, learn_center=True)
    optimizer = torch.optim.AdamW(mask.parameters(), lr=0.05, weight_decay=0)
    target = torch.rand(2, 20, 20)
    for _ in range(3):
        optimizer.zero_grad()
        (mask.dense() - target).square().sum().backward()
        optimizer.step()
    for name, parameter in mask.named_parameters():
        grad = parameter.grad if init == "paper" or name == "center" else parameter.grad[:, 1:]
        assert torch.isfinite(parameter.grad).all(), name
        assert (grad != 0).all(), f"{name}: {grad}"


def test_options_that_are_off_add_no_parameters():
    plain = GaussianMixtureMask((8, 8), 12, 5)
    assert {name: tuple(p.shape) for name, p in plain.named_parameters()} == {"sigma": (12, 5), "alpha": (12, 5)}
    full = GaussianMixtureMask((8, 8), 12, 5, covariance="full", learn_center=True)
    assert sum(p.numel() for p in full.parameters()) == 12 * 5 * 4 + 12 * 2


def test_full_without_correlation_is_diag_and_diag_with_equal_axes_is_spherical():
    torch.manual_seed(0)
    sphere = GaussianMixtureMask((4, 6), 2, 3, "paper")
    diag = GaussianMixtureMask((4, 6), 2, 3, covariance="diag")
    full = GaussianMixtureMask((4, 6), 2, 3, covariance="full", learn_center=True)
    with torch.no_grad():
        for other in (diag, full):
            other.sigma.copy_(sphere.sigma.unsqueeze(-1).expand(-1, -1, 2))
            other.alpha.copy_(sphere.alpha)
    torch.testing.assert_close(diag.table(), sphere.table())
    torch.testing.assert_close(full.table(), sphere.table())


def test_a_new_grid_keeps_the_parameters_and_the_common_offsets():
    torch.manual_seed(0)
    mask = GaussianMixtureMask((4, 4), 2, 3, "paper")
    before = copy.deepcopy(mask.state_dict())
    larger = mask.table((6, 9))
    torch.testing.assert_close(larger[:, 2:9, 5:12], mask.table())
    assert mask((6, 9)).grid == (6, 9)
    assert all(torch.equal(value, before[name]) for name, value in mask.state_dict().items())


def test_the_mask_is_computed_in_float32_under_autocast_and_in_half_models():
    mask = GaussianMixtureMask((8, 8), 2, init="paper")
    with torch.autocast("cpu", torch.bfloat16):
        assert mask.table().dtype == torch.float32
    assert mask.half().table().dtype == torch.float32
    assert mask.double().table().dtype == torch.float64


def test_elementwise_mask_starts_as_asked_and_belongs_to_one_grid():
    mask = ElementwiseMask((2, 3), 4)
    assert mask().shape == (6, 6)
    assert (mask() == 1).all()
    assert (ElementwiseMask((2, 3), 4, init="paper")() == 0).all()
    assert ElementwiseMask((2, 3), 4, per_head=True)().shape == (4, 6, 6)
    assert mask.dense().shape == (4, 6, 6)
    with pytest.raises(ValueError, match=r"2 x 3 grid does not fit a 4 x 4 grid; call resample\(\(4, 4\)\)"):
        mask(4)


@pytest.mark.parametrize("per_head", [False, True])
def test_resampled_elementwise_mask_fits_the_new_grid_and_keeps_rows_apart_from_columns(per_head):
    mask = ElementwiseMask((4, 6), 2, per_head=per_head)
    place = torch.arange(24.0)
    with torch.no_grad():  # a query's row, ten times, plus a key's column: linear, so bilinear keeps it inside
        mask.weight.copy_((place // 6 * 10).unsqueeze(1) + place % 6)
    mask.resample((8, 12))
    weight = mask((8, 12)).reshape(-1, 8, 12, 8, 12)[0]
    assert mask.grid == (8, 12)
    inside = weight[1:-1, 0, 0, 1:-1]
    assert torch.allclose(weight[2, 3, 4, 5] - weight[1, 3, 4, 5], torch.tensor(5.0))
    assert torch.allclose(weight[2, 3, 4, 6] - weight[2, 3, 4, 5], torch.tensor(0.5))
    assert torch.allclose(weight[2, 5], weight[2, 3])
    assert inside.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num_heads": 0}, "num_heads must be between 1 and 1024, got 0"),
        ({"num_heads": "2"}, "num_heads must be one int, got '2'"),
        ({"num_heads": 2.5}, "num_heads must be one int, got 2.5"),
        ({"num_kernels": 0}, "num_kernels must be between 1 and 1024, got 0"),
        ({"num_kernels": None}, "num_kernels must be one int, got None"),
        ({"init": "identiy"}, r"init of the mask must be one of .* got 'identiy'"),
        ({"covariance": "round"}, r"covariance of the mask must be one of .* got 'round'"),
        ({"depth": 2}, "depth must be between 0"),
        ({"depth": "late"}, "depth must be one number, got 'late'"),
    ],
)
def test_wrong_arguments_are_named(arguments, words):
    with pytest.raises((ValueError, TypeError), match=words):
        GaussianMixtureMask(**({"grid": (4, 4), "num_heads": 2} | arguments))


@pytest.mark.parametrize("heads", [0, -1, True])
def test_an_elementwise_mask_needs_heads(heads):
    with pytest.raises((ValueError, TypeError), match=f"num_heads must .* got {heads}"):
        ElementwiseMask(8, heads)


@pytest.mark.parametrize("grid", [(2, 3, 4), (3,), (0, 4), 0, "8", 8.5, True, (8.7, 8)])
def test_wrong_grids_are_named(grid):
    error = ValueError if grid in [(2, 3, 4), (3,), (0, 4), 0] else TypeError
    words = re.escape(f"grid must be a positive int or a pair (rows, cols) of them, got {grid!r}")
    gaussian, elementwise = GaussianMixtureMask(4, 2), ElementwiseMask(4, 2)
    takers = (gaussian.table, gaussian.dense, elementwise, elementwise.dense, elementwise.resample)
    for take in (lambda g: GaussianMixtureMask(g, 2), lambda g: ElementwiseMask(g, 2), *takers):
        with pytest.raises(error, match=words):
            take(grid)


def test_an_int_is_a_square_grid():
    gaussian, elementwise = GaussianMixtureMask(8, 2), ElementwiseMask(4, 2)
    assert gaussian.table(4).shape == (2, 7, 7)
    assert gaussian.dense(4).shape == (2, 16, 16)
    assert gaussian(4).grid == (4, 4)
    assert elementwise(4) is elementwise.weight
    assert elementwise.dense(4).shape == (2, 16, 16)


def test_masks_by_name():
    assert create_mask("none", (4, 4), 2) is None
    assert isinstance(create_mask("elm", (4, 4), 2), ElementwiseMask)
    assert isinstance(create_mask("gmm", (4, 4), 2, num_kernels=3), gmmvit.GaussianMixtureMask)
    with pytest.raises(ValueError, match="mask must be one of"):
        create_mask("gaussian", (4, 4), 2)
    with pytest.raises(TypeError, match="the gmm mask has no option 'kernels'; the nearest is 'num_kernels'"):
        create_mask("gmm", (4, 4), 2, kernels=3)
