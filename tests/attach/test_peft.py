"""Attached models under peft: outputs, gradients and files with LoRA of all kinds of layers; or one sentence."""

import copy
import pickle
import warnings

import pytest
import torch
from zoo import DONORS, logits, small_vit

from gmmvit.attach import attach, attention_maps, describe, detach, load_masks, mask_parameters
from gmmvit.attach.surgery import GridRecorder, Swapped

peft = pytest.importorskip("peft")
pytest.importorskip("timm")
IMAGES = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
TABLE = {f"{d.library}-{d.name}": d for d in DONORS}


def donor():
    return small_vit(dynamic_img_size=True, global_pool="avg")


def lora(model, targets=("qkv", "proj"), masks=("gmm_mask",)):
    config = peft.LoraConfig(target_modules=list(targets), modules_to_save=list(masks) or None)
    return peft.get_peft_model(model, config)


def trained(model):
    """The model after a step that moves every trained parameter."""
    model.train()
    model(IMAGES).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("mask", ["gmm", "elm"])
def test_lora_of_every_projection_keeps_the_outputs_and_trains_the_masks(mask):
    model = attach(donor().eval(), mask=mask, init="paper", grid=(4, 8))
    expected = model(IMAGES)
    tuned = lora(model)
    torch.testing.assert_close(tuned(IMAGES), expected)
    masks = mask_parameters(tuned)
    assert len(masks) == (4 if mask == "gmm" else 2)
    assert [item.action for item in describe(tuned)] == [mask] * 2
    before = [p.detach().clone() for p in masks]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(tuned)
    assert all(not torch.equal(p, b) for p, b in zip(masks, before, strict=True))
    expected = tuned(IMAGES)
    for other in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))):
        assert torch.equal(other(IMAGES), expected)
    assert attention_maps(tuned, IMAGES)["base_model.model.blocks.1.attn"].shape == (2, 3, 33, 33)
    whole = tuned.merge_and_unload()
    torch.testing.assert_close(whole(IMAGES), expected, atol=1e-5, rtol=1e-5)
    assert not any(isinstance(m, Swapped) for m in detach(whole).modules())


def test_lora_of_the_patch_embedding_leaves_the_grid_to_it():
    model = attach(donor(), init="paper")
    images = IMAGES.transpose(2, 3)  # as many patches, another grid
    expected = model(images)
    tuned = lora(model)
    tuned(IMAGES)
    torch.testing.assert_close(tuned(images), expected)
    assert sum(isinstance(m, GridRecorder) and bool(m.gmm_boxes) for m in tuned.modules()) == 1


@pytest.mark.parametrize("whole", [False, True])
def test_masks_come_back_from_what_peft_saves(tmp_path, whole):
    torch.manual_seed(0)
    tuned = trained(lora(attach(donor(), init="paper", num_kernels=3)))
    expected = tuned(IMAGES)
    if whole:  # with original_module and modules_to_save.default, under base_model.model.
        again = load_masks(donor(), tuned.state_dict())
    else:
        tuned.save_pretrained(tmp_path)
        again = load_masks(donor(), tmp_path)
    masks = mask_parameters(again)
    for got, saved in zip(masks, mask_parameters(tuned), strict=True):
        assert torch.equal(got, saved)
    if not whole:
        read = peft.PeftModel.from_pretrained(again, tmp_path)
        torch.testing.assert_close(read.eval()(IMAGES), expected)


def test_masks_of_several_adapters_are_refused_by_name():
    tuned = lora(attach(donor()))
    tuned.add_adapter("other", peft.LoraConfig(target_modules=["qkv"], modules_to_save=["gmm_mask"]))
    with pytest.raises(ValueError, match=r"attn: its mask has copies for the peft adapters default and other: save"):
        load_masks(donor(), tuned.state_dict())


@pytest.mark.parametrize("targets", [("qkv", "proj"), ("fc1", "fc2"), ("head",)])
def test_masks_that_peft_freezes_are_told(targets):
    tuned = lora(attach(donor()), targets, masks=())
    assert not any(p.requires_grad for p in mask_parameters(tuned))
    with pytest.warns(UserWarning, match=r"neither trains nor saves the masks: .* modules_to_save=\['gmm_mask'\]"):
        tuned.train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tuned.eval()
        lora(attach(donor()), targets).train()
        tuned.unload().train()
        attach(donor()).train()


@pytest.mark.parametrize("targets", [("qkv",), ("qkv", "proj")])
def test_masks_behind_peft_are_refused_until_it_is_gone(targets):
    tuned = lora(donor(), targets, masks=())
    state = attach(donor()).state_dict()
    for call in (attach, lambda model: load_masks(model, state)):
        with pytest.raises(
            ValueError, match=r"is already wrapped by peft: attach first, then get_peft_model with modules_to_save"
        ):
            call(tuned)
    attach(tuned.merge_and_unload())(IMAGES)


TARGETS = {
    "torchvision-vit_b_16": ["out_proj", "conv_proj"],
    "timm-swin_tiny_patch4_window7_224": ["qkv", "proj"],
    "timm-mvitv2_tiny": ["qkv", "proj"],
    "timm-beit_base_patch16_224": ["proj", "fc1"],
    "transformers-vit": "all-linear",
    "transformers-swin": "all-linear",
}


@pytest.mark.parametrize("name", TARGETS)
def test_donors_of_every_library_go_under_lora(name):
    row = TABLE[name]
    if row.missing():
        pytest.skip(row.missing())
    model, images = attach(row.make(), init="paper"), row.images()
    expected = logits(model, images)
    tuned = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=TARGETS[name], modules_to_save=["gmm_mask"])
    ).eval()
    torch.testing.assert_close(logits(tuned, images), expected, atol=1e-5, rtol=1e-5)
    logits(tuned.train(), images).square().mean().backward()
    reached = [p for p in mask_parameters(tuned) if p.grad is not None]
    assert len(reached) >= len(mask_parameters(tuned)) - 2
    detach(tuned.merge_and_unload())
