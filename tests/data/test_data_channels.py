"""Images with channels other than grey and RGB, and with 16 bits: every level arrives, or one sentence says why not."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from gmmvit.data import DataError, cached, decode_image

LEVELS = np.random.default_rng(0).integers(0, 65536, (20, 30, 5), dtype=np.uint16)
EXACT = torch.from_numpy(LEVELS).permute(2, 0, 1)


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def tiff(array, **options):
    tifffile = pytest.importorskip("tifffile", reason="pip install '.[tiff]'")
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **{"photometric": "minisblack", "planarconfig": "contig", **options})
    return stream.getvalue()


def decode(content, **options):
    return decode_image(content, **{"size": (20, 30), "channels": 5, "bits": 16, **options})


PLANES = np.ascontiguousarray(LEVELS.transpose(2, 0, 1))
MADE = {
    "hwc": lambda: npy(LEVELS),
    "chw": lambda: npy(PLANES),
    "big-endian": lambda: npy(LEVELS.astype(">u2")),
    "columns": lambda: npy(np.asfortranarray(LEVELS)),
    "floats": lambda: npy(LEVELS / 65535),
    "array": lambda: LEVELS,
    "tensor": lambda: EXACT,
    "chunky": lambda: tiff(LEVELS),
    "planar": lambda: tiff(PLANES, planarconfig="separate"),
    "pages": lambda: tiff(PLANES, planarconfig=None),
    "big-endian tiff": lambda: tiff(LEVELS, byteorder=">"),
    "floats tiff": lambda: tiff((LEVELS / 65535).astype(np.float32)),
    "deflate": lambda: tiff(LEVELS, compression="deflate", predictor=True),
    "lzw": lambda: tiff(LEVELS, compression="lzw"),
    "tiles": lambda: tiff(LEVELS, compression="zstd", tile=(16, 16)),
}


@pytest.mark.parametrize("kind", MADE)
def test_every_level_arrives(kind):
    if kind in ("deflate", "lzw", "tiles"):
        pytest.importorskip("imagecodecs", reason="pip install '.[tiff]'")
    assert torch.equal(decode(MADE[kind]()), EXACT)


def test_a_file_and_its_content_are_one(tmp_path):
    (tmp_path / "a").write_bytes(MADE["chw"]())
    assert torch.equal(decode(tmp_path / "a"), EXACT)


def test_the_orientation_of_a_tiff_is_applied():
    for turn, expected in ((3, EXACT.flip(1, 2)), (5, EXACT.transpose(1, 2)), (6, EXACT.transpose(1, 2).flip(2))):
        content = tiff(LEVELS, extratags=[(274, 3, 1, turn, True)])
        assert torch.equal(decode(content, size=expected.shape[1:]), expected)


def test_bits_are_scaled_and_resizing_is_pillows():
    assert torch.equal(decode(MADE["hwc"](), bits=8), (EXACT.float() / 257).round().to(torch.uint8))
    eight = (LEVELS >> 8).astype(np.uint8)
    assert torch.equal(decode(npy(eight)).int(), torch.from_numpy(eight).permute(2, 0, 1).int() * 257)
    for fit in ("crop", "stretch", "pad"):
        got = decode(npy(eight), size=(8, 8), bits=8, fit=fit)
        for channel in range(5):
            alone = decode_image(Image.fromarray(eight[..., channel]), size=(8, 8), channels=1, fit=fit)
            assert torch.equal(got[channel : channel + 1], alone)
        wide = decode(npy(eight), size=(8, 8), fit=fit)
        assert (wide.float() / 257 - got.float()).abs().max() < 1.01


def test_colour_and_grey_become_each_other_and_transparency_a_channel():
    grey, colour, clear = LEVELS[..., :1], LEVELS[..., :3], (LEVELS[..., :4] >> 8).astype(np.uint8)
    assert torch.equal(decode(npy(grey), channels=3), EXACT[:1].expand(3, -1, -1))
    luma = (colour @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint16)
    assert torch.equal(decode(npy(colour), channels=1), torch.from_numpy(luma)[None])
    stream = io.BytesIO()
    Image.fromarray(clear, "RGBA").save(stream, "PNG")
    assert torch.equal(decode(stream.getvalue(), channels=4, bits=8), torch.from_numpy(clear).permute(2, 0, 1))
    on_white = decode_image(stream.getvalue(), size=(20, 30))
    assert torch.equal(decode(stream.getvalue(), channels=3).int(), on_white.int() * 257)


def test_grey_files_of_16_bits_keep_them():
    for name in ("PNG", "TIFF", "PPM"):
        stream = io.BytesIO()
        Image.fromarray(LEVELS[..., 0]).save(stream, name)
        assert torch.equal(decode(stream.getvalue(), channels=1), EXACT[:1]), name


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda: npy(LEVELS.astype(np.int64)), "it holds int64; uint8, uint16 and floats"),
        (lambda: npy(LEVELS.astype(np.float32)), "its floats go from .* scale them to 0 to 1"),
        (lambda: npy(np.full((20, 30), np.nan)), "its floats go from nan"),
        (lambda: npy(np.array([{}], object)), "it holds Python objects"),
        (lambda: npy(LEVELS[None]), r"an array of shape \[1, 20, 30, 5\]; \[H, W\]"),
        (lambda: npy(np.zeros((20, 20, 20), np.uint8)), r"no axis of 1 to 12 channels: it must be the first or the"),
        (lambda: MADE["hwc"]()[:-7], "6,000 bytes of values and 5,993 follow: it is cut off"),
        (lambda: MADE["hwc"]() + b"x", "more than one array, or other data behind it"),
        (lambda: MADE["hwc"]()[:30], "its header is not one of numpy"),
        (lambda: MADE["hwc"]().replace(b"}", b" "), "its header is not one of numpy"),
        (lambda: npy(LEVELS[..., :3]), "it has 3 channels and 5 are wanted"),
        (lambda: tiff(LEVELS.astype(np.int16)), "values are of int16; unsigned ones of 8 and 16 bits"),
        (lambda: tiff(LEVELS.astype(np.uint32)), "values are of 32 bits"),
        (lambda: tiff(LEVELS.astype(np.float32)), "its floats go from"),
        (lambda: tiff(np.zeros((20, 30, 13), np.uint16)), "it has 13 bands; 1 to 12 are read"),
        (lambda: tiff(LEVELS.transpose(2, 0, 1)[:4], planarconfig=None), "4 grey pages, .* --channels 4 reads them so"),
        (lambda: tiff(LEVELS)[:-100], "."),
        (lambda: tiff(LEVELS)[:50], "."),
    ],
)
def test_what_is_not_read_is_named(content, reason):
    with pytest.raises(DataError, match=reason) as caught:
        decode(content())
    assert "\n" not in str(caught.value)


def test_a_header_that_claims_more_than_the_file_holds_allocates_nothing(tmp_path):
    for shape in ((2**40, 2**20, 5), (10**6, 10**6, 5)):
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "<u2", "fortran_order": False, "shape": shape})
        with pytest.raises(DataError, match=r"values, and at most 200,000,000 are read"):
            decode(stream.getvalue())


def fill(folder, image, suffix=".npy"):
    for number in range(12):
        path = folder / "ab"[number % 2] / f"{number}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
    return folder


def test_a_folder_is_read_as_its_first_image(load, tmp_path, lines):
    several = [np.roll(LEVELS, number) for number in range(12)]
    data = load(fill(tmp_path / "five", lambda n: npy(several[n])), image_size=(20, 30))
    assert data.train.images.dtype == torch.uint16
    assert data.train.images.shape[1:] == (5, 20, 30)
    row = int(data.train.names[0].partition("/")[2].partition(".")[0])
    assert torch.equal(data.train.images[0], torch.from_numpy(several[row]).permute(2, 0, 1))
    assert data.mean == pytest.approx((data.train.images.float() / 65535).mean((0, 2, 3)).tolist(), rel=1e-5)
    assert data.std == pytest.approx((data.train.images.float() / 65535).std((0, 2, 3)).tolist(), rel=1e-3)
    lines.clear()
    again = load(tmp_path / "five", image_size=(20, 30))
    assert torch.equal(again.train.images, data.train.images)
    assert not any("decoding" in line for line in lines)
    assert [(file.channels, file.bits) for file in cached(tmp_path / "cache")] == [(5, 16)]
    assert load(tmp_path / "five", bits=8).train.images.dtype == torch.uint8


def test_grey_of_16_bits_is_one_channel_unless_asked_otherwise(load, tmp_path):
    def png(number):
        stream = io.BytesIO()
        Image.fromarray(np.roll(LEVELS[..., 0], number)).save(stream, "PNG")
        return stream.getvalue()

    fill(tmp_path / "scans", png, ".png")
    images = load(tmp_path / "scans").train.images
    assert (images.dtype, images.shape[1]) == (torch.uint16, 1)
    images = load(tmp_path / "scans", channels=3, bits=8).train.images
    assert (images.dtype, images.shape[1]) == (torch.uint8, 3)


def test_the_image_that_differs_is_named(load, tmp_path, data_error):
    fill(tmp_path / "mixed", lambda n: npy(np.roll(LEVELS, n)[..., : 4 if n == 7 else 5]))
    assert "1 broken image: b/7.npy (it has 4 channels and 5 are wanted)" in data_error(load, tmp_path / "mixed")
    said = data_error(load, tmp_path / "mixed", channels=6)
    assert "broken images" in said
    fill(tmp_path / "five", lambda n: npy(np.roll(LEVELS, n)))
    said = data_error(load, tmp_path / "five", channels=3)
    assert said.endswith("is refused: it has 5 channels and 3 are wanted")


def test_an_order_that_is_not_clear_is_asked_for(load, tmp_path, data_error):
    folder = fill(tmp_path / "small", lambda n: npy(np.roll(LEVELS, n)[:8, :9]))
    assert "[8, 9, 5] can be [C, H, W] or [H, W, C]: say which with --axes chw or --axes hwc" in data_error(
        load, folder
    )
    assert load(folder, axes="hwc").train.images.shape[1:] == (5, 8, 8)
    assert load(folder, channels=5).train.images.shape[1:] == (5, 8, 8)
    assert load(folder, axes="chw").train.images.shape[1:] == (8, 8, 8)
