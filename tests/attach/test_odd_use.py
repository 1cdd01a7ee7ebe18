"""Models changed, shared or built in unusual ways around `attach`: right outputs or one sentence."""

import copy
import inspect
import itertools
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint
from zoo import naflex_batch, small_vit

import gmmvit
from gmmvit.attach import attach, describe, detach, load_masks, mask_parameters

timm = pytest.importorskip("timm")
WIDE, HIGH = torch.randn(1, 3, 32, 64), torch.randn(1, 3, 64, 32)  # grids of 4 x 8 and 8 x 4: equal numbers of patches


def flexible():
    return attach(small_vit(dynamic_img_size=True, global_pool="avg"), init="paper")


def test_threads_that_share_a_model_keep_their_grids():
    model = flexible()
    with torch.no_grad():
        expected = [model(WIDE), model(HIGH)]
    outputs, both = {}, threading.Barrier(2)

    def meet(*_):  # no attention runs before both threads have recorded their grids
        both.wait(30)

    model.patch_embed.register_forward_hook(meet)

    def serve(images):
        with torch.no_grad():
            outputs[images.shape] = model(images)

    threads = [threading.Thread(target=serve, args=[images]) for images in (WIDE, HIGH)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(outputs[WIDE.shape], expected[0])
    assert torch.equal(outputs[HIGH.shape], expected[1])


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_a_grid_of_their_own(again):
    model = flexible()
    model(WIDE)
    other = again(model)
    expected = model(HIGH)
    other(WIDE)
    assert torch.equal(model.forward_head(model.forward_features(HIGH)), expected)
    assert other.blocks[0].attn.gmm_site.box is not model.blocks[0].attn.gmm_site.box


def test_a_patch_embedding_that_is_replaced_is_an_error_not_a_wrong_grid():
    model = flexible()
    model(WIDE)
    copied = copy.deepcopy(flexible())
    for changed in (model, copied):  # that has seen images, and that has not
        changed.patch_embed.proj = nn.Conv2d(3, 48, 8, 8)
        with pytest.raises(ValueError, match="the patch embedding was replaced after attach"):
            changed(HIGH)
    state = model.state_dict()
    again = load_masks(detach(model), state)
    assert torch.equal(again(HIGH), load_masks(copy.deepcopy(detach(model)), state)(HIGH))
    assert describe(model)[0].grid == (4, 4)


def test_a_forward_of_the_instance_that_would_pass_by_the_mask_is_refused():
    model = small_vit()
    plain = model.blocks[0].attn.forward
    model.blocks[0].attn.forward = lambda *args, **kwargs: plain(*args, **kwargs)
    assert "its forward was replaced on the instance" in describe(model)[0].reason
    assert [layer.action for layer in describe(attach(model))] == ["left alone", "gmm"]
    model = small_vit()
    proj = model.patch_embed.proj
    proj.forward = lambda x: nn.functional.conv2d(x, proj.weight, proj.bias, 8)
    with pytest.raises(ValueError, match=r"the patch embedding does not give its grid: its forward was replaced"):
        attach(model)
    model = small_vit()
    model.blocks[1].attn.forward = torch.compile(model.blocks[1].attn.forward, backend="eager")
    with pytest.raises(ValueError, match=r"blocks\.1\.attn is compiled"):
        attach(model)


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_parametrizations_are_undone_before_detach():
    model = attach(small_vit())
    images = torch.randn(1, 3, 32, 32)
    parametrize.register_parametrization(model.patch_embed.proj, "weight", Doubled())
    expected = model(images)
    with pytest.raises(ValueError, match=r"'patch_embed\.proj' became a Parametrized\w+ after attach: undo that"):
        detach(model)
    assert torch.equal(model(images), expected)
    parametrize.remove_parametrizations(model.patch_embed.proj, "weight", leave_parametrized=True)
    torch.testing.assert_close(detach(model)(images), expected)
    parametrize.register_parametrization(model.patch_embed.proj, "weight", Doubled())
    with pytest.raises(ValueError, match="it is parametrized: attach first"):
        attach(model)


def test_attributes_of_the_donor_are_not_overwritten():
    model = small_vit()
    model.blocks[0].attn.gmm_mask = nn.Linear(2, 2)
    assert describe(model)[0].reason == "it already has a 'gmm_mask', a name that attach uses"
    detach(attach(model))
    assert isinstance(model.blocks[0].attn.gmm_mask, nn.Linear)


def test_masks_are_made_on_the_device_of_the_model_whatever_the_default_is():
    with torch.device("meta"):
        model = attach(small_vit().to_empty(device="cpu"))
    assert {parameter.device.type for parameter in mask_parameters(model)} == {"cpu"}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"layers": range(10**12)}, ValueError, "layers must be indices of the 2 attentions, counted from 0, got 2"),
        ({"layers": itertools.count()}, ValueError, "layers must be indices of the 2 attentions, counted from 0"),
        ({"grid": (10**6, 10**6)}, ValueError, "grid must have at most 1,048,576 patches, got 1000000 x 1000000"),
        ({"grid": (1000, 1000), "mask": "elm"}, ValueError, "grid must have at most 16,384 patches"),
        ({"num_kernels": 10**6}, ValueError, "num_kernels must be between 1 and 1024"),
        ({"learn_center": "no"}, TypeError, "learn_center must be True or False, got 'no'"),
        ({"mask": "elm", "per_head": 3}, TypeError, "per_head must be True or False, got 3"),
    ],
    ids=str,
)
def test_sizes_and_kinds_beyond_reason_are_named(options, error, words):
    model = small_vit()
    with pytest.raises(error, match=words):
        attach(model, **options)
    assert not mask_parameters(model)


def test_what_is_no_module_is_named():
    for call in (attach, detach, describe, mask_parameters):
        with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got (int|the class Linear)"):
            call(3)
        with pytest.raises(TypeError, match=r"got the class Linear: pass an instance"):
            call(nn.Linear)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # it warns that a trace is for one image size
def test_an_attached_model_is_traced_and_vectorised():
    model, images = flexible(), torch.randn(2, 3, 32, 32)
    traced = torch.jit.trace(model, images)
    other = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(traced(other), model(other))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, images)
    model(images).square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(each[name].sum(0), parameter.grad, rtol=1e-4, atol=1e-5)


def gradients(model, batches, run=lambda model, batch: model(batch)):
    model.zero_grad()
    sum(run(model, batch).square().sum() for batch in batches).backward()
    return [parameter.grad.clone() for parameter in mask_parameters(model)]


def test_gradient_checkpointing_is_right_or_an_error():
    model = flexible()
    alone = [gradients(model, [images]) for images in (WIDE, HIGH)]
    model.set_grad_checkpointing()
    model(HIGH)  # its outputs are dropped, so nothing is ambiguous
    for images, expected in zip((WIDE, HIGH), alone, strict=True):
        torch.testing.assert_close(gradients(model, [images]), expected)
    with pytest.raises(ValueError, match=r"repeats a forward pass of 32 patches, and images of several grids"):
        gradients(model, [WIDE, HIGH])
    torch.testing.assert_close(gradients(model, [WIDE]), alone[0])


SQUARE = torch.randn(1, 3, 48, 48)


@pytest.mark.parametrize("frozen", [False, True])
def test_checkpointed_passes_of_several_sizes_share_a_backward_pass(frozen):
    model = flexible()
    if frozen:
        model.patch_embed.requires_grad_(False)
    expected = gradients(model, [WIDE, SQUARE])
    model.set_grad_checkpointing()
    loss = sum(model(images).square().sum() for images in (WIDE, SQUARE))
    with torch.no_grad():
        model(HIGH)  # an evaluation in between
    model.zero_grad()
    loss.backward()
    for parameter, value in zip(mask_parameters(model), expected, strict=True):
        torch.testing.assert_close(parameter.grad, value)


def test_checkpointed_passes_go_back_in_any_order():
    model = flexible()
    expected = gradients(model, [WIDE, WIDE, SQUARE])
    model.set_grad_checkpointing()
    model.zero_grad()
    first, second = (model(WIDE).square().sum() for _ in range(2))
    first.backward()
    third = model(SQUARE).square().sum()
    second.backward()
    third.backward()
    for parameter, value in zip(mask_parameters(model), expected, strict=True):
        torch.testing.assert_close(parameter.grad, value)


def test_a_forward_pass_inside_a_backward_pass_has_its_own_grid():
    model, inside = flexible(), []
    with torch.no_grad():
        expected = model(HIGH)

    def look(gradient):
        with torch.no_grad():
            inside.append(model(HIGH))

    out = model(WIDE)
    out.register_hook(look)
    out.sum().backward()
    assert torch.equal(inside[0], expected)
    whole = [gradients(model, [WIDE, HIGH])]
    run = lambda model, images: checkpoint(model, images, use_reentrant=False)  # noqa: E731
    torch.testing.assert_close(gradients(model, [WIDE, HIGH], run), whole[0])


def test_two_views_of_a_naflex_batch_share_a_checkpointed_backward_pass():
    model = timm.create_model("naflexvit_base_patch16_gap", embed_dim=48, depth=2, num_heads=3, patch_size=8)
    attach(model, init="paper").train()
    generator = torch.Generator().manual_seed(0)
    views = [naflex_batch([(4, 6), (6, 4)], generator, torch.float32) for _ in range(2)]
    expected = gradients(model, views)
    model.set_grad_checkpointing()
    for got, value in zip(gradients(model, views), expected, strict=True):
        torch.testing.assert_close(got, value)
    turned = naflex_batch([(6, 4), (4, 6)], generator, torch.float32)
    with pytest.raises(ValueError, match="images of several grids with as many"):
        gradients(model, [views[0], turned])


def test_a_file_without_the_masks_loads_as_torch_distributed_does():
    model = attach(small_vit())
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(model, small_vit().state_dict(), options=options)
    assert describe(model)[0].action == "gmm"


def test_a_backward_pass_outlives_the_model():
    model = attach(small_vit(global_pool="avg"), init="paper").train()
    model.set_grad_checkpointing()
    parameters = mask_parameters(model)
    loss = model(torch.randn(1, 3, 32, 32)).square().sum()
    del model
    loss.backward()
    assert all(parameter.grad is not None for parameter in parameters)


def test_models_that_share_a_patch_embedding_keep_their_grids():
    a, b = (small_vit(dynamic_img_size=True, global_pool="avg") for _ in range(2))
    b.patch_embed = a.patch_embed
    attach(a, init="paper")
    alone = copy.deepcopy(a)
    attach(b, init="paper")
    assert torch.equal(a(HIGH), alone(HIGH))
    with pytest.raises(ValueError, match="the patch embedding of masks outside it: detach the whole model"):
        detach(a.patch_embed)
    detach(b)
    assert torch.equal(a(WIDE), alone(WIDE))
    assert type(detach(a).patch_embed.proj) is nn.Conv2d


def test_blocks_behind_two_patch_embeddings_are_refused():
    a, b = small_vit(), small_vit()
    b.blocks = a.blocks
    with pytest.raises(ValueError, match="follows several patch embeddings"):
        attach(nn.ModuleList([a, b]))


def test_what_the_donor_would_pass_by_is_refused_and_its_scale_is_kept():
    model = small_vit()
    for block in model.blocks:
        block.attn.scale, block.attn.fused_attn = 3.0, False
    images = torch.randn(1, 3, 32, 32)
    expected = model(images)
    torch.testing.assert_close(attach(model)(images), expected, atol=1e-5, rtol=1e-5)

    class Recorder(nn.Identity):
        pass

    model = small_vit()
    model.blocks[0].attn.attn_drop = Recorder()
    assert describe(model)[0].reason == "its attn_drop is a Recorder, which a mask would bypass: put Dropout back"


def test_parts_with_fixed_code_and_derived_attentions_are_told():
    model = small_vit()
    model.blocks[0] = torch.fx.symbolic_trace(model.blocks[0])
    with pytest.raises(ValueError, match=r"blocks\.0 is a .*, whose code can no longer change"):
        attach(model)

    class Fancy(type(small_vit().blocks[0].attn)):
        pass

    model = small_vit()
    model.blocks[0].attn.__class__ = Fancy
    assert "a subclass of timm" in describe(model)[0].reason
    assert [layer.action for layer in describe(attach(model))] == ["left alone", "gmm"]


def test_a_forward_that_is_wrapped_after_attach_is_unwrapped_before_detach():
    model = attach(small_vit())
    attention = model.blocks[0].attn
    inner = attention.forward
    attention.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    with pytest.raises(ValueError, match=r"'blocks\.0\.attn' had its forward replaced after attach: undo that before"):
        detach(model)
    del attention.forward
    detach(model)(torch.randn(1, 3, 32, 32))


def test_an_export_with_open_sizes_takes_all_of_them_and_leaves_the_model_usable():
    model = flexible()
    size = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(model, (torch.randn(1, 3, 32, 48),), dynamic_shapes=(size,)).module()
    again = copy.deepcopy(model)
    assert [layer.grid for layer in describe(model)] == [(4, 4), (4, 4)]
    assert torch.equal(again(WIDE), model(WIDE))
    for images in (WIDE, HIGH, torch.randn(1, 3, 48, 48)):
        torch.testing.assert_close(program(images), model(images))


def test_a_default_device_does_not_reach_the_model():
    model, images = flexible(), torch.randn(1, 3, 32, 32)
    expected = model(images)
    with torch.device("meta"):
        assert torch.equal(model(images), expected)


def test_attach_is_pickled_and_has_its_signature():
    again = pickle.loads(pickle.dumps(gmmvit.attach))
    assert again is gmmvit.attach
    assert list(inspect.signature(gmmvit.attach).parameters)[:2] == ["model", "mask"]


def test_an_unknown_number_of_tokens_before_the_patches_is_asked_for():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = transformers.ViTModel(transformers.ViTConfig(image_size=16, patch_size=8, **sizes))
    model.config.model_type = "new"
    with pytest.raises(ValueError, match=r"the number of tokens before the patches in '.*' is unknown"):
        attach(model)
    attach(model, prefix_tokens=1)(torch.randn(1, 3, 16, 16))
