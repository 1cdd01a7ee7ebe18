"""After `attach`, hooks on an attention's softmax and dropout see what they saw before; attention maps."""

import pytest
import torch
from torch import nn
from zoo import DONORS, logits, small_vit

import gmmvit
from gmmvit.attach import attach, attention_maps, detach
from gmmvit.attach.surgery import MaskedDonor

transformers = pytest.importorskip("transformers")

WATCHED = ("attn_drop", "softmax")
TIMM = [donor for donor in DONORS if donor.library == "timm"]
HF = [donor for donor in DONORS if donor.library == "transformers"]


def name_of(donor):
    return f"{donor.library}-{donor.name}"


def hooked(model, images, *, unfused=True):
    """What forward hooks on every softmax and attention dropout see, set as in tools for rollouts and maps."""
    seen, handles = [], []
    for name, module in model.named_modules():
        if unfused and hasattr(module, "fused_attn"):
            module.fused_attn = False
        if name.rpartition(".")[2] in WATCHED:
            handles.append(module.register_forward_hook(lambda m, i, out: seen.append(out.detach())))
    logits(model, images)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("donor", TIMM, ids=name_of)
@torch.no_grad()
def test_hooks_on_the_unfused_path_see_what_they_saw(donor):
    """vit-explain#23, #27: rollouts hook attn_drop with fused_attn=False; attached, they got an empty list."""
    images = donor.images()
    before = hooked(donor.make(), images)
    attached = attach(donor.make())
    after = hooked(attached, images)
    assert [tuple(weights.shape) for weights in after] == [tuple(weights.shape) for weights in before]
    for got, expected in zip(after, before, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-3)
    assert bool(before) == any(name.endswith(WATCHED) for name, _ in donor.make().named_modules())


@torch.no_grad()
def test_timms_own_extractor_finds_what_it_found():
    """pytorch-image-models#2220: timm.utils.AttentionExtract."""
    from timm.utils import AttentionExtract

    found = []
    for model in (small_vit(), attach(small_vit())):
        for block in model.blocks:
            block.attn.fused_attn = False
        found.append(AttentionExtract(model, method="hook")(torch.ones(2, 3, 32, 32)))
    assert list(found[0]) == list(found[1]) == ["blocks.0.attn.attn_drop", "blocks.1.attn.attn_drop"]
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected)


@torch.no_grad()
def test_hooks_count_on_the_fused_path_too_and_changing_them_changes_the_output():
    model, images = attach(small_vit(), init="paper"), torch.randn(2, 3, 32, 32)
    plain = model(images)
    assert [tuple(w.shape) for w in hooked(model, images, unfused=False)] == [(2, 3, 17, 17)] * 2
    torch.testing.assert_close(model(images), plain)
    handle = model.blocks[0].attn.attn_drop.register_forward_hook(lambda m, i, out: torch.zeros_like(out))
    assert (model(images) - plain).abs().max() > 1e-4
    handle.remove()
    assert torch.equal(model(images), plain)


def test_gradients_reach_hooks_on_the_dropout():
    """Gradient rollouts (vit-explain) register backward hooks there."""
    model, seen = attach(small_vit(), init="paper"), []
    for block in model.blocks:
        block.attn.attn_drop.register_full_backward_hook(lambda m, given, taken: seen.append(taken[0]))
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert [tuple(gradient.shape) for gradient in seen] == [(2, 3, 17, 17)] * 2
    assert all(gradient.abs().sum() > 0 for gradient in seen)


@pytest.mark.parametrize("mode", ["multiply", "log", "post"])
@torch.no_grad()
def test_the_unfused_path_computes_what_the_fused_one_does(mode):
    model, images = attach(small_vit().double(), init="paper", mode=mode), torch.randn(2, 3, 32, 32).double()
    with torch.no_grad():
        for parameter in gmmvit.mask_parameters(model):
            parameter.abs_().mul_(0.1).add_(0.1)
    fused = model(images)
    for block in model.blocks:
        block.attn.fused_attn = False
    torch.testing.assert_close(model(images), fused, atol=1e-9, rtol=1e-9)


def own_attentions(donor):
    """The maps of the donor without masks; skips if it has none."""
    model = donor.make()
    model.set_attn_implementation("eager")
    try:
        given = getattr(model(donor.images(), output_attentions=True), "attentions", None) or ()
    except TypeError as error:  # maskformer's Swin reads them from hidden states that were not requested
        pytest.skip(f"the donor itself fails where attentions are asked for: {error}")
    if all(weights is None for weights in given):
        pytest.skip("the donor gives no attentions: its class was chosen when it was built, for sdpa")
    return given


@pytest.mark.parametrize("donor", HF, ids=name_of)
@torch.no_grad()
def test_attentions_of_transformers_loaded_eager_are_those_of_the_donor(donor):
    """transformers#30978, #22469: output_attentions needs attn_implementation="eager"; attached, it gave None."""
    expected, images = own_attentions(donor), donor.images()
    model = donor.make()
    model.set_attn_implementation("eager")
    attentions = attach(model)(images, output_attentions=True).attentions
    assert len(attentions) == len(expected)
    for got, own in zip(attentions, expected, strict=True):
        torch.testing.assert_close(got, own, atol=2e-4, rtol=2e-3)


@torch.no_grad()
def test_multihead_attention_returns_its_weights_where_they_are_asked_for():
    torch.manual_seed(0)
    donor, x = nn.MultiheadAttention(24, 3, batch_first=True).eval(), torch.randn(2, 17, 24)
    expected = {average: donor(x, x, x, average_attn_weights=average) for average in (True, False)}
    attach(donor, grid=(4, 4), prefix_tokens=1)
    for average, (out, weights) in expected.items():
        got = donor(x, x, x, average_attn_weights=average)
        torch.testing.assert_close(got[0], out, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(got[1], weights, atol=1e-5, rtol=1e-5)
    assert donor(x, x, x, need_weights=False)[1] is None


@pytest.mark.parametrize("donor", DONORS, ids=name_of)
@torch.no_grad()
def test_attention_maps_of_every_model_are_had_in_one_way(donor):
    model, images = attach(donor.make(), init="paper"), donor.images()
    plain = logits(model, images)
    maps = attention_maps(model, images)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MaskedDonor)}
    assert list(maps) == list(layers)
    mixed = ("proj_w", "talking_head2")  # mixes heads after the softmax
    for (name, weights), prefix in zip(maps.items(), donor.prefixes, strict=True):
        rows, cols = weights.shape[-2:]
        assert (rows - prefix) > 0
        assert (cols - prefix) > 0
        if not any(hasattr(layers[name], part) for part in mixed):
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(model, images), plain)
    assert not any("gmm_seen" in vars(module) for module in model.modules())


@torch.no_grad()
def test_attention_maps_are_the_softmax_of_the_masked_logits():
    model, images = attach(small_vit(), init="paper", layers=[1]), torch.randn(2, 3, 32, 32)
    seen = []
    handle = model.blocks[1].attn.qkv.register_forward_hook(lambda m, i, out: seen.append(out))
    [(name, weights)] = attention_maps(model.train(), images).items()
    handle.remove()
    q, k, _ = seen[0].unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
    mask = torch.ones(3, 17, 17)
    mask[:, 1:, 1:] = model.blocks[1].attn.gmm_mask.dense()
    torch.testing.assert_close(weights, (q @ k.transpose(-2, -1) * 16**-0.5 * mask).softmax(-1))
    assert name == "blocks.1.attn"
    assert model.training
    assert model.blocks[0].attn.training


@torch.no_grad()
def test_attention_that_runs_twice_has_two_maps():
    model = small_vit()
    model.blocks[1].attn = model.blocks[0].attn
    assert list(attention_maps(attach(model), torch.randn(1, 3, 32, 32))) == ["blocks.0.attn", "blocks.0.attn#2"]


def test_models_without_masks_have_no_maps_of_ours():
    with pytest.raises(ValueError, match="VisionTransformer carries no mask: call attach first"):
        attention_maps(small_vit(), torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match="is compiled"):
        attention_maps(torch.compile(attach(small_vit())), torch.randn(1, 3, 32, 32))
    model = attach(small_vit())
    with pytest.raises(RuntimeError):
        attention_maps(model, torch.randn(1, 4, 32, 32))
    assert type(detach(model).blocks[0].attn) is type(small_vit().blocks[0].attn)
