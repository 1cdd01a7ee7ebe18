"""Recognises train, val and test in the names of folders, files and columns, in any usual spelling."""

from __future__ import annotations

import re
from collections.abc import Sequence

PARTS = ("train", "val", "test")
_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_PART_OF_WORD = {word: part for part, words in _WORDS.items() for word in words}
# Words allowed beside such a word, or directly after it.
_FILLERS = frozenset({"set", "data", "dataset", "split", "part", "images", "image", "imgs", "img", "seg"})
_GLUED = re.compile(rf"({'|'.join(sorted(_PART_OF_WORD, key=len, reverse=True))})(?:{'|'.join(sorted(_FILLERS))})?$")
_TOKENS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")


def part_of(name: str) -> str | None:
    """The part (`train`, `val` or `test`) for a name such as `Training_set`, `val2017` or `testImages`; None if it
    contains other words or no such word."""
    parts = [_part_of_token(token) for token in _tokens(name)]
    found = [part for part in parts if part]
    return found[0] if len(found) == 1 and all(part is not None for part in parts) else None


def parts_of(names: Sequence[str]) -> dict[str, str]:
    """Sibling name -> part, by `part_of`, and also for names that differ only in that word, such as `flowers_train` and
    `flowers_test`."""
    words = {name: frozenset(token for token in _tokens(name) if _part_of_token(token) is None) for name in names}
    found = {name: part for name in names if (part := part_of(name))}
    loose = {name: part for name in names if name not in found and (part := part_in(name))}
    kinds: dict[frozenset[str], set[str]] = {}
    for name, part in loose.items():
        kinds.setdefault(words[name], set()).add(part)
    return found | {name: part for name, part in loose.items() if len(kinds[words[name]]) > 1}


def part_in(name: str) -> str | None:
    """The part of a file name, which may contain other words, such as `cats-train-00000-of-00002`."""
    found = {part for token in _tokens(name) if (part := _part_of_token(token))}
    return found.pop() if len(found) == 1 else None


def other_words(name: str) -> list[str]:
    """The words of a name, in small letters, without those that mean a part."""
    return [token for token in _tokens(name) if not _part_of_token(token)]


def _tokens(name: str) -> list[str]:
    return [token.lower() for token in _TOKENS.findall(name)]


def _part_of_token(token: str) -> str | None:
    """The part that a word means, "" for a filler, None for other words."""
    if token in _FILLERS:
        return ""
    match = _GLUED.fullmatch(token)
    return _PART_OF_WORD[match[1]] if match else None
