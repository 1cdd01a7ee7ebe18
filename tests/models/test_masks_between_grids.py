"""Masks between queries and keys on different patches, and for samples with patches in different places."""

import itertools
import math

import pytest
import torch

from gmmvit.attention.reference import OffsetTable, Steps, dense_mask, mask_at
from gmmvit.masks import ElementwiseMask, GaussianMixtureMask, create_mask

STEPS = [Steps(), Steps(query=(2, 2)), Steps(query=(1, 2), key=(2, 3)), Steps(query=(2, 3), shift=(0.5, 1.0))]
GRID = (5, 7)


def random_mask(**options):
    """With a learned centre, so that M(i, j) and M(j, i) differ."""
    torch.manual_seed(0)
    mask = GaussianMixtureMask(GRID, 2, 3, "paper", covariance="diag", learn_center=True, **options).double()
    torch.nn.init.normal_(mask.center)
    return mask


def places(step, shift=(0.0, 0.0)):
    """The places on the grid along a side with that step, moved by the shift."""
    return [(r + shift[0], c + shift[1]) for r, c in itertools.product(range(0, 5, step[0]), range(0, 7, step[1]))]


@pytest.mark.parametrize("steps", STEPS)
def test_a_mask_between_pooled_queries_and_keys_is_the_gaussian_of_their_distance(steps):
    mask = random_mask(steps=steps)
    queries, keys = places(steps.query, steps.shift), places(steps.key)
    expected = torch.zeros(2, len(queries), len(keys), dtype=torch.float64)
    for h, (i, query), (j, key) in itertools.product(range(2), enumerate(queries), enumerate(keys)):
        for (wide, narrow), alpha in zip(mask.sigma[h].tolist(), mask.alpha[h].tolist(), strict=True):
            rows, cols = (k - q - m for k, q, m in zip(key, query, mask.center[h].tolist(), strict=True))
            expected[h, i, j] += alpha * math.exp(
                -(rows**2) / (2 * (wide**2 + 1e-5)) - cols**2 / (2 * (narrow**2 + 1e-5))
            )
    torch.testing.assert_close(mask.dense(), expected)


def test_another_grid_at_run_time_keeps_the_steps():
    mask = random_mask(steps=STEPS[3])
    assert mask.dense((4, 9)).shape == (2, 2 * 3, 4 * 9)
    torch.testing.assert_close(mask.dense((4, 9))[:, 0, :7], mask.dense()[:, 0, :7])


def test_a_mask_at_positions_is_the_mask_of_the_grid_that_they_are_cut_from():
    mask = random_mask()
    dense = dense_mask(mask())
    cells = torch.stack([torch.randperm(35)[:6] for _ in range(3)])  # a few patches of each sample, in any order
    positions = torch.stack((cells // 7, cells % 7), dim=-1)
    got = mask_at(OffsetTable(mask.table(), GRID), positions)
    for sample, own in zip(got, cells, strict=True):
        torch.testing.assert_close(sample, dense[:, own][:, :, own])


@pytest.mark.parametrize("steps", STEPS)
def test_an_elementwise_mask_has_a_row_a_query_and_a_column_a_key(steps):
    mask = create_mask("elm", GRID, 2, steps=steps)
    queries, keys = len(places(steps.query)), len(places(steps.key))
    assert mask.weight.shape == (queries, keys)
    assert mask.dense().shape == (2, queries, keys)


def test_a_resampled_elementwise_mask_keeps_what_depends_on_the_place_of_the_query():
    mask = ElementwiseMask((4, 6), 1, steps=Steps(query=(2, 2)))
    with torch.no_grad():  # the value is the row of the query: 0 or 1
        mask.weight.copy_(torch.arange(2.0).repeat_interleave(3).unsqueeze(1).expand(6, 24))
    mask.resample((8, 6))
    rows = mask.weight.view(4, 3, 48)
    assert mask.weight.shape == (4 * 3, 8 * 6)
    torch.testing.assert_close(rows, torch.tensor([0.0, 0.25, 0.75, 1.0]).view(4, 1, 1).expand_as(rows))
