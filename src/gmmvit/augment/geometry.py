"""Flip, pad-crop and the affine operations, nearest neighbour, one transform per sample.

B samples, n samples of a group, C channels, H x W pixels. An affine row (a, b, c, d, e, f) maps the output pixel (x, y)
to the source pixel (a x + b y + c, d x + e y + f), both counted from the centre of the top left pixel. Rows are made on
the host in float64.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from gmmvit.augment.device import to_device

Rows = NDArray[np.float64]


def flip_crop(images: Tensor, flipped: NDArray[np.bool_], top: Rows, left: Rows, padding: int) -> Tensor:
    """Mirror the chosen samples left to right, then pad each with zeros on all sides and crop it back to H x W.

    Args:
        images: [B, C, H, W] of any type; not changed.
        flipped: [B] on the host.
        top, left: whole numbers [B] on the host, 0..2*padding, as in torchvision's `RandomCrop(size, padding)`.
        padding: pixels on each side.

    Returns:
        [B, C, H, W], contiguous. Flip and crop are one gather.
    """
    count, channels, height, width = images.shape
    wide = width + 2 * padding
    start = np.where(flipped, wide - 1 - left, left)
    host = torch.from_numpy(np.stack((top * wide + start, 1 - 2.0 * flipped)).astype(np.int64))
    first, step = to_device(host, images.device)[:, :, None].unbind()
    row = first + torch.arange(0, height * wide, wide, device=images.device)
    column = torch.arange(width, device=images.device) * step
    index = (row[:, :, None] + column[:, None, :]).view(count, 1, -1)
    padded = F.pad(images, (padding,) * 4).flatten(2)
    return padded.gather(2, index.expand(count, channels, -1)).view(images.shape)


def shear_x(factor: Rows) -> Rows:
    """[n] to affine rows [n, 6] of torchvision's ShearX, about the top left corner (its `center=[0, 0]`)."""
    one, zero = np.ones_like(factor), np.zeros_like(factor)
    return np.stack((one, factor, 0.5 * factor, zero, one, zero), 1)


def shear_y(factor: Rows) -> Rows:
    """[n] to affine rows [n, 6] of torchvision's ShearY, about the top left corner."""
    one, zero = np.ones_like(factor), np.zeros_like(factor)
    return np.stack((one, zero, zero, factor, one, 0.5 * factor), 1)


def translate_x(pixels: Rows) -> Rows:
    """[n] to affine rows [n, 6] of a shift to the right by `pixels`, cut to whole pixels towards zero."""
    one, zero = np.ones_like(pixels), np.zeros_like(pixels)
    return np.stack((one, zero, -np.trunc(pixels), zero, one, zero), 1)


def translate_y(pixels: Rows) -> Rows:
    """[n] to affine rows [n, 6] of a shift down by `pixels`, cut to whole pixels towards zero."""
    one, zero = np.ones_like(pixels), np.zeros_like(pixels)
    return np.stack((one, zero, zero, zero, one, -np.trunc(pixels)), 1)


def rotate(degrees: Rows, height: int, width: int) -> Rows:
    """[n] to affine rows [n, 6] of a counter-clockwise rotation about the centre of the image."""
    angle = np.deg2rad(degrees)
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = (width - 1) / 2, (height - 1) / 2
    return np.stack((cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y), 1)


def warp_nearest(images: Tensor, affine: Tensor) -> Tensor:
    """Sample [n, C, H, W] at the affine rows float32 [n, 6] (same device); 0 outside the image."""
    count, channels, height, width = images.shape
    a, b, c, d, e, f = affine[:, :, None, None].unbind(1)
    x = torch.arange(width, device=images.device, dtype=torch.float32)
    y = torch.arange(height, device=images.device, dtype=torch.float32)[:, None]
    source_x = (a * x + (b * y + c)).round_()
    source_y = (d * x + (e * y + f)).round_()
    # Another column and row of zeros on each side catch whatever is outside.
    index = source_y.clamp_(-1, height).add_(1).mul_(width + 2).add_(source_x.clamp_(-1, width)).add_(1)
    padded = F.pad(images, (1, 1, 1, 1)).flatten(2)
    return padded.gather(2, index.long().view(count, 1, -1).expand(count, channels, -1)).view(images.shape)
