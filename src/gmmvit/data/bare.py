"""Strips PNG and JPEG files of everything but pixels: texts, colour profiles and their checksums.

Pillow refuses images whose texts exceed its limits or are damaged.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

_PNG = b"\x89PNG\r\n\x1a\n"
_PIXELS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_ORIENTATION = b"eXIf"
_JPEG = b"\xff\xd8"
_SCAN = 0xDA  # from this segment on a JPEG holds pixels
# Segments needed for colours and orientation: marker, start of the content, minimum length.
_NEEDED = ((0xE0, b"JFIF\0", 16), (0xEE, b"Adobe", 14), (0xE1, b"Exif\0\0", 8))


def bare(content: bytes) -> bytes | None:
    """The same pixels in a file with nothing else; None if the file is of another kind, damaged or already bare."""
    if content.startswith(_PNG):
        kept = _PNG + b"".join(_png_chunks(content))
    elif content.startswith(_JPEG):
        kept = _JPEG + b"".join(_jpeg_segments(content))
    else:
        return None
    return kept if len(kept) < len(content) else None


def _png_chunks(content: bytes) -> Iterator[bytes]:
    at = len(_PNG)
    while at + 12 <= len(content):
        size, kind = struct.unpack_from(">I4s", content, at)
        chunk = content[at : at + 12 + size]
        checksum = struct.pack(">I", zlib.crc32(chunk[4:-4]))
        if kind in _PIXELS or (kind == _ORIENTATION and chunk[-4:] == checksum):
            yield chunk
        at += len(chunk)
        if kind == b"IEND":
            return


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    at = len(_JPEG)
    while at + 4 <= len(content):
        if content[at] != 0xFF:  # stray bytes between segments
            at += 1
            continue
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == _SCAN:
            yield content[at:]
            return
        size = 0 if 0xD0 <= marker <= 0xD8 or marker in (0x00, 0x01) else struct.unpack_from(">H", content, at + 2)[0]
        segment = content[at : at + 2 + size]
        needed = any(marker == m and segment[4:].startswith(start) and size >= least for m, start, least in _NEEDED)
        if needed or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            yield segment
        at += len(segment)
