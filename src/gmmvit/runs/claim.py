"""Ownership of a run folder: one training holds it at a time, and clearing removes only files the run wrote."""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gmmvit.runs.files import RunError, is_there, naming_faults
from gmmvit.runs.run_folder import (
    CHECKPOINT,
    CONFIG,
    FILES,
    LOCK,
    METRICS,
    OWN,
    SUMMARY,
    WEIGHTS,
    holds_nothing,
    is_leftover,
    load_config,
)

TRAINED = (CONFIG, METRICS, SUMMARY, CHECKPOINT, *WEIGHTS.values())  # what every training writes
EVENTS = "tensorboard"
_EVENT_FILE = re.compile(rf"{EVENTS}/events\.out\.tfevents\.[^/]+")


@contextmanager
def locked(folder: Path, other: str = "another training") -> Iterator[None]:
    """Locks a run folder for one training; a second one gets a RunError, which calls the first one `other`.

    Does nothing on an operating system without flock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with naming_faults(folder, "create"):
        folder.mkdir(parents=True, exist_ok=True)
    is_there(folder / LOCK)
    with naming_faults(folder, "create"):
        file = (folder / LOCK).open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{other} is writing to {folder}; wait for it, or choose another --out (in Python out=)"
            ) from None
        except OSError:  # a file system without locks
            pass
        with naming_faults(folder, "clear"):
            for path in folder.iterdir():  # leftovers of killed trainings
                if is_leftover(path.name):
                    path.unlink(missing_ok=True)
        yield


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Raises RunError if a new run must not be written here: over a file, into a folder with other contents, or,
    without `overwrite`, over an old run."""
    with naming_faults(folder, "create"):
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; give the run a folder with --out (in Python out=)")
        if not folder.is_dir() or holds_nothing(folder):
            return
    is_run = _holds_run(folder)
    if overwrite and is_run:
        return
    if overwrite:
        raise RunError(
            f"{folder} holds files that do not belong to a run, so --overwrite leaves it alone; choose another --out "
            "(in Python out=)"
        )
    if is_run:
        raise RunError(
            f"{folder} already holds a run; continue it with `gmmvit resume {folder}`, choose another folder with "
            "--out (in Python out=), or replace it with --overwrite (overwrite=True)"
        )
    raise RunError(f"{folder} is not empty; choose another folder with --out (in Python out=)")


def _holds_run(folder: Path) -> bool:
    try:
        load_config(folder)
    except RunError:
        return False
    return True


def own(folder: Path, *names: str) -> None:
    """Adds files to the run's list of its own files before it writes them; only listed files are ever removed."""
    known = _listed(folder) or []
    new = [name for name in names if name not in known]
    with naming_faults(folder / OWN, "write"):
        if new:
            with (folder / OWN).open("a", encoding="utf-8") as file:
                file.write("".join(f"\n{name}" for name in new) + "\n")  # a kill may have cut the last line short


def own_if_run(path: Path) -> None:
    """`own` for a file, such as a report, that may or may not be in a run folder."""
    if path.name in FILES and (path.parent / CONFIG).is_file():
        own(path.parent, path.name)


def _listed(folder: Path) -> list[str] | None:
    """The run's list of its own files, None if it has no list. Ignores names outside the folder."""
    path = folder / OWN
    if not is_there(path):
        return None
    with naming_faults(path, "read"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [name for name in lines if name in FILES or _EVENT_FILE.fullmatch(name)]


def clear(folder: Path) -> None:
    """Removes the files on an old run's list, and no others.

    config.yaml goes last: if this is interrupted, every command still takes the folder for a run. The checkpoint goes
    first, so that nothing resumes a half-removed run.
    """
    listed = _listed(folder)
    names = list(FILES if listed is None else dict.fromkeys(listed))
    for name in sorted(names, key=lambda name: (name == CONFIG, name == METRICS, name != CHECKPOINT)):
        with naming_faults(folder / name, "remove"):
            (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # missing, or holds other files
        (folder / EVENTS).rmdir()
    with naming_faults(folder / OWN, "remove"):
        (folder / OWN).unlink(missing_ok=True)
