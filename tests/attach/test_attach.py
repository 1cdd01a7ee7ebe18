"""`attach` beside the table of donors: errors, choices, image sizes, precision, compilation, own models, files."""

import copy
import subprocess
import sys

import pytest
import torch
from donor import logits
from donors import DONORS
from torch import nn

import gmmvit
from gmmvit.attach import attach, describe, detach, load_masks, mask_parameters
from gmmvit.masks import GaussianMixtureMask

timm = pytest.importorskip("timm")
TABLE = {(d.library, d.name): d for d in DONORS}
VIT = TABLE["timm", "vit_tiny_patch16_224"]


def small_vit(**options):
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **{**sizes, **options}).eval()


class OwnViT(nn.Module):
    """As somebody writes it who has never heard of gmmvit."""

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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: attach(m), "already carries 2 masks"),
        (lambda m: torch.compile(m), "is compiled"),
        (lambda m: m.blocks[0].compile() or m, "blocks.0 is compiled"),
        (lambda m: nn.DataParallel(m), "wrapped in DataParallel"),
        (lambda m: torch.jit.trace(m, torch.zeros(1, 3, 32, 32)), "code is fixed"),
        (lambda m: torch.ao.quantization.quantize_dynamic(m, {nn.Linear}), "is quantised"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_something_was_done_to_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        attach(change(small_vit()))


def test_wrong_arguments_are_named():
    for options, message in (
        ({"mask": "none"}, "mask must be one of"),
        ({"mode": "add"}, "mode must be one of"),
        ({"layers": [2]}, r"layers must name some of the 2 attentions from 0, got \[2\]"),
        ({"layers": []}, "layers must name"),
        ({"num_kernels": 0}, "num_kernels must be at least 1"),
        ({"init": "other"}, "init .*must be one of"),
    ):
        model = small_vit()
        with pytest.raises(ValueError, match=message):
            attach(model, **options)
        assert not mask_parameters(model)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"):
        attach("vit")
    with pytest.raises(ValueError, match="carries no mask"):
        detach(small_vit())


def test_a_model_without_patch_attention_lists_what_it_has():
    xcit = timm.create_model("xcit_nano_12_p16_224", img_size=32, depth=1, embed_dim=32, num_heads=2)
    with pytest.raises(ValueError, match="attends across channels") as error:
        attach(xcit)
    assert "1 x timm.models.xcit.XCA" in str(error.value)
    with pytest.raises(ValueError, match="found no attention at all"):
        attach(nn.Sequential(nn.Conv2d(3, 8, 3)))
    davit = timm.create_model("davit_tiny", embed_dims=(16, 16), depths=(1, 1), num_heads=(2, 2))
    with pytest.raises(ValueError, match=r"WindowAttention \(not known to gmmvit"):
        attach(davit)


def test_a_donor_with_a_part_that_is_not_known_is_refused():
    model = small_vit()
    model.blocks[1].attn.novelty = nn.Linear(2, 2)
    assert [item.reason for item in describe(model)][1].endswith("does not know: novelty")
    attach(model)
    assert [item.action for item in describe(model)] == ["gmm", "left alone"]


def test_layers_choose_and_pooling_heads_are_left_alone():
    model = attach(small_vit(depth=3, global_pool="map", class_token=False), layers=[0, -1])
    assert [item.action for item in describe(model)] == ["gmm", "free", "gmm", "left alone"]
    assert "its queries are no patches" in str(describe(model))
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


def test_transformers_interpolate_their_positions():
    donor = TABLE["transformers", "vit"]
    if donor.missing():
        pytest.skip(donor.missing())
    model, images = donor.make(), torch.randn(1, 3, 48, 64)
    expected = model(images, interpolate_pos_encoding=True).logits
    attach(model)
    torch.testing.assert_close(model(images, interpolate_pos_encoding=True).logits, expected, atol=1e-5, rtol=1e-5)


def test_dropped_patches_are_an_error_not_a_wrong_mask():
    model = attach(small_vit(patch_drop_rate=0.5)).train()
    with pytest.raises(ValueError, match="no patches may be dropped"):
        model(torch.randn(1, 3, 32, 32))


def test_dropout_of_the_attention_draws_as_in_the_donor():
    results = []
    for change in (lambda m: m, attach):
        model = change(small_vit(attn_drop_rate=0.3, proj_drop_rate=0.2, drop_path_rate=0.3)).train()
        torch.manual_seed(5)
        results.append(model(VIT.images()[..., :32]))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize(
    "key",
    [
        ("timm", "vit_tiny_patch16_224"),
        ("timm", "swin_tiny_patch4_window7_224"),
        ("transformers", "vit"),
        ("torchvision", "vit_b_16"),
    ],
    ids="-".join,
)
def test_it_compiles_into_one_graph(key):
    donor = TABLE[key]
    if donor.missing():
        pytest.skip(donor.missing())
    torch.manual_seed(2)
    model = attach(donor.make(), init="paper")
    expected = logits(model, donor.images())
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, donor.images()), expected, atol=1e-5, rtol=1e-5)


def test_it_exports():
    model, images = attach(small_vit(), init="paper"), torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (images,)).module()
    torch.testing.assert_close(program(images), model(images), atol=1e-5, rtol=1e-5)


def test_it_trains_under_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        model = attach(small_vit(global_pool="avg"), init="paper")
        nn.parallel.DistributedDataParallel(model)(torch.randn(2, 3, 32, 32)).sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(p.grad.abs().sum() > 0 for p in mask_parameters(model))


def test_an_own_model_says_its_grid():
    torch.manual_seed(0)
    model, images = OwnViT(), torch.randn(2, 3, 32, 48)
    with pytest.raises(ValueError, match="grid was not found"):
        attach(model)
    expected = model(images)
    torch.testing.assert_close(attach(model, grid=(4, 6))(images), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="the attention got 16 tokens; a 4 x 6 grid"):
        model(images[..., :32])


def test_the_layer_that_skips_its_attention_in_eval_mode_is_refused():
    with pytest.raises(ValueError, match="without calling its attention"):
        attach(nn.TransformerEncoderLayer(24, 3, 24), grid=(4, 4))


@pytest.mark.parametrize("options", [{"mask": "elm", "per_head": True}, {"covariance": "full", "learn_center": True}])
def test_masks_come_back_from_a_folder_of_transformers(tmp_path, options):
    donor = TABLE["transformers", "vit"]
    if donor.missing():
        pytest.skip(donor.missing())
    model = attach(donor.make(), mode="log", layers=[1], **options)
    for parameter in mask_parameters(model):
        nn.init.uniform_(parameter, 0.5, 1.5)
    expected = logits(model, donor.images())
    model.save_pretrained(tmp_path)
    again = load_masks(type(model).from_pretrained(tmp_path), tmp_path).eval()
    assert [item.action for item in describe(again)] == ["free", describe(model)[1].action]
    torch.testing.assert_close(logits(again, donor.images()), expected, atol=1e-6, rtol=1e-6)


def test_masks_come_back_from_a_folder_of_timm(tmp_path):
    from timm.models import save_for_hf

    model, images = attach(small_vit(), init="paper"), torch.randn(1, 3, 32, 32)
    model.pretrained_cfg = {**model.pretrained_cfg, "num_classes": 5, "input_size": (3, 32, 32)}
    args = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    save_for_hf(model, tmp_path, model_args=args, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, pretrained_strict=False).eval()
    assert torch.equal(load_masks(again, tmp_path)(images), model(images))


def test_a_file_without_masks_says_so(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="no safetensors file"):
        load_masks(small_vit(), tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no masks in it"):
        load_masks(small_vit(), tmp_path)


def test_mask_parameters_are_those_of_our_own_families_too():
    model = gmmvit.create_model("vit", mask="gmm", image_size=16, patch_size=8, dim=24, depth=1, num_heads=2)
    masks = [m for m in model.modules() if isinstance(m, GaussianMixtureMask)]
    assert {id(p) for p in mask_parameters(model)} == {id(p) for m in masks for p in m.parameters()}
