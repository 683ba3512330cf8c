"""Go's text forms of floats (strconv.FormatFloat), for float64."""

from __future__ import annotations

import math
import struct


def format_float(value: float, verb: str, precision: int) -> str:
    """The float with the verb ``b e E f g G x X``; precision -1 is as many digits as tell it apart.

    A sign is shown for negative numbers and for infinity, as Go's function does.
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    match verb:
        case "b":
            return _binary(value)
        case "x" | "X":
            text = _hexadecimal(value, precision)
            return text.upper() if verb == "X" else text
        case "g" | "G":
            return _general(value, verb, precision)
        case _:
            return f"{value:.{precision}{verb}}"


def _general(value: float, verb: str, precision: int) -> str:
    if precision >= 0:
        return f"{value:.{precision}{verb}}"
    # Shortest: Python's repr has the same digits as Go, but changes to an exponent later (1e16; Go: 1e6).
    sign = "-" if math.copysign(1.0, value) < 0 else ""
    digits, exponent = _shortest(abs(value))
    if exponent < -4 or exponent >= 6:
        mantissa = digits[0] + ("." + digits[1:] if len(digits) > 1 else "")
        mark = "e" if verb == "g" else "E"
        return f"{sign}{mantissa}{mark}{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    if exponent < 0:
        return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
    if len(digits) <= exponent + 1:
        return sign + digits.ljust(exponent + 1, "0")
    return f"{sign}{digits[: exponent + 1]}.{digits[exponent + 1 :]}"


def _shortest(value: float) -> tuple[str, int]:
    """Decimal digits without trailing zeros and the exponent of the first of them."""
    if value == 0:
        return "0", 0
    mantissa, _, exponent = f"{value!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    first = len(whole) - 1 if whole.strip("0") else -1 - (len(fraction) - len(fraction.lstrip("0")))
    return digits.rstrip("0"), first + int(exponent or 0)


def _parts(value: float) -> tuple[bool, int, int]:
    """Sign, mantissa (53 bit) and exponent such that the value is mantissa times two to the exponent."""
    bits = struct.unpack(">Q", struct.pack(">d", value))[0]
    exponent = bits >> 52 & 0x7FF
    mantissa = bits & ((1 << 52) - 1)
    if exponent == 0:
        exponent = 1
    else:
        mantissa |= 1 << 52
    return bool(bits >> 63), mantissa, exponent - 1075


def _binary(value: float) -> str:
    negative, mantissa, exponent = _parts(value)
    return f"{'-' if negative else ''}{mantissa}p{exponent:+d}"


def _hexadecimal(value: float, precision: int) -> str:
    negative, mantissa, exponent = _parts(value)
    exponent = exponent + 52 if mantissa else 0
    while mantissa and not mantissa >> 52:
        mantissa <<= 1
        exponent -= 1
    digits = 13
    if 0 <= precision < digits:
        drop = 4 * (digits - precision)
        rest = mantissa & ((1 << drop) - 1)
        mantissa >>= drop
        half = 1 << (drop - 1)
        if rest > half or (rest == half and mantissa & 1):
            mantissa += 1
        digits = precision
        if mantissa >> (4 * digits + 1):
            mantissa >>= 1
            exponent += 1
    lead = mantissa >> (4 * digits)
    fraction = f"{mantissa & ((1 << 4 * digits) - 1):0{digits}x}" if digits else ""
    fraction = fraction.rstrip("0") if precision < 0 else fraction.ljust(precision, "0")
    dot = "." if fraction else ""
    return f"{'-' if negative else ''}0x{lead}{dot}{fraction}p{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
