"""Images as arrays of levels [H, W, C], uint8 or uint16: from .npy files and from TIFF files with bands.

Nothing that a file claims of its size is believed before the file is found to hold it, and no object is unpickled.
Shape letters: C channels, H height, W width.
"""

from __future__ import annotations

import io
import logging
import math
import os
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from gmmvit.data.records import DataError, listing, packages_for
from gmmvit.data.target import CHANNELS
from gmmvit.text import line_of

NPY = b"\x93NUMPY"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEADER = 10_000  # characters of a header of numpy, its own limit
_VALUES = 2 * 10**8  # of one image; Pillow's limit for pixels is about that
_COMPRESSIONS = {1: "none", 5: "LZW", 8: "deflate", 32946: "deflate", 32773: "PackBits", 50000: "Zstandard"}
_UNSIGNED, _FLOAT = 1, 3  # sample formats of TIFF
_PALETTE, _INKS = 3, 5  # photometric interpretations
_TRANSPARENCY = (1, 2)  # kinds of extra samples


@dataclass(frozen=True)
class LevelsHeader:
    """What a file says of its levels: its format, (height, width), channels and bits."""

    format: str
    size: tuple[int, int]
    channels: int
    bits: int


def read_levels(source: str | bytes, channels: int | None, axes: str | None) -> np.ndarray | None:
    """The levels [H, W, C] of a .npy file or a TIFF whose bands Pillow would drop or squeeze; None for any other file.

    Args:
        source: a path, or the content of a file.
        channels: how many are wanted, which decides where a shape or the pages of a TIFF can be read in two ways.
        axes: of .npy files, see `Target`.

    Raises:
        DataError: the file is damaged, or holds values or a shape that are not read.
        OSError: it cannot be opened.
    """
    with _stream(source) as file:
        start = _start(file)
        if start == NPY:
            return _npy_levels(file, channels, axes)
        if start[:4] not in _TIFF:
            return None
        with _opened(file.read()) as tiff:
            return _tiff_levels(tiff, channels)


def levels_header(source: str | bytes, channels: int | None, axes: str | None) -> LevelsHeader | None:
    """The header of what `read_levels` reads, with its arguments and errors; None where it reads nothing."""
    with _stream(source) as file:
        start = _start(file)
        if start == NPY:
            shape, _, dtype = _npy_header(file)
            first, count = _channels_first(shape, channels, axes)
            height, width = shape[1:] if first else shape[:2]
            return LevelsHeader("NPY", (height, width), count, 8 if dtype == np.uint8 else 16)
        if start[:4] not in _TIFF:
            return None
        with _opened(file.read()) as tiff:
            pages = _pages(tiff, channels)
            if pages is None:
                return None
            size = (pages[0].imagelength, pages[0].imagewidth)
            return LevelsHeader("TIFF", size, _bands(pages), 8 if pages[0].bitspersample == 8 else 16)


def _stream(source: str | bytes) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _start(file: IO[bytes]) -> bytes:
    start = file.read(len(NPY))
    file.seek(0)
    return start


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether the first axis runs fastest, and type; the file then stands where its values begin."""
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise DataError(f"it is of version {version[0]}.{version[1]} of numpy's format, 1.0 and 2.0 are read")
        shape, fortran, dtype = readers[version](file, max_header_size=_HEADER)
    except DataError:
        raise
    except Exception as error:  # of numpy's parser, about damaged text: also of the tokenizer
        raise DataError("its header is not one of numpy") from error
    if dtype.newbyteorder("=") not in (np.uint8, np.uint16) and dtype.kind != "f":
        raise DataError(f"it holds {_type_name(dtype)}; uint8, uint16 and floats from 0 to 1 are read")
    if len(shape) not in (2, 3) or not all(shape):
        raise DataError(f"it holds an array of shape {_words(shape)}; [H, W], [H, W, C] and [C, H, W] are read")
    _check_values(math.prod(shape))
    begin = file.tell()
    held, wanted = file.seek(0, os.SEEK_END) - begin, math.prod(shape) * dtype.itemsize
    file.seek(begin)
    if held != wanted:
        more = "more than one array, or other data behind it" if held > wanted else "it is cut off"
        raise DataError(f"its header says {wanted:,} bytes of values and {held:,} follow: {more}")
    return shape, fortran, dtype


def _npy_levels(file: IO[bytes], channels: int | None, axes: str | None) -> np.ndarray:
    shape, fortran, dtype = _npy_header(file)
    first, _ = _channels_first(shape, channels, axes)
    values = np.frombuffer(file.read(), dtype=dtype).reshape(shape, order="F" if fortran else "C")
    return _as_levels(values[..., None] if values.ndim == 2 else np.moveaxis(values, 0, 2) if first else values)


def _channels_first(shape: tuple[int, ...], channels: int | None, axes: str | None) -> tuple[bool, int]:
    """Whether the first axis is that of the channels, and how many there are.

    Raises:
        DataError: both the first and the last may be, or neither.
    """
    if len(shape) == 2:
        return False, 1
    fits = {"chw": shape[0], "hwc": shape[2]}
    known = {order: count for order, count in fits.items() if count <= CHANNELS and axes in (None, order)}
    if len(known) == 2 and channels is not None:
        known = {order: count for order, count in known.items() if count == channels} or known
    if len(known) == 1:
        [(order, count)] = known.items()
        return order == "chw", count
    if not known:
        where = {"chw": "the first", "hwc": "the last", None: "the first or the last"}[axes]
        raise DataError(f"the shape {_words(shape)} has no axis of 1 to {CHANNELS} channels: it must be {where}")
    raise DataError(f"the shape {_words(shape)} can be [C, H, W] or [H, W, C]: say which with --axes chw or --axes hwc")


def _as_levels(values: np.ndarray) -> np.ndarray:
    """Unsigned values in this machine's order of bytes, and floats from 0 to 1 as uint16.

    Raises:
        DataError: floats that are not from 0 to 1.
    """
    if values.dtype.kind != "f":
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:
        raise DataError(f"its floats go from {low:g} to {high:g}: scale them to 0 to 1, or give uint16")
    return np.rint(values.astype(np.float32, copy=False) * np.float32(65535)).astype(np.uint16)


def _opened(content: bytes) -> Any:
    """A `tifffile.TiffFile`; its notices about odd tags are kept from the user."""
    with packages_for("a TIFF with bands"):
        from tifffile import TiffFile
    logging.getLogger("tifffile").addHandler(logging.NullHandler())
    try:
        return TiffFile(io.BytesIO(content), name="image", is_ome=False)
    except Exception as error:  # of tifffile, about a damaged header
        raise _damaged(error) from error


def _tiff_levels(tiff: Any, channels: int | None) -> np.ndarray | None:
    pages = _pages(tiff, channels)
    if pages is None:
        return None
    try:
        levels = np.concatenate([_page_levels(page) for page in pages], axis=2)
    except DataError:
        raise
    except Exception as error:  # of tifffile and its codecs, about damaged content
        raise _damaged(error) from error
    return _upright(levels, pages[0])


def _damaged(error: Exception) -> DataError:
    return DataError(line_of(str(error)) or type(error).__name__)


def _pages(tiff: Any, channels: int | None) -> list[Any] | None:
    """The pages that make the image, checked: the first, or all where each is a channel; None where Pillow reads the
    first as well."""
    pages: list[Any] = []
    try:
        for number in range(CHANNELS + 1):
            pages.append(tiff.pages[number])
    except IndexError:
        pass
    except Exception as error:  # of tifffile, about a damaged directory
        if not pages:
            raise _damaged(error) from error
    if not pages:
        raise DataError("it has no page")
    first = pages[0]
    if len(pages) > 1 and _bands([first]) == 1 and channels != 1:
        alike = all(page.shape == first.shape and page.dtype == first.dtype for page in pages)
        if channels != len(pages) or not alike:
            several = f"more than {CHANNELS}" if len(pages) > CHANNELS else str(len(pages))
            cure = f"--channels {len(pages)} reads them so, " if alike and len(pages) <= CHANNELS else ""
            raise DataError(f"it has {several} grey pages, which may be channels or not: {cure}--channels 1 the first")
    else:
        pages = pages[:1]
    if len(pages) == 1 and _is_usual(first, channels):
        return None
    for page in pages:
        _check_page(page)
    return pages


def _is_usual(page: Any, channels: int | None) -> bool:
    """Whether Pillow reads a page as well: grey of any kind but 16 bits, RGB of 8, inks, and those with transparency
    unless it is wanted as a channel."""
    samples = page.samplesperpixel
    if samples == 1:
        return not (_integers(page) and page.bitspersample == 16)
    transparent = bool(page.extrasamples) and page.extrasamples[0] in _TRANSPARENCY
    inks = page.photometric == _INKS and samples == 4
    if channels != samples and (inks or (transparent and samples in (2, 4))):
        return True
    return samples == 3 and page.bitspersample == 8 and _integers(page)


def _integers(page: Any) -> bool:
    return page.sampleformat in (_UNSIGNED, 4)  # 4: not said


def _bands(pages: list[Any]) -> int:
    return sum(int(page.samplesperpixel) for page in pages)


def _check_page(page: Any) -> None:
    """Raises DataError for a page that is not read."""
    kind = f"{page.bitspersample} bits" if _integers(page) else _type_name(page.dtype)
    is_read = page.bitspersample in (8, 16) if _integers(page) else page.sampleformat == _FLOAT
    if not is_read or page.dtype is None:
        raise DataError(f"its values are of {kind}; unsigned ones of 8 and 16 bits are read, and floats from 0 to 1")
    if not 1 <= page.samplesperpixel <= CHANNELS:
        raise DataError(f"it has {page.samplesperpixel} bands; 1 to {CHANNELS} are read")
    if page.photometric == _PALETTE or page.imagedepth != 1:
        raise DataError("it has a palette of 16 bits or a depth; plain bands are read")
    if page.compression not in _COMPRESSIONS:
        known = listing(list(dict.fromkeys(_COMPRESSIONS.values())), limit=9)
        raise DataError(f"it is compressed by method {int(page.compression)}; {known} are read")
    if not page.imagewidth or not page.imagelength:
        raise DataError("it has no pixels")
    _check_values(page.imagewidth * page.imagelength * page.samplesperpixel)


def _page_levels(page: Any) -> np.ndarray:
    """[H, W, C] of a page."""
    values = page.asarray(maxworkers=1)
    values = values[..., None] if page.axes == "YX" else np.moveaxis(values, 0, 2) if page.axes == "SYX" else values
    if values.shape != (page.imagelength, page.imagewidth, page.samplesperpixel):
        raise DataError(f"its axes {page.axes} are not read; an image of bands is")
    return _as_levels(values)


def _upright(levels: np.ndarray, page: Any) -> np.ndarray:
    """Turned and mirrored as the tag of the orientation says."""
    tag = page.tags.get("Orientation")
    turn = int(tag.value) if tag is not None and tag.value in range(1, 9) else 1
    levels = levels.transpose(1, 0, 2) if turn > 4 else levels
    levels = levels[::-1] if turn in (3, 4, 7, 8) else levels
    return levels[:, ::-1] if turn in (2, 3, 6, 7) else levels


def _check_values(count: int) -> None:
    if count > _VALUES:
        raise DataError(f"it has {count:,} values, and at most {_VALUES:,} are read")


def _type_name(dtype: np.dtype | None) -> str:
    return "values of no usual type" if dtype is None else "Python objects" if dtype.hasobject else dtype.name


def _words(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape[:6]))}]"
