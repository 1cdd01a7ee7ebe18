"""Every model of the table: against the oracle, from the identity, back to the donor, through files."""

import copy
import pickle

import pytest
import torch
from oracle import masked_logits
from zoo import DONORS, logits

from gmmvit.attach import attach, describe, detach, mask_parameters
from gmmvit.attach.surgery import MaskedDonor, Swapped

pytestmark = pytest.mark.parametrize("donor", DONORS, ids=lambda d: f"{d.library}-{d.name}")


@pytest.fixture(autouse=True)
def installed(donor):
    if donor.missing():
        pytest.skip(donor.missing())


def attached(donor, dtype=torch.float32, **options):
    model = donor.make(dtype=dtype)
    torch.manual_seed(2)
    return attach(model, **options)


def test_a_random_mask_multiplies_the_content_logits_of_every_layer(donor):
    model = attached(donor)
    assert [m.gmm_mask.grid for m in model.modules() if isinstance(m, MaskedDonor)] == donor.layers
    got, expected = masked_logits(donor)
    plain = logits(donor.make(dtype=torch.float64), donor.images(dtype=torch.float64))
    assert (plain - expected).abs().max() > 1e-5  # the mask does something
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mask", ["gmm", "elm"])
def test_the_identity_start_leaves_the_logits_as_they_were(donor, mask, training):
    results = []
    for model in (donor.make(), attached(donor, mask=mask)):
        torch.manual_seed(3)
        results.append(logits(model.train(training), donor.images()))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


def test_gradients_reach_every_sigma_and_alpha(donor):
    model = attached(donor, init="paper")
    outputs = []  # after the last attention the head may read only the class token, which no mask touches
    for module in model.modules():
        if isinstance(module, MaskedDonor):
            module.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    logits(model, donor.images())
    assert len(outputs) == len(donor.layers)
    sum(out.square().sum() for out in outputs).backward()
    parameters = mask_parameters(model)
    assert len(parameters) == 2 * len(donor.layers)
    for parameter in parameters:
        assert parameter.grad.abs().sum(-1).min() > 0


def test_detach_gives_the_donor_back(donor):
    donor_model, model = donor.make(), attached(donor, init="paper")
    detach(model)
    assert not any(isinstance(m, Swapped) for m in model.modules())
    assert [type(m) for m in model.modules()] == [type(m) for m in donor_model.modules()]
    assert [sorted(vars(m)) for m in model.modules()] == [sorted(vars(m)) for m in donor_model.modules()]
    assert list(model.state_dict()) == list(donor_model.state_dict())
    assert torch.equal(logits(model, donor.images()), logits(donor_model, donor.images()))


def test_weights_go_through_safetensors(donor, tmp_path):
    from safetensors.torch import load_file, save_file

    model = attached(donor, init="paper")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "model.safetensors")
    other = attach(donor.make(seed=7))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert torch.equal(logits(other, donor.images()), logits(model, donor.images()))


def test_copies_and_pickles_are_whole_and_apart(donor):
    model = attached(donor, init="paper")
    expected = logits(model, donor.images())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, donor.images()), expected)
        detach(other)
    assert torch.equal(logits(model, donor.images()), expected)


def test_describe_tells_grid_heads_and_prefix(donor):
    model = donor.make()
    free = [item for item in describe(model) if item.action == "free"]
    assert [item.grid for item in free] == donor.layers
    there = [item for item in describe(attach(model)) if item.action == "gmm"]
    assert [(i.name, i.grid, i.heads, i.prefix_tokens) for i in there] == [
        (i.name, i.grid, i.heads, i.prefix_tokens) for i in free
    ]
    assert [item.prefix_tokens for item in there] == donor.prefixes
