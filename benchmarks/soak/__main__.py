"""Runs trials of the chosen kinds in turn until time is up or Ctrl-C, then prints trials and failures of each kind.

PYTHONPATH=benchmarks python -m soak --minutes 20 --seed 0 --kinds kill,folder
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from soak import KINDS
from soak.trials import Sound, tried


def soak(minutes: float, seed: int, kinds: Iterable[str]) -> int:
    """Returns the number of failures."""
    trials, failures = Counter[str](), Counter[str]()
    torch.set_num_threads(1)  # a forked child has no other threads of torch
    with tempfile.TemporaryDirectory() as root:
        os.environ["GMMVIT_CACHE"] = f"{root}/default-cache"
        sound = Sound(Path(root))
        end = time.monotonic() + 60 * minutes
        with contextlib.suppress(KeyboardInterrupt):
            while time.monotonic() < end:
                for kind in kinds:
                    trial, turn = KINDS[kind]
                    for _ in range(turn):
                        if fault := tried(trial, sound, f"{seed} {kind} {trials[kind]}", trials[kind]):
                            failures[kind] += 1
                            print(f"{kind} {trials[kind]} (seed {seed}): {fault}", flush=True)
                        trials[kind] += 1
    for kind in kinds:
        print(f"{kind:>8}  trials {trials[kind]:>6}  failures {failures[kind]}")
    return failures.total()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="some of %(default)s")
    given = parser.parse_args()
    chosen = given.kinds.split(",")
    if unknown := set(chosen) - set(KINDS):
        parser.error(f"--kinds must be some of {','.join(KINDS)}, got {','.join(sorted(unknown))}")
    sys.exit(min(1, soak(given.minutes, given.seed, chosen)))
