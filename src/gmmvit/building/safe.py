"""Which arguments of another library's model are let in.

A recipe or a run's config.yaml may come from anybody, and these libraries open files, fetch from addresses and load
code that some of their arguments name."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from gmmvit.config import RecipeError
from gmmvit.text import nearest

_WORD = re.compile(r"[\w.+ -]*")  # no path, no address, no name on the Hub
# Arguments that say where weights, files or code come from; as numbers, as in `pretrained_window_sizes`, they do not.
_PLACES = re.compile(
    r"_.*|.*pretrained.*|.*(path|dir|file|url|cfg|implementation)|hf_hub_id|auto_map|trust_remote_code|"
    r"quantization_config|.*adapter.*"
)


def check_arguments(arguments: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raises RecipeError for an argument that is not among `known`, or that could name a file, an address or code.

    Args:
        arguments: by name; nested mappings and lists of plain values.
        known: the names that the model takes.
        where: the model and the field, for the errors.
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
                    f"{where} cannot hold {name!r}: it says where weights, files or code come from; give weights with "
                    "pretrained"
                )
            _check(inner, where)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check(inner, where)
    elif isinstance(value, str):
        if not _WORD.fullmatch(value) or ".." in value:
            raise RecipeError(f"{where} cannot hold {value!r:.100}: a word was expected, and no path or address")
    elif not isinstance(value, int | float | None):
        raise RecipeError(
            f"{where} cannot hold {value!r:.100}: numbers, words, true, false, lists of them and mappings"
        )


def names_place(name: Any, value: Any) -> bool:
    """Whether an argument of that name, with that value, could say where weights, files or code come from."""
    return bool(_PLACES.fullmatch(str(name))) and not _is_numeric(value)


def _is_numeric(value: Any) -> bool:
    """Numbers, and what switches nothing on."""
    if isinstance(value, list | tuple):
        return all(map(_is_numeric, value))
    return value is None or value is False or (isinstance(value, int | float) and value is not True)
