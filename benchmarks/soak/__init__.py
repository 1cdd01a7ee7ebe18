"""Seeded trials that must never end in a traceback, a hang or a lost run: `python -m soak`, one function per kind."""

from collections.abc import Callable
from random import Random

from soak.calls import call
from soak.donors import attach
from soak.files import folder, image
from soak.flags import flag
from soak.interruptions import disk, kill, signalled
from soak.trials import Sound

Trial = Callable[[Sound, Random, int], str]  # from the trial's number, what went wrong; empty if nothing
# Each kind with its trials in one turn: fewer of those that cost more.
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
