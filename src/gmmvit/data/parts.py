"""What folders, files and columns call the parts of a data set: train, val and test in any usual spelling."""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_PART_OF_WORD = {word: part for part, words in _WORDS.items() for word in words}
# What may stand beside such a word, or behind it without a gap, in the name of a part.
_FILLERS = frozenset({"set", "data", "dataset", "split", "part", "images", "image", "imgs", "img", "seg"})
_GLUED = re.compile(rf"({'|'.join(sorted(_PART_OF_WORD, key=len, reverse=True))})(?:{'|'.join(sorted(_FILLERS))})?$")
_TOKENS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_]+")


def part_of(name: str) -> str | None:
    """The part (`train`, `val` or `test`) that a name means, such as `Training_set`, `val2017` or `testImages`; None
    where it has another word in it, or none."""
    parts = [_part_of_token(token) for token in _tokens(name)]
    found = [part for part in parts if part]
    return found[0] if len(found) == 1 and all(part is not None for part in parts) else None


def parts_of(names: Sequence[str]) -> dict[str, str]:
    """Which of several neighbours are parts, and which ones: by `part_of`, and where names differ by that word alone,
    as `flowers_train` and `flowers_test` do."""
    words = {name: frozenset(token for token in _tokens(name) if _part_of_token(token) is None) for name in names}
    found = {name: part for name in names if (part := part_of(name))}
    loose = {name: part for name in names if name not in found and (part := part_in(name))}
    for name, part in loose.items():
        if any(words[other] == words[name] and loose[other] != part for other in loose):
            found[name] = part
    return found


def part_in(name: str) -> str | None:
    """The part that a file of this name belongs to: it may have other words too, as `cats-train-00000-of-00002`."""
    found = {part for token in _tokens(name) if (part := _part_of_token(token))}
    return found.pop() if len(found) == 1 else None


def _tokens(name: str) -> list[str]:
    return [token.lower() for token in _TOKENS.findall(name)]


def _part_of_token(token: str) -> str | None:
    """The part that a word means, "" for a filler, None for another word."""
    if token in _FILLERS:
        return ""
    match = _GLUED.fullmatch(token)
    return _PART_OF_WORD[match[1]] if match else None
