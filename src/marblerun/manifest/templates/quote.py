"""Go's quoting of strings and characters (strconv.Quote and friends), for ``%q`` and ``%#v``."""

from __future__ import annotations

from typing import Final

from marblerun.manifest.templates.unicode import REPLACEMENT, is_printable, is_stray_byte, is_valid_rune, to_text

_NAMED: Final = {
    "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v",
}  # fmt: skip


def quote(data: bytes, *, ascii_only: bool) -> str:
    """The string in double quotes, with escapes for what is not printable."""
    return '"' + "".join(_escape(char, '"', ascii_only) for char in to_text(data)) + '"'


def quote_rune(code: int, *, ascii_only: bool) -> str:
    """The character in single quotes; U+FFFD for a number that is no character."""
    char = chr(code) if is_valid_rune(code) else REPLACEMENT
    return "'" + _escape(char, "'", ascii_only) + "'"


def can_backquote(data: bytes) -> bool:
    """Whether the string can stand in a raw string constant on one line."""
    return all(_in_raw_string(char) for char in to_text(data))


def _in_raw_string(char: str) -> bool:
    if char > "\x7f":
        return char != "\ufeff" and not is_stray_byte(char)
    return (char >= " " or char == "\t") and char not in "`\x7f"


def _escape(char: str, mark: str, ascii_only: bool) -> str:
    if char in (mark, "\\"):
        return "\\" + char
    if is_stray_byte(char):
        return f"\\x{ord(char) - 0xDC00:02x}"
    if (char < "\x80" or not ascii_only) and is_printable(char):
        return char
    if char in _NAMED:
        return _NAMED[char]
    code = ord(char)
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
