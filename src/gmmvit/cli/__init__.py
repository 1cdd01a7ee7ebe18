"""The command `gmmvit`. Commands import inside their functions, so that `--help` answers at once."""

import io
import os
import signal
import sys
from contextlib import suppress

from gmmvit.cli import cache, demo, export, inspect, predict, runs, sweeps, tools
from gmmvit.cli.app import EXIT_FAILED, app, exit_status, one_line

__all__ = [
    "app",
    "cache",
    "demo",
    "export",
    "inspect",
    "main",
    "predict",
    "runs",
    "sweeps",
    "tools",
]  # these modules register their commands


def _interrupt(number: int, frame: object) -> None:
    """Makes SIGTERM, with which schedulers stop jobs, act like Ctrl-C."""
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0 done, 1 failed, 2 wrong usage. `--debug` shows tracebacks."""
    alone = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Waiting libgomp threads spin, almost forever if another process holds a core. Read when torch loads. Measured with
    # `train` on the digits: as fast on idle cores, many times faster on shared ones.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    for number in (1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next opened file would get its number and our output
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # an unprintable name is not a failure
    leads = os.environ.get("RANK", "0") == "0"
    if leads:  # the other processes end at once when torchrun ends them
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, _interrupt)
    name = "gmmvit" if leads else f"gmmvit (process {os.environ['RANK']})"
    try:
        status = app(arguments, exit_on_error=False, print_error=False) or 0
        if status == 0 and os.environ.get("WORLD_SIZE", "1") != "1":
            from gmmvit.distributed import leave

            leave()
        return status
    except KeyboardInterrupt as error:
        print(f"{name}: {str(error) or 'interrupted'}", file=sys.stderr)
        return EXIT_FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit flushes into nothing
        return EXIT_FAILED
    except Exception as error:
        if debug:
            raise
        with suppress(OSError, ValueError):  # nobody reads it
            print(f"{name}: {one_line(error)}", file=sys.stderr)
        return exit_status(error)
    finally:
        if alone:  # the process is about to end: a signal would only add a traceback
            with suppress(ValueError):
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
