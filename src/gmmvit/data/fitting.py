"""Brings pixels to the size, channels and bits of a `Target`.

Shape letters: C channels, H height, W width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gmmvit.data.records import DataError, counted
from gmmvit.data.target import Target

if TYPE_CHECKING:
    from PIL.Image import Image

_LUMA = (0.299, 0.587, 0.114)  # Pillow's


def fit_levels(levels: np.ndarray, target: Target) -> np.ndarray:
    """Levels [H, W, C], uint8 or uint16, to `[C, H, W]` of the target's size and type; resizes a channel at a time.

    Raises:
        DataError: the image has other channels than the target, unless they are grey and RGB, which become each other.
    """
    from PIL import Image

    channels = levels.shape[2]
    if channels != target.channels and {channels, target.channels} != {1, 3}:
        raise DataError(f"it has {counted(channels, 'channel')} and {target.channels} are wanted")
    if channels == 3 and target.channels == 1:
        levels = np.rint(levels @ np.array(_LUMA)).astype(levels.dtype)[..., None]
    as_they_are = levels.dtype == target.dtype == np.uint8
    pixels = np.empty((min(channels, target.channels), *target.size), target.dtype)
    for channel, plane in enumerate(pixels):
        values = np.ascontiguousarray(levels[..., channel])
        if not as_they_are:  # Pillow resizes levels of more than 8 bits as floats
            values = values.astype(np.float32) * (_white(target.dtype) / _white(levels.dtype))
        if values.shape != target.size:
            values = np.asarray(resized(Image.fromarray(values), target))
        plane[:] = values if as_they_are else np.clip(np.rint(values), 0, _white(target.dtype))
    return pixels if len(pixels) == target.channels else np.repeat(pixels, target.channels, axis=0)


def _white(dtype: np.dtype) -> int:
    return int(np.iinfo(dtype).max)


def resized(image: Image, target: Target) -> Image:
    """The image resized as the target's `fit` says, bicubic and antialiased."""
    from PIL import Image as PilImage

    (height, width), fit = target.size, target.fit
    method = PilImage.Resampling.BICUBIC
    if fit == "stretch":
        return image.resize((width, height), method, reducing_gap=3.0)
    if fit == "pad":
        scale = min(width / image.width, height / image.height)
        inner = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), method, reducing_gap=3.0
        )
        padded = PilImage.new(image.mode, (width, height))
        padded.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
        return padded
    # The central box with the target's aspect ratio: cutting before resizing saves work on what is cut off.
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], image.width), min(box[3], image.height))
    return image.resize((width, height), method, box=box, reducing_gap=3.0)
