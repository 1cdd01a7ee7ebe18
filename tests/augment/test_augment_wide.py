"""Images with channels other than grey and RGB, and with 16 bits: the policies' operations mean the same."""

import numpy as np
import pytest
import torch

from gmmvit.augment import Augment, normalize, take_rows
from gmmvit.augment.ops import OP_INDEX, OPS, apply_stages
from gmmvit.augment.policies import POLICIES

SIZE = (9, 14)


def eight_bits(channels, count=1):
    return torch.randint(0, 256, (count, channels, *SIZE), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_takes_every_kind_of_image(channels, dtype, policy):
    images = eight_bits(channels, 16).to(dtype)
    augment = Augment(num_classes=2, mean=[0.5] * channels, std=[0.25] * channels, policy=policy)
    before = images.clone()
    floats, targets = augment(images, torch.arange(16) % 2, torch.Generator().manual_seed(0))
    assert floats.shape == (16, channels, *SIZE)
    assert floats.isfinite().all()
    assert torch.equal(images, before)
    assert torch.allclose(targets.sum(1), torch.ones(16))


@pytest.mark.parametrize("name", [name for name in OPS if name != "Equalize"])
def test_operations_on_floats_are_those_on_levels_within_a_rounding(name):
    """Equalize ranks levels instead: its integer arithmetic needs 256 levels."""
    magnitude = {"Posterize": 5, "Solarize": 100, "TranslateX": 3, "TranslateY": -2, "Rotate": 20}.get(name, 0.3)
    stage = [(np.array([OP_INDEX[name]]), np.array([float(magnitude)]))]
    images = eight_bits(3)
    levels = apply_stages(images, stage).float() / 255
    wide = apply_stages(images.float() / 255, stage).clamp(0, 1)
    off = (levels - wide).abs()
    # Masked bits give 248 / 255 instead of the intended 31 / 32.
    assert off.max() < (0.04 if name == "Posterize" else 0.006)


def test_equalize_spreads_the_ranks_of_each_channel_and_keeps_constant_ones():
    images = torch.rand(1, 2, *SIZE, generator=torch.Generator().manual_seed(0)) ** 4
    images[0, 1] = 0.3
    got = apply_stages(images, [(np.array([OP_INDEX["Equalize"]]), np.zeros(1))])
    expected = torch.linspace(0, 1, SIZE[0] * SIZE[1])
    assert torch.allclose(got[0, 0].flatten().sort().values, expected, atol=1e-6)
    assert got[0, 1].unique().tolist() == pytest.approx([0.3])


def test_low_bits_survive_and_black_is_near_the_training_images():
    """Levels from 5140 to 5200 are one 8-bit level."""
    images = torch.randint(5140, 5200, (64, 2, *SIZE), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    levels = images.float() / 65535
    mean, std = levels.mean((0, 2, 3)).tolist(), levels.std((0, 2, 3)).tolist()
    still = Augment(num_classes=2, mean=mean, std=std, flip=False, crop_padding=0, erase_prob=0, mix_prob=0)
    floats, _ = still(images, torch.zeros(64, dtype=torch.int64), torch.Generator())
    assert torch.allclose(floats, normalize(images, mean, std), atol=1e-5)
    assert len(floats.unique()) >= 60
    moved = Augment(num_classes=2, mean=mean, std=std, erase_prob=0, mix_prob=0)
    floats, _ = moved(images, torch.zeros(64, dtype=torch.int64), torch.Generator().manual_seed(0))
    assert floats.min().item() == pytest.approx(-2, abs=1e-5)


def test_rows_of_sixteen_bits_are_taken_as_they_are():
    images = torch.arange(65530, 65536, dtype=torch.int32).to(torch.uint16).view(6, 1, 1, 1)
    assert take_rows(images, torch.tensor([5, 0])).flatten().tolist() == [65535, 65530]
