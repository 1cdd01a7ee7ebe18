"""Images as a program has them: paths, bytes, PIL images, arrays and tensors, one or many.

Letters: N images, C channels (1, 3, or 4 with transparency), H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from gmmvit.data.records import ImageSource

_KINDS = (
    "a path, the bytes of an image file, a PIL image, an array [H, W] or [H, W, C] or a tensor [H, W] or [C, H, W], "
    "with uint8 or with floats from 0 to 1 and C 1, 3 or 4"
)


def each_image(given: Any) -> Iterator[Any]:
    """The images in what was given: one of what `image_source` takes, a batch of them as an array [N, H, W, C] or a
    tensor [N, C, H, W], or anything that can be iterated over, as a list, a generator or a column of paths."""
    from PIL import Image

    is_one = isinstance(given, str | bytes | os.PathLike | Image.Image)
    if isinstance(given, np.ndarray | torch.Tensor):
        is_one = given.ndim in (2, 3)
    if is_one or not isinstance(given, Iterable):
        yield given
    else:
        yield from given


def image_source(source: object) -> ImageSource:
    """What the decoder reads of one image as it was given.

    Raises:
        TypeError: it is of another type or shape.
        ValueError: its floats are not from 0 to 1.
    """
    from PIL import Image

    if isinstance(source, str | bytes | Image.Image):
        return source
    if isinstance(source, os.PathLike):
        return str(source)
    pixels: Any = source.detach().cpu() if isinstance(source, torch.Tensor) else source
    if isinstance(pixels, torch.Tensor):
        pixels = pixels.float() if pixels.is_floating_point() else pixels  # numpy has no bfloat16
        pixels = (pixels.permute(1, 2, 0) if pixels.ndim == 3 else pixels).numpy()
    fits = (
        isinstance(pixels, np.ndarray) and pixels.size and (pixels.ndim == 2 or pixels.shape[2:] in ((1,), (3,), (4,)))
    )
    if not fits or not (pixels.dtype == np.uint8 or np.issubdtype(pixels.dtype, np.floating)):
        raise TypeError(f"source must be {_KINDS}, got {_kind_of(source)}")
    pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
    return Image.fromarray(np.ascontiguousarray(pixels if pixels.dtype == np.uint8 else _bytes_of(pixels)))


def _bytes_of(pixels: np.ndarray) -> np.ndarray:
    """Floats from 0 to 1 as uint8."""
    low, high = float(pixels.min()), float(pixels.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"an image of floats must have them from 0 to 1, got {low:g} to {high:g}: give it before it is normalised, "
            "or as uint8"
        )
    return np.rint(pixels * 255).astype(np.uint8)


def _kind_of(source: object) -> str:
    if isinstance(source, np.ndarray):
        return f"{source.dtype} array of shape {source.shape}"
    if isinstance(source, torch.Tensor):
        return f"{str(source.dtype)[6:]} tensor of shape {tuple(source.shape)}"
    return type(source).__name__
