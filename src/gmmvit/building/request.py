"""The request for another library's model, and how its errors are reported."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from gmmvit.config import Recipe
from gmmvit.data.memory import refusal

_PACKAGES = {"timm": "timm", "hf": "transformers"}


@dataclass(frozen=True)
class Request:
    """A model of another library by `name`, for images (height, width) with these channels and classes.

    `report` is called with a sentence about each thing dropped or replaced."""

    recipe: Recipe
    name: str
    image_size: tuple[int, int]
    channels: int
    class_names: tuple[str, ...]
    report: Callable[[str], None]
    old_classes: tuple[str, ...] | None = None  # of the given weights, if they come from a run

    @property
    def classes(self) -> int:
        return len(self.class_names)

    @property
    def size(self) -> int | list[int]:
        """The image size as libraries like it: one int for a square."""
        return self.image_size[0] if self.image_size[0] == self.image_size[1] else list(self.image_size)


def require(library: str) -> None:
    """Raises ModuleNotFoundError if a library is missing, with the command that installs it."""
    package = _PACKAGES[library]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        hint = f"models of {library}: need {package}; install it: pip install {package}"
        raise ModuleNotFoundError(hint, name=package) from error


def first_line(error: BaseException) -> str:
    """A library's error message, shortened."""
    if (memory := refusal(error)) is not None:
        return memory
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2]).rstrip(".") or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
