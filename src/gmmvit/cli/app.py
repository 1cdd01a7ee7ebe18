"""The application object, and what the commands share."""

import sys
from contextlib import suppress
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from gmmvit.config import RecipeError
from gmmvit.text import line_of, shown
from gmmvit.version import __version__

EXIT_FAILED, EXIT_USAGE = 1, 2
Json = Annotated[bool, Parameter(name="--json", negative="")]  # without --no-json

app = App(
    name="gmmvit",
    version=__version__,
    help="Vision transformers that learn from small datasets: Gaussian mixture mask attention.",
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)


def exit_status(error: BaseException) -> int:
    """2 for wrong arguments, 1 for failures.

    The project raises RecipeError or plain ValueError and TypeError for wrong arguments. Errors of data and files have
    other classes (DataError, RunError, UnicodeError ...), some of them subclasses of ValueError.
    """
    wrong = isinstance(error, CycloptsError | RecipeError) or type(error) in (ValueError, TypeError)
    return EXIT_USAGE if wrong else EXIT_FAILED


def one_line(error: BaseException) -> str:
    """An error's message on one line, without control characters."""
    if isinstance(error, ImportError) and "failed to map segment" in str(error):  # typical of `ulimit -v`
        return f"not enough memory to load torch, see `ulimit -v`: {line_of(str(error))}"
    if isinstance(error, MemoryError) and not str(error):
        return "memory ran out; `ulimit -v` shows whether this process has a limit"
    if isinstance(error, RuntimeError):  # torch is loaded
        from gmmvit.data.memory import refusal

        if (memory := refusal(error)) is not None:
            return f"memory ran out: {memory}"
    return line_of(str(error)) or type(error).__name__


def say(text: str, *, error: bool = False) -> None:
    """Prints a line of output, or of notices if `error`, without control characters that names may contain."""
    if not error:
        print(shown(text))
        return
    with suppress(OSError, ValueError, AttributeError):  # the work continues even if nobody reads the notices
        print(shown(text), file=sys.stderr, flush=True)
