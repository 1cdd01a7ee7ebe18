"""Every operation equals torchvision's for the same draw, a different draw for each image of the batch."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op

from gmmvit.augment import geometry
from gmmvit.augment.ops import OP_INDEX, OPS, apply_stages

SIZES = [(32, 32), (17, 40), (3, 3), (2, 5), (1, 1)]
MAGNITUDES = {
    "ShearX": (-0.97, -0.21, 0.03, 0.3, 0.77),
    "ShearY": (-0.97, -0.21, 0.03, 0.3, 0.77),
    "TranslateX": (-14.5, -2.9, 0.0, 1.6, 7.0, 60.0),
    "TranslateY": (-14.5, -2.9, 0.0, 1.6, 7.0, 60.0),
    "Rotate": (-131.0, -30.0, -3.3, 0.0, 20.0, 77.0, 135.0),
    "Brightness": (-0.99, -0.3, 0.0, 0.2, 0.9),
    "Color": (-0.99, -0.3, 0.0, 0.2, 0.9),
    "Contrast": (-0.99, -0.3, 0.0, 0.2, 0.9),
    "Sharpness": (-0.99, -0.3, 0.0, 0.2, 0.9),
    "Posterize": (2, 3, 4, 6, 8),
    "Solarize": (0.0, 8.5, 127.5, 230.0, 255.0),
}
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def pictures(count: int, channels: int, height: int, width: int) -> Tensor:
    """Random, smooth, constant, dark two-level, and narrow-range images in turn, uint8 [count, C, H, W]."""
    generator = torch.Generator().manual_seed(height * 100 + width)
    shape = (channels, height, width)
    ramp = torch.linspace(0, 255, height * width).view(1, height, width).expand(shape).byte()
    kinds = [
        lambda: torch.randint(0, 256, shape, generator=generator).byte(),
        lambda: (ramp.float() * torch.rand(channels, 1, 1, generator=generator)).byte(),
        lambda: torch.randint(0, 256, (channels, 1, 1), generator=generator).byte().expand(shape),
        lambda: (torch.rand(shape, generator=generator) < 0.02).byte(),
        lambda: torch.randint(90, 140, shape, generator=generator).byte(),
    ]
    return torch.stack([kinds[i % len(kinds)]() for i in range(count)])


def expected(images: Tensor, name: str, magnitude: np.ndarray) -> Tensor:
    pairs = zip(images, magnitude.tolist(), strict=True)
    return torch.stack([_apply_op(x, name, m, InterpolationMode.NEAREST, None) for x, m in pairs])


def off_ties(name: str, magnitude: np.ndarray, height: int, width: int) -> Tensor:
    """True [n, 1, H, W] where the nearest source pixel does not depend on rounding errors."""
    rows = {
        "ShearX": geometry.shear_x,
        "ShearY": geometry.shear_y,
        "TranslateX": geometry.translate_x,
        "TranslateY": geometry.translate_y,
        "Rotate": lambda degrees: geometry.rotate(degrees, height, width),
    }[name](magnitude)[:, :, None, None]
    a, b, c, d, e, f = rows.swapaxes(0, 1)
    y, x = np.arange(height)[:, None], np.arange(width)
    places = np.stack((a * x + b * y + c, d * x + e * y + f))
    return torch.from_numpy((abs(places % 1 - 0.5) > 1e-4).all(0)[:, None])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_an_operation_is_torchvisions(name: str, size: tuple[int, int], channels: int) -> None:
    magnitude = np.repeat(np.array(MAGNITUDES.get(name, (0.0,)), dtype=np.float64), 5)
    images = pictures(len(magnitude), channels, *size)
    before = images.clone()
    got = apply_stages(images, [(np.full(len(images), OP_INDEX[name]), magnitude)])
    assert torch.equal(images, before)
    difference = (got.int() - expected(images, name, magnitude).int()).abs()
    if name in GEOMETRIC:
        difference = difference[off_ties(name, magnitude, *size).expand_as(difference)]
        assert len(difference) > 0
        assert (difference <= 1).float().mean() >= 0.999
    else:
        assert difference.max() <= 1
        assert (difference == 0).float().mean() >= 0.999


def test_a_batch_of_all_operations_in_two_stages_keeps_its_order() -> None:
    rng = np.random.default_rng(0)
    ops = [np.arange(90) % len(OPS), rng.permutation(90) % len(OPS)]
    magnitudes = [np.array([rng.choice(MAGNITUDES.get(OPS[op], (0.0,))) for op in stage]) for stage in ops]
    images = pictures(90, 3, 12, 20)
    got = apply_stages(images, list(zip(ops, magnitudes, strict=True)))
    want = images
    for op, magnitude in zip(ops, magnitudes, strict=True):
        want = torch.cat([expected(want[i : i + 1], OPS[op[i]], magnitude[i : i + 1]) for i in range(len(images))])
    # A tie of nearest neighbours in stage one can move single pixels; no image may be a different one.
    assert ((got.int() - want.int()).abs() <= 1).float().mean() >= 0.99
    assert all(((a.int() - b.int()).abs() <= 1).float().mean() > 0.8 for a, b in zip(got, want, strict=True))


def test_equal_images_with_equal_draws_come_out_equal_whatever_else_is_in_the_batch() -> None:
    images = pictures(60, 3, 16, 24)
    images[31] = images[2]
    op = np.arange(60) % len(OPS)
    for name in OPS:
        op[[2, 31]] = OP_INDEX[name]
        magnitude = np.full(60, 4.0)
        both = apply_stages(images, [(op, magnitude)])
        alone = apply_stages(images[2:3], [(op[2:3], magnitude[2:3])])
        assert torch.equal(both[2], both[31])
        assert torch.equal(both[2], alone[0])
