"""Masks are saved in each library's files and come back with one call."""

import pytest
import torch
from torch import nn
from zoo import DONORS, logits, small_vit

from gmmvit.attach import attach, describe, load_masks, mask_parameters

timm = pytest.importorskip("timm")
TABLE = {(d.library, d.name): d for d in DONORS}


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

    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors and no pytorch_model\.bin"):
        load_masks(small_vit(), tmp_path)
    save_file({"weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="contains no masks"):
        load_masks(small_vit(), tmp_path)


def test_masks_come_back_from_a_state_dict_and_its_file(tmp_path):
    model, images = attach(small_vit(), init="paper", layers=[1]), torch.randn(1, 3, 32, 32)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    for source in (model.state_dict(), tmp_path / "weights.pt", str(tmp_path / "weights.pt")):
        again = load_masks(small_vit(), source)
        again.load_state_dict(torch.load(tmp_path / "weights.pt"))
        assert torch.equal(again(images), model(images))


def test_masks_of_another_model_are_refused_and_leave_it_as_it_was():
    model = small_vit()
    for options, message in (
        ({"num_heads": 6}, r"does not fit 'blocks\.0\.attn': sigma must have shape \(3, 5\), but has \(6, 5\)"),
        ({"depth": 3}, "with 3 attentions that can carry one, VisionTransformer has 2, but no 'blocks.0"),
    ):
        with pytest.raises(ValueError, match=message):
            load_masks(model, attach(small_vit(**options)).state_dict())
        assert not mask_parameters(model)
    with pytest.raises(ValueError, match=r"has no 'site\._extra_state'"):
        load_masks(model, {"blocks.0.attn.gmm_mask.sigma": torch.ones(3, 5)})


class OwnViT(nn.Module):
    """An attention over 3 x 5 patches after two tokens, which nothing in the model reveals."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def test_a_grid_that_the_caller_said_comes_back_with_the_masks(tmp_path):
    torch.manual_seed(0)
    model, x = attach(OwnViT(), grid=(3, 5), prefix_tokens=2, init="paper"), torch.randn(2, 17, 16)
    torch.save({"epoch": 1, "model": model.state_dict()}, tmp_path / "checkpoint.pt")
    again = load_masks(OwnViT(), tmp_path / "checkpoint.pt")
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(x), model(x))
    for said, words in (
        (
            {"grid": (5, 3), "prefix_tokens": 2},
            r"grid=\(3, 5\), prefix_tokens=2, here with grid=\(5, 3\), prefix_tokens=2",
        ),
        ({"grid": (4, 4)}, r"with grid=\(3, 5\), prefix_tokens=2, here with grid=\(4, 4\)"),
    ):
        with pytest.raises(RuntimeError, match=words):
            attach(OwnViT(), **said).load_state_dict(model.state_dict())


def test_masks_of_windows_are_not_those_of_images():
    sizes = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 12, "num_classes": 5}
    swin = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1), num_heads=(3, 3), **sizes)
    with pytest.raises(
        ValueError, match=r"'layers\.0.*' was made for attention over the whole image|whole image, here"
    ):
        load_masks(swin, attach(small_vit()).state_dict())
    assert not mask_parameters(swin)


@pytest.mark.parametrize(("number", "mode"), list(enumerate(("multiply", "log", "post"))))
def test_files_of_before_modes_were_saved_by_name_are_read(number, mode):
    model, images = attach(small_vit(), mode=mode, init="paper"), torch.randn(1, 3, 32, 32)
    state = model.state_dict()
    assert bytes(state["blocks.0.attn.gmm_mask.site._extra_state"][8:].tolist()).decode() == mode
    for index in (0, 1):
        site(index, number, index, 2, 1, 4, 4, 0, 0, 0)(state)
    again = load_masks(small_vit(), state)
    again.load_state_dict(state)
    assert torch.equal(again(images), model(images))
    with pytest.raises(RuntimeError, match=f"was saved in mode '{mode}', not '{'log' if number == 0 else 'multiply'}'"):
        attach(small_vit(), mode="log" if number == 0 else "multiply").load_state_dict(state)


def damaged(change):
    """The masks of a two-layer model with one tensor changed."""
    state = attach(small_vit()).state_dict()
    change(state)
    return {name: tensor for name, tensor in state.items() if "gmm_mask" in name}


def site(index, *numbers):
    return lambda state: state.update({f"blocks.{index}.attn.gmm_mask.site._extra_state": torch.tensor(numbers)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (site(1, 2, 1, 2, 1, 4, 4, 0, 0, 0), "come from different attach calls"),
        (site(1, 0, -1, 2, 1, 4, 4, 0, 0, 0), r"blocks\.1\.attn: its gmm_mask\.site was not written by attach"),
        (site(1, 7, 1, 2, 1, 4, 4, 0, 0, 0), "not written by attach"),
        (site(1, 0, 1), "not written by attach"),
        (site(1, 1, 2, 1, 4, 4, 0, 0, 0, *b"logs"), "not written by attach"),
        (site(1, 1, 2, 1, 4, 4, 0, 0, 0, 2**40), "not written by attach"),
        (site(1, 0.5, 1.0, 2.0, 1.0, 4.0, 4.0, 0.0, 0.0, 0.0), "not written by attach"),
        (site(1, torch.inf, 1.0, 2.0, 1.0, 4.0, 4.0, 0.0, 0.0, 0.0), "not written by attach"),
        (site(1, torch.nan, 1.0, 2.0, 1.0, 4.0, 4.0, 0.0, 0.0, 0.0), "not written by attach"),
        (lambda state: state.update({"blocks.0.attn.gmm_mask.sigma": torch.ones(3, 5, device="meta")}), "finite real"),
        (lambda state: state.update({"blocks.0.attn.gmm_mask.sigma": torch.ones(3, 5).to_sparse()}), "finite real"),
        (lambda state: state["blocks.0.attn.gmm_mask.alpha"].fill_(torch.nan), "alpha of its mask must be finite"),
        (lambda state: state["blocks.1.attn.gmm_mask.sigma"].fill_(torch.inf), "sigma of its mask must be finite"),
        (lambda state: state.pop("blocks.0.attn.gmm_mask.alpha"), "its mask must have sigma and alpha"),
        (lambda state: state.update({"blocks.0.attn.gmm_mask.alpha": torch.ones(3, 5).long()}), "must be finite real"),
        (lambda state: state.update({"blocks.0.attn.gmm_mask.alpha": torch.ones(15)}), "its mask must have sigma and"),
    ],
)
def test_damaged_masks_are_told_and_leave_the_model_as_it_was(change, words):
    model = small_vit()
    with pytest.raises(ValueError, match=words):
        load_masks(model, damaged(change))
    assert type(model.blocks[0].attn) is type(small_vit().blocks[0].attn)


def test_what_is_no_place_of_weights_is_named(tmp_path):
    with pytest.raises(TypeError, match="path must be a file, a folder or a state_dict, got int"):
        load_masks(small_vit(), 5)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got str"):
        load_masks("model", {})
    (tmp_path / "text.safetensors").write_text("text")
    with pytest.raises(ValueError, match=r"text\.safetensors is damaged or not a weight file"):
        load_masks(small_vit(), tmp_path / "text.safetensors")


def test_averages_and_casts_of_a_state_dict_keep_the_place():
    model = attach(small_vit(depth=12), layers=[-1], init="paper")
    average = timm.utils.ModelEmaV2(model)
    average.update(model)
    halves = {name: tensor.half() for name, tensor in model.state_dict().items()}
    for state in (average.module.state_dict(), halves):
        again = load_masks(small_vit(depth=12), state)
        assert [layer.name for layer in describe(again) if layer.action == "gmm"] == ["blocks.11.attn"]
    smooth = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    smooth.update_parameters(model)
    smooth.update_parameters(model)
    load_masks(small_vit(depth=12), smooth.module.state_dict())


@pytest.mark.parametrize("load", [load_masks, lambda model, state: attach(model, mask="elm").load_state_dict(state)])
def test_an_element_wise_mask_of_another_grid_is_refused_though_its_size_fits(load):
    state = attach(small_vit(img_size=(32, 48)), mask="elm").state_dict()
    with pytest.raises((ValueError, RuntimeError), match="is element-wise on a 4 x 6 grid, here the grid is 6 x 4"):
        load(small_vit(img_size=(48, 32)), state)


def test_a_resampled_mask_is_saved_with_its_new_grid():
    model = attach(small_vit(img_size=(32, 48)), mask="elm")
    for block in model.blocks:
        nn.init.uniform_(block.attn.gmm_mask.weight)
        block.attn.gmm_mask.resample((6, 4))
    again = load_masks(small_vit(img_size=(48, 32)), model.state_dict())
    assert torch.equal(again.blocks[0].attn.gmm_mask.weight, model.blocks[0].attn.gmm_mask.weight)


def test_names_decide_where_the_file_has_those_of_the_model():
    pair = attach(nn.ModuleDict({"a": small_vit(), "b": small_vit()}), init="paper")
    other = load_masks(nn.ModuleDict({"b": small_vit(), "a": small_vit()}), pair.state_dict())
    assert torch.equal(other["a"].blocks[0].attn.gmm_mask.sigma, pair["a"].blocks[0].attn.gmm_mask.sigma)
    deep = attach(small_vit(depth=4), init="paper")
    deep.blocks = nn.Sequential(deep.blocks[1], deep.blocks[3])  # a student with every other block
    student = load_masks(small_vit(), deep.state_dict())
    assert torch.equal(student.blocks[1].attn.gmm_mask.alpha, deep.blocks[1].attn.gmm_mask.alpha)
    shared = small_vit()
    shared.blocks[1].attn = shared.blocks[0].attn
    state = attach(shared, init="paper").state_dict()
    again = small_vit()
    again.blocks[1].attn = again.blocks[0].attn
    assert torch.equal(mask_parameters(load_masks(again, state))[0], mask_parameters(shared)[0])


def test_loading_a_state_leaves_a_mask_at_its_place():
    teacher, student = attach(small_vit(depth=4), layers=[3], init="paper"), attach(small_vit(depth=4), layers=[0])
    student.blocks[0].attn.load_state_dict(teacher.blocks[3].attn.state_dict())
    again = load_masks(small_vit(depth=4), student.state_dict())
    assert [layer.action for layer in describe(again)] == ["gmm", "free", "free", "free"]


def test_masks_come_back_through_the_meta_device():
    model, images = attach(small_vit(), init="paper"), torch.randn(1, 3, 32, 32)
    state, expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model(images)
    empty = attach(small_vit()).to("meta").to_empty(device="cpu")
    empty.load_state_dict(state)
    assert torch.equal(empty(images), expected)
    assigned = attach(small_vit()).to("meta")
    assigned.load_state_dict(state, assign=True)
    assert torch.equal(assigned(images), expected)
