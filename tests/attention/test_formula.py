"""The formula against plain loops, and its gradients."""

import math

import pytest
import torch

from gmmvit.attention import OffsetTable, dense_mask, gaussian_mixture_table, patch_offsets, reference_attention
from gmmvit.attention.reference import EPSILON, log_mask, with_prefix

GRIDS = [(4, 4), (3, 5), (1, 6)]


def loop_mask(sigma, alpha, grid, correlation=None, center=None):
    """The mask by four nested loops over patches, from the definition of a two-dimensional Gaussian."""
    rows, cols = grid
    heads, kernels = alpha.shape
    dense = torch.zeros(heads, rows * cols, rows * cols, dtype=torch.float64)
    for h in range(heads):
        for i in range(rows * cols):
            for j in range(rows * cols):
                d = torch.tensor([j // cols - i // cols, j % cols - i % cols], dtype=torch.float64)
                if center is not None:
                    d = d - center[h]
                for k in range(kernels):
                    widths = (sigma[h, k].expand(2) if sigma.dim() == 2 else sigma[h, k]).square() + EPSILON
                    rho = 0.0 if correlation is None else 0.99 * math.tanh(correlation[h, k])
                    off = rho * math.sqrt(widths[0] * widths[1])
                    covariance = torch.tensor([[widths[0], off], [off, widths[1]]], dtype=torch.float64)
                    dense[h, i, j] += alpha[h, k] * torch.exp(-0.5 * d @ torch.linalg.inv(covariance) @ d)
    return dense


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("covariance", ["spherical", "diag", "full", "center"])
def test_the_mask_is_the_definition(grid, covariance):
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    sigma = draw(2, 3) * 2 if covariance in ("spherical", "center") else draw(2, 3, 2) * 2 + 1
    alpha = draw(2, 3)
    extras = {}
    if covariance == "full":
        extras["correlation"] = draw(2, 3)
    if covariance in ("center", "full"):
        extras["center"] = draw(2, 2)
    table = gaussian_mixture_table(sigma, alpha, patch_offsets(grid), **extras)
    assert table.shape == (2, 2 * grid[0] - 1, 2 * grid[1] - 1)
    dense = dense_mask(OffsetTable(table, grid))
    torch.testing.assert_close(dense, loop_mask(sigma, alpha, grid, **extras), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"correlation": True}, {"center": True}])
def test_gradcheck_of_the_table(options):
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)  # noqa: E731
    torch.manual_seed(0)
    sigma = draw(2, 2, 2) if "correlation" in options else draw(2, 2)
    inputs = [sigma, draw(2, 2), *(draw(2, 2) for _ in options)]
    offsets = patch_offsets((2, 3)).double()

    def table(sigma, alpha, *rest):
        return gaussian_mixture_table(sigma, alpha, offsets, **dict(zip(options, rest, strict=True)))

    assert torch.autograd.gradcheck(table, inputs)


@pytest.mark.parametrize("mode", ["multiply", "log", "post"])
@pytest.mark.parametrize("prefix_tokens", [0, 2])
def test_gradcheck_of_attention(mode, prefix_tokens):
    torch.manual_seed(0)
    tokens = 6 + prefix_tokens
    q, k, v = (torch.randn(2, 2, tokens, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    table = (torch.rand(2, 3, 5, dtype=torch.float64) + 0.2).requires_grad_()
    bias = torch.randn(1, 2, tokens, tokens, dtype=torch.float64, requires_grad=True)

    def attend(q, k, v, table, bias):
        mask = with_prefix(dense_mask(OffsetTable(table, (2, 3))), prefix_tokens)
        return reference_attention(q, k, v, mask, scale=0.7, bias=bias, mode=mode)

    assert torch.autograd.gradcheck(attend, (q, k, v, table, bias))


def test_modes_do_what_they_say():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 4, 2, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(4, 4, dtype=torch.float64) + 0.1
    scores = 0.5 * q[0, 0] @ k[0, 0].T
    expected = {
        "multiply": (scores * mask).softmax(-1) @ v[0, 0],
        "log": (scores + mask.log()).softmax(-1) @ v[0, 0],
        "post": (scores.softmax(-1) * mask) @ v[0, 0],
    }
    for mode, value in expected.items():
        got = reference_attention(q, k, v, mask, scale=0.5, mode=mode)[0, 0]
        torch.testing.assert_close(got, value)
        torch.testing.assert_close(got, expected[mode])


def test_a_wide_gaussian_is_not_cut_off_at_far_patches():
    """exp(-d2) underflows beyond ten patches in float32; the whole quotient does not."""
    table = gaussian_mixture_table(torch.tensor([[30.0]]), torch.ones(1, 1), patch_offsets((20, 20)))
    assert table[0, 0, 0].item() == pytest.approx(math.exp(-(19**2 * 2) / 2 / (900 + EPSILON)), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 1e-8, 1e-3, 300.0, 6e4])
@pytest.mark.parametrize("axes", [(), (2,)])
def test_gradients_stay_finite_for_every_sigma(dtype, value, axes):
    sigma = torch.full((1, 2, *axes), value, dtype=dtype).requires_grad_()
    alpha = torch.ones(1, 2, dtype=dtype, requires_grad=True)
    center = torch.full((1, 2), 0.3, dtype=dtype, requires_grad=True)
    for extras in ({}, {"center": center}):
        table = gaussian_mixture_table(sigma, alpha, patch_offsets((5, 7)), **extras)
        (table.square().sum() + log_mask(table).sum()).backward()
        for parameter in (sigma, alpha, *extras.values()):
            assert torch.isfinite(parameter.grad).all(), (extras, parameter.grad)


def test_a_sigma_beyond_float32_squares_is_a_constant():
    sigma = torch.full((1, 1), 1e25, requires_grad=True)
    table = gaussian_mixture_table(sigma, torch.ones(1, 1), patch_offsets((4, 4)))
    table.sum().backward()
    assert (table == 1).all()
    assert torch.isfinite(sigma.grad).all()
