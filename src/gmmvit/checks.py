"""Argument checks. They read only Python values: cheap enough for every call, and torch.compile traces them.

Errors name the argument, what is allowed and the value: TypeError for a wrong type, ValueError for a wrong value.
"""

import difflib
import math
import os
from collections.abc import Collection, Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import torch

from gmmvit.text import short


def is_integer(value: object) -> bool:
    """Whether it is an int of Python or numpy, or a dynamic size of torch.export; a bool is not."""
    return isinstance(value, int | Integral | torch.SymInt) and not isinstance(value, bool)


def integer(name: str, value: Any, least: int = 1, most: int | None = None) -> None:
    """Raises TypeError unless `value` is one int, ValueError unless it is from `least` to `most`."""
    if not is_integer(value):
        raise TypeError(f"{name} must be one int, got {short(value)}")
    if most is not None and not least <= value <= most:
        raise ValueError(f"{name} must be between {least} and {most}, got {value}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    if not isinstance(value, torch.SymInt) and value >= 2**31:  # torch's own error is a C++ overflow
        raise ValueError(f"{name} must be below 2^31, got {value}")


def is_real(value: object) -> bool:
    """Whether it is a number of Python or numpy; a bool is not."""
    return isinstance(value, int | float | Real) and not isinstance(value, bool)


def real(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is one number, ValueError unless it is finite."""
    if not is_real(value):
        raise TypeError(f"{name} must be one number, got {short(value)}")
    if not -math.inf < value < math.inf:
        raise ValueError(f"{name} must be finite, got {value}")


def boolean(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {short(value)}")


def booleans(**values: Any) -> None:
    """Raises TypeError unless each of them is True or False."""
    for name, value in values.items():
        boolean(name, value)


def paths(**values: Any) -> None:
    """Raises TypeError unless each of them is the path of a file or folder, or None."""
    for name, value in values.items():
        if value is not None and not isinstance(value, str | os.PathLike):
            raise TypeError(f"{name} must be a path, got {short(value)}")


def above_zero(name: str, value: Any) -> None:
    """Raises unless `value` is one finite number above zero."""
    real(name, value)
    if value <= 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def fraction(name: str, value: Any) -> None:
    """Raises unless `value` is one number in [0, 1)."""
    real(name, value)
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def one_of(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raises ValueError unless `value` is allowed."""
    choices = list(allowed)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {short(value)}")


def known_options(owner: str, options: Iterable[str], allowed: Collection[str]) -> None:
    """Raises TypeError for the first option unknown to `owner`, with the nearest name."""
    for name in options:
        if name not in allowed:
            near = difflib.get_close_matches(str(name), allowed, 1)
            hint = f"the nearest is {near[0]!r}" if near else f"allowed are {list(allowed)}"
            raise TypeError(f"{owner} has no option {name!r}; {hint}")


def pair(value: int | Sequence[int], name: str, sides: str = "(height, width)") -> tuple[int, int]:
    """Two positive ints from an int or a pair; `sides` names them in the error.

    Raises TypeError or ValueError, which names the argument.
    """
    values: Any = (value, value) if is_integer(value) else value
    listed = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    typed = listed and all(is_integer(side) for side in values[:2])
    if not typed or len(values) != 2 or min(values) < 1:
        raise (ValueError if typed else TypeError)(
            f"{name} must be a positive int or a pair {sides} of them, got {short(value)}"
        )
    # Keep dynamic sizes of torch.export dynamic.
    first, second = (side if isinstance(side, torch.SymInt) else int(side) for side in values)
    return first, second  # type: ignore[return-value]


def per_stage(
    value: int | Sequence[int], name: str, *, stages: int | None = None, example: tuple[int, ...] = ()
) -> tuple[int, ...]:
    """One positive int per stage or, if the number of stages is known, a single int for all.

    Raises TypeError or ValueError, which names the argument and, if the number is unknown, gives the example.
    """
    values: Any = (value,) * stages if stages and is_integer(value) else value
    typed = isinstance(values, Sequence) and all(is_integer(v) for v in values)
    if not typed or (stages and len(values) != stages) or min(values, default=0) < 1:
        wanted = f"{stages} positive ints, one per stage, or one for all"
        if stages is None:
            wanted = f"one positive int per stage, e.g. {name}={example}"
        raise (ValueError if typed else TypeError)(f"{name} must be {wanted}, got {short(value)}")
    return tuple(int(v) for v in values)
