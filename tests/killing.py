"""Kills an action in its own process at each moment at which it changes a file, as `kill -9` would.

An action runs in forked children: the n-th dies before its n-th change (open to write, half of a write, fsync, rename,
unlink), whatever thread makes it, and what was not flushed is lost.
"""

import builtins
import io
import os
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

WRITES = 2  # this many first writes to an open file count as moments; a checkpoint has hundreds


class _Counter:
    """Dies at the moment `until`, counted from 0; records each."""

    def __init__(self, root: Path, until: int, record: Path) -> None:
        self.root, self.until, self.record = str(root), until, record
        self.moments: list[str] = []

    def below(self, path: object) -> bool:
        return f"{path}/".startswith(f"{self.root}/")

    def moment(self, name: str, path: object, last: Callable[[], object] = lambda: None) -> None:
        if not self.below(path):
            return
        if len(self.moments) == self.until:
            last()
            self.record.write_text(f"{name} {os.path.basename(str(path))}")
            os._exit(9)  # no file is flushed and no handler runs, as with kill -9
        self.moments.append(name)


class _Torn:
    """An open file whose writes count as moments."""

    def __init__(self, file, path, counter: _Counter) -> None:
        self._file, self._path, self._counter, self._writes = file, path, counter, 0

    def write(self, data):
        self._writes += 1
        if self._writes <= WRITES:
            self._counter.moment("write", self._path, lambda: (self._file.write(data[: len(data) // 2]), self.flush()))
        return self._file.write(data)

    def flush(self):
        self._file.flush()

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()

    def __iter__(self):
        return iter(self._file)


def _arm(counter: _Counter) -> None:
    opened = builtins.open

    def watched_open(file, mode="r", *arguments, **options):
        if not set(mode) & set("wax+") or isinstance(file, int) or not counter.below(file):
            return opened(file, mode, *arguments, **options)
        counter.moment("open", file)
        return _Torn(opened(file, mode, *arguments, **options), file, counter)

    builtins.open = io.open = watched_open
    synced = os.fsync

    def watched_fsync(number):
        counter.moment("fsync", os.readlink(f"/proc/self/fd/{number}"))
        return synced(number)

    os.fsync = watched_fsync
    for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir"):
        setattr(os, name, _watched(counter, name, getattr(os, name)))


def _watched(counter: _Counter, name: str, call: Callable) -> Callable:
    def watched(path, *arguments, **options):
        counter.moment(name, path)
        return call(path, *arguments, **options)

    return watched


def killed_everywhere(
    prepare: Callable[[int], Path], action: Callable[[Path], object], every: int = 1
) -> Iterator[tuple[str, Path]]:
    """Yields each moment, in words, and the folder as the kill left it.

    `prepare(n)` makes the folder of the n-th trial; `action(folder)` is killed at its n-th change below that folder.
    With `every` only every n-th change is tried. Ends with the first trial that lives. A trial that fails in any
    other way raises.
    """
    names: Counter[str] = Counter()
    trial = 0
    while True:
        root = prepare(trial)
        record = root.with_name(f"{root.name}.killed")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _arm(_Counter(root, trial, record))
                action(root)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            assert trial > 0, "nothing was written, so nothing was tried"
            return
        assert status == 9, f"trial {trial} ended with {status} and not by the kill"
        moment = record.read_text()
        names[moment] += 1
        yield f"{moment} ({names[moment]})", root
        trial += every
