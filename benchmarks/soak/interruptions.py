"""Commands that are killed, told to stop, or find the disk full, in forked processes; then the next must work."""

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

# What writes, each as often as its number; the last two cost the most.
WRITES = {"train": 4, "overwrite": 3, "resume": 3, "report": 1, "export": 1}
_SAID = "said.txt"  # beside the run: standard error of the command
_LONGEST: dict[str, float] = {}  # seconds that a command takes where nothing ends it


def _drawn(rng: Random) -> str:
    return rng.choices([*WRITES], [*WRITES.values()])[0]


def _begun(sound: Sound, command: str, place: Path) -> tuple[Path, list[str]]:
    """The run that the command finds there, and its arguments."""
    run = place / "run"
    if command == "train":
        return run, ["train", "--quiet", "--out", str(run), *sound.flags(place / "cache")]
    shutil.copytree(sound.half if command == "resume" else sound.run, run)
    if command == "overwrite":
        return run, ["train", "--quiet", "--out", str(run), "--overwrite", *sound.flags(place / "cache")]
    more = ["--format", "torch"] if command == "export" else []
    return run, [command, str(run), *more]


def _next(sound: Sound, command: str, run: Path) -> str:
    """What is wrong with the folder as the next command finds it; empty for nothing."""
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
    """Ends the training by `resume`, or as the sentences say."""
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
    """The id of a child that ends with the status that `action` returns; what it says goes to a file."""
    if child := os.fork():
        return child
    status = 70
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(n), "w", buffering=1) for n in (1, 2))
        status = action()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _ended(child: int) -> int:
    """Its exit status, or the negative number of the signal; a child that hangs is killed."""
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _alone(arguments: list[str]) -> int:
    """The command as a process of its own runs it."""
    sys.argv = ["gmmvit", *arguments]
    return main()


def _sent(sound: Sound, rng: Random, command: str, number: int) -> tuple[int, str, Path, str]:
    """Sends the signal at a random moment; the status, what was said, the run and what is wrong with it then."""
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
    """After `kill -9` at any time, the next command reaches the weights of a run that nothing interrupted."""
    command = _drawn(rng)
    status, said, _, fault = _sent(sound, rng, command, signal.SIGKILL)
    if status not in (0, -signal.SIGKILL):
        return f"{command}: status {status}: {said[-300:]}"
    return fault and f"{command}: {fault}"


def signalled(sound: Sound, rng: Random, number: int) -> str:
    """A command that is told to stop ends in one line with status 1, and the next command works."""
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
    """A small disk of its own in memory, for this process alone; gives what sets how many more kiB fit on it.

    Gives None where that is not allowed; then a limit on the size of files stands in for it.
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
