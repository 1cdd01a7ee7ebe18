"""Makes text safe for a terminal, a log or a page: one line, printable, not too long. Imports nothing heavy."""

import difflib
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any

LONGEST = 1000  # characters of a line
# Control characters, line separators, marks that change the text direction, surrogates for bytes that are not UTF-8.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6


def shown(text: str) -> str:
    """The text on one line, safe for every terminal and file: control characters and bytes that are not UTF-8 become
    `\\xNN`."""

    def escaped(match: re.Match[str]) -> str:
        code = ord(match[0])
        code -= 0xDC00 if 0xDC80 <= code <= 0xDCFF else 0
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

    return _UNPRINTABLE.sub(escaped, text)


def line_of(text: str) -> str:
    """The text without line breaks, printable and shortened."""
    text = shown(" ".join(text.split()))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def short(value: Any) -> str:
    """`repr` of a value on one line, shortened at every depth."""
    return re.sub(r"\s*\n\s*", " ", _SHORT.repr(value))


def nearest(name: object, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6, otherwise: str = "") -> str:
    """ "; did you mean ...?" with the known names nearest to an unknown one, or `otherwise` if no name is near."""
    near = difflib.get_close_matches(str(name)[:80], list(known), most, cutoff)
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else otherwise


def columns(text: str) -> int:
    """The terminal columns that the text takes: two per East Asian wide character, none per combining mark."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(bool(unicodedata.combining(character)) for character in text)
