"""A training's output: one refreshing line on a terminal, plain lines elsewhere, and loggers."""

import importlib
import importlib.util
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from gmmvit.runs.claim import EVENTS, own
from gmmvit.text import shown

REFRESH_S = 0.5  # between refreshes on a terminal
PLAIN_S = 60.0  # between plain lines about steps


def clock(seconds: float) -> str:
    """Seconds as 42s, 3m05s or 2h10m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def bar(done: int, total: int, width: int = 16) -> str:
    """A progress bar such as [######----------]  38%."""
    filled = width * done // max(1, total)
    return f"[{'#' * filled}{'-' * (width - filled)}] {100 * done // max(1, total):3}%"


class Progress:
    """Shows a training's progress in steps on standard error, starting with `begin`.

    `label` starts every line if several trainings share a process. Without a terminal the line of steps is a plain one,
    once a minute.
    """

    def __init__(self, quiet: bool = False, label: str = "") -> None:
        self.quiet, self.label = quiet, label
        self.live = not quiet and _is_terminal()
        self.begin(1, 0)

    def begin(self, total_steps: int, done_steps: int) -> None:
        """Starts the clock with `done_steps` of `total_steps` already done."""
        self.total, self.first, self.step = total_steps, done_steps, done_steps
        self.start = self.shown = time.monotonic()

    def time_left(self) -> str:
        """Time left at the mean speed so far."""
        done = self.step - self.first
        return clock((time.monotonic() - self.start) / done * (self.total - self.step)) if done else "?"

    def advance(self) -> bool:
        """Counts a step; returns whether a line is due for `show`."""
        self.step += 1
        return not self.quiet and time.monotonic() - self.shown > (REFRESH_S if self.live else PLAIN_S)

    def show(self, text: str) -> None:
        """Refreshes the line on a terminal; elsewhere prints a new line."""
        self.shown = time.monotonic()
        text = shown(f"{text}  left {self.time_left()}")
        if not self.live:
            self.line(text)
            return
        columns = shutil.get_terminal_size().columns - 1  # a longer line would repeat instead of refresh
        _write(f"\r\x1b[K{f'{self.label}{bar(self.step, self.total)} {text}'[:columns]}")

    def line(self, text: str) -> None:
        """Prints a line that stays."""
        self.shown = time.monotonic()
        if not self.quiet:
            self.notice(text)

    def notice(self, text: str) -> None:
        """Prints a line even in a quiet training."""
        _write(("\r\x1b[K" if self.live else "") + self.label + shown(text) + "\n")


def _is_terminal() -> bool:
    with suppress(ValueError, AttributeError):  # closed
        return sys.stderr.isatty()
    return False


def _write(text: str) -> None:
    """Writes to standard error; if that fails (closed, full disk, broken pipe), the training continues."""
    with suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(text)
        sys.stderr.flush()


def open_loggers(
    names: tuple[str, ...], folder: Path, config: dict[str, Any]
) -> list[Callable[[dict[str, Any]], None]]:
    """One function per logger ("tensorboard", "wandb", "trackio"); it takes a row of metrics."""
    return [_open_logger(name, folder, config) for name in names]


def require_loggers(names: tuple[str, ...]) -> None:
    """Raises ModuleNotFoundError, with the command to install it, if a logger is missing."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"logger {name!r} is not installed; install it: pip install {name}")


def _open_logger(name: str, folder: Path, config: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    if name == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        place = folder / EVENTS
        before = set(place.glob("*"))
        writer = SummaryWriter(str(place))
        writer.flush()  # creates its file
        own(folder, *(f"{EVENTS}/{path.name}" for path in place.glob("*") if path not in before))

        def log(row: dict[str, Any]) -> None:
            for key, value in row.items():
                if isinstance(value, int | float) and key != "epoch":
                    writer.add_scalar(key, value, row["epoch"])
            writer.flush()

        return log
    # Both have one interface. Each training of a process gets its own run, which wandb makes only on request.
    library = importlib.import_module(name)
    more = {"reinit": "create_new"} if name == "wandb" else {}
    run = library.init(project="gmmvit", name=folder.name, config=config, **more)
    return lambda row: run.log(row, step=row["epoch"])
