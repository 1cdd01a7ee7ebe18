"""Atomic file writes: a temporary file beside the target replaces it in one step."""

import glob
import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_LONGEST_NAME = 255  # bytes, on every common file system


class RunError(RuntimeError):
    """A run folder cannot be written, read or continued; the message is one sentence."""


@contextmanager
def naming_faults(path: Path, doing: str) -> Iterator[None]:
    """Turns disk errors into one sentence with the file's name."""
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot {doing} {path}: {error.strerror or error}") from error


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM until a file is complete: torch's writer would report them as disk errors."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[tuple[int, Any]] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(n))]
    handlers = {n: signal.signal(n, lambda number, frame: pending.append((number, frame))) for n in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for came, frame in pending[:1]:
            handlers[signal.Signals(came)](came, frame)  # type: ignore[operator,misc]


def temporary_name(name: str) -> str:
    """The name of the temporary file while this process writes `name`, cut to the longest allowed length."""
    whole = f".{name}.{os.getpid()}.tmp"
    short = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    return whole if len(os.fsencode(whole)) <= _LONGEST_NAME else f".{short}.{os.getpid()}.tmp"


def is_there(path: Path) -> bool:
    """Whether a file of a run exists; raises RunError if it is not a plain file: reading a pipe would block forever."""
    with naming_faults(path, "read"):
        if path.exists() and not path.is_file():
            raise RunError(f"{path} is not a plain file; restore a copy of the run's own")
        return path.exists()


def replace_file(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Writes a file atomically: a kill or a full disk leaves either the old or the new one."""
    temporary = path.with_name(temporary_name(path.name))
    with uninterrupted(), naming_faults(path, "write"):
        try:
            with temporary.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _remove_leftovers(path)
        except BaseException as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if isinstance(error, RuntimeError):  # torch's zip writer reports a failed write so, without a reason
                raise OSError("the disk is full, or a limit on file sizes was reached") from error
            raise


def _remove_leftovers(path: Path) -> None:
    """Removes the temporary files of processes that were killed while they wrote this path."""
    start = temporary_name(path.name).removesuffix(f"{os.getpid()}.tmp")
    for leftover in path.parent.glob(f"{glob.escape(start)}*.tmp"):
        number = leftover.name[len(start) : -len(".tmp")]
        if number.isdecimal() and not _is_running(int(number)):
            with suppress(OSError):
                leftover.unlink()


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # of another user
        return True
    return True


def write_whole(path: Path, content: bytes) -> None:
    """Replaces a file's content atomically."""
    replace_file(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON with a final newline."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def check_new(path: Path, overwrite: bool, flag: str = "--out") -> None:
    """Raises RunError if a file exists and must not be overwritten; `flag` is the option that named it."""
    with naming_faults(path, "write"):
        there = path.exists()
    if there and not overwrite:
        raise RunError(
            f"{path} exists; replace it with --overwrite (in Python overwrite=True), or choose another file with "
            f"{flag} ({flag.strip('-')}=)"
        )
