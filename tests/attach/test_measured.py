"""Attentions that the rule of `measured.py` knows: held to the oracle as those of the table; refused where what the
rule takes for granted does not hold."""

import importlib

import pytest
import torch
from oracle import masked_logits
from zoo import MEASURED, Donor, logits

from gmmvit.attach import attach, describe, detach, load_masks, mask_parameters
from gmmvit.attach.donors.measured import MeasuredAttention
from gmmvit.attach.surgery import MaskedDonor, Swapped

transformers = pytest.importorskip("transformers")
each_model = pytest.mark.parametrize("donor", MEASURED, ids=lambda d: d.name)
SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}


def make(cls, config, **sizes):
    torch.manual_seed(0)
    return getattr(transformers, cls)(getattr(transformers, config)(**{**SIZES, **sizes})).eval()


def reasons(model):
    return {item.reason for item in describe(model) if item.action == "left alone"}


@each_model
def test_a_random_mask_multiplies_the_content_logits_of_every_layer(donor: Donor) -> None:
    model = attach(donor.make())
    layers = [m for m in model.modules() if isinstance(m, MaskedDonor)]
    assert all(isinstance(m, MeasuredAttention) for m in layers)
    assert [(m.gmm_mask.grid, m.gmm_site.prefix_tokens) for m in layers] == list(
        zip(donor.layers, donor.prefixes, strict=True)
    )
    got, expected = masked_logits(donor)
    plain = logits(donor.make(dtype=torch.float64), donor.images(dtype=torch.float64))
    assert (plain - expected).abs().max() > 1e-5  # the mask does something
    torch.testing.assert_close(got, expected, atol=1e-9, rtol=1e-9)


@each_model
def test_the_identity_start_leaves_the_logits_and_detach_gives_the_donor_back(donor: Donor) -> None:
    model, images = donor.make(), donor.images()
    for training in (False, True):
        results = []
        for change in (lambda m: m, attach, detach):
            torch.manual_seed(3)
            results.append(logits(change(model).train(training), images))
        torch.testing.assert_close(results[1], results[0], atol=1e-4, rtol=1e-4)
        assert torch.equal(results[2], results[0])
    original = donor.make()
    assert [type(m) for m in model.modules()] == [type(m) for m in original.modules()]
    assert [sorted(vars(m)) for m in model.modules()] == [sorted(vars(m)) for m in original.modules()]
    assert list(model.state_dict()) == list(original.state_dict())


@each_model
def test_gradients_reach_every_mask_and_weights_go_into_another_instance(donor: Donor) -> None:
    model = attach(donor.make(), init="paper")
    outputs = []
    for module in model.modules():
        if isinstance(module, MaskedDonor):
            module.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    expected = logits(model, donor.images())
    sum(out.square().sum() for out in outputs).backward()
    assert len(mask_parameters(model)) == 2 * len(donor.layers)
    assert all(parameter.grad.abs().sum(-1).min() > 0 for parameter in mask_parameters(model))
    other = load_masks(donor.make(seed=7), model.state_dict())
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, donor.images()), expected)


def test_a_measure_leaves_the_model_and_the_random_numbers_as_they_were():
    model = make("ViTMAEModel", "ViTMAEConfig").train()
    model.layernorm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, modes = [sorted(vars(m)) for m in model.modules()], [m.training for m in model.modules()]
    random = torch.get_rng_state()
    describe(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert ([sorted(vars(m)) for m in model.modules()], [m.training for m in model.modules()]) == (state, modes)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(m.config is model.config for m in model.modules() if type(m).__name__ == "ViTMAEAttention")


@pytest.mark.parametrize(
    ("cls", "config", "sizes", "reason"),
    [
        ("ViTMAEModel", "ViTMAEConfig", {}, "keeps only some of the patches"),
        ("ViTMAEModel", "ViTMAEConfig", {"mask_ratio": 0.0}, "its tokens are not the patches row by row"),
        ("YolosModel", "YolosConfig", {"image_size": [32, 48]}, "has 100 tokens after the patches"),
        ("PixtralVisionModel", "PixtralVisionConfig", {}, "does not keep one sequence of patches an image"),
        ("Phi4MultimodalVisionModel", "Phi4MultimodalVisionConfig", {}, "is_causal=True"),
        ("VideoMAEModel", "VideoMAEConfig", {}, "its patches have time as a third axis"),
        ("Siglip2VisionModel", "Siglip2VisionConfig", {"num_patches": 16}, "its images are not cut by one convolution"),
        ("RadioModel", "RadioConfig", {}, "takes the patches of several images as one sequence"),
    ],
)
def test_what_the_rule_does_not_hold_for_is_left_alone_and_why(cls, config, sizes, reason):
    model = make(cls, config, **sizes)
    assert any(reason in found for found in reasons(model))
    with pytest.raises(ValueError, match="no attention that can carry a mask"):
        attach(model)


def test_words_are_left_alone():
    config = transformers.BertConfig(hidden_size=48, num_hidden_layers=1, num_attention_heads=3, intermediate_size=64)
    [reason] = reasons(transformers.BertModel(config))
    assert reason.startswith("its configuration has no patch_size: words")


def test_a_layer_whose_tokens_are_other_ones_is_left_alone():
    eomt = make("EomtForUniversalSegmentation", "EomtConfig", num_blocks=1)
    assert [item.action for item in describe(eomt)] == ["free", "left alone"]
    images = torch.randn(2, 3, 32, 32)
    expected = eomt(images)[0]
    torch.testing.assert_close(attach(eomt)(images)[0], expected, atol=1e-5, rtol=1e-5)
    assert [item.action for item in describe(eomt)] == ["gmm", "left alone"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2), "not the patches row by row"),  # by columns
        (lambda x: x.flip(1), "not the patches row by row"),
        (lambda x: x.cumsum(1), "not the patches row by row|keeps only some"),
        (lambda x: x[:, 1:], "keeps only some of the patches"),
        (lambda x: torch.cat((x[:, :3], x[:, :1] * 0, x[:, 3:]), 1), "not the patches row by row"),
        (lambda x: torch.cat((x, x[:, :2] * 0), 1), "has 2 tokens after the patches"),
        (lambda x: x.flatten(0, 1)[None], "does not keep one sequence of patches an image"),
        (lambda x: torch.cat((x[:, :1] * 0, x), 1), None),
    ],
)
def test_the_order_of_the_tokens_is_measured_and_not_taken_for_granted(change, reason):
    model = make("IJepaModel", "IJepaConfig")
    model.embeddings.register_forward_hook(lambda _, __, out: change(out))
    if reason is None:
        assert [item.prefix_tokens for item in describe(model)] == [1, 1]
    else:
        with pytest.raises(ValueError, match=reason):
            attach(model)


def test_a_donor_that_computes_another_attention_is_left_alone(monkeypatch):
    module = importlib.import_module("transformers.models.ijepa.modeling_ijepa")
    theirs = module.eager_attention_forward
    monkeypatch.setattr(module, "eager_attention_forward", lambda m, q, *args, **o: theirs(m, q * q, *args, **o))
    assert reasons(make("IJepaModel", "IJepaConfig")) == {
        "computes something other than the softmax of queries times keys"
    }


def test_a_grid_that_is_said_does_not_pass_the_measure_by():
    with pytest.raises(ValueError, match="its tokens are not the patches row by row"):
        attach(make("ViTMAEModel", "ViTMAEConfig", mask_ratio=0.0), grid=(4, 4))
    model = make("IJepaModel", "IJepaConfig")
    assert not any(isinstance(m, Swapped) for m in model.modules())
    attach(model, grid=(4, 4), prefix_tokens=1)
    with pytest.raises(ValueError, match="got 16 tokens, a 4 x 4 grid has 16 patches with 1 tokens before them"):
        model(torch.randn(1, 3, 32, 32))
