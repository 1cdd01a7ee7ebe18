"""One image file -> uint8 pixels at the size wanted; training and prediction share this code.

Shape letters: C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gmmvit.data.bare import bare
from gmmvit.data.given import image_source
from gmmvit.data.records import DataError, packages_for

if TYPE_CHECKING:
    from PIL.Image import Image

    from gmmvit.data.records import ImageSource

FITS = ("crop", "stretch", "pad")
# What docs/data.md names, whatever the file is called: to read PostScript, Pillow would start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")

_BAND_PIXELS = 2**20

# Pillow's decoders raise any of these on damaged input (an unidentified image is an OSError).
DAMAGE = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)


_DEPTHS = {"L;2": 85, "L;4": 17}  # of Pillow's raw modes: the step between two values in 8 bits


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep Pillow's Python warnings (large images, odd metadata) from the user; what matters comes as an error.

    Entered once round all threads that decode, since they share the filters.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\b")
        yield


@quiet_pillow()
def decode_image(
    source: str | os.PathLike[str] | bytes | Image | np.ndarray | torch.Tensor,
    *,
    size: tuple[int, int],
    channels: int = 3,
    fit: str = "crop",
) -> torch.Tensor:
    """Decode one image to `[channels, height, width]` uint8.

    EXIF rotation is applied, transparency is laid on white, the first frame of an animation is taken, 16-bit values are
    scaled by 1/257, and float images are read as 0..1 or 0..255 or stretched from their own range. Resizing is
    bicubic and antialiased.

    Args:
        source: a path, the bytes of an encoded image, a PIL image, an array `[H, W]` or `[H, W, C]`, or a tensor
            `[H, W]` or `[C, H, W]`, of uint8 or of floats from 0 to 1, C being 1, 3 or 4 (with transparency).
        size: (height, width) in pixels.
        channels: 3 for RGB, 1 for grey.
        fit: `crop` resizes the short side and cuts the centre, `stretch` ignores the aspect ratio, `pad` resizes the
            long side and centres the image on black.

    Raises:
        DataError: the image cannot be read, or Pillow is not installed.
        TypeError: `source` is of another type or shape.
        ValueError: its floats are not from 0 to 1, or `size`, `channels` or `fit` is out of range.
    """
    check_target(size, channels, fit)
    with packages_for("decode_image"):
        image = image_source(source)
    try:
        # A copy, since Pillow hands out read-only views of a grey image.
        return torch.from_numpy(decode_pixels(image, size, channels, fit).copy())
    except DataError as error:
        where = f"image {image}" if isinstance(image, str) else "image"
        raise DataError(f"{where} cannot be read: {error}") from error


def check_target(size: tuple[int, int], channels: int, fit: str) -> None:
    """Raise ValueError for a target that no image can be decoded to."""
    if len(size) != 2 or any(isinstance(side, bool) or not isinstance(side, int) or side < 1 for side in size):
        raise ValueError(f"image_size must be a positive whole number or a pair (height, width) of them, got {size!r}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
    if fit not in FITS:
        raise ValueError(f"fit must be one of {', '.join(FITS)}, got {fit!r}")


def decode_pixels(source: ImageSource, size: tuple[int, int], channels: int, fit: str) -> np.ndarray:
    """`decode_image` without the checks of its arguments: uint8 `[C, H, W]`; DataError holds the bare reason."""
    from PIL import Image

    if isinstance(source, Image.Image):
        return _fit_pixels(source, size, channels, fit)
    try:
        if (len(source) if isinstance(source, bytes) else os.stat(source).st_size) == 0:
            raise DataError("it is empty")
        return _opened_pixels(source, size, channels, fit)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, the limit of Pillow") from error
    except DAMAGE as error:
        pixels = _bare_pixels(source, size, channels, fit)
        if pixels is not None:
            return pixels
        if isinstance(error, Image.UnidentifiedImageError):
            raise DataError("not a JPEG, PNG, WebP, BMP, GIF, TIFF, PPM or AVIF image") from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(" ".join(reason.split()) or type(error).__name__) from error


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with; it fails when asked for another."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _opened_pixels(source: str | bytes, size: tuple[int, int], channels: int, fit: str) -> np.ndarray:
    from PIL import Image

    stream = BytesIO(source) if isinstance(source, bytes) else source
    with Image.open(stream, formats=formats()) as image:
        # JPEG decodes at 1/2, 1/4 or 1/8 scale for a fraction of the work; twice the target leaves room for
        # antialiasing. A rotated image has not swapped its sides yet, hence the larger side for both.
        image.draft(None, (2 * max(size), 2 * max(size)))
        return _fit_pixels(image, size, channels, fit)


def _bare_pixels(source: str | bytes, size: tuple[int, int], channels: int, fit: str) -> np.ndarray | None:
    """The pixels of an image that failed, if it is sound without its texts and colour profile."""
    try:
        content = bare(source if isinstance(source, bytes) else Path(source).read_bytes())
        return None if content is None else _opened_pixels(content, size, channels, fit)
    except DAMAGE:
        return None


def _fit_pixels(image: Image, size: tuple[int, int], channels: int, fit: str) -> np.ndarray:
    height, width = size
    image = _upright(image)
    if image.width == 0 or image.height == 0:
        raise DataError("it has no pixels")
    image = _eight_bit(image)
    if image.mode != "L":
        image = image.convert("L" if channels == 1 else "RGB")
    if (image.height, image.width) != size:
        image = _resize(image, width, height, fit)
    pixels = np.asarray(image if channels == 1 else image.convert("RGB"))  # a grey one only now: three times the bytes
    return np.ascontiguousarray(pixels[None] if channels == 1 else pixels.transpose(2, 0, 1))


def _upright(image: Image) -> Image:
    from PIL import ExifTags, ImageOps

    transparency = _transparency(image)
    image.load()
    if transparency != image.info.get("transparency"):
        image = image.copy()
        image.info["transparency"] = transparency
    # exif_transpose copies even where there is nothing to turn, and fails on some damaged EXIF blocks.
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except DAMAGE:
        return image


def _transparency(image: Image) -> Any:
    """The transparent value of an image that is not loaded yet; Pillow keeps that of a PNG in the file's depth, and its
    pixels, but for grey ones of 16 bits, in 8."""
    value = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    raw = tiles[0][3] if tiles else None
    if raw in _DEPTHS and isinstance(value, int):
        return value * _DEPTHS[raw]
    if raw == "RGB;16B" and isinstance(value, tuple):
        return tuple(band >> 8 for band in value)
    return value


def _eight_bit(image: Image) -> Image:
    """The image with 8 bits a channel and no transparency."""
    from PIL import Image as PilImage

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return PilImage.fromarray(_scaled_to_bytes(image))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return PilImage.alpha_composite(PilImage.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image


def _scaled_to_bytes(image: Image) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 [H, W], the transparent one as white.

    The scale follows from the type where it can, so that dark and bright images stay comparable; only values that fit
    neither 0..1 (floats), 0..255 nor 0..65535 are stretched from their own range.
    """
    low, factor = 0.0, 1 / 257
    if not image.mode.startswith("I;16"):
        extremes = [(float(band.min()), float(band.max())) for _, band in _bands(image)]
        least, most = min(low for low, _ in extremes), max(high for _, high in extremes)
        if least >= 0 and most <= 1 and image.mode == "F":
            factor = 255.0
        elif least >= 0 and most <= 255:
            factor = 1.0
        elif least < 0 or most > 65535 or image.mode == "F":
            low, factor = least, 255 / (most - least or 1.0)
    scaled = np.empty((image.height, image.width), dtype=np.uint8)
    for rows, values in _bands(image):
        scaled[rows] = np.rint((values - low) * factor)
        scaled[rows][values == image.info.get("transparency")] = 255
    return scaled


def _bands(image: Image) -> Iterator[tuple[slice, np.ndarray]]:
    """An image as float64, some rows at a time: a whole large one takes eight times what its file unpacks to."""
    step = max(1, _BAND_PIXELS // max(1, image.width))
    for top in range(0, image.height, step):
        band = image.crop((0, top, image.width, min(top + step, image.height)))
        values = np.nan_to_num(np.asarray(band).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        yield slice(top, top + len(values)), values


def _resize(image: Image, width: int, height: int, fit: str) -> Image:
    from PIL import Image as PilImage

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
    # The box with the target's aspect ratio round the centre: cutting before resizing saves the part that is cut off.
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - width * scale) / 2, (image.height - height * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    box = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], image.width), min(box[3], image.height))
    return image.resize((width, height), method, box=box, reducing_gap=3.0)
