"""Sound pixels are read whatever surrounds them, and transparency at every depth; each case names its report."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
import torch
from PIL import Image, features

from gmmvit.data import DataError, decode_image

ROWS, COLS = 4, 8
JPEG = io.BytesIO()
Image.new("RGB", (16, 16), (200, 30, 60)).save(JPEG, "JPEG", quality=95)
LARGE = 3_000_000  # above Pillow's limit for texts


def chunk(kind: bytes, data: bytes, damage: int = 0) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) ^ damage)


def png(depth: int, colour: int, pixel: list[int], before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of one colour, with the samples `pixel` and chunks before and after the pixels."""
    bits = "".join(f"{value:0{depth}b}" for value in pixel * COLS)
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", COLS, ROWS, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(row * ROWS))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + chunk(b"IEND", b"")


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def jpeg(before: bytes = b"", pixels: bytes = b"") -> bytes:
    """A JPEG with segments at its start and right before its pixels."""
    content = JPEG.getvalue()
    at = content.index(b"\xff\xda")
    return content[:2] + before + content[2:at] + pixels + content[at:]


TEXT = b"Comment\0\0" + zlib.compress(b"x" * LARGE)
CHUNKS = {
    "Pillow#8363, a large text": chunk(b"zTXt", TEXT),
    "Pillow#2445, a large colour profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"y" * LARGE)),
    "Pillow#8363, an international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(b"x" * LARGE)),
    "Pillow#1991, a text with a wrong checksum": chunk(b"iTXt", b"Comment\0\0\0\0\0x", damage=1),
    "Pillow#3319, #5672, #5631, a profile with a wrong checksum": chunk(b"iCCP", b"icc\0\0x", damage=1),
    "a profile that is no compressed data": chunk(b"iCCP", b"icc\0\0not compressed"),
    "a cut text": chunk(b"zTXt", TEXT[:100]),
    "a resolution that is cut": chunk(b"pHYs", b"\0"),
    "an animation of no frames": chunk(b"acTL", b""),
    "a time with a wrong checksum": chunk(b"tIME", b"\7\xea\1\1\0\0\0", damage=1),
    "orientation with a wrong checksum": chunk(b"eXIf", b"II*\0", damage=1),
    "texts of 100 MB": b"".join(chunk(b"zTXt", b"C\0\0" + zlib.compress(bytes(1_000_000))) for _ in range(70)),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("extra", CHUNKS.values(), ids=CHUNKS)
def test_a_png_is_read_whatever_surrounds_its_pixels(extra, place):
    got = decode_image(png(8, 2, [200, 30, 60], **{place: extra}), size=(ROWS, COLS))
    assert got[:, 0, 0].tolist() == [200, 30, 60]
    assert got.flatten(1).unique(dim=1).shape[1] == 1


SEGMENTS = {
    "Pillow#7456, EXIF that is none": segment(0xE1, b"Exif\0\0" + b"\xff" * 20),
    "Pillow#4852, #6123, empty EXIF": segment(0xE1, b"Exif\0\0"),
    "Pillow#4613, a profile in no part": segment(0xE2, b"ICC_PROFILE\0"),
    "Pillow#7879, XMP": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
    "cut notes of Photoshop": segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04"),
    "a cut header of JFIF": segment(0xE0, b"JFIF"),
    "a cut header of Adobe": segment(0xEE, b"Adobe"),
    "an index of pictures that is none": segment(0xE2, b"MPF\0II*\0"),
    "a long comment": segment(0xFE, b"x" * 60_000),
}


@pytest.mark.parametrize("place", ["before", "pixels"])
@pytest.mark.parametrize("extra", SEGMENTS.values(), ids=SEGMENTS)
def test_a_jpeg_is_read_whatever_surrounds_its_pixels(extra, place):
    got = decode_image(jpeg(**{place: extra}), size=(8, 8))
    assert torch.equal(got, decode_image(JPEG.getvalue(), size=(8, 8)))


def test_a_rotated_jpeg_is_turned_though_its_notes_are_cut():
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    image = Image.new("RGB", (32, 16), "white")
    image.paste((0, 0, 0), (0, 0, 16, 16))
    image.save(stream, "JPEG", exif=exif)
    content = stream.getvalue()
    notes = SEGMENTS["cut notes of Photoshop"]
    turned = decode_image(content[:2] + notes + content[2:], size=(32, 16))
    assert torch.equal(turned, decode_image(content, size=(32, 16)))
    assert turned[:, :8].max() < 20


def test_a_folder_with_large_texts_has_no_broken_images(load, two_classes, lines):
    content = png(8, 2, [200, 30, 60], before=CHUNKS["Pillow#8363, a large text"])
    (two_classes / "cat" / "text.png").write_bytes(content)
    assert "cat/text.png" in load(two_classes, val_fraction=0, test_fraction=0).train.names
    assert not [line for line in lines if "broken" in line]


@pytest.mark.parametrize("cut", [40, -30])
def test_cut_pixels_are_broken_though_a_text_is_large(cut):
    content = png(8, 2, [200, 30, 60], before=CHUNKS["Pillow#8363, a large text"])
    with pytest.raises(DataError, match="cannot be read"):
        decode_image(content[:cut], size=(8, 8))


def transparent(*values: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


GREYS = [(depth, value) for depth in (1, 2, 4, 8, 16) for value in {0, 1, 2**depth // 3, 2**depth - 1}]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("depth", "value"), GREYS)
def test_a_transparent_grey_is_white_at_every_depth(depth, value, channels):
    """Pillow#154, #3379, #3744."""
    content = png(depth, 0, [value], before=transparent(value))
    assert decode_image(content, size=(ROWS, COLS), channels=channels).unique().tolist() == [255]


@pytest.mark.parametrize(("depth", "value"), GREYS)
def test_another_grey_stays_as_it_is(depth, value):
    other = value ^ 1
    got = decode_image(png(depth, 0, [value], before=transparent(other)), size=(ROWS, COLS), channels=1)
    assert got.unique().tolist() == [round(value * 255 / (2**depth - 1))]


@pytest.mark.parametrize(("depth", "pixel"), [(8, [200, 30, 60]), (16, [300, 5, 70]), (16, [65535, 0, 40000])])
def test_a_transparent_colour_is_white_at_every_depth(depth, pixel):
    assert decode_image(png(depth, 2, pixel, before=transparent(*pixel)), size=(4, 8)).unique().tolist() == [255]
    opaque = decode_image(png(depth, 2, pixel, before=transparent(1, 1, 1)), size=(4, 8))
    assert opaque[:, 0, 0].tolist() == [value >> (depth - 8) for value in pixel]


@pytest.mark.parametrize("like", [[300, 5, 71], [300, 6, 70], [301, 5, 70], [44, 5, 70]])
def test_a_colour_of_16_bits_that_is_like_the_transparent_one_in_its_high_or_low_bytes_stays(like):
    content = png(16, 2, like, before=transparent(300, 5, 70))
    for source in (content, Image.open(io.BytesIO(content))):
        got = decode_image(source, size=(4, 8))
        assert got.flatten(1).unique(dim=1).tolist() == [[value >> 8] for value in like]


@pytest.mark.parametrize("loaded", [False, True])
def test_an_image_of_ones_own_is_left_as_it_is(loaded):
    image = Image.open(io.BytesIO(png(16, 2, [300, 5, 70], before=transparent(300, 5, 70))))
    if loaded:
        image.load()
    decode_image(image, size=(4, 8))
    assert image.info["transparency"] == (300, 5, 70)
    assert image.getpixel((0, 0)) == (1, 0, 0)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour", [4, 6])
def test_an_alpha_channel_counts_at_every_depth(depth, colour):
    bands = {4: 1, 6: 3}[colour]
    full = 2**depth - 1
    assert decode_image(png(depth, colour, [0] * bands + [0]), size=(4, 8)).unique().tolist() == [255]
    assert decode_image(png(depth, colour, [0] * bands + [full]), size=(4, 8)).unique().tolist() == [0]


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_a_transparent_entry_of_a_palette_is_white_at_every_depth(depth):
    palette = chunk(b"PLTE", bytes([10, 20, 30, 40, 50, 60])) + chunk(b"tRNS", bytes([255, 0]))
    assert decode_image(png(depth, 3, [1], before=palette), size=(4, 8)).unique().tolist() == [255]
    assert decode_image(png(depth, 3, [0], before=palette), size=(4, 8))[:, 0, 0].tolist() == [10, 20, 30]


PROFILE = b"I" * 200
OTHERS = {
    "WEBP": {"icc_profile": PROFILE, "xmp": PROFILE, "lossless": True},
    "AVIF": {"icc_profile": PROFILE, "xmp": PROFILE},
    "TIFF": {"icc_profile": PROFILE, "description": "I" * 200},
    "GIF": {"comment": PROFILE},
    "JPEG": {"icc_profile": PROFILE, "comment": PROFILE},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_damaged_texts_and_profiles_do_no_harm_in_other_formats(kind):
    if not features.check_module("avif") and kind == "AVIF":
        pytest.skip("this Pillow has no AVIF")
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 60)).save(stream, kind, **OTHERS[kind])
    content = stream.getvalue()
    damaged = content.replace(PROFILE, bytes(range(200)))
    assert damaged != content
    assert torch.equal(decode_image(damaged, size=(8, 8)), decode_image(content, size=(8, 8)))
