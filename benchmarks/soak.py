"""Trials by seed of what should never end in a traceback, a hang or a lost run; prints trials and failures.

python benchmarks/soak.py --minutes 20 --seed 0
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import gmmvit
from gmmvit.cli import main
from gmmvit.config import Recipe
from gmmvit.data import DataError, decode_image
from gmmvit.runs.files import RunError
from gmmvit.training.run import resume, train

TINY = {"dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "warmup_epochs": 0, "threads": 1}
KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
WIDE = ("NPY", "bands", "planes", "packed")  # .npy, and TIFF of five channels: chunky, planar, compressed
ODD = ["", " ", "-1", "0", "1e309", "nan", "inf", "-inf", "9" * 400, "1e-400", "None", "true", "[]", "{}", "a,b",
       "x" * 5000, "../..", "/", "\x1b[2J", "\u202e", "表",
       "1,2,3,4", "1x1", "0x0", "1.5", "~", "*", "&a [*a]"]  # fmt: skip
SECONDS = 60  # a trial that takes longer hangs


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A file with some bytes changed, cut off, repeated or inserted."""
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


def one_line(arguments: list[str], allowed: tuple[int, ...]) -> str:
    """What is wrong with how the command ended; empty for nothing."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        status = main(arguments)
    lines = [line for line in said.getvalue().splitlines() if line.startswith("gmmvit:")]
    if status not in allowed:
        return f"status {status}: {lines[-1:]}"
    if status and (len(lines) != 1 or len(lines[0]) > 1100 or not lines[0].isprintable()):
        return f"not one line: {lines}"
    return ""


def wide_image(kind: str, size: tuple[int, int], rng: random.Random) -> bytes:
    """A file of five channels of 16 bits."""
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


class Soak:
    """A sound run, and the trials on copies of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.run = root, root / "sound"
        self.recipe = gmmvit.load_recipe("digits", epochs=3, **TINY)
        train(self.recipe, self.run, quiet=True)
        self.whole = load_file(self.run / "last.safetensors")

    def image(self, rng: random.Random) -> str:
        """An image with changed bytes is read, or refused in a sentence."""
        kind, size = rng.choice(KINDS + WIDE), (rng.randint(1, 60), rng.randint(1, 60))
        if kind in KINDS:
            stream = io.BytesIO()
            Image.effect_noise(size, 80).save(stream, kind)
            content, options = stream.getvalue(), {}
        else:
            content, options = wide_image(kind, size, rng), {"channels": 5, "bits": 16, "axes": "hwc"}
        with contextlib.suppress(DataError):
            decode_image(damaged(content, rng), size=(8, 8), **options)
        return ""

    def folder(self, rng: random.Random) -> str:
        """A run with a changed file serves, or is refused in a line with status 1."""
        copy = shutil.copytree(self.run, self.root / "copy")
        try:
            file = rng.choice([path for path in copy.iterdir() if path.stat().st_size])
            if file.suffix == ".yaml" and rng.random() < 0.7:
                lines = file.read_text().splitlines()
                at = rng.randrange(len(lines))
                lines[at] = f"{lines[at].partition(':')[0]}: {rng.choice(ODD)}"
                file.write_text("\n".join(lines), errors="surrogateescape")
            else:
                file.write_bytes(damaged(file.read_bytes(), rng))
            return one_line([rng.choice(["eval", "report", "resume"]), str(copy)], (0, 1))
        finally:
            shutil.rmtree(copy)

    def flag(self, rng: random.Random) -> str:
        """An odd value of a field is taken or is wrong usage."""
        free = sorted(
            set(Recipe.__dataclass_fields__) - set(TINY) - {"loggers", "compile", "minutes", "passes", "epochs"}
        )
        name, value = rng.choice(free), rng.choice(ODD)
        flags = [word for field, given in TINY.items() for word in (f"--{field.replace('_', '-')}", str(given))]
        out = self.root / "flag"
        try:
            arguments = ["train", "--quiet", "--out", str(out), "--epochs", "1", *flags]
            return one_line([*arguments, f"--{name.replace('_', '-')}={value}"], (0, 1, 2))
        finally:
            shutil.rmtree(out, ignore_errors=True)

    def kill(self, rng: random.Random) -> str:
        """A training that is killed at any time goes on to the same weights."""
        out = self.root / "killed"
        shutil.rmtree(out, ignore_errors=True)
        flags = [word for field, given in TINY.items() for word in (f"--{field.replace('_', '-')}", str(given))]
        command = [sys.executable, "-m", "gmmvit", "train", "--quiet", "--out", str(out), "--epochs", "3", *flags]
        process = subprocess.Popen(command)
        deadline = time.monotonic() + SECONDS
        while not out.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.random() * 1.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        try:
            resume(out, quiet=True)
        except RunError as error:
            if "train again" not in str(error):
                return str(error)
            train(self.recipe, out, quiet=True)
        weights = load_file(out / "last.safetensors")
        return "" if all(torch.equal(weights[name], self.whole[name]) for name in self.whole) else "other weights"


def tried(trial: Callable[[random.Random], str], seed: str) -> str:
    """What went wrong in a trial; empty for nothing."""

    def hang(number: int, frame: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        return trial(random.Random(seed))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def soak(minutes: float, seed: int) -> int:
    """Trials of each kind in turn until the minutes are over; returns the number of failures."""
    end, trials, failures = time.monotonic() + 60 * minutes, Counter[str](), Counter[str]()
    torch.set_num_threads(1)
    os.environ["GMMVIT_CACHE"] = os.environ.get("GMMVIT_CACHE", tempfile.mkdtemp())
    with tempfile.TemporaryDirectory() as root:
        kinds = Soak(Path(root))
        turns = {"image": 30, "folder": 10, "flag": 10, "kill": 1}
        while time.monotonic() < end:
            for kind, count in turns.items():
                for _ in range(count):
                    trials[kind] += 1
                    told = tried(getattr(kinds, kind), f"{seed} {kind} {trials[kind]}")
                    if told:
                        failures[kind] += 1
                        print(f"{kind} {trials[kind]} (seed {seed}): {told}", flush=True)
    for kind in turns:
        print(f"{kind:>8}  trials {trials[kind]:>6}  failures {failures[kind]}")
    return failures.total()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    sys.exit(min(1, soak(given.minutes, given.seed)))
