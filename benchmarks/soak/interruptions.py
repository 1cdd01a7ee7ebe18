"""Commands that are killed, stopped by a signal or out of disk, in forked processes; the next command must work."""

import contextlib
import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from gmmvit.cli import main
from gmmvit.report import write_report
from gmmvit.runs.export import export_run
from gmmvit.runs.files import RunError
from gmmvit.runs.run_folder import read_rows, read_summary
from gmmvit.training.run import resume, train
from soak.trials import Sound, wrong_end

# Commands that write, with their weights; the last two cost the most.
WRITES = {"train": 4, "overwrite": 3, "resume": 3, "report": 1, "export": 1}
_SAID = "said.txt"  # beside the run: standard error of the command
_LONGEST: dict[str, float] = {}  # seconds that a command takes if nothing ends it


def _drawn(rng: Random) -> str:
    return rng.choices([*WRITES], [*WRITES.values()])[0]


def _begun(sound: Sound, command: str, place: Path) -> tuple[Path, list[str]]:
    """The run that the command finds, and the command's arguments."""
    run = place / "run"
    if command == "train":
        return run, ["train", "--quiet", "--out", str(run), *sound.flags(place / "cache")]
    shutil.copytree(sound.half if command == "resume" else sound.run, run)
    if command == "overwrite":
        return run, ["train", "--quiet", "--out", str(run), "--overwrite", *sound.flags(place / "cache")]
    more = ["--format", "torch"] if command == "export" else []
    return run, [command, str(run), *more]


def _next(sound: Sound, command: str, run: Path) -> str:
    """What is wrong with the folder for the next command; empty if nothing."""
    if command == "report":
        write_report(run)
    elif command == "export":
        export_run(run, format="torch", overwrite=True)
    else:
        _trained(sound, run)
        if fault := sound.other_weights(run):
            return fault
        if [row["epoch"] for row in read_rows(run)] != [1, 2, 3] or read_summary(run)["epochs"] != 3:
            return "other epochs than three"
    left = list(run.glob(".*.tmp"))
    return f"left behind: {left[0].name}" if left else ""


def _trained(sound: Sound, run: Path) -> None:
    """Finishes the training by `resume`, or as its messages advise."""
    if run.exists():
        try:
            resume(run, quiet=True)
            return
        except RunError as error:
            if "train" not in str(error):
                raise
    try:
        train(sound.recipe, run, quiet=True)
    except RunError as error:
        if "--overwrite" not in str(error):
            raise
        train(sound.recipe, run, overwrite=True, quiet=True)


def _forked(action: Callable[[], int], said: Path) -> int:
    """The id of a child that exits with the status that `action` returns; its standard error goes to a file. It has
    begun: an earlier signal would hit the handlers of this process in it."""
    begun, tell = os.pipe()
    if child := os.fork():
        os.close(tell)
        os.read(begun, 1)
        os.close(begun)
        return child
    status = 70
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
        os.write(tell, b".")
        status = action()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _ended(child: int) -> int:
    """The child's exit status, or the negative number of the signal; kills a child that hangs."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _alone(arguments: list[str]) -> int:
    """Runs the command as its own process would."""
    sys.argv = ["gmmvit", *arguments]
    return main()


def _sent(sound: Sound, rng: Random, command: str, number: int) -> tuple[int, str, Path, str]:
    """Sends the signal at a random moment; returns the status, standard error, the run and what is wrong with it."""
    if command not in _LONGEST:
        with sound.place() as place:
            _, arguments = _begun(sound, command, place)
            began = time.monotonic()
            if _ended(_forked(lambda: _alone(arguments), place / _SAID)):
                raise RuntimeError((place / _SAID).read_text())
            _LONGEST[command] = time.monotonic() - began
    with sound.place() as place:
        run, arguments = _begun(sound, command, place)
        child = _forked(lambda: _alone(arguments), place / _SAID)
        time.sleep(rng.random() * _LONGEST[command])
        os.kill(child, number)
        status, said = _ended(child), (place / _SAID).read_text() if (place / _SAID).exists() else ""
        return status, said, run, _next(sound, command, run)


def kill(sound: Sound, rng: Random, number: int) -> str:
    """After `kill -9` at any time, the next command reaches the weights of an uninterrupted run."""
    command = _drawn(rng)
    status, said, _, fault = _sent(sound, rng, command, signal.SIGKILL)
    if status not in (0, -signal.SIGKILL):
        return f"{command}: status {status}: {said[-300:]}"
    return fault and f"{command}: {fault}"


def signalled(sound: Sound, rng: Random, number: int) -> str:
    """A command stopped by a signal ends in one line with status 1, and the next command works."""
    command, sent = _drawn(rng), rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    status, said, _, fault = _sent(sound, rng, command, sent)
    if not fault and status not in (0, -signal.SIGTERM, -signal.SIGHUP):
        fault = wrong_end(status, said, (1,))
    return fault and f"{command}, {sent.name}: {fault}"


def disk(sound: Sound, rng: Random, number: int) -> str:
    """A command that finds the disk full ends in one line with status 1; with room again, the next command works."""
    command = _drawn(rng)
    with sound.place() as place:
        child = _forked(lambda: _on_a_full_disk(sound, rng, command, place / "disk"), place / _SAID)
        status = _ended(child)
        said = (place / _SAID).read_text()
        return "" if status == 0 else f"{command}: {said[-600:]}"


def _on_a_full_disk(sound: Sound, rng: Random, command: str, place: Path) -> int:
    place.mkdir()
    with _mounted(place) as resized:
        run, arguments = _begun(sound, command, place)
        need = sum(file.stat().st_size for file in sound.run.iterdir()) / 1024
        room = int(rng.random() * 1.5 * need)
        if resized is None:
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (room * 1024, hard))
            status = _alone(arguments)
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        else:
            resized(room)
            status = _alone(arguments)
            resized(1 << 20)
        said = (place.parent / _SAID).read_text()
        fault = wrong_end(status, said, (0, 1)) or _next(sound, command, run)
        print(f"{room} kiB: {fault}", file=sys.stderr)
        return 1 if fault else 0


@contextlib.contextmanager
def _mounted(place: Path) -> Iterator[Callable[[int], None] | None]:
    """Mounts a small disk in memory, for this process only; yields a function that sets how many more kiB fit on it.

    Yields None if mounting is not allowed; then a limit on the size of files stands in for it.
    """
    user, group = os.getuid(), os.getgid()
    spaces = 0x00020000 | (0x10000000 if user else 0)  # CLONE_NEWNS, CLONE_NEWUSER
    if ctypes.CDLL(None).unshare(spaces) == 0:
        if user:
            for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
                Path(f"/proc/self/{name}").write_text(line)
        mount = ["mount", "-t", "tmpfs", "-o", "size=1g", "none", str(place)]
        if subprocess.run(mount, check=False, capture_output=True).returncode == 0:
            yield lambda room: _resize(place, room)
            return
    yield None


def _resize(place: Path, room: int) -> None:
    disk = os.statvfs(place)
    used = (disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024
    subprocess.run(["mount", "-o", f"remount,size={max(used + room, 4)}k", str(place)], check=True)
