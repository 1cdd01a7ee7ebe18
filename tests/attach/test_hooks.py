"""What explanation tools watch in a model is still there after `attach`, with its values; each names its report."""

import re

import pytest
import torch
from torch import nn
from torch.fx.proxy import TraceError
from zoo import DONORS
from zoo.donor import Donor, logits, small_vit

from gmmvit.attach import attach
from gmmvit.attach.survey import masked

BY_NAME = {donor.name: donor for donor in DONORS}
VIT = Donor("vit", "timm", small_vit, [(4, 4)] * 2, prefix=1)


def first_tensor(value):
    while isinstance(value, tuple):
        value = value[0]
    return value


def watch(model, modules, what, seen):
    """Sets hooks on the modules of these names; `seen` collects what they see."""

    def output(module, given, out):
        seen.append(first_tensor(out).detach())

    def gradient(module, given, out):
        first_tensor(out).register_hook(seen.append)

    def given(module, args, kwargs):
        seen.append(first_tensor(args or tuple(kwargs.values())).detach())

    def ask(module, args, kwargs):
        return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

    def weights(module, given, out):
        seen.append(out[1].detach())

    found = [module for name, module in model.named_modules() if re.fullmatch(modules, name)]
    assert found
    for module in found:
        if what == "input":
            module.register_forward_pre_hook(given, with_kwargs=True)
        elif what == "weights":
            module.register_forward_pre_hook(ask, with_kwargs=True)
            module.register_forward_hook(weights)
        else:
            module.register_forward_hook({"output": output, "gradient": gradient}[what])


def run(model, images, what):
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    with torch.set_grad_enabled(what == "gradient"):
        out = logits(model, images)
        if out.requires_grad:
            out.square().sum().backward()


WATCHED = {
    "dinov2#69: the dropout of the last block": (VIT, r"blocks\.1\.attn\.attn_drop", "output"),
    "Transformer-MM-Explainability#3: its gradient": (VIT, r"blocks\.\d\.attn\.attn_drop", "gradient"),
    "pytorch-image-models#1374, vissl#483: qkv": (VIT, r"blocks\.\d\.attn\.qkv", "output"),
    "slide2vec#142: what goes into attention": (VIT, r"blocks\.\d\.attn", "input"),
    "pytorch-grad-cam#513: what comes out": (VIT, r"blocks\.1\.attn", "output"),
    "pytorch-grad-cam#513: its gradient": (VIT, r"blocks\.1\.attn", "gradient"),
    "pytorch-grad-cam#76, #511: the norm before": (VIT, r"blocks\.1\.norm1", "gradient"),
    "pytorch-image-models#607, #657: blocks": (VIT, r"blocks\.\d", "output"),
    "captum#465, #916: a layer": (VIT, r"blocks\.\d\.attn\.proj", "output"),
    "pytorch-grad-cam#84: timm's Swin": (BY_NAME["swin_tiny_patch4_window7_224"], r".*\.norm1", "gradient"),
    "pytorch-grad-cam#426: torchvision's Swin 2": (BY_NAME["swin_v2_t"], r".*\.norm1", "gradient"),
    "pytorch-grad-cam#355: transformers' Swin": (BY_NAME["swin"], r".*\.layernorm_before", "gradient"),
    "pytorch-grad-cam#474: DaViT": (BY_NAME["davit_tiny"], r".*\.attn\.softmax", "output"),
    "pytorch#128413, #132700, #82919: torchvision": (BY_NAME["vit_b_16"], r".*\.self_attention", "output"),
    "CLIP#18, pytorch#119811, torch-cam#416: weights of torchvision": (
        BY_NAME["vit_b_16"],
        r".*\.self_attention",
        "weights",
    ),
    **{
        f"projections, {name}": (BY_NAME[name], r".*\.(qkv|proj|to_qkv|merge|q_norm|k_norm)", "output")
        for name in (
            *(
                "maxvit_tiny_tf_224",
                "maxvit_t",
                "twins_svt_small",
                "nest_tiny",
                "volo_d1_224",
                "samvit_base_patch16_224",
            ),
            *("sam2_hiera_tiny", "sam, eager", "vitdet", "sam2_hiera_det_model"),
        )
    },
    "biases as a module, relpos": (BY_NAME["vit_relpos_small_patch16_224"], r".*\.attn\.rel_pos", "output"),
    "biases as a module, MaxViT": (BY_NAME["maxvit_tiny_tf_224"], r".*\.attn\.rel_pos", "output"),
    "biases as a module, GCViT": (BY_NAME["gcvit_xxtiny"], r".*\.attn\.rel_pos", "gradient"),
    "biases as a module, CoAtNet": (BY_NAME["coatnet_pico_rw_224"], r".*\.attn\.rel_pos", "output"),
}


@pytest.mark.parametrize("when", ["before attach", "after attach"])
@pytest.mark.parametrize(("donor", "modules", "what"), WATCHED.values(), ids=WATCHED)
def test_hooks_see_what_they_saw(donor, modules, what, when):
    if reason := donor.missing():
        pytest.skip(reason)
    images, expected, seen = donor.images(), [], []
    model = donor.make()
    watch(model, modules, what, expected)
    run(model, images, what)
    model = donor.make()
    if when == "before attach":
        watch(model, modules, what, seen)
        attach(model)
        seen.clear()  # a measurement runs the model too
    else:
        watch(attach(model), modules, what, seen)
    run(model, images, what)
    assert expected
    assert [tuple(tensor.shape) for tensor in seen] == [tuple(tensor.shape) for tensor in expected]
    for got, own in zip(seen, expected, strict=True):
        torch.testing.assert_close(got, own, atol=1e-3 * own.abs().max().item(), rtol=2e-3)


@pytest.mark.parametrize("name", ["swinv2", "donut-swin", "maskformer-swin", "data2vec-vision, eager", "vitdet"])
def test_an_attention_that_is_not_asked_for_weights_returns_as_many_values_as_before(name):
    if reason := BY_NAME[name].missing():
        pytest.skip(reason)
    names = [name for name, _ in masked(attach(BY_NAME[name].make()))]
    seen = []
    for change in (lambda model: model, attach):
        model, found = change(BY_NAME[name].make()), []
        for each in names:
            model.get_submodule(each).register_forward_hook(lambda _, given, out, found=found: found.append(len(out)))
        run(model, BY_NAME[name].images(), "output")
        seen.append(found)
    assert seen[0] == seen[1] == [1] * len(seen[0])


def test_hooks_inside_a_model_of_ones_own():
    """pytorch-grad-cam#211: target layers of a ViT inside another module."""

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_vit = small_vit()

        def forward(self, x):
            return self.base_vit(x)

    seen, images = [], torch.ones(2, 3, 32, 32)
    for model in (Outer(), Outer()):
        if seen:
            attach(model.base_vit)
        watch(model, r"base_vit\.blocks\.1\.attn\.attn_drop", "output", seen)
        run(model, images, "output")
    torch.testing.assert_close(*seen)


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_gradients_of_the_attentions_of_transformers(name):
    """Transformer-MM-Explainability#13, transformers#33649."""
    if reason := BY_NAME[name].missing():
        pytest.skip(reason)
    found = []
    for change in (lambda model: model, attach):
        model = BY_NAME[name].make()
        model.set_attn_implementation("eager")
        out = change(model)(BY_NAME[name].images(), output_attentions=True)
        for weights in out.attentions:
            weights.retain_grad()
        out[0].square().sum().backward()
        found.append([weights.grad for weights in out.attentions])
    for own, got in zip(*found, strict=True):
        torch.testing.assert_close(got, own, atol=1e-3 * own.abs().max().item(), rtol=2e-3)


def test_timms_extractor_by_graph_fails_with_an_error():
    """pytorch-image-models#2168: nodes of a graph instead of hooks; never an empty answer."""
    from timm.utils import AttentionExtract

    with pytest.raises(TraceError, match="symbolically traced"):
        AttentionExtract(attach(small_vit()), method="fx")
