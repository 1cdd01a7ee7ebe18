"""What an image becomes: its size, and what a pixel is, defined only here; `Split.images` has this dtype.

Letters: C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gmmvit.checks import is_integer
from gmmvit.text import short

FITS = ("crop", "stretch", "pad")
CHANNELS = 12  # at most
BITS = (8, 16)
AXES = ("hwc", "chw")


@dataclass(frozen=True)
class Target:
    """What all images of a data set, or for a model, become.

    Args:
        size: (height, width) in pixels.
        channels: 1 (grey), 3 (RGB; other kinds of 8-bit images become one of these two), or another number up to 12,
            which every image must have.
        bits: per channel, 8 (uint8) or 16 (uint16).
        fit: `crop`, `stretch` or `pad`, see `decode_image`.
        axes: the order of an array [H, W, C] ("hwc") or [C, H, W] ("chw") in a .npy file; None if its shape shows it.

    Raises:
        ValueError: an argument is out of range.
    """

    size: tuple[int, int]
    channels: int = 3
    bits: int = 8
    fit: str = "crop"
    axes: str | None = None

    def __post_init__(self) -> None:
        sides = self.size
        listed = isinstance(sides, Sequence) and len(sides) == 2 and all(is_integer(side) for side in sides)
        if not listed or min(sides) < 1:
            raise ValueError(
                f"image_size must be a positive whole number or a pair (height, width) of them, got {short(sides)}"
            )
        if not is_integer(self.channels) or self.channels not in range(1, CHANNELS + 1):
            raise ValueError(f"channels must be 1 (grey), 3 (RGB) or up to {CHANNELS}, got {short(self.channels)}")
        if not is_integer(self.bits) or self.bits not in BITS:
            raise ValueError(f"bits must be 8 or 16, got {short(self.bits)}")
        if not isinstance(self.fit, str) or self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, got {short(self.fit)}")
        if self.axes is not None and not (isinstance(self.axes, str) and self.axes in AXES):
            raise ValueError(f"axes must be hwc or chw, got {short(self.axes)}")

    @property
    def usual(self) -> bool:
        """Whether Pillow turns any image into this: 8-bit grey or RGB."""
        return self.bits == 8 and self.channels in (1, 3)

    @property
    def by_pillow(self) -> bool:
        """Whether Pillow loses nothing on the way to it; otherwise the reader of levels comes first."""
        return self.usual or self.channels == 1

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return (self.channels, *self.size)

    @property
    def dtype(self) -> np.dtype:
        """The type of the pixels."""
        return np.dtype(np.uint8 if self.bits == 8 else np.uint16)

    @property
    def nbytes(self) -> int:
        """The bytes of one image."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{self.size[0]} x {self.size[1]} in {colours(self.channels, self.bits)}"


def colours(channels: int, bits: int) -> str:
    """What a pixel is, in words: "colour", "grey, 16 bits", "5 channels"."""
    words = {1: "grey", 3: "colour"}.get(channels, f"{channels} channels")
    return words if bits == 8 else f"{words}, {bits} bits"
