"""What is asked of another library's model, and how its faults are reported."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from gmmvit.config import Recipe
from gmmvit.data.memory import refusal

_PACKAGES = {"timm": "timm", "hf": "transformers"}


@dataclass(frozen=True)
class Request:
    """A model of another library by `name`, for images (height, width) of so many channels and these classes.

    `report` is given sentences about what was left out or replaced."""

    recipe: Recipe
    name: str
    image_size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...]
    report: Callable[[str], None]
    old_classes: tuple[str, ...] | None = None  # of the given weights, where they are those of a run

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def size(self) -> int | list[int]:
        """The image size as libraries like it: one int for a square."""
        return self.image_size[0] if self.image_size[0] == self.image_size[1] else list(self.image_size)


def require(library: str) -> None:
    """Raises ModuleNotFoundError where a library is missing, one sentence with the command that installs it."""
    package = _PACKAGES[library]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        hint = f"models of {library}: need {package}; install it: pip install {package}"
        raise ModuleNotFoundError(hint, name=package) from error


def first_line(error: BaseException) -> str:
    """What an error of a library says, shortened."""
    if (memory := refusal(error)) is not None:
        return memory
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
