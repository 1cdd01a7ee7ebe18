"""The report records the attention of attached models of every kind and leaves their outputs unchanged."""

import pytest
import torch
from zoo import DONORS, Donor, logits

from gmmvit.attach import attach
from gmmvit.report.attention import _recorded


@pytest.mark.parametrize("donor", DONORS, ids=lambda d: f"{d.library}-{d.name}")
@torch.no_grad()
def test_noted_attention_is_shared_out_and_changes_nothing(donor: Donor) -> None:
    if reason := donor.missing():
        pytest.skip(reason)
    model, images = attach(donor.make(), init="paper"), donor.images()
    with _recorded(model, len(images)) as maps:
        noted = logits(model, images)
    assert torch.equal(noted, logits(model, images))
    assert not any("gmm_attend" in vars(module) for module in model.modules())
    for attention in maps:
        assert attention.grid in donor.layers
        torch.testing.assert_close(attention.weights.sum(-1), torch.ones(attention.weights.shape[:-1]))
        heat, cell = attention.heat()
        assert heat.shape == (len(images), *attention.grid)
        assert (cell is None) == (attention.prefix_tokens > 0)
