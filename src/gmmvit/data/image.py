"""One image file -> pixels of the target's size and kind; training and prediction share this code.

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
from gmmvit.data.fitting import fit_levels, resized
from gmmvit.data.given import image_source
from gmmvit.data.levels import read_levels
from gmmvit.data.records import DataError, packages_for
from gmmvit.data.target import Target

if TYPE_CHECKING:
    from PIL.Image import Image

    from gmmvit.data.records import ImageSource

# Those in docs/data.md, whatever the file is called; for PostScript, Pillow would start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")

_BAND_PIXELS = 2**20

# Pillow's decoders raise any of these on damaged input (an unidentified image is an OSError).
DAMAGE = (
    OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, RuntimeError, struct.error,
    zlib.error,
)  # fmt: skip

_DEPTHS = {"L;2": 85, "L;4": 17}  # Pillow's raw mode -> the step between two values in 8 bits


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """Hide Pillow's Python warnings (large images, odd metadata) from the user; what matters is an error.

    Enter it once around all decoding threads, since they share the filters.
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
    bits: int = 8,
    fit: str = "crop",
    axes: str | None = None,
) -> torch.Tensor:
    """Decode one image to `[channels, height, width]`, uint8 or uint16.

    Applies EXIF rotation, lays transparency on white unless it is one of the channels, and takes the first frame of an
    animation. For 8 bits, 16-bit values are scaled by 1/257, and float images count as 0..1 or 0..255 or are stretched
    from their own range; for 16 bits, 8-bit values are scaled by 257. Resizing is bicubic and antialiased.

    Args:
        source: a path, the bytes of an encoded image, a PIL image, an array `[H, W]` or `[H, W, C]`, or a tensor
            `[H, W]` or `[C, H, W]`, of uint8, uint16 or floats from 0 to 1, C being `channels`, 1, 3 or 4 (with
            transparency).
        size: (height, width) in pixels.
        channels: 3 for RGB, 1 for grey, or another number up to 12, which the image must have.
        bits: 8 or 16.
        fit: `crop` resizes the short side and cuts out the centre, `stretch` ignores the aspect ratio, `pad` resizes
            the long side and centres the image on black.
        axes: `hwc` or `chw`, the order of the axes in a .npy file; None if its shape shows it.

    Raises:
        DataError: the image cannot be read, has other channels, or needs a package that is not installed.
        TypeError: `source` has another type or shape.
        ValueError: its floats are not from 0 to 1, or `size`, `channels`, `bits`, `fit` or `axes` is out of range.
    """
    target = Target(size, channels, bits, fit, axes)
    with packages_for("decode_image"):
        image = image_source(source, target)
    try:
        # A copy, since Pillow hands out read-only views of a grey image.
        return torch.from_numpy(decode_pixels(image, target).copy())
    except DataError as error:
        where = f"image {image}" if isinstance(image, str) else "image"
        raise DataError(f"{where} cannot be read: {error}") from error


def decode_pixels(source: ImageSource, target: Target) -> np.ndarray:
    """`decode_image` without the checks of its arguments: `[C, H, W]`; DataError holds the bare reason."""
    from PIL import Image

    if isinstance(source, np.ndarray):
        return fit_levels(source, target)
    if isinstance(source, Image.Image):
        return _fit_pixels(source, target)
    try:
        if (len(source) if isinstance(source, bytes) else os.stat(source).st_size) == 0:
            raise DataError("it is empty")
        # Usual images go straight to Pillow: nothing else may slow them down.
        levels = None if target.by_pillow else read_levels(source, target.channels, target.axes)
        return _opened_pixels(source, target) if levels is None else fit_levels(levels, target)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, the limit of Pillow") from error
    except DAMAGE as error:
        pixels = _bare_pixels(source, target)
        if pixels is not None:
            return pixels
        if isinstance(error, Image.UnidentifiedImageError):
            levels = read_levels(source, target.channels, target.axes) if target.by_pillow else None
            if levels is not None:
                return fit_levels(levels, target)
            raise DataError("not a JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, AVIF or NPY image") from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(" ".join(reason.split()) or type(error).__name__) from error


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow was built with; it fails if asked for another."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _opened_pixels(source: str | bytes, target: Target) -> np.ndarray:
    from PIL import Image

    stream = BytesIO(source) if isinstance(source, bytes) else source
    with Image.open(stream, formats=formats()) as image:
        # JPEG decodes at 1/2, 1/4 or 1/8 scale for a fraction of the work; twice the target leaves room for
        # antialiasing. The sides of a rotated image are not swapped yet, hence the larger side for both.
        image.draft(None, (2 * max(target.size), 2 * max(target.size)))
        return _fit_pixels(image, target)


def _bare_pixels(source: str | bytes, target: Target) -> np.ndarray | None:
    """The pixels of an image that failed to decode, if it decodes without its texts and colour profile."""
    try:
        content = bare(source if isinstance(source, bytes) else Path(source).read_bytes())
        return None if content is None else _opened_pixels(content, target)
    except DAMAGE:
        return None


def _fit_pixels(image: Image, target: Target) -> np.ndarray:
    image = _upright(image)
    if image.width == 0 or image.height == 0:
        raise DataError("it has no pixels")
    if image.mode == "RGBX" and target.channels != 4:
        raise DataError(f"it has 4 channels and {target.channels} are wanted")
    if not target.usual:
        return fit_levels(_levels(image, target), target)
    grey = target.channels == 1
    image = _eight_bit(image)
    if image.mode != "L":
        image = image.convert("L" if grey else "RGB")
    if (image.height, image.width) != target.size:
        image = resized(image, target)
    pixels = np.asarray(image if grey else image.convert("RGB"))  # grey to RGB only now: it triples the bytes
    return np.ascontiguousarray(pixels[None] if grey else pixels.transpose(2, 0, 1))


def _levels(image: Image, target: Target) -> np.ndarray:
    """[H, W, C] of an image that Pillow read: uint16 above 8 bits; transparency is a channel if wanted."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _scaled(image, target.dtype)[..., None]
    if len(image.getbands()) == target.channels and image.mode in ("LA", "RGBA", "RGBX", "CMYK"):
        return np.asarray(image)
    image = _eight_bit(image)
    pixels = np.asarray(image if image.mode == "L" else image.convert("RGB"))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _upright(image: Image) -> Image:
    from PIL import ExifTags, ImageOps

    transparency, low = _transparency(image), _low_bytes(image)
    image.load()
    if low is not None:
        image = _white_where_transparent(image, low)
    elif transparency != image.info.get("transparency"):
        image = image.copy()
        image.info["transparency"] = transparency
    # exif_transpose copies even if there is nothing to turn, and fails on some damaged EXIF blocks.
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except DAMAGE:
        return image


def _transparency(image: Image) -> Any:
    """The transparent value of an image not loaded yet. Of a PNG, Pillow keeps this value in the file's depth but the
    pixels in 8 bits, except 16-bit grey ones."""
    value, raw = image.info.get("transparency"), _raw_mode(image)
    return value * _DEPTHS[raw] if raw in _DEPTHS and isinstance(value, int) else value


def _low_bytes(image: Image) -> np.ndarray | None:
    """uint8 [H, W, 3], the low bytes of a PNG not loaded yet, with 16-bit colours and a transparent one; None for any
    other image. Pillow keeps only high bytes, so this reads the values in the other byte order."""
    from PIL import Image as PilImage

    if _raw_mode(image) != "RGB;16B" or not isinstance(image.info.get("transparency"), tuple):
        return None
    file: Any = image  # only Pillow's file readers have these attributes
    place = file.fp.tell()
    file.fp.seek(0)
    content = file.fp.read()
    file.fp.seek(place)
    with PilImage.open(BytesIO(content), formats=["PNG"]) as again:
        swapped: Any = again
        swapped.tile = [(*tile[:3], "RGB;16L") for tile in swapped.tile]
        return np.asarray(again)


def _white_where_transparent(image: Image, low: np.ndarray) -> Image:
    """A PNG of 16-bit colours, with its `low` bytes, whose transparent colour, and no similar one, becomes white."""
    from PIL import Image as PilImage

    high = np.asarray(image)
    image = image.copy()
    red_green_blue = np.array(image.info.pop("transparency"))
    same = ((high == red_green_blue >> 8) & (low == red_green_blue & 255)).all(axis=2)
    image.paste((255, 255, 255), mask=PilImage.fromarray(same.astype(np.uint8) * 255))
    return image


def _raw_mode(image: Image) -> str | None:
    tiles = getattr(image, "tile", None)
    raw = tiles[0][3] if tiles else None
    return raw if isinstance(raw, str) else None


def _eight_bit(image: Image) -> Image:
    """The image with 8 bits per channel and no transparency."""
    from PIL import Image as PilImage

    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return PilImage.fromarray(_scaled(image, np.dtype(np.uint8)))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return PilImage.alpha_composite(PilImage.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image


def _scaled(image: Image, dtype: np.dtype) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 or uint16 [H, W], the transparent one as white.

    The type decides the scale if it can, so that dark and bright images stay comparable; only for 8 bits, values that
    fit neither 0..1 (floats), 0..255 nor 0..65535 are stretched from their own range.
    """
    white = int(np.iinfo(dtype).max)
    low, factor = 0.0, white / 65535
    if not image.mode.startswith("I;16"):
        extremes = [(float(band.min()), float(band.max())) for _, band in _bands(image)]
        least, most = min(low for low, _ in extremes), max(high for _, high in extremes)
        if least >= 0 and most <= 1 and image.mode == "F":
            factor = white
        elif white > 255 and (image.mode == "F" or least < 0 or most > 65535):
            wanted = "floats from 0 to 1" if image.mode == "F" else "values from 0 to 65535"
            raise DataError(f"its values go from {least:g} to {most:g}: 16 bits need {wanted}")
        elif white == 255 and least >= 0 and most <= 255:
            factor = 1.0
        elif least < 0 or most > 65535 or image.mode == "F":
            low, factor = least, 255 / (most - least or 1.0)
    scaled = np.empty((image.height, image.width), dtype=dtype)
    for rows, values in _bands(image):
        scaled[rows] = np.rint((values - low) * factor)
        scaled[rows][values == image.info.get("transparency")] = white
    return scaled


def _bands(image: Image) -> Iterator[tuple[slice, np.ndarray]]:
    """An image as float64, some rows at a time: a large one as a whole would take eight times its unpacked size."""
    step = max(1, _BAND_PIXELS // max(1, image.width))
    for top in range(0, image.height, step):
        band = image.crop((0, top, image.width, min(top + step, image.height)))
        values = np.nan_to_num(np.asarray(band).astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        yield slice(top, top + len(values)), values
