"""What `attach` refuses, and the message; what looks odd but works."""

import copy

import pytest
import torch
from torch import nn
from zoo import small_vit

from gmmvit.attach import attach, describe, detach, load_masks, mask_parameters

timm = pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: attach(m), "already carries 2 masks"),
        (lambda m: torch.compile(m), "is compiled"),
        (lambda m: m.blocks[0].compile() or m, "blocks.0 is compiled"),
        (lambda m: m.blocks.append(torch.compile(m.blocks[0])) and m, "blocks.2 is compiled"),
        (lambda m: nn.DataParallel(m), r"model is wrapped in DataParallel: .* on model\.module"),
        (lambda m: nn.Sequential(nn.DataParallel(m)), r"0 is wrapped in DataParallel: .* on 0\.module"),
        (lambda m: m.to("meta"), "meta device: load its weights first"),
        (lambda m: torch.jit.trace(m, torch.zeros(1, 3, 32, 32)), "code can no longer change"),
        (lambda m: torch.ao.quantization.quantize_dynamic(m, {nn.Linear}), "is quantised"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_model_that_something_was_done_to_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        attach(change(small_vit()))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mask": "none"}, ValueError, "mask must be one of"),
        ({"mask": None}, ValueError, "mask must be one of .*got None"),
        ({"mode": "add"}, ValueError, "mode must be one of"),
        ({"init": "other"}, ValueError, "init .*must be one of"),
        ({"num_kernels": 0}, ValueError, "num_kernels must be between 1 and 1024, got 0"),
        ({"num_kernels": 2.5}, TypeError, "num_kernels must be one int"),
        ({"layers": [2]}, ValueError, r"layers must be indices of the 2 attentions, counted from 0, got 2"),
        ({"layers": []}, ValueError, "layers must select"),
        ({"layers": 1}, TypeError, r"layers must be whole numbers, such as range\(6\) or \[0, -1\], got 1"),
        ({"layers": "01"}, TypeError, "layers must be whole numbers"),
        ({"layers": [0.5]}, TypeError, "each of layers must be one int, got 0.5"),
        ({"grid": "4x4"}, TypeError, r"grid must be a positive int or a pair \(rows, cols\)"),
        ({"grid": (4, 0)}, ValueError, "grid must be a positive int"),
        ({"prefix_tokens": -1}, ValueError, "prefix_tokens must be at least 0"),
        ({"dtype": "bfloat16"}, TypeError, "dtype must be a torch.dtype such as torch.bfloat16, got 'bfloat16'"),
        ({"dtype": torch.int8}, ValueError, "dtype must be one of torch.float16, .* got torch.int8"),
        ({"depth": 0.5}, TypeError, "the gmm mask has no option 'depth'"),
        ({"mask": "elm", "covariance": "full"}, TypeError, "the elm mask has no option 'covariance'"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named_and_change_nothing(options, error, message):
    model = small_vit()
    with pytest.raises(error, match=message):
        attach(model, **options)
    assert not mask_parameters(model)
    assert type(model.blocks[0].attn).__name__ == "Attention"


def test_what_is_no_model_is_refused():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"):
        attach("vit")
    with pytest.raises(TypeError, match="got the class VisionTransformer: pass an instance"):
        attach(timm.models.VisionTransformer)
    with pytest.raises(ValueError, match="carries no mask"):
        detach(small_vit())


def test_a_model_sharded_by_fsdp_is_refused(tmp_path):
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="model is sharded by fully_shard"):
            attach(fully_shard(small_vit()))
    finally:
        torch.distributed.destroy_process_group()


def test_a_model_without_patch_attention_lists_what_it_has():
    xcit = timm.create_model("xcit_nano_12_p16_224", img_size=32, depth=1, embed_dim=32, num_heads=2)
    with pytest.raises(ValueError, match="attends across channels") as error:
        attach(xcit)
    assert "1 x timm.models.xcit.XCA" in str(error.value)
    with pytest.raises(ValueError, match="found no attention at all"):
        attach(nn.Sequential(nn.Conv2d(3, 8, 3)))
    cascaded = timm.create_model("efficientvit_m0")
    with pytest.raises(ValueError, match=r"CascadedGroupAttention \(not known to gmmvit"):
        attach(cascaded)


class Inline(nn.Module):
    """A block that computes attention itself, without an attention module."""

    def __init__(self, fused):
        super().__init__()
        self.qkv, self.fused = nn.Linear(8, 24), fused

    def forward(self, x):
        return x + (self.fused_look if self.fused else self.look)(*self.qkv(x).chunk(3, -1))

    def fused_look(self, q, k, v):
        return nn.functional.scaled_dot_product_attention(q, k, v)

    def look(self, q, k, v):
        return (q @ k.mT).softmax(-1) @ v


class Gated(nn.Module):
    def forward(self, x):
        return x * x.softmax(-1)


@pytest.mark.parametrize("fused", [True, False])
def test_attention_in_the_code_of_a_block_is_told_and_what_to_do(fused):
    model = nn.Sequential(Inline(fused), Gated(), nn.Softmax(-1))
    [layer] = describe(model)
    assert (layer.name, layer.action) == ("0", "left alone")
    with pytest.raises(
        ValueError, match=r"1 x .*\.Inline \(computes attention in its own code, .* gmmvit\.gmm_attention"
    ):
        attach(model)


def test_a_single_head_without_a_known_image_size_is_asked_for():
    model = timm.create_model("shvit_s1", embed_dim=(16, 24, 32), partial_dim=(8, 12, 16), depth=(1, 1, 1))
    assert [layer.grid for layer in describe(model)] == [(7, 7), (4, 4)]
    model.pretrained_cfg = {}
    with pytest.raises(ValueError, match="the patch grid was not found: pass grid="):
        attach(model)


def test_a_donor_with_a_part_that_is_not_known_is_refused():
    model = small_vit()
    model.blocks[1].attn.novelty = nn.Linear(2, 2)
    assert [item.reason for item in describe(model)][1].endswith("does not know: novelty")
    attach(model)
    assert [item.action for item in describe(model)] == ["gmm", "left alone"]


def test_dropped_patches_are_an_error_not_a_wrong_mask():
    model = attach(small_vit(patch_drop_rate=0.5)).train()
    with pytest.raises(ValueError, match="do not drop patches"):
        model(torch.randn(1, 3, 32, 32))


def test_the_layer_that_skips_its_attention_in_eval_mode_is_refused():
    with pytest.raises(ValueError, match="bypasses its attention"):
        attach(nn.TransformerEncoderLayer(24, 3, 24), grid=(4, 4))


def test_a_pooling_kernel_without_a_centre_is_refused():
    from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

    sizes = {"depths": (1, 1), "embed_dim": (16, 16), "num_heads": (1, 1), "stride_q": ((1, 1), (2, 2))}
    even = MultiScaleVit(MultiScaleVitCfg(kernel_qkv=(2, 2), rel_pos_type="none", **sizes), img_size=32)
    with pytest.raises(ValueError, match="kernel of even width 2"):
        attach(even)
    first = MultiScaleVit(MultiScaleVitCfg(pool_first=True, **sizes), img_size=32, num_classes=5)
    with pytest.raises(ValueError, match="timm's own forward fails"):
        attach(first)
    with pytest.raises(RuntimeError):
        first(torch.randn(1, 3, 32, 32))


def test_an_attention_that_ignores_the_interface_is_an_error_not_a_model_without_masks():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = attach(transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **sizes)))
    attention = next(m for m in model.modules() if hasattr(m, "gmm_mask"))
    attention.config = attention.gmm_config  # it uses the function that its model names, not ours
    with pytest.raises(RuntimeError, match=r"without the attention interface .* the mask had no effect"):
        model(torch.randn(1, 3, 16, 16))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_masks_made_without_gradients_train(context):
    model = small_vit(global_pool="avg")
    with context():
        attach(model, init="paper")
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in mask_parameters(model))


def test_masks_of_a_frozen_model_train_in_an_optimizer_that_exists():
    model = small_vit(global_pool="avg").requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    attach(model, init="paper")
    optimizer.add_param_group({"params": mask_parameters(model)})
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    moved = [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]
    assert moved == [p.requires_grad for p in model.parameters()]
    assert sum(moved) == len(mask_parameters(model))


def test_an_attention_that_two_blocks_share_has_one_mask():
    model, images = small_vit(), torch.randn(2, 3, 32, 32)
    model.blocks[1].attn = model.blocks[0].attn
    expected = model(images)
    attach(model)
    assert len(mask_parameters(model)) == 2
    torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=1e-5)
    other = copy.deepcopy(model)
    assert other.blocks[1].attn is other.blocks[0].attn
    assert torch.equal(detach(model)(images), expected)


def test_half_precision_before_and_after_is_finite():
    images = torch.randn(2, 3, 32, 32).half()
    expected = small_vit().half()(images)
    before = attach(small_vit().half())
    assert {p.dtype for p in mask_parameters(before)} == {torch.float32}
    for model in (before, attach(small_vit()).half()):
        torch.testing.assert_close(model(images), expected, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("options", [{}, {"mask": "elm"}, {"init": "paper"}, {"mode": "log", "covariance": "full"}])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_masks_of_another_dtype_compute_in_float32(dtype, options):
    donor, images = small_vit(), torch.randn(2, 3, 32, 32)
    torch.manual_seed(0)
    model = attach(copy.deepcopy(donor), dtype=dtype, **options)
    assert {p.dtype for p in mask_parameters(model)} == {dtype}
    other = attach(copy.deepcopy(donor), **options)
    for ours, theirs in zip(mask_parameters(other), mask_parameters(model), strict=True):
        ours.data = theirs.data.float()
    torch.testing.assert_close(model(images), other(images), atol=1e-5, rtol=1e-5)
    if "init" not in options:
        torch.testing.assert_close(model(images), donor(images), atol=1e-5, rtol=1e-5)


def test_hooks_stay_and_attaching_repeats():
    model, calls = small_vit(), []
    model.blocks[0].attn.register_forward_hook(lambda *_: calls.append(1))
    for change in (attach, detach, lambda m: attach(m, mask="elm"), detach, lambda m: attach(m, layers=iter([0]))):
        change(model)(torch.randn(1, 3, 32, 32))
    assert len(calls) == 5
    assert [item.action for item in describe(model)] == ["gmm", "free"]


def test_images_of_two_sizes_share_a_backward_pass_under_gradient_checkpointing():
    images = [torch.randn(2, 3, 32, 32), torch.randn(2, 3, 48, 64)]
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(3)
        model = attach(small_vit(dynamic_img_size=True, global_pool="avg"), init="paper")
        model.set_grad_checkpointing(checkpointing)
        sum(model(x).square().sum() for x in images).backward()
        gradients.append([p.grad for p in mask_parameters(model)])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_part_that_was_detached_leaves_nothing_behind():
    model = attach(small_vit())
    detach(model.blocks)
    again = attach(copy.deepcopy(model))
    assert again.patch_embed.proj.gmm_boxes == (again.blocks[0].attn.gmm_site.box,)
    assert type(detach(model).patch_embed.proj) is nn.Conv2d
    with pytest.raises(ValueError, match="nothing to detach"):
        detach(model)


def test_masks_that_cannot_be_loaded_leave_the_model_as_it_was():
    state = attach(small_vit()).state_dict()
    state["blocks.0.attn.gmm_mask.gamma"] = torch.ones(3)
    model = small_vit()
    with pytest.raises(ValueError, match="gamma"):
        load_masks(model, state)
    assert set(model.state_dict()) == set(small_vit().state_dict())
    assert type(model.blocks[0].attn) is type(small_vit().blocks[0].attn)
