"""Damaged images and run files."""

import contextlib
import io
import shutil
from random import Random

import numpy as np
from PIL import Image

from gmmvit.data import DataError, decode_image
from soak.trials import ODD, Sound, one_line

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
WIDE = ("NPY", "bands", "planes", "packed")  # .npy, and TIFF of five channels: chunky, planar, compressed


def damaged(content: bytes, rng: Random) -> bytes:
    """`content` with some bytes changed, cut off, repeated or inserted."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        at, how = rng.randrange(len(data) + 1), rng.randrange(4)
        if how == 0 and at < len(data):
            data[at] = rng.randrange(256)
        elif how == 1:
            data = data[:at] or data
        elif how == 2:
            data[at:at] = rng.randbytes(rng.randint(1, 40))
        else:
            data[at:at] = data[at : at + rng.randint(1, 200)]
    return bytes(data)


def wide_image(kind: str, size: tuple[int, int], rng: Random) -> bytes:
    """A file of five 16-bit channels."""
    stream = io.BytesIO()
    levels = np.random.default_rng(rng.randrange(2**32)).integers(0, 65536, (*size, 5), dtype=np.uint16)
    if kind == "NPY":
        np.save(stream, levels)
        return stream.getvalue()
    import tifffile

    levels = levels.transpose(2, 0, 1) if kind == "planes" else levels
    planar = "separate" if kind == "planes" else "contig"
    packing = rng.choice(["lzw", "deflate", "zstd"]) if kind == "packed" else None
    tifffile.imwrite(stream, levels, photometric="minisblack", planarconfig=planar, compression=packing)
    return stream.getvalue()


def image(sound: Sound, rng: Random, number: int) -> str:
    """A damaged image is read, or refused in a sentence."""
    kind, size = rng.choice(FORMATS + WIDE), (rng.randint(1, 60), rng.randint(1, 60))
    if kind in FORMATS:
        stream = io.BytesIO()
        Image.effect_noise(size, 80).save(stream, kind)
        content, options = stream.getvalue(), {}
    else:
        content, options = wide_image(kind, size, rng), {"channels": 5, "bits": 16, "axes": "hwc"}
    with contextlib.suppress(DataError):
        decode_image(damaged(content, rng), size=(8, 8), **options)
    return ""


def folder(sound: Sound, rng: Random, number: int) -> str:
    """A run with a damaged file works, or is refused in one line with status 1."""
    with sound.place() as place:
        copy = shutil.copytree(rng.choice([sound.run, sound.half]), place / "run")
        file = rng.choice([path for path in sorted(copy.iterdir()) if path.stat().st_size])
        if file.suffix == ".yaml" and rng.random() < 0.7:
            lines = file.read_text().splitlines()
            at = rng.randrange(len(lines))
            lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(ODD)}"
            file.write_text("\n".join(lines), errors="surrogateescape")
        else:
            file.write_bytes(damaged(file.read_bytes(), rng))
        return one_line([rng.choice(["eval", "report", "resume"]), str(copy)], (0, 1))
