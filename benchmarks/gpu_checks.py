"""Checks every kind of training step on a GPU; a failed check does not stop the others.

    python benchmarks/gpu_checks.py [--tiny] [--only eager,graph,...]

Each prints one line: "good" or what was wrong, and its time. Images are random. `--tiny` rehearses on a CPU, where no
step becomes a CUDA graph. Exit status 1 if a check failed.
"""

import argparse
import copy
import dataclasses
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_parts import MEAN, STD, the_device
from torch import Tensor

from gmmvit.config import load_recipe
from gmmvit.data import Dataset, Split
from gmmvit.training.loop import train_epoch
from gmmvit.training.progress import Progress
from gmmvit.training.session import Setting, State, prepare

STEPS = 20
Training = tuple[Setting, State]


def random_data(device: torch.device, count: int) -> Dataset:
    """Noise of CIFAR-10's shape, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator).byte().to(device)
    labels = torch.randint(0, 10, (count,), generator=generator).to(device)
    split = Split(images, labels, [""] * count)
    return Dataset("cifar10", tuple("0123456789"), split, None, None, MEAN, STD, "cifar10", True)


class Checks:
    """The checks, one per method; `tiny` for a rehearsal."""

    def __init__(self, tiny: bool) -> None:
        self.device = the_device()
        self.batch = 8 if tiny else 128
        self.small: dict[str, Any] = {"dim": 16, "depth": 2, "num_heads": 2} if tiny else {}
        self.data = random_data(self.device, STEPS * self.batch)

    def begun(self, name: str = "paper", **fields: Any) -> Training:
        """A training with the recipe `name` and 20 steps per epoch."""
        options = {"passes": 1, "batch_size": self.batch, "epochs": 2, **self.small, **fields}
        recipe = load_recipe(name, device=str(self.device), **options)
        setting, state, _ = prepare(recipe, Path(tempfile.gettempdir()), Progress(quiet=True), data=self.data)
        return setting, state

    def losses(self, training: Training, epochs: int = 1) -> list[float]:
        """The loss of every step, read back only after each epoch, so that the host does not wait within it."""
        setting, state = training
        sums: list[Tensor] = []
        take = state.step.__class__.__call__

        def watched(parts: Any, images: int) -> None:
            take(state.step, parts, images)
            sums.append(state.step.sums.clone())

        copied = dataclasses.replace(state)
        copied.step = Watched(state.step, watched)  # type: ignore[assignment]
        found = []
        for _ in range(epochs):
            sums.clear()
            train_epoch(setting, copied)
            copied.epoch += 1
            steps = torch.stack([torch.zeros_like(sums[0]), *sums]).cpu().diff(dim=0)
            found += (steps[:, 0] / steps[:, 2]).tolist()
        state.epoch, state.images_seen = copied.epoch, copied.images_seen
        return found

    def eager(self) -> str:
        return shown(self.losses(self.begun(cuda_graph=False)))

    def compiled(self) -> str:
        return shown(self.losses(self.begun(cuda_graph=False, compile=True)))

    def graph(self) -> str:
        training = self.begun()
        found = self.losses(training, epochs=2)
        assert self.device == "cpu" or training[1].step._graph is not None, "no graph was recorded"
        return shown(found)

    def compiled_graph(self) -> str:
        return shown(self.losses(self.begun(compile=True), epochs=2))

    def graph_equals_eager(self) -> str:
        """With drop path: a replay continues the same random numbers."""
        eager, graph = (self.losses(self.begun(cuda_graph=on, dtype="float32"), 2) for on in (False, True))
        return close(graph, eager, 2e-3)

    def compiled_graph_equals_eager(self) -> str:
        fields = {"dtype": "float32", "drop_path": 0.0}
        eager = self.losses(self.begun(cuda_graph=False, **fields), 2)
        return close(self.losses(self.begun(compile=True, **fields), 2), eager, 1e-2)

    def average(self) -> str:
        """The averaged weights of a recorded training match those of an eager one."""
        states = []
        for on in (False, True):
            training = self.begun(cuda_graph=on, ema=0.9, dtype="float32")
            self.losses(training)
            states.append(training[1].average.state_dict())  # type: ignore[union-attr]
        eager, graph = states
        assert int(graph["n_averaged"]) == int(eager["n_averaged"]) == STEPS
        worst = max((graph[name].float() - eager[name].float()).abs().max().item() for name in eager)
        assert worst < 1e-2, f"averages differ by {worst:.1e}"
        return f"averages differ by {worst:.1e} at most"

    def accumulated(self) -> str:
        """Gradients add up in compiled steps of two batches, with torch.compile's graphs and with one per step, as in
        eager ones."""
        fields = {"accumulate": 2, "batch_size": self.batch // 2, "drop_path": 0.0, "dtype": "float32"}
        eager = self.losses(self.begun(cuda_graph=False, **fields))
        own = close(self.losses(self.begun(cuda_graph=False, compile=True, **fields)), eager, 1e-2)
        return f"{own}; one graph a step: {close(self.losses(self.begun(compile=True, **fields)), eager, 1e-2)}"

    def clipped(self) -> str:
        eager, graph = (self.losses(self.begun(cuda_graph=on, clip_norm=0.1, dtype="float32")) for on in (False, True))
        return close(graph, eager, 2e-3)

    def muon(self) -> str:
        """Recipe `small`, which trains with Muon."""
        eager, graph = (self.losses(self.begun("small", cuda_graph=on, dtype="float32"), 2) for on in (False, True))
        return close(graph, eager, 1e-2)

    def float16(self) -> str:
        if self.device == "cpu":
            return "left out: no float16 on a CPU"
        training = self.begun(dtype="float16", clip_norm=1.0)
        scales = []
        found = []
        for _ in range(2):
            found += self.losses(training)
            scales.append(training[1].scaler.get_scale())
        return f"{shown(found)}, scales {scales}"

    def resumed(self) -> str:
        """The second epoch after a checkpoint against an uninterrupted one."""
        straight = self.losses(self.begun(dtype="float32"), 2)
        first = self.begun(dtype="float32")
        self.losses(first)
        saved = copy.deepcopy(first[1].persistent())
        second = self.begun(dtype="float32")
        self.losses(second)  # has a graph already, which must not survive
        second[1].restore(saved)
        return close(self.losses(second), straight[STEPS:], 2e-3)

    def speed(self) -> str:
        """Milliseconds per step: eager, with torch.compile's graphs, with one graph per step, with both."""
        told = []
        for name, fields in (
            ("eager", {"cuda_graph": False}),
            ("compiled", {"cuda_graph": False, "compile": True}),
            ("graph", {}),
            ("compiled graph", {"compile": True}),
        ):
            setting, state = self.begun(**fields)
            for turn in range(3):
                start = time.perf_counter()
                train_epoch(setting, state)
                state.epoch += 1
                seconds = time.perf_counter() - start
                if turn:
                    told.append(f"{name} {1e3 * seconds / STEPS:.2f}")
        return ", ".join(told)


class Watched:
    """A step with its calls replaced by `call`."""

    def __init__(self, step: Any, call: Callable[[Any, int], None]) -> None:
        self.step, self.call = step, call

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def __call__(self, parts: Any, images: int) -> None:
        self.call(parts, images)


def shown(losses: list[float]) -> str:
    """First and last loss; raises AssertionError if one is not finite or the loss does not move."""
    assert all(abs(loss) < 1e6 for loss in losses), f"losses {losses}"
    assert len(set(losses)) > len(losses) // 2, f"the losses stand still: {losses}"
    return f"losses {losses[0]:.4f} to {losses[-1]:.4f}"


def close(found: list[float], expected: list[float], within: float) -> str:
    """The largest difference of two curves; raises AssertionError if it is larger than `within`."""
    worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    assert worst <= within, f"curves differ by {worst:.1e}: {found} and {expected}"
    return f"{shown(found)}, curves differ by {worst:.1e}"


NAMES = ("eager", "graph", "graph_equals_eager", "average", "clipped", "muon", "float16", "resumed", "compiled",
         "compiled_graph", "compiled_graph_equals_eager", "accumulated", "speed")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="rehearse with tiny sizes, on a CPU too")
    parser.add_argument("--only", default=",".join(NAMES), help="which, in their order")
    args = parser.parse_args()
    checks, failed = Checks(args.tiny), 0
    for name in args.only.split(","):
        start = time.perf_counter()
        try:
            told = f"good: {getattr(checks, name)()}"
        except Exception as error:  # the other checks still run
            failed += 1
            told = f"FAILED: {type(error).__name__}: {str(error)[:600]}"
            traceback.print_exc()
        print(f"{name}: {told} ({time.perf_counter() - start:.1f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
