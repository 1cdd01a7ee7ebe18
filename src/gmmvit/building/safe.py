"""Checks which arguments may reach another library's model.

A recipe or a run's config.yaml may come from anybody, and some arguments of these libraries name files to open,
addresses to fetch from or code to load."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gmmvit.config import RecipeError
from gmmvit.text import nearest

_WORD = re.compile(r"[\w.+ -]*")  # no path, no address, no name on the Hub
# Arguments that name a source of weights, files or code, unless they are numbers, as in `pretrained_window_sizes`.
_PLACES = re.compile(
    r"_.*|.*pretrained.*|.*(path|dir|file|url|cfg|implementation)|hf_hub_id|auto_map|trust_remote_code|"
    r"quantization_config|.*adapter.*"
)


def check_arguments(arguments: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises RecipeError for an argument that is not in `known` or could name a file, an address or code.

    Args:
        arguments: by name; nested mappings and lists of plain values.
        known: the names that the model takes.
        where: the model and the field, for error messages.
    """
    known = set(known)
    for name in arguments:
        if name not in known:
            raise RecipeError(f"{where} has no argument {name!r}{nearest(name, known, most=3)}")
    _check(arguments, where)


def _check(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            if names_place(name, inner):
                raise RecipeError(
                    f"{where} cannot hold {name!r}: it names a source of weights, files or code; give weights with "
                    "pretrained"
                )
            _check(inner, where)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(inner, where)
    elif isinstance(value, str):
        if not _WORD.fullmatch(value) or ".." in value:
            raise RecipeError(f"{where} cannot hold {value!r:.100}: expected a word, not a path or address")
    elif not isinstance(value, int | float | None):
        raise RecipeError(
            f"{where} cannot hold {value!r:.100}: allowed are numbers, words, true, false, lists and mappings"
        )


def names_place(name: Any, value: Any) -> bool:
    """Whether this argument with this value could name a source of weights, files or code."""
    return bool(_PLACES.fullmatch(str(name))) and not _is_numeric(value)


def _is_numeric(value: Any) -> bool:
    """Whether a value holds only numbers, booleans and None."""
    if isinstance(value, list | tuple):
        return all(map(_is_numeric, value))
    return value is None or value is False or (isinstance(value, int | float) and value is not True)
