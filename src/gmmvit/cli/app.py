"""The application that the commands belong to, and what they share."""

from typing import Annotated

from cyclopts import App, Parameter

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


def one_line(error: BaseException) -> str:
    """What an error says, without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
