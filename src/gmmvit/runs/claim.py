"""Whose a run folder is: held by one training at a time, and cleared of what the run itself wrote, nothing else."""

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
    """Holds a run folder for one training; another one that asks gets a RunError, which calls the first one `other`.

    On an operating system without flock nothing is held.
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
            for path in folder.iterdir():  # of trainings that were killed while they wrote
                if is_leftover(path.name):
                    path.unlink(missing_ok=True)
        yield


def check_free(folder: Path, *, overwrite: bool = False) -> None:
    """Raises RunError where a new run may not be written: to a file, to a folder that holds something else, or, unless
    it is to be overwritten, over an old run."""
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
            f"{folder} holds files that are not a run's, so --overwrite leaves it alone; choose another --out (in "
            "Python out=)"
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
    """Puts files on the run's list of its own, before it writes them; only such files are ever removed."""
    known = _listed(folder) or []
    new = [name for name in names if name not in known]
    with naming_faults(folder / OWN, "write"):
        if new:
            with (folder / OWN).open("a", encoding="utf-8") as file:
                file.write("".join(f"\n{name}" for name in new) + "\n")  # behind a line that a kill cut short


def own_if_run(path: Path) -> None:
    """The same for a file that may lie in a run folder, such as a report."""
    if path.name in FILES and (path.parent / CONFIG).is_file():
        own(path.parent, path.name)


def _listed(folder: Path) -> list[str] | None:
    """The run's list of its own files; None where it has none. Names of other places in it are passed over."""
    path = folder / OWN
    if not is_there(path):
        return None
    with naming_faults(path, "read"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [name for name in lines if name in FILES or _EVENT_FILE.fullmatch(name)]


def clear(folder: Path) -> None:
    """Removes the files that an old run wrote, as its own list says, and no others.

    config.yaml goes last: until then the folder is that of a run to every command, whatever ends this or stands in its
    way. The checkpoint goes first, so that nothing goes on from a half of it.
    """
    listed = _listed(folder)
    names = list(FILES if listed is None else dict.fromkeys(listed))
    for name in sorted(names, key=lambda name: (name == CONFIG, name == METRICS, name != CHECKPOINT)):
        with naming_faults(folder / name, "remove"):
            (folder / name).unlink(missing_ok=True)
    with suppress(OSError):  # not there, or somebody else's files are in it
        (folder / EVENTS).rmdir()
    with naming_faults(folder / OWN, "remove"):
        (folder / OWN).unlink(missing_ok=True)
