"""Mixup and cutmix: what is mixed, by how much, how often; and soft targets."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gmmvit.augment import Augment
from gmmvit.augment.mix import cut_box, soft_targets

CLASSES = 16


def mixed(seed: int, height: int = 20, width: int = 28, **options: Any) -> tuple[Tensor, Tensor]:
    """Images whose every level is their label, mixed: float32 [16, 1, H, W] in levels, and targets."""
    augment = Augment(
        **{
            **{"num_classes": CLASSES, "mean": (0.0,), "std": (1 / 255,), "crop_padding": 0, "flip": False},
            **{"erase_prob": 0, "label_smoothing": 0.0, "mix_prob": 1.0, **options},
        }
    )
    labels = torch.arange(CLASSES)
    images = labels.byte().view(-1, 1, 1, 1).expand(-1, -1, height, width)
    return augment(images, labels, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("options", [{"cutmix_alpha": 0.0}, {"mixup_alpha": 0.0}], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("seed", range(8))
def test_targets_are_the_parts_of_the_classes_in_the_picture(options: dict[str, float], seed: int) -> None:
    images, targets = mixed(seed, **options)
    mean_level = images.mean((1, 2, 3))
    torch.testing.assert_close(mean_level, targets @ torch.arange(CLASSES).float(), atol=1e-4, rtol=1e-5)
    kept = targets.diag()
    assert torch.allclose(kept[kept < 1], kept.min())  # one ratio for the whole batch
    assert ((targets > 0).sum(1) <= 2).all()


def test_mixup_blends_whole_images_and_cutmix_pastes_one_rectangle() -> None:
    images, _ = mixed(3, cutmix_alpha=0.0)
    assert (images == images[:, :, :1, :1]).all()
    images, targets = mixed(3, mixup_alpha=0.0)
    foreign = images.round() != torch.arange(CLASSES).view(-1, 1, 1, 1)
    rectangle = foreign.any(0)[0]
    rows, columns = rectangle.any(1), rectangle.any(0)
    assert 0 < rectangle.sum() < rectangle.numel()
    assert torch.equal(rectangle, rows[:, None] & columns)
    assert torch.allclose(1 - targets.diag().min(), rectangle.float().mean())


def test_half_of_the_batches_are_mixed_by_a_fair_coin() -> None:
    counts = {"none": 0, "mixup": 0, "cutmix": 0}
    for seed in range(600):
        images, targets = mixed(seed, 6, 6, mix_prob=0.5)
        if (targets.diag() == 1).all():
            counts["none"] += 1
        else:
            counts["mixup" if (images == images[:, :, :1, :1]).all() else "cutmix"] += 1
    # an empty cutmix patch, one in a dozen on 6 x 6, looks unmixed
    assert 270 <= counts["none"] <= 390
    assert abs(counts["mixup"] - 150) < 55
    assert 80 <= counts["cutmix"] <= 195


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_the_mixing_ratio_is_a_beta_draw(alpha: float) -> None:
    ratios = torch.stack(
        [mixed(seed, 1, 1, cutmix_alpha=0.0, mixup_alpha=alpha)[1].diag().min() for seed in range(800)]
    )
    assert abs(ratios.mean() - 0.5) < 0.07
    assert abs(ratios.var() - 1 / (4 * (2 * alpha + 1))) < 0.015


def test_a_tiny_alpha_does_not_end_in_nan() -> None:
    for seed in range(20):
        images, targets = mixed(seed, mixup_alpha=1e-3, cutmix_alpha=1e-3)
        assert images.isfinite().all()
        assert targets.isfinite().all()


def test_mixing_is_off_where_both_alphas_are_zero() -> None:
    for seed in range(20):
        _, targets = mixed(seed, mixup_alpha=0.0, cutmix_alpha=0.0)
        assert torch.equal(targets, torch.eye(CLASSES))


def test_the_cut_box_is_centred_where_asked_and_cut_at_the_border() -> None:
    assert cut_box(0.75, 0.5, 0.5, 20, 40) == (5, 15, 10, 30)
    assert cut_box(0.75, 0.0, 0.99, 20, 40) == (0, 5, 29, 40)
    assert cut_box(0.0, 0.5, 0.5, 20, 40) == (0, 20, 0, 40)
    top, bottom, left, right = cut_box(1.0, 0.5, 0.5, 20, 40)
    assert (bottom - top) * (right - left) == 0


def test_label_smoothing_holds_for_both_classes_of_a_mix() -> None:
    _, sharp = mixed(1)
    _, smooth = mixed(1, label_smoothing=0.1)
    torch.testing.assert_close(smooth, 0.9 * sharp + 0.1 / CLASSES)


def test_soft_targets_are_those_of_cross_entropy_with_label_smoothing() -> None:
    logits, labels = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 6, 3, 3, 1])
    ours = torch.nn.functional.cross_entropy(logits, soft_targets(labels, 7, 0.1))
    torch.testing.assert_close(ours, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1))
