"""String, character and number constants, read as Go's strconv reads them."""

from __future__ import annotations

import re
from typing import Final

from marblerun.manifest.templates.budget import TemplateFailure
from marblerun.manifest.templates.unicode import REPLACEMENT, brief, is_stray_byte, is_valid_rune, to_bytes

MAX_INT: Final = (1 << 63) - 1
MIN_INT: Final = -(1 << 63)
MAX_UINT: Final = (1 << 64) - 1
# The longest float64 that means something has 767 digits; conversion takes time quadratic in the length.
MAX_NUMBER_LENGTH: Final = 1_000

_SIMPLE_ESCAPES: Final = {
    "a": 0x07, "b": 0x08, "f": 0x0C, "n": 0x0A, "r": 0x0D, "t": 0x09, "v": 0x0B, "\\": 0x5C,
}  # fmt: skip
_HEX_LENGTHS: Final = {"x": 2, "u": 4, "U": 8}
_STRAY = re.compile("[\udc80-\udcff]")
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|[abfnrtv\\'\"])|\\")

_UNSIGNED = re.compile(r"0[xX][0-9a-fA-F_]+|0[oO][0-7_]+|0[bB][01_]+|0[0-7_]*|[1-9][0-9_]*")
_DECIMAL_FLOAT = re.compile(r"[+-]?(?:[0-9_]*\.?[0-9_]*)(?:[eE][+-]?[0-9][0-9_]*)?")
_HEX_FLOAT = re.compile(r"[+-]?0[xX](?:[0-9a-fA-F_]*\.?[0-9a-fA-F_]*)[pP][+-]?[0-9][0-9_]*")
_COMPLEX = re.compile(r"(.*[^eEpP])([+-].*)i")


def unquote(quoted: str) -> bytes:
    """The bytes that a quoted or raw string constant, quotes included, stands for."""
    inner = quoted[1:-1]
    if quoted[0] == "`":
        return to_bytes(inner.replace("\r", ""))
    parts: list[bytes] = []
    last = 0
    for found in _ESCAPE.finditer(inner):
        parts.append(_plain(inner[last : found.start()]))
        parts.append(_escaped(found.group(), '"')[1])
        last = found.end()
    parts.append(_plain(inner[last:]))
    return b"".join(parts)


def _plain(text: str) -> bytes:
    """Text without escapes; bytes that are not UTF-8 become U+FFFD, as in Go's unquoting."""
    return to_bytes(_STRAY.sub(REPLACEMENT, text))


def _escaped(escape: str, quote: str) -> tuple[int, bytes]:
    """The code of an escape sequence and the bytes it stands for in a string."""
    kind = escape[1:2]
    if kind in _SIMPLE_ESCAPES or (kind and kind == quote):
        code = _SIMPLE_ESCAPES.get(kind, ord(kind))
        return code, bytes([code])
    if kind in _HEX_LENGTHS:
        code = int(escape[2:], 16)
        if kind == "x":
            return code, bytes([code])
        if is_valid_rune(code):
            return code, chr(code).encode()
    elif kind and kind in "01234567":
        code = int(escape[1:], 8)
        if code <= 0xFF:
            return code, bytes([code])
    raise TemplateFailure("invalid escape sequence in a string or character constant")


def character(quoted: str) -> int:
    """The code of a character constant, quotes included."""
    inner = quoted[1:-1]
    if len(inner) == 1 and inner not in "\\'":
        return ord(REPLACEMENT) if is_stray_byte(inner) else ord(inner)
    found = _ESCAPE.fullmatch(inner)
    if found is None:
        raise TemplateFailure(f"malformed character constant {brief(quoted)}")
    return _escaped(inner, "'")[0]


def number(text: str) -> int | float | complex | None:
    """The value of a number where Go has to choose a type by its spelling; None if it is above int64 but in uint64."""
    if len(text) > MAX_NUMBER_LENGTH:
        raise TemplateFailure("a number of more than 1000 characters")
    if text.endswith("i") and (imaginary := parse_float(text[:-1])) is not None:
        return complex(0, imaginary)
    integer = _parse_integer(text)
    if integer is not None:
        return integer if integer <= MAX_INT else None
    value = parse_float(text)
    if value is None:
        raise TemplateFailure(f"illegal number syntax: {brief(text)}")
    if not any(char in text for char in ".eEpP"):
        raise TemplateFailure(f"integer overflow: {brief(text)}")
    return value


def complex_number(text: str) -> complex:
    """The value of a constant such as ``1+2i``."""
    found = _COMPLEX.fullmatch(text) if len(text) <= MAX_NUMBER_LENGTH else None
    if found is not None:
        real, imaginary = parse_float(found[1]), parse_float(found[2])
        if real is not None and imaginary is not None:
            return complex(real, imaginary)
    raise TemplateFailure(f"illegal number syntax: {brief(text)}")


def _parse_integer(text: str) -> int | None:
    """An integer in Go's spelling with base prefix, -2^63 to 2^64-1; None if it is not one."""
    sign = text[:1] if text[:1] in ("+", "-") else ""
    digits = text[len(sign) :]
    if _UNSIGNED.fullmatch(digits) is None or not _underscores_ok(digits):
        return None
    prefix = digits[:2].lower()
    base = {"0x": 16, "0o": 8, "0b": 2}.get(prefix, 8 if digits.startswith("0") else 10)
    body = (digits[2:] if prefix in ("0x", "0o", "0b") else digits).replace("_", "")
    # Longer texts cannot be in range, and Python takes quadratic time for them.
    if len(body.lstrip("0")) > 64:
        return None
    value = -int(body, base) if sign == "-" else int(body, base)
    ceiling = MAX_INT if sign else MAX_UINT
    return value if MIN_INT <= value <= ceiling else None


def parse_float(text: str) -> float | None:
    """A float in Go's decimal or hexadecimal spelling; None if it is not one or does not fit a float64."""
    if not _underscores_ok(text):
        return None
    plain = text.replace("_", "")
    if _HEX_FLOAT.fullmatch(text):
        mantissa = plain.lower().lstrip("+-")[2:].split("p")[0]
        return _finite(plain, hexadecimal=True) if mantissa.strip(".") else None
    if _DECIMAL_FLOAT.fullmatch(text):
        mantissa = re.split("[eE]", plain.lstrip("+-"))[0]
        return _finite(plain, hexadecimal=False) if mantissa.strip(".") else None
    return None


def _finite(text: str, *, hexadecimal: bool) -> float | None:
    try:
        value = float.fromhex(text) if hexadecimal else float(text)
    except (OverflowError, ValueError):
        return None
    return value if abs(value) != float("inf") else None


def _underscores_ok(text: str) -> bool:
    """Whether each underscore stands between two digits or between a base prefix and a digit."""
    if "_" not in text:
        return True
    body = text.lstrip("+-")
    digit = "[0-9a-fA-F]" if body[:2].lower() == "0x" else "[0-9]"
    if body[:2].lower() in ("0x", "0o", "0b"):
        body = "0" + body[2:]
    return not re.search(f"_(?!{digit})|(?<!{digit})_", body)
