"""What a training says while it runs: one line that refreshes on a terminal, plain lines elsewhere, and loggers."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REFRESH_S = 0.5  # of the line on a terminal


def clock(seconds: float) -> str:
    """Seconds as 42s, 3m05s or 2h10m."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


class Progress:
    """Progress of a training on standard error, in steps."""

    def __init__(self, total_steps: int, done_steps: int, quiet: bool = False) -> None:
        self.total, self.first, self.step = total_steps, done_steps, done_steps
        self.start = self.shown = time.monotonic()
        self.quiet = quiet
        self.live = not quiet and sys.stderr.isatty()

    def time_left(self) -> str:
        """Time left at the mean speed so far."""
        done = self.step - self.first
        return clock((time.monotonic() - self.start) / done * (self.total - self.step)) if done else "?"

    def advance(self) -> bool:
        """Counts a step; True where the line of a terminal is due to be renewed with `show`, twice a second."""
        self.step += 1
        return self.live and time.monotonic() - self.shown > REFRESH_S

    def show(self, text: str) -> None:
        """Renews the line of a terminal."""
        self.shown = time.monotonic()
        sys.stderr.write(f"\r\x1b[K{text}  left {self.time_left()}")
        sys.stderr.flush()

    def line(self, text: str) -> None:
        """A line that stays."""
        if self.quiet:
            return
        sys.stderr.write(("\r\x1b[K" if self.live else "") + text + "\n")
        sys.stderr.flush()


def open_loggers(
    names: tuple[str, ...], folder: Path, config: dict[str, Any]
) -> list[Callable[[dict[str, Any]], None]]:
    """A function a logger ("tensorboard", "wandb", "trackio") that takes a row of metrics.

    Raises ModuleNotFoundError that says what to install.
    """
    return [_open_logger(name, folder, config) for name in names]


def _open_logger(name: str, folder: Path, config: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    try:
        if name == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(folder / "tensorboard"))

            def log(row: dict[str, Any]) -> None:
                for key, value in row.items():
                    if isinstance(value, int | float) and key != "epoch":
                        writer.add_scalar(key, value, row["epoch"])
                writer.flush()

            return log
        module = __import__(name)  # wandb and trackio share one interface
    except ImportError as error:
        raise ModuleNotFoundError(
            f"logger {name!r} is not installed; install it with: pip install 'gmmvit[log]'"
        ) from error
    run = module.init(project="gmmvit", name=folder.name, config=config)
    return lambda row: run.log(row, step=row["epoch"])
