"""Go's view of characters: strings are bytes, and a byte that is not UTF-8 is a character of its own.

Inside the engine such a byte is the lone surrogate U+DC80 to U+DCFF that Python's ``surrogateescape`` makes of it, so
that counting characters counts each of them once, as Go's ``utf8`` package does.
"""

from __future__ import annotations

import unicodedata
from typing import Final

REPLACEMENT: Final = "�"
MAX_RUNE: Final = 0x10FFFF
# unicode.IsSpace; Python's str.isspace also takes U+001C to U+001F.
_EN_QUAD_TO_HAIR_SPACE: Final = "".join(map(chr, range(0x2000, 0x200B)))
GO_SPACES: Final = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + _EN_QUAD_TO_HAIR_SPACE


def to_text(data: bytes) -> str:
    """The characters of a Go string."""
    return data.decode("utf-8", "surrogateescape")


def to_bytes(text: str) -> bytes:
    """The Go string of these characters; the inverse of :func:`to_text`."""
    return text.encode("utf-8", "surrogateescape")


def brief(text: str) -> str:
    """A text as messages show it: quoted, ASCII only, not longer than a line."""
    return ascii(text if len(text) <= 60 else text[:57] + "...")


def is_stray_byte(char: str) -> bool:
    """Whether this character stands for a byte that is not UTF-8."""
    return "\udc80" <= char <= "\udcff"


def is_printable(char: str) -> bool:
    """Go's ``unicode.IsPrint``: letters, marks, numbers, punctuation, symbols and the ASCII space."""
    if char == " ":
        return True
    return unicodedata.category(char)[0] in "LMNPS"


def is_word(char: str) -> bool:
    """Whether the character may be part of a name: underscore, letter, or decimal digit."""
    if char == "_":
        return True
    category = unicodedata.category(char)
    return category[0] == "L" or category == "Nd"


def is_valid_rune(code: int) -> bool:
    """Whether the number is a Unicode scalar value."""
    return 0 <= code <= MAX_RUNE and not 0xD800 <= code <= 0xDFFF
