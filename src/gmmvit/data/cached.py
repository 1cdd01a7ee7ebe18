"""Lists and removes the files of the decoded cache, only those that this project wrote."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from gmmvit.data.cache import cache_folder, is_cache_file, readable_name
from gmmvit.data.records import DataError, Report, silent

_NAME = re.compile(
    r"(?P<dataset>.*)-(?P<size>\d+x\d+)x(?P<channels>\d+)(x(?P<bits>16)bit)?-[0-9a-f]{16}(?P<split>-split)?\.images"
)
_LEFTOVER = re.compile(rf"\.{_NAME.pattern}\.\d+-[0-9a-f]{{8}}\.tmp")
ALL = "all"


@dataclass(frozen=True)
class Cached:
    """A file of the cache.

    Attributes:
        path: the file.
        dataset: what it was decoded from, such as `cifar10` or `folder-my-images`.
        image_size: HEIGHTxWIDTH in pixels.
        channels: 1 to 12.
        bits: 8 or 16.
        split: whether it holds the images again in the order of a split.
        leftover: whether it is incomplete, from a process that was killed or is still writing.
        bytes: its size.
        written: time of the last change.
    """

    path: Path
    dataset: str
    image_size: str
    channels: int
    bits: int
    split: bool
    leftover: bool
    bytes: int
    written: datetime


def cached(cache_dir: str | os.PathLike[str] | None = None, report: Report = silent) -> list[Cached]:
    """The files of the cache, sorted by name; files of other origin are ignored.

    Args:
        cache_dir: as in `load_dataset`; by default GMMVIT_CACHE, else `~/.cache/gmmvit`.
        report: gets a line if the home folder is unknown.

    Raises:
        DataError: the folder cannot be read.
    """
    folder = cache_folder(cache_dir, report)
    if folder is None:
        return []
    try:
        found = [_described(path) for path in sorted(folder.iterdir())]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cache {folder} cannot be read: {error.strerror or error}") from error
    return [file for file in found if file is not None]


def _described(path: Path) -> Cached | None:
    """A file described by its name, its kind and its last bytes; None if it is not of the cache."""
    whole, leftover = _NAME.fullmatch(path.name), _LEFTOVER.fullmatch(path.name)
    match = whole or leftover
    if match is None or path.is_symlink() or not path.is_file() or (whole and not is_cache_file(path)):
        return None
    try:
        status = path.stat()
    except OSError:  # another process has removed it
        return None
    return Cached(
        path,
        match["dataset"],
        match["size"],
        int(match["channels"]),
        int(match["bits"] or 8),
        match["split"] is not None,
        leftover is not None,
        status.st_size,
        datetime.fromtimestamp(status.st_mtime).astimezone(),
    )


def clear_cache(
    name: str, cache_dir: str | os.PathLike[str] | None = None, report: Report = silent
) -> tuple[Cached, ...]:
    """Removes the files of one data set, or of all, and returns them; a training that has one open keeps its images.

    Args:
        name: a data set as in `Cached.dataset` or as in `--dataset`, or "all".
        cache_dir: as in `cached`.
        report: gets a line for each file that stays because another process is writing it.

    Raises:
        DataError: there is no such data set in the cache, or a file cannot be removed.
    """
    files = cached(cache_dir, report)
    chosen = [file for file in files if name in (ALL, file.dataset) or file.dataset == readable_name(name)]
    if not chosen and name != ALL:
        known = ", ".join(dict.fromkeys(file.dataset for file in files)) or "nothing"
        raise DataError(f"the cache holds nothing of {name!r}; it holds {known}")
    return _removed(chosen, report)


def _removed(files: Sequence[Cached], report: Report) -> tuple[Cached, ...]:
    gone = []
    for file in files:
        lock = file.path.with_name(file.path.name.removeprefix(".").partition(".images")[0] + ".lock")
        with _unless_written(lock) as free:
            if not free:
                report(f"{file.path} stays: another process is writing it")
                continue
            try:
                file.path.unlink(missing_ok=True)
            except OSError as error:
                raise DataError(f"{file.path} cannot be removed: {error.strerror or error}") from error
        gone.append(file)
        with contextlib.suppress(OSError):  # a file with content is not the project's
            if not lock.is_symlink() and lock.stat().st_size == 0:
                lock.unlink()
    return tuple(gone)


@contextlib.contextmanager
def _unless_written(lock: Path) -> Iterator[bool]:
    """Yields whether no other process holds a cache file's lock, and holds it meanwhile if the system has locks."""
    try:
        import fcntl
    except ImportError:  # Windows, which does not remove open files
        yield True
        return
    try:
        file = open(lock, "ab")  # noqa: SIM115
    except OSError as error:
        raise DataError(f"{lock} cannot be opened: {error.strerror or error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:  # a file system without locks
            pass
        yield True
