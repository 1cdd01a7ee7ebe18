"""Every kind of image that real folders hold comes out as the uint8 pixels that a viewer would show."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from gmmvit.data import DataError, decode_image, load_dataset

RED = (200, 30, 60)


def decode(image: Image.Image, name: str, tmp_path: Path, **options) -> torch.Tensor:
    """Write, read and decode; by default at the image's own size."""
    path = tmp_path / name
    image.save(path, **options.pop("save", {}))
    return decode_image(path, size=options.pop("size", (image.height, image.width)), **options)


def test_rgb_is_exact_and_keeps_rows_and_columns(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (5, 9, 3), dtype=np.uint8)
    got = decode(Image.fromarray(pixels), "a.png", tmp_path)
    assert got.dtype == torch.uint8
    assert torch.equal(got, torch.from_numpy(pixels).permute(2, 0, 1))


def test_path_text_bytes_and_image_give_the_same(tmp_path, gradient):
    path = tmp_path / "a.png"
    Image.fromarray(gradient).save(path)
    sources = [path, str(path), path.read_bytes(), Image.open(path)]
    results = [decode_image(source, size=(8, 8)) for source in sources]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_grey_fills_three_channels_and_rgb_becomes_luminance(tmp_path, gradient):
    got = decode(Image.fromarray(gradient), "a.png", tmp_path)
    assert torch.equal(got, torch.from_numpy(gradient).expand(3, -1, -1))
    grey = decode(Image.new("RGB", (4, 4), RED), "b.png", tmp_path, channels=1)
    assert grey.shape == (1, 4, 4)
    assert grey.unique().tolist() == [round(0.299 * 200 + 0.587 * 30 + 0.114 * 60)]


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (*RED, 0)).convert(mode)
    name = "a.tif" if mode == "PA" else "a.png"
    got = decode_image(image, size=(4, 4)) if mode == "PA" else decode(image, name, tmp_path)
    assert got.unique().tolist() == [255]
    opaque = decode(Image.new("RGBA", (4, 4), (*RED, 255)), "b.png", tmp_path)
    assert opaque[:, 0, 0].tolist() == list(RED)


def test_half_transparent_black_is_grey(tmp_path):
    got = decode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "a.png", tmp_path)
    assert got.unique().tolist() == [127]


def test_palette_with_and_without_transparency(tmp_path):
    image = Image.new("RGB", (4, 4), RED)
    image.paste((0, 0, 255), (2, 0, 4, 4))
    palette = image.quantize(2)
    plain = decode(palette, "a.png", tmp_path)
    assert plain[:, 0, 0].tolist() == list(RED)
    assert plain[:, 0, 3].tolist() == [0, 0, 255]
    holed = decode(palette, "b.png", tmp_path, save={"transparency": palette.getpixel((0, 0))})
    assert holed[:, 0, 0].tolist() == [255, 255, 255]
    assert holed[:, 0, 3].tolist() == [0, 0, 255]


def test_transparent_colour_of_an_rgb_png(tmp_path):
    got = decode(Image.new("RGB", (4, 4), RED), "a.png", tmp_path, save={"transparency": RED})
    assert got.unique().tolist() == [255]


def test_one_bit(tmp_path):
    image = Image.new("1", (4, 4), 1)
    image.putpixel((0, 0), 0)
    got = decode(image, "a.png", tmp_path, channels=1)
    assert got[0, 0, 0] == 0
    assert got[0, 1, 1] == 255


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    got = decode(Image.fromarray(values), name, tmp_path, channels=1)
    assert torch.equal(got[0], torch.arange(256, dtype=torch.uint8).reshape(16, 16))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([-10.0, 0.0, 10.0], [0, 128, 255]),
        ([0.0, float("nan"), 1.0], [0, 0, 255]),
        ([7.0, 7.0, 7.0], [7, 7, 7]),
        ([3000.0, 3000.0, 3000.0], [0, 0, 0]),
    ],
)
def test_float_tiff_by_its_range(tmp_path, values, expected):
    got = decode(Image.fromarray(np.array([values], dtype=np.float32)), "a.tiff", tmp_path, channels=1)
    assert got[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"), [([0, 128, 255], [0, 128, 255]), ([0, 257, 65535], [0, 1, 255]), ([0, 2**30], [0, 255])]
)
def test_thirty_two_bit_tiff_by_its_range(tmp_path, values, expected):
    got = decode(Image.fromarray(np.array([values], dtype=np.int32)), "a.tiff", tmp_path, channels=1)
    assert got[0, 0].tolist() == expected


def test_cmyk(tmp_path):
    got = decode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "a.jpg", tmp_path, save={"quality": 95})
    assert got[0].min() > 240
    assert got[1:].max() < 15


@pytest.mark.parametrize(("orientation", "bright_side"), [(1, "right"), (3, "left"), (6, "bottom"), (8, "top")])
def test_exif_rotation_is_applied(tmp_path, gradient, orientation, bright_side):
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode(Image.fromarray(gradient), "a.jpg", tmp_path, channels=1, save={"exif": exif})[0].float()
    means = {"left": got[:, :5].mean(), "right": got[:, -5:].mean(), "top": got[:5].mean(), "bottom": got[-5:].mean()}
    assert max(means, key=means.get) == bright_side


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), (0, 0, 255))]
    got = decode(frames[0], "a.gif", tmp_path, save={"save_all": True, "append_images": frames[1:]})
    assert got[:, 0, 0].tolist() == list(RED)


def test_crop_cuts_the_centre_of_a_wide_image():
    pixels = np.zeros((10, 40, 3), dtype=np.uint8)
    pixels[:, 15:25] = 255
    assert decode_image(Image.fromarray(pixels), size=(10, 10)).unique().tolist() == [255]


def test_stretch_keeps_all_of_it():
    pixels = np.zeros((10, 40, 3), dtype=np.uint8)
    pixels[:, 20:] = 255
    got = decode_image(Image.fromarray(pixels), size=(10, 10), fit="stretch")
    assert got[:, :, :4].max() == 0
    assert got[:, :, -4:].min() == 255


def test_pad_centres_on_black():
    got = decode_image(Image.new("RGB", (40, 10), "white"), size=(8, 8), fit="pad")
    assert got[:, 3:5].min() == 255
    assert got[:, :3].max() == 0
    assert got[:, 5:].max() == 0


@pytest.mark.parametrize("fit", ["crop", "stretch", "pad"])
@pytest.mark.parametrize("shape", [(1, 900), (900, 1), (3, 3), (200, 300), (17, 31)])
def test_any_shape_fits_any_size(shape, fit):
    image = Image.new("RGB", shape, RED)
    got = decode_image(image, size=(12, 20), fit=fit)
    assert got.shape == (3, 12, 20)
    if fit != "pad":
        assert (got == torch.tensor(RED, dtype=torch.uint8)[:, None, None]).all()


def test_resizing_is_antialiased():
    stripes = np.tile(np.array([0, 255], dtype=np.uint8), (128, 64))
    got = decode_image(Image.fromarray(stripes), size=(16, 16), channels=1).float()
    assert (got - 127.5).abs().max() < 12


def test_reduced_jpeg_decoding_stays_close_to_the_full_one(tmp_path):
    y, x = np.mgrid[0:600, 0:800]
    pixels = np.stack([x / 800 * 255, y / 600 * 255, np.sin(x / 60) * 100 + 120], -1).astype(np.uint8)
    image = Image.fromarray(pixels)
    got = decode(image, "a.jpg", tmp_path, size=(32, 32), save={"quality": 95}).float()
    full = decode_image(image, size=(32, 32)).float()
    assert (got - full).abs().mean() < 2


def test_given_image_is_left_as_it_was(tmp_path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (640, 480), RED).save(path)
    with Image.open(path) as image:
        decode_image(image, size=(8, 8))
        assert image.size == (640, 480)


def test_truncated_image_is_an_error_that_names_the_file(tmp_path):
    stream = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(stream, "JPEG")
    path = tmp_path / "half.jpg"
    path.write_bytes(stream.getvalue()[:1000])
    with pytest.raises(DataError, match=r"half\.jpg cannot be read: .*truncated"):
        decode_image(path, size=(8, 8))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image", "not a JPEG, PNG"),
        (b"\x89PNG\r\n\x1a\n123", "cannot be read: .+"),
        (b"II*\0\x08\0", "cannot be read: .+"),
    ],
)
def test_damaged_bytes_are_data_errors(tmp_path, content, reason):
    with pytest.raises(DataError, match=reason):
        decode_image(content, size=(8, 8))
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        decode_image(path, size=(8, 8))


def test_arrays_are_taken_as_images(gradient):
    expected = decode_image(Image.fromarray(gradient), size=(8, 8))
    assert torch.equal(decode_image(gradient, size=(8, 8)), expected)
    assert torch.equal(decode_image(gradient[..., None], size=(8, 8)), expected)
    assert torch.equal(decode_image(np.stack([gradient] * 3, -1), size=(8, 8)), expected)
    assert torch.equal(decode_image(gradient / 255, size=(8, 8)), expected)
    assert torch.equal(decode_image(torch.from_numpy(gradient), size=(8, 8)), expected)
    assert torch.equal(decode_image(torch.from_numpy(gradient)[None].expand(3, -1, -1), size=(8, 8)), expected)
    assert torch.equal(decode_image(torch.from_numpy(gradient / 255)[None].half(), size=(8, 8)), expected)
    with pytest.raises(ValueError, match=r"must have values from 0 to 1, got -0.5 to 0.5: pass it before"):
        decode_image(gradient / gradient.max() - 0.5, size=(8, 8))
    with pytest.raises(ValueError, match="from 0 to 1, got nan"):
        decode_image(torch.full((3, 4, 4), torch.nan), size=(8, 8))
    transparent = np.zeros((4, 4, 4), dtype=np.uint8)
    assert decode_image(transparent, size=(4, 4)).unique().tolist() == [255]


@pytest.mark.parametrize(
    ("source", "got"),
    [
        (np.zeros((4, 4), dtype=np.int64), r"got int64 array of shape \(4, 4\)"),
        (np.zeros((0, 4, 3), dtype=np.uint8), r"got uint8 array of shape \(0, 4, 3\)"),
        (np.zeros((3, 4, 5), dtype=np.uint8), r"got uint8 array of shape \(3, 4, 5\)"),
        (torch.zeros(5, 4, 3), r"got float32 tensor of shape \(5, 4, 3\)"),
        (torch.zeros(2, 3, 4, 4), r"got float32 tensor of shape \(2, 3, 4, 4\)"),
        (None, "got NoneType"),
    ],
)
def test_sources_of_other_types_are_refused(source, got):
    with pytest.raises(TypeError, match=r"source must be a path, the bytes .* a PIL image, an array .*" + got):
        decode_image(source, size=(8, 8))


def large_png(width: int, height: int) -> bytes:
    """A one-bit image of that size, in a few kilobytes."""
    stream = io.BytesIO()
    Image.new("1", (width, height)).save(stream, "PNG")
    return stream.getvalue()


def test_large_images_give_no_python_warning(monkeypatch, recwarn):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    content = large_png(20, 10)
    Image.open(io.BytesIO(content)).close()
    assert [warning.category for warning in recwarn] == [Image.DecompressionBombWarning]
    recwarn.clear()
    assert decode_image(content, size=(8, 8)).shape == (3, 8, 8)
    assert not recwarn.list


def test_large_images_of_a_folder_give_no_python_warning_and_dangerous_ones_are_broken(
    load, two_classes, monkeypatch, recwarn, lines
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    (two_classes / "cat" / "large.png").write_bytes(large_png(20, 10))
    (two_classes / "cat" / "bomb.png").write_bytes(large_png(40, 10))
    names = load(two_classes, skip_broken=True, val_fraction=0, test_fraction=0).train.names
    assert "cat/large.png" in names
    assert "cat/bomb.png" not in names
    assert "broken image: cat/bomb.png (more than 300 pixels, the limit of Pillow)" in lines
    assert not recwarn.list


@pytest.mark.parametrize("name", ["cat.png", "cat.jpg", "cat.eps", "bytes"])
def test_postscript_starts_no_program(tmp_path, monkeypatch, name):
    """With the name of an image or not: Pillow would start `gs`, which here leaves a trace."""
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 12 12\n%%EndComments\n%%EOF\n"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="not a JPEG, PNG, WebP, BMP, GIF, TIFF, PPM, AVIF or NPY image"):
        decode_image(content if name == "bytes" else tmp_path / name, size=(8, 8))
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"])
def test_every_kind_that_the_documentation_names_is_read(tmp_path, kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow was built without AVIF")
    Image.new("RGB", (16, 16), (200, 0, 0)).save(tmp_path / "image", kind)
    red, green, _ = decode_image(tmp_path / "image", size=(8, 8)).float().mean((1, 2)).tolist()
    assert red == pytest.approx(200, abs=6)
    assert green == pytest.approx(0, abs=6)


def test_a_large_scan_takes_little_more_than_its_pixels(tmp_path):
    """3000 x 3000 of 16 bits, 18 MB: an array of all its values in float64 is 72 MB more, its colours 27 MB."""
    Image.fromarray(np.full((3000, 3000), 30000, dtype=np.uint16)).save(tmp_path / "scan.png")
    code = (
        "import resource, sys; from gmmvit.data import decode_image; from PIL import Image\n"
        "Image.new('L', (1, 1)).save(sys.argv[1] + '.png'); decode_image(sys.argv[1] + '.png', size=(8, 8))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "decode_image(sys.argv[1], size=(8, 8))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "scan.png")], capture_output=True, check=True)
    assert int(done.stdout) < 90_000  # kB; 190 MB before it was read in bands


def test_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.png cannot be read: No such file"):
        decode_image(tmp_path / "none.png", size=(8, 8))


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"size": (0, 8)}, "image_size"),
        ({"size": (8, 8), "channels": 13}, "channels"),
        ({"size": (8, 8), "bits": 12}, "bits"),
        ({"size": (8, 8), "fit": "x"}, "fit"),
    ],
)
def test_wrong_arguments_are_named(options, argument):
    with pytest.raises(ValueError, match=argument):
        decode_image(b"", **options)


@pytest.mark.parametrize("side", [2**31, 2**40])
def test_a_size_that_overflows_is_a_data_error(side):
    with pytest.raises(DataError, match="memory are free: choose a smaller"):
        load_dataset("digits", image_size=side)
