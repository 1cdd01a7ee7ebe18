"""What the kinds share: a sound run with its images, the check of how a command ends, the time limit of a trial."""

import contextlib
import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import gmmvit
from gmmvit.cli import main
from gmmvit.training import loop

SECONDS = 60  # of computing, or ten times as long by the clock, after which a trial counts as hanging
TINY = {
    "dim": 16, "depth": 1, "num_heads": 2, "passes": 1, "epochs": 3, "warmup_epochs": 0, "threads": 1,
    "batch_size": 8, "image_size": 8, "policy": "none",
}  # fmt: skip
ODD = ["", " ", "-1", "0", "1e309", "nan", "inf", "-inf", "9" * 400, "1e-400", "None", "true", "[]", "{}", "a,b",
       "x" * 5000, "../..", "/", "\x1b[2J", "\u202e", "表",
       "1,2,3,4", "1x1", "0x0", "1.5", "~", "*", "&a [*a]"]  # fmt: skip


class Sound:
    """Images in two classes, a finished run on them, and one stopped in its second epoch."""

    def __init__(self, root: Path) -> None:
        self.root, self.images = root, root / "images"
        rng = np.random.default_rng(0)
        for level, name in enumerate(("a", "b")):
            (self.images / name).mkdir(parents=True)
            for index in range(12):
                pixels = rng.integers(100 * level, 100 * level + 100, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(self.images / name / f"{index}.png")
        fields = TINY | {"dataset": f"folder:{self.images}", "cache_dir": str(root / "cache")}
        self.recipe = gmmvit.load_recipe("digits", **fields)
        self.run = root / "sound"
        gmmvit.train(self.recipe, self.run, quiet=True)
        self.half = root / "half"
        with contextlib.suppress(KeyboardInterrupt), patch.object(loop, "_check_good", _stop_in_the_second_epoch):
            gmmvit.train(self.recipe, self.half, quiet=True)

    def flags(self, cache: Path) -> list[str]:
        """The recipe as flags of `train`, with a cache of its own."""
        fields = TINY | {"dataset": f"folder:{self.images}", "cache_dir": str(cache)}
        words = [word for name, value in fields.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return ["--recipe", "digits", *words]

    def other_weights(self, folder: Path) -> str:
        """Which weights of a run differ from those of the uninterrupted one; empty if none."""
        for name in ("model.safetensors", "last.safetensors"):
            whole, other = load_file(self.run / name), load_file(folder / name)
            if any(not torch.equal(whole[key], other[key]) for key in whole):
                return f"other weights in {name}"
        return ""

    @contextlib.contextmanager
    def place(self):
        """An empty folder to run a trial in, since odd values may name folders that it then creates."""
        folder = self.root / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        before = os.getcwd()
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)
            shutil.rmtree(folder, ignore_errors=True)


def _stop_in_the_second_epoch(row: dict, weights: object, recipe: object) -> None:
    if row["epoch"] == 2:
        raise KeyboardInterrupt


def wrong_end(status: int, said: str, allowed: tuple[int, ...]) -> str:
    """What is wrong with a command's status and standard error; empty if nothing."""
    lines = [line for line in said.splitlines() if line.startswith("gmmvit:")]
    if status not in allowed or "Traceback" in said:
        return f"status {status}: {(lines or said.splitlines())[-1:]}"
    if status and (len(lines) != 1 or len(lines[0]) > 1100 or not lines[0].isprintable()):
        return f"not one line: {lines}"
    return ""


def one_line(arguments: list[str], allowed: tuple[int, ...]) -> str:
    """What is wrong with how the command ends; empty if nothing."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        status = main(arguments)
    return wrong_end(status, said.getvalue(), allowed)


def tried(trial: Callable[[Sound, Random, int], str], sound: Sound, seed: str, number: int) -> str:
    """What went wrong in a trial; empty if nothing."""

    def hang(*_: object) -> None:
        raise TimeoutError(f"took more than {SECONDS} s")

    for alarm in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(alarm, hang)
    signal.alarm(10 * SECONDS)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return trial(sound, Random(seed), number)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
