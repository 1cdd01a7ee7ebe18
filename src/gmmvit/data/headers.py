"""Reads what an image file says about itself, without decoding pixels: size, kind, rotation, what a pixel is."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gmmvit.data.bare import bare
from gmmvit.data.image import DAMAGE, formats
from gmmvit.data.levels import levels_header
from gmmvit.data.records import DataError
from gmmvit.data.target import Target, colours

if TYPE_CHECKING:
    from PIL.Image import Image

    from gmmvit.data.records import ImageSource

_MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "grey and transparency",
    "I;16": "grey, 16 bits",
    "I;16B": "grey, 16 bits",
    "I": "grey, 32 bits",
    "F": "grey, floats",
    "P": "palette",
    "RGB": "colour",
    "RGBA": "colour and transparency",
    "CMYK": "CMYK",
}
_TURNED = ("JPEG", "MPO", "TIFF", "WEBP")  # formats whose orientation Pillow reads without decoding


@dataclass(frozen=True)
class Header:
    """`size`: (height, width) in pixels as stored; `kind`: such as "PNG, colour"; `turned`: whether EXIF turns it."""

    size: tuple[int, int]
    kind: str
    turned: bool


def own_pixels(source: str, channels: int | None, axes: str | None) -> tuple[int, int] | None:
    """The channels and bits of an unusual image file; None for usual ones, which become 8-bit grey or RGB.

    Args:
        source: a path.
        channels, axes: see `read_levels`.

    Raises:
        DataError: it is unclear what its channels are, or the file is damaged.
        OSError: it cannot be opened.
    """
    from PIL import Image

    try:
        with Image.open(source, formats=formats()) as image:
            if image.format != "TIFF" or not _has_bands(image):
                is_wide = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
                return (1, 16) if is_wide else None
    except DAMAGE:  # Pillow refuses, for example, files of five bands
        pass
    found = levels_header(source, channels, axes)
    return None if found is None else (found.channels, found.bits)


def _has_bands(image: Image) -> bool:
    """Whether a TIFF holds more than Pillow would read: grey pages, a fourth band, 16-bit colours."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else ""
    raw = arguments if isinstance(arguments, str) else str(arguments[0])
    grey_pages = len(image.getbands()) == 1 and image.mode != "P" and getattr(image, "n_frames", 1) > 1
    return grey_pages or image.mode == "RGBX" or (image.mode == "RGB" and ";16" in raw)


def read_header(source: ImageSource, target: Target | None = None) -> Header | None:
    """The header of a file, an encoded image or a decoded one, as read for `target`; None if it cannot be read."""
    from PIL import Image

    if isinstance(source, Image.Image):
        return _header(source)
    if isinstance(source, np.ndarray):
        return None
    first = None if target is None or target.by_pillow else _levels_of(source, target)
    return first or _pillow_header(source) or _levels_of(source, target)


def _levels_of(source: str | bytes, target: Target | None) -> Header | None:
    channels, axes = (None, None) if target is None else (target.channels, target.axes)
    try:
        found = levels_header(source, channels, axes)
    except (DataError, OSError):
        return None
    if found is None:
        return None
    return Header(found.size, f"{found.format}, {colours(found.channels, found.bits)}", False)


def _pillow_header(source: str | bytes) -> Header | None:
    from PIL import Image

    for content in (source, None):
        try:
            if content is None:  # retry without texts and colour profile, as the decoder does
                content = bare(source if isinstance(source, bytes) else Path(source).read_bytes())
                if content is None:
                    return None
            with Image.open(BytesIO(content) if isinstance(content, bytes) else content, formats=formats()) as image:
                return _header(image)
        except DAMAGE:
            continue
    return None


def _header(image: Image) -> Header:
    from PIL import ExifTags

    turned = False
    if image.format in _TURNED:
        try:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        except DAMAGE:  # the decoder does not turn it either
            turned = False
    kind = _MODES.get(image.mode, image.mode)
    return Header((image.height, image.width), f"{image.format}, {kind}" if image.format else kind, turned)
