"""The application that the commands belong to, and what they share."""

import sys
from contextlib import suppress
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from gmmvit.config import RecipeError
from gmmvit.text import line_of, shown
from gmmvit.version import __version__

EXIT_FAILED, EXIT_USAGE = 1, 2
Json = Annotated[bool, Parameter(name="--json", negative="")]  # a flag that has no --no-json

app = App(
    name="gmmvit",
    version=__version__,
    help="Vision transformers that learn from small datasets: Gaussian mixture mask attention.",
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


def exit_status(error: BaseException) -> int:
    """2 where the command was given what it does not take, 1 where it failed.

    What the project raises for a wrong argument is a RecipeError or a plain ValueError or TypeError; faults of data and
    files have classes of their own (DataError, RunError, UnicodeError ...), some of them below ValueError.
    """
    wrong = isinstance(error, CycloptsError | RecipeError) or type(error) in (ValueError, TypeError)
    return EXIT_USAGE if wrong else EXIT_FAILED


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks and whatever a terminal would take for a command."""
    if isinstance(error, ImportError) and "failed to map segment" in str(error):  # so `ulimit -v` ends up
        return f"no memory is left to load torch, see `ulimit -v`: {line_of(str(error))}"
    if isinstance(error, MemoryError) and not str(error):
        return "memory ran out; `ulimit -v` shows whether this process has a limit"
    if isinstance(error, RuntimeError):  # torch is loaded
        from gmmvit.data.memory import refusal

        if (memory := refusal(error)) is not None:
            return f"memory ran out: {memory}"
    return line_of(str(error)) or type(error).__name__


def say(text: str, *, error: bool = False) -> None:
    """A line of output, or of notices; names in it may hold what a terminal would take for a command."""
    if not error:
        print(shown(text))
        return
    with suppress(OSError, ValueError, AttributeError):  # nobody reads the notices: the work goes on
        print(shown(text), file=sys.stderr, flush=True)
