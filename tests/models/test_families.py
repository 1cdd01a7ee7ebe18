"""Every family with every mask: shapes, sizes that fit and do not, gradients, learning, features."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gmmvit.models import create_model
from gmmvit.models.layers import DropPath

SIZES = [32, (16, 32), (48, 32)]


@pytest.mark.parametrize("image_size", SIZES)
def test_forward_and_backward_reach_every_parameter(build: Any, family: str, mask: str, image_size: Any) -> None:
    model = build(family, mask, image_size=image_size, channels=2, mask_options=paper_start(mask))
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    logits = model(torch.randn(3, 2, *size))
    assert logits.shape == (3, 7)
    cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def paper_start(mask: str) -> dict[str, Any] | None:
    return {"init": "paper"} if mask == "gmm" else None


@pytest.mark.parametrize("image_size", [8, 28, 64, (40, 24), 224])
def test_default_patches_fit_common_sizes(family: str, image_size: Any) -> None:
    if family == "swin" and image_size in (28, (40, 24)):
        with pytest.raises(ValueError, match=r"image_size .* nearest image size that does: \d+ x \d+"):
            create_model(family, image_size=image_size)
        return
    with torch.device("meta"):
        model = create_model(family, image_size=image_size)
    assert 4 <= min(model.grid) <= 20 or image_size == 8


def test_swin_takes_what_its_windows_allow(build: Any) -> None:
    model = build("swin", image_size=(56, 28), patch_size=2, window_size=7)
    assert model(torch.randn(1, 3, 56, 28)).shape == (1, 7)
    with pytest.raises(ValueError, match="nearest image size that does: 32 x 48"):
        build("swin", image_size=(36, 44), patch_size=2)
    with pytest.raises(ValueError, match="not a multiple of the windows"):
        build("swin")(torch.randn(1, 3, 40, 40))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"num_classes": -3}, "num_classes must be at least 2, got -3"),
        ({"num_classes": "10"}, "num_classes must be one int, got '10'"),
        ({"num_classes": 2.5}, "num_classes must be one int, got 2.5"),
        ({"channels": 0}, "channels must be at least 1, got 0"),
        ({"image_size": (32, 0)}, r"image_size must be .* got \(32, 0\)"),
        ({"image_size": 32.0}, r"image_size must be a positive int or a pair .* got 32.0"),
        ({"mask": "gauss"}, "mask must be one of .*'gmm'.* got 'gauss'"),
        ({"mode": "times"}, "mode must be one of .*'multiply'.* got 'times'"),
        ({"mask_options": 5}, "mask_options must be a dict .* got 5"),
        ({"mask_options": {"init": "x"}}, r"init of the mask must be one of .* got 'x'"),
        ({"mask_options": {"kernels": 2}}, "the gmm mask has no option 'kernels'; the nearest is 'num_kernels'"),
        ({"mask_options": {"depth": 1}}, "the gmm mask has no option 'depth'"),
        ({"drop_path": 1.0}, r"drop_path must be in \[0, 1\), got 1.0"),
        ({"drop_path": "x"}, "drop_path must be one number, got 'x'"),
        ({"dropout": -1}, r"dropout must be in \[0, 1\), got -1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be above 0, got 0.0"),
        ({"mlp_ratio": 1e-9}, "mlp_ratio must leave at least one hidden channel of dim="),
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"dim": "x"}, "dim must be one int, got 'x'"),
        ({"dim": (16, 32)}, r"dim must be one int, got \(16, 32\)"),
        ({"depth": 1.5}, "depth must be one (int|positive int per stage), .*got 1.5"),
    ],
)
def test_wrong_arguments_are_named(build: Any, family: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        build(family, **options)


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("swin", {"num_heads": (2, 4, 8)}, r"num_heads must be 2 positive ints, one per stage, .* got \(2, 4, 8\)"),
        ("swin", {"depth": 1}, r"depth must be one positive int per stage, e.g. depth=\(2, 6, 4\), got 1"),
        ("pit", {"depth": 1}, r"depth must be one positive int per stage, e.g. depth=\(2, 6, 4\), got 1"),
        ("pit", {"depth": (1, 0)}, r"depth must be one positive int per stage, .* got \(1, 0\)"),
        ("pit", {"depth": ()}, r"depth must be one positive int per stage, .* got \(\)"),
        ("pit", {"num_heads": "2"}, "num_heads must be 2 positive ints, one per stage, or one for all, got '2'"),
        ("vit", {"depth": (1, 2)}, r"depth must be one int, got \(1, 2\)"),
        ("cait", {"num_heads": (2, 4)}, r"num_heads must be one int, got \(2, 4\)"),
        ("t2t", {"strides": 2}, r"strides must be one positive int per stage, e.g. strides=\(2, 2\), got 2"),
    ],
)
def test_stages_must_agree(build: Any, family: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        build(family, **options)


@pytest.mark.parametrize("family", ["swin", "pit"])
def test_heads_may_be_the_same_in_all_stages(build: Any, family: str) -> None:
    model = build(family, num_heads=2)
    assert [block.attn.num_heads for stage in model.stages for block in stage.blocks[:1]] == [2, 2]


def test_no_images_have_no_logits(build: Any, family: str, mask: str) -> None:
    model = build(family, mask)
    logits = model(torch.empty(0, 3, 32, 32))
    assert logits.shape == (0, 7)
    logits.sum().backward()
    assert all((p.grad == 0).all() for p in model.parameters())


def test_images_must_fit(build: Any, family: str) -> None:
    model = build(family)
    with pytest.raises(ValueError, match=r"images must be \[batch, 3, height, width\], got \(1, 1, 32, 32\)"):
        model(torch.randn(1, 1, 32, 32))
    with pytest.raises(
        TypeError, match=r"floating point and normalised \(see gmmvit.augment.normalize\), got torch.uint8"
    ):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"images must be a tensor \[batch, 3, height, width\], got list"):
        model([[0.0]])
    if family != "t2t":  # takes any size
        with pytest.raises(ValueError, match="not a multiple of the patch size"):
            model(torch.randn(1, 3, 33, 32))


@pytest.mark.parametrize("classes", [2, 10_000])
def test_few_and_many_classes_and_channels(build: Any, family: str, classes: int) -> None:
    model = build(family, num_classes=classes, channels=13)
    assert model(torch.randn(1, 13, 32, 32)).shape == (1, classes)


@pytest.mark.parametrize("size", [(64, 64), (32, 48)])
def test_another_image_size_at_run_time(build: Any, family: str, size: tuple[int, int]) -> None:
    model = build(family, mask_options={"init": "paper"}).eval()
    images = torch.randn(2, 3, *size)
    if family == "swin" and size == (32, 48):
        size = (32, 64)
        images = torch.randn(2, 3, *size)
    logits = model(images)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


def test_an_elementwise_mask_refuses_another_image_size(build: Any, family: str) -> None:
    model = build(family, "elm")
    if family == "swin":  # its masks belong to the windows
        assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)
        return
    with pytest.raises(ValueError, match="element-wise mask learned on"):
        model(torch.randn(1, 3, 64, 64))


def test_gradients_reach_every_sigma_and_alpha(build: Any, family: str) -> None:
    # With a class token the last block's mask has no effect: the head reads only the token, whose row is not masked.
    pool = {"pool": "mean"} if family == "pit" else {}
    model = build(family, mask_options={"init": "paper", "num_kernels": 2}, **pool).double()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("sigma"):
                p.uniform_(0.5, 2)
            if "talk" in name or "scale" in name:
                p.add_(0.5)
    images, target = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.tensor([0, 3, 6])
    cross_entropy(model(images), target).backward()
    parameters = {name: p for name, p in model.named_parameters() if ".mask." in name}
    assert len(parameters) >= 4
    for name, p in parameters.items():
        assert (p.grad != 0).all(), name
        index = (0,) * p.dim()
        step = 1e-5
        with torch.no_grad():
            p[index] += step
            above = cross_entropy(model(images), target)
            p[index] -= 2 * step
            below = cross_entropy(model(images), target)
            p[index] += step
        torch.testing.assert_close(p.grad[index], (above - below) / (2 * step), rtol=1e-4, atol=1e-8, msg=name)


def test_a_fixed_batch_is_learned_with_drop_path_and_dropout(build: Any, family: str, mask: str) -> None:
    model = build(family, mask, image_size=16, drop_path=0.1, dropout=0.05).train()
    generator = torch.Generator().manual_seed(1)
    images, target = torch.randn(8, 3, 16, 16, generator=generator), torch.arange(8) % 7
    optimiser = torch.optim.AdamW(model.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = cross_entropy(model(images), target)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_drop_path_grows_with_depth_where_the_original_does(build: Any) -> None:
    def rates(family: str) -> list[float]:
        return [m.p for m in build(family, drop_path=0.3).modules() if isinstance(m, DropPath)]

    assert rates("vit") == [0.3, 0.3]
    assert rates("swin") == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rates("t2t") == pytest.approx([0, 0.3])


@pytest.mark.parametrize("mode", ["multiply", "log", "post"])
def test_a_mask_that_is_one_changes_nothing(build: Any, family: str, mode: str) -> None:
    plain, masked = build(family, "none").eval(), build(family, "gmm", mode=mode).eval()
    masked.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(masked(images), plain(images), rtol=1e-4, atol=1e-5)


def test_windows_see_no_patches_from_the_other_side_of_the_image(build: Any) -> None:
    model = build("swin", "none", depth=(2,), num_heads=(2,), image_size=16, patch_size=1).eval().double()
    images = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    changed = images.clone()
    changed[..., -2:, :] += 1  # wraps around to the first rows when the windows shift
    before, after = model.forward_features(images), model.forward_features(changed)
    moved = (before - after).abs().sum(-1).view(16, 16).sum(1) > 1e-9
    assert not moved[:8].any()
    assert moved[-4:].all()


def test_features_on_the_way(build: Any, family: str) -> None:
    model = build(family).eval()
    images = torch.randn(2, 3, 32, 64)
    tokens, features = model.forward_intermediates(images)
    torch.testing.assert_close(tokens, model.forward_features(images))
    torch.testing.assert_close(model.forward_head(tokens), model(images))
    assert len(features) == 2
    rows, cols = features[-1].shape[-2:]
    assert features[-1].shape[:2] == (2, model.num_features)
    assert cols == 2 * rows
    (last,) = model.forward_intermediates(images, [-1], output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(last.transpose(1, 2).unflatten(2, (rows, cols)), features[-1])
    (first,) = model.forward_intermediates(images, [0], stop_early=True, intermediates_only=True)
    torch.testing.assert_close(first, features[0])
    with pytest.raises(ValueError, match="indices must name some of the 2 features"):
        model.forward_intermediates(images, [2])


def test_gradient_checkpointing_changes_no_gradient(build: Any, family: str) -> None:
    model = build(family, drop_path=0.2, mask_options={"init": "paper"}).train()
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        model(images).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_the_classifier_can_be_replaced(build: Any, family: str) -> None:
    model = build(family).eval()
    images = torch.randn(2, 3, 32, 32)
    features = model.forward_head(model.forward_features(images), pre_logits=True)
    model.reset_classifier(5)
    assert model(images).shape == (2, 5)
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(images), features)
    with pytest.raises(ValueError, match="num_classes must be 0"):
        model.reset_classifier(1)


def test_no_weight_decay_names_positions_tokens_and_masks(build: Any) -> None:
    names = build("vit", pool="cls").no_weight_decay()
    assert {"pos_embed", "cls_token", "blocks.0.attn.mask.sigma", "blocks.1.attn.mask.alpha"} <= names
    assert not any(name.startswith("head") or "qkv" in name for name in names)
    assert "stages.0.blocks.1.attn.relative_position_bias" in build("swin").no_weight_decay()
