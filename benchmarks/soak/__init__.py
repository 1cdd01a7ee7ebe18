"""Trials by seed of what should never end in a traceback, a hang or a lost run: `python -m soak`, a kind a function."""

from collections.abc import Callable
from random import Random

from soak.calls import call
from soak.donors import attach
from soak.files import folder, image
from soak.flags import flag
from soak.interruptions import disk, kill, signalled
from soak.trials import Sound

Trial = Callable[[Sound, Random, int], str]  # what went wrong in the trial of that number; empty for nothing
# Each kind with the trials of one turn: those that cost more come less often.
KINDS: dict[str, tuple[Trial, int]] = {
    "image": (image, 30),
    "folder": (folder, 12),
    "call": (call, 60),
    "flag": (flag, 20),
    "kill": (kill, 3),
    "signal": (signalled, 1),
    "disk": (disk, 1),
    "attach": (attach, 1),
}
