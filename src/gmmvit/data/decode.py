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
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gmmvit.data.bare import bare
from gmmvit.data.records import DataError, packages_for

if TYPE_CHECKING:
    from PIL.Image import Image

    from gmmvit.data.records import ImageSource

FITS = ("crop", "stretch", "pad")

# Pillow's decoders raise any of these on damaged input (an unidentified image is an OSError).
_DAMAGE = (
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
    source: str | os.PathLike[str] | bytes | Image | np.ndarray,
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
        source: a path, the bytes of an encoded image, a PIL image, or a uint8 array `[H, W]` or `[H, W, C]`.
        size: (height, width) in pixels.
        channels: 3 for RGB, 1 for grey.
        fit: `crop` resizes the short side and cuts the centre, `stretch` ignores the aspect ratio, `pad` resizes the
            long side and centres the image on black.

    Raises:
        DataError: the image cannot be read, or Pillow is not installed.
        TypeError: `source` is of another type.
        ValueError: `size`, `channels` or `fit` is out of range.
    """
    check_target(size, channels, fit)
    with packages_for("decode_image"):
        image = _image_source(source)
    try:
        # A copy, since Pillow hands out read-only views of a grey image.
        return torch.from_numpy(decode_pixels(image, size, channels, fit).copy())
    except DataError as error:
        where = f"image {image}" if isinstance(image, str) else "image"
        raise DataError(f"{where} cannot be read: {error}") from error


def _image_source(source: object) -> ImageSource:
    from PIL import Image

    if isinstance(source, (str, bytes, Image.Image)):
        return source
    if isinstance(source, os.PathLike):
        return str(source)
    got = type(source).__name__
    if isinstance(source, np.ndarray):
        if source.dtype == np.uint8 and (source.ndim == 2 or source.shape[2:] in ((1,), (3,), (4,))):
            return Image.fromarray(source[..., 0] if source.shape[2:] == (1,) else source)
        got = f"{source.dtype} array of shape {source.shape}"
    raise TypeError(
        "source must be a path, the bytes of an image file, a PIL image or a uint8 array [H, W] or [H, W, C], "
        f"got {got}"
    )


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
    except _DAMAGE as error:
        pixels = _bare_pixels(source, size, channels, fit)
        if pixels is not None:
            return pixels
        if isinstance(error, Image.UnidentifiedImageError):
            raise DataError("not an image that Pillow can identify") from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(" ".join(reason.split()) or type(error).__name__) from error


def _opened_pixels(source: str | bytes, size: tuple[int, int], channels: int, fit: str) -> np.ndarray:
    from PIL import Image

    stream = BytesIO(source) if isinstance(source, bytes) else source
    with Image.open(stream) as image:
        # JPEG decodes at 1/2, 1/4 or 1/8 scale for a fraction of the work; twice the target leaves room for
        # antialiasing. A rotated image has not swapped its sides yet, hence the larger side for both.
        image.draft(None, (2 * max(size), 2 * max(size)))
        return _fit_pixels(image, size, channels, fit)


def _bare_pixels(source: str | bytes, size: tuple[int, int], channels: int, fit: str) -> np.ndarray | None:
    """The pixels of an image that failed, if it is sound without its texts and colour profile."""
    try:
        content = bare(source if isinstance(source, bytes) else Path(source).read_bytes())
        return None if content is None else _opened_pixels(content, size, channels, fit)
    except _DAMAGE:
        return None


def _fit_pixels(image: Image, size: tuple[int, int], channels: int, fit: str) -> np.ndarray:
    height, width = size
    image = _upright(image)
    if image.width == 0 or image.height == 0:
        raise DataError("it has no pixels")
    image = _eight_bit(image).convert("L" if channels == 1 else "RGB")
    if (image.height, image.width) != size:
        image = _resize(image, width, height, fit)
    pixels = np.asarray(image)
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
    except _DAMAGE:
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
        values = np.asarray(image)
        scaled = _scaled_to_bytes(values, sixteen_bit=image.mode.startswith("I;16"))
        scaled[values == image.info.get("transparency")] = 255
        return PilImage.fromarray(scaled)
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return PilImage.alpha_composite(PilImage.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba)
    return image


def _scaled_to_bytes(values: np.ndarray, *, sixteen_bit: bool) -> np.ndarray:
    """Grey values of more than 8 bits as uint8 of the same shape.

    The scale follows from the type where it can, so that dark and bright images stay comparable; only values that fit
    neither 0..1 (floats), 0..255 nor 0..65535 are stretched from their own range.
    """
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    if sixteen_bit:
        scaled = finite / 257
    elif low >= 0 and high <= 1 and values.dtype.kind == "f":
        scaled = finite * 255
    elif low >= 0 and high <= 255:
        scaled = finite
    elif low >= 0 and high <= 65535 and values.dtype.kind != "f":
        scaled = finite / 257
    else:
        scaled = (finite - low) * (255 / (high - low or 1.0))
    return np.rint(scaled).astype(np.uint8)


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
