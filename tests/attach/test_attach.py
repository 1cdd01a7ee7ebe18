"""`attach` beside the table of donors: errors, choices, image sizes, precision, compilation, own models, files."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from zoo import DONORS, logits, naflex_batch, small_vit

import gmmvit
from gmmvit.attach import attach, describe, detach, mask_parameters
from gmmvit.masks import GaussianMixtureMask

timm = pytest.importorskip("timm")
TABLE = {(d.library, d.name): d for d in DONORS}
VIT = TABLE["timm", "vit_tiny_patch16_224"]


class OwnViT(nn.Module):
    """As written by somebody who has never heard of gmmvit."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 8, 8)
        self.attention = nn.MultiheadAttention(24, 3)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = self.patches(x).flatten(2).permute(2, 0, 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(0))


def test_the_name_can_be_called_in_every_order_of_imports():
    check = "try: gmmvit.attach(1)\nexcept TypeError as e: print('torch.nn.Module' in str(e))"
    for first in ("import gmmvit", "import gmmvit.attach"):
        out = subprocess.run([sys.executable, "-c", f"{first}\n{check}"], capture_output=True, text=True, check=True)
        assert out.stdout.strip() == "True"


def test_importing_it_loads_none_of_the_libraries():
    code = "import sys, gmmvit.attach; print([m for m in ('timm', 'transformers', 'torchvision') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_layers_choose_and_pooling_heads_are_left_alone():
    model = attach(small_vit(depth=3, global_pool="map", class_token=False), layers=[0, -1])
    assert [item.action for item in describe(model)] == ["gmm", "free", "gmm", "left alone"]
    assert "its queries are not patches" in str(describe(model))
    assert len(mask_parameters(model)) == 4


def test_text_is_left_alone():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    config = transformers.CLIPConfig(text_config={**sizes, "vocab_size": 99}, vision_config=vision, projection_dim=8)
    model = attach(transformers.CLIPModel(config))
    assert {item.name.split(".")[0]: item.action for item in describe(model)} == {
        "text_model": "left alone", "vision_model": "gmm",
    }  # fmt: skip
    assert config.vision_config._attn_implementation != "gmmvit"


def test_the_image_size_changes_where_the_donor_can():
    model = small_vit(dynamic_img_size=True)
    images = torch.randn(1, 3, 48, 64)
    expected = model(images)
    attach(model)
    for other in (model, copy.deepcopy(model)):
        torch.testing.assert_close(other(images), expected, atol=1e-5, rtol=1e-5)
    detach(model).set_input_size(img_size=(64, 32))
    attach(model, mask="elm")
    assert describe(model)[0].grid == (8, 4)
    with pytest.raises(ValueError, match="does not fit a 6 x 8 grid"):
        model(images)


@pytest.mark.parametrize("mode", ["log", "post"])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "cait_xxs24_224", "levit_128s", "convit_tiny"])
def test_the_other_modes_start_from_the_donor_too(name, mode):
    donor = TABLE["timm", name]
    expected = logits(donor.make(), donor.images())
    model = attach(donor.make(), mode=mode)
    torch.testing.assert_close(logits(model, donor.images()), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(RuntimeError, match=f"saved in mode '{mode}', not 'multiply'"):
        attach(donor.make()).load_state_dict(model.state_dict())


def test_bfloat16_autocast_trains():
    model = attach(small_vit(), init="paper").train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 32, 32)).square().mean()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in mask_parameters(model))
    model.to(torch.bfloat16)(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)).sum().backward()


def test_an_own_model_says_its_grid():
    torch.manual_seed(0)
    model, images = OwnViT(), torch.randn(2, 3, 32, 48)
    with pytest.raises(ValueError, match="grid was not found"):
        attach(model)
    expected = model(images)
    torch.testing.assert_close(attach(model, grid=(4, 6))(images), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="the attention got 16 tokens, a 4 x 6 grid"):
        model(images[..., :32])


def test_mask_parameters_are_those_of_our_own_families_too():
    model = gmmvit.create_model("vit", mask="gmm", image_size=16, patch_size=8, dim=24, depth=1, num_heads=2)
    masks = [m for m in model.modules() if isinstance(m, GaussianMixtureMask)]
    assert {id(p) for p in mask_parameters(model)} == {id(p) for m in masks for p in m.parameters()}


def naflex(**options):
    torch.manual_seed(0)
    sizes = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "pos_embed_grid_size": (4, 6)}
    return timm.create_model("naflexvit_base_patch16_gap", num_classes=5, **{**sizes, **options}).eval()


def test_a_naflex_batch_of_patches_is_the_images_that_they_were_cut_from():
    from timm.models.naflexvit import batch_patchify

    model, images = attach(naflex(), init="paper"), [torch.randn(1, 3, *size) for size in ((32, 48), (64, 24))]
    expected = torch.cat([model(image) for image in images])
    cut = [batch_patchify(image, (8, 8)) for image in images]
    batch = naflex_batch([grid for _, grid in cut], torch.Generator(), torch.float32)
    for i, (patches, _) in enumerate(cut):
        batch["patches"][i, : patches.shape[1]] = patches[0]
    torch.testing.assert_close(model(batch), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat([model(image) for image in images]), expected)  # images again


def test_an_elementwise_mask_takes_naflex_grids_up_to_its_own():
    model, generator = attach(naflex(), mask="elm"), torch.Generator().manual_seed(1)
    model(naflex_batch([(4, 6), (2, 3)], generator, torch.float32))
    with pytest.raises(ValueError, match="learned on a 4 x 6 grid does not fit a 6 x 4 grid"):
        model(naflex_batch([(6, 4), (2, 3)], generator, torch.float32))


def test_naflex_patches_must_not_be_dropped():
    model = attach(naflex(patch_drop_rate=0.5)).train()
    with pytest.raises(ValueError, match="do not drop patches"):
        model(naflex_batch([(4, 6), (2, 3)], torch.Generator(), torch.float32))


def test_an_elementwise_mask_has_a_row_a_query_and_a_column_a_key():
    donor = TABLE["timm", "hiera_tiny_224"]
    model = attach(donor.make(), mask="elm")
    shapes = [tuple(m.gmm_mask.weight.shape) for m in model.modules() if hasattr(m, "gmm_mask")]
    assert shapes == [(64, 64), (16, 64), (16, 16), (4, 16), (6, 24)]
