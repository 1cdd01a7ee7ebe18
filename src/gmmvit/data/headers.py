"""What an image file says of itself: its size, its kind, whether it is to be turned. No pixels are decoded."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from gmmvit.data.bare import bare
from gmmvit.data.image import DAMAGE, formats

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
_TURNED = ("JPEG", "MPO", "TIFF", "WEBP")  # whose orientation Pillow reads without the pixels


@dataclass(frozen=True)
class Header:
    """`size` is (height, width) in pixels as stored; `kind` is as "PNG, colour"; `turned` where EXIF turns it."""

    size: tuple[int, int]
    kind: str
    turned: bool


def read_header(source: ImageSource) -> Header | None:
    """The header of a file, an encoded image or a decoded one; None where it cannot be read."""
    from PIL import Image

    if isinstance(source, Image.Image):
        return _header(source)
    for content in (source, None):
        try:
            if content is None:  # sound without its texts and colour profile, as the decoder tries it
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
        except DAMAGE:  # then the decoder turns nothing
            turned = False
    kind = _MODES.get(image.mode, image.mode)
    return Header((image.height, image.width), f"{image.format}, {kind}" if image.format else kind, turned)
