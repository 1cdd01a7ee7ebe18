"""Images as programs pass them: paths, bytes, PIL images, arrays and tensors, one or many.

Letters: N images, C channels (the target's, or 1, 3, or 4 with transparency), H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from gmmvit.data.records import ImageSource
    from gmmvit.data.target import Target

_KINDS = (
    "a path, the bytes of an image file, a PIL image, an array [H, W] or [H, W, C] or a tensor [H, W] or [C, H, W], "
    "of uint8, uint16 or floats from 0 to 1 and with C {channels}"
)


def each_image(given: Any) -> Iterator[Any]:
    """The images in `given`: one image as `image_source` takes it, a batch as an array [N, H, W, C] or a tensor
    [N, C, H, W], or any iterable, such as a list, a generator or a column of paths."""
    from PIL import Image

    is_one = isinstance(given, str | bytes | os.PathLike | Image.Image)
    if isinstance(given, np.ndarray | torch.Tensor):
        is_one = given.ndim in (0, 2, 3)  # a single number is refused as an image
    if is_one or not isinstance(given, Iterable):
        yield given
    else:
        yield from given


def image_source(source: object, target: Target) -> ImageSource:
    """One given image in the form that the decoder takes.

    Raises:
        TypeError: it has another type or shape.
        ValueError: its floats are not from 0 to 1.
    """
    from PIL import Image

    if isinstance(source, str | bytes | Image.Image):
        return source
    if isinstance(source, os.PathLike):
        return str(source)
    pixels: Any = source
    if isinstance(source, torch.Tensor) and source.layout == torch.strided and not source.is_meta:
        pixels = source.detach().cpu()
        pixels = pixels.float() if pixels.is_floating_point() else pixels  # numpy has no bfloat16
        pixels = (pixels.permute(1, 2, 0) if pixels.ndim == 3 else pixels).numpy()
    taken = {1, 3, 4} if target.channels in (1, 3) else {target.channels}
    fits = isinstance(pixels, np.ndarray) and pixels.size and (pixels.ndim == 2 or set(pixels.shape[2:]) <= taken)
    if not fits or pixels.ndim not in (2, 3) or not (pixels.dtype in (np.uint8, np.uint16) or pixels.dtype.kind == "f"):
        channels = "1, 3 or 4" if len(taken) > 1 else str(target.channels)
        raise TypeError(f"source must be {_KINDS.format(channels=channels)}, got {_kind_of(source)}")
    if pixels.dtype.kind == "f":
        pixels = _levels_of(pixels, target.bits)
    if pixels.dtype == np.uint8 and target.channels in (1, 3):
        pixels = pixels[..., 0] if pixels.shape[2:] == (1,) else pixels
        return Image.fromarray(np.ascontiguousarray(pixels))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _levels_of(pixels: np.ndarray, bits: int) -> np.ndarray:
    """Floats from 0 to 1 as uint8 or uint16."""
    low, high = float(pixels.min()), float(pixels.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"an image of floats must have values from 0 to 1, got {low:g} to {high:g}: pass it before normalisation, "
            "or as uint8 or uint16"
        )
    wide = np.result_type(pixels, np.float32)  # half precision ends at 65504
    return np.rint(np.multiply(pixels, 2**bits - 1, dtype=wide)).astype(np.uint8 if bits == 8 else np.uint16)


def _kind_of(source: object) -> str:
    if isinstance(source, np.ndarray):
        return f"{source.dtype} array of shape {source.shape}"
    if isinstance(source, torch.Tensor):
        return f"{str(source.dtype)[6:]} tensor of shape {tuple(source.shape)}"
    return type(source).__name__
