"""Go's text form of values (package fmt): one operand, one verb, with flags, width and precision.

A struct or a map is never printed. Go would dump all of it, and everything under the dot that is a struct or a map
holds private keys; a template that means one field has to name it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from marblerun.manifest.templates.budget import CALL_STEPS, CHARACTERS_PER_STEP, Budget, TemplateFailure
from marblerun.manifest.templates.floats import format_float
from marblerun.manifest.templates.quote import can_backquote, quote, quote_rune
from marblerun.manifest.templates.unicode import MAX_RUNE, REPLACEMENT, is_printable, is_valid_rune, to_bytes, to_text
from marblerun.manifest.templates.values import Dictionary, Record, Slice, Uint, Uint8, Value, type_name

_FLOAT_DEFAULTS: Final = {"b": -1, "g": -1, "G": -1, "x": -1, "X": -1, "f": 6, "F": 6, "e": 6, "E": 6}
_INTEGER_BASES: Final = {"d": "d", "v": "d", "b": "b", "o": "o", "O": "o", "x": "x", "X": "X"}


@dataclass(slots=True)
class Flags:
    """The flags, width and precision of one verb."""

    sharp: bool = False
    zero: bool = False
    plus: bool = False
    minus: bool = False
    space: bool = False
    sharp_v: bool = False
    width: int | None = None
    precision: int | None = None

    def for_verb(self, verb: str) -> None:
        """``%#v`` and ``%+v`` are formats of their own, in which ``#`` and ``+`` lose their usual meaning."""
        if verb in "vw":
            self.sharp_v, self.sharp, self.plus = self.sharp, False, False


class Printer:
    """Collects output, as characters, under a budget."""

    def __init__(self, budget: Budget) -> None:
        self.flags = Flags()
        self._budget = budget
        self._parts: list[str] = []
        self._size = 0

    def result(self) -> bytes:
        """All that was written."""
        return to_bytes("".join(self._parts))

    def write(self, text: str) -> None:
        """Add text as it is."""
        self._size += len(text)
        self._budget.text(len(text))
        self._budget.check_size(self._size)
        self._parts.append(text)

    def step(self) -> None:
        """Pay for one verb."""
        self._budget.step(CALL_STEPS)

    def _padded(self, text: str, *, zeros: bool | None = None) -> None:
        """Write text at the width asked for; zeros only ever fill on the left."""
        missing = (self.flags.width or 0) - len(text)
        if missing <= 0:
            self.write(text)
        elif self.flags.minus:
            self.write(text + " " * missing)
        else:
            fill = self.flags.zero if zeros is None else zeros
            self.write(("0" if fill else " ") * missing + text)

    # Values

    def argument(self, value: Value, verb: str) -> None:
        """One operand with one verb."""
        if value is None:
            if verb in "Tv":
                self._padded("<nil>")
            else:
                self.write(f"%!{verb}(<nil>)")
        elif verb == "T":
            self._text(type_name(value).encode(), "s")
        elif isinstance(value, Record | Dictionary):
            raise TemplateFailure(
                f"a whole {_described(value)} is not printed, it would show private keys; "
                "name the field, or use a function such as pem, hex or base64"
            )
        elif verb == "p" and isinstance(value, Slice):
            raise TemplateFailure("%p: a memory address is not printed")
        elif verb == "w" and isinstance(value, Slice) and value.type_name != "[]uint8":
            # Of the bad verbs, Go looks at this one before it looks at the elements.
            self._bad_verb(value, verb)
        else:
            self._value(value, verb)

    def _value(self, value: Value, verb: str) -> None:
        if isinstance(value, bool):
            self._boolean(value, verb)
        elif isinstance(value, int):
            self._integer(value, verb)
        elif isinstance(value, float):
            self._float(value, verb)
        elif isinstance(value, complex):
            self._complex(value, verb)
        elif isinstance(value, bytes):
            self._text(value, verb)
        elif isinstance(value, Slice):
            self._slice(value, verb)

    def _bad_verb(self, value: Value, verb: str) -> None:
        self.write(f"%!{verb}({type_name(value)}=")
        self._value(value, "v")
        self.write(")")

    def _boolean(self, value: bool, verb: str) -> None:
        if verb in "tv":
            self._padded("true" if value else "false")
        else:
            self._bad_verb(value, verb)

    def _integer(self, value: int, verb: str) -> None:
        unsigned = isinstance(value, Uint | Uint8)
        if verb == "v" and self.flags.sharp_v and unsigned:
            self._hex_with_prefix(value)
        elif verb in _INTEGER_BASES:
            self._digits(value, verb)
        elif verb in "cqU":
            # Go converts to uint64 first, which puts negative numbers far above all characters.
            code = value if value >= 0 else MAX_RUNE + 1
            if verb == "c":
                self._padded(chr(code) if is_valid_rune(code) else REPLACEMENT)
            elif verb == "q":
                self._padded(quote_rune(code, ascii_only=self.flags.plus))
            else:
                self._unicode(value)
        else:
            self._bad_verb(value, verb)

    def _hex_with_prefix(self, value: int) -> None:
        sharp, self.flags.sharp = self.flags.sharp, True
        self._digits(value, "x")
        self.flags.sharp = sharp

    def _digits(self, value: int, verb: str) -> None:
        """An integer in a base, with sign, prefix and zeros as the flags say."""
        flags = self.flags
        if flags.precision == 0 and value == 0:
            self.write(" " * (flags.width or 0))
            return
        body = format(abs(value), _INTEGER_BASES[verb])
        signed = value < 0 or flags.plus or flags.space
        if flags.precision is not None:
            body = body.rjust(flags.precision, "0")
        elif flags.zero and not flags.minus and flags.width is not None:
            body = body.rjust(flags.width - signed, "0")
        if flags.sharp:
            if verb == "b":
                body = "0b" + body
            elif verb in "xX":
                body = "0" + verb + body
            elif verb in "oO" and not body.startswith("0"):
                body = "0" + body
        if verb == "O":
            body = "0o" + body
        if value < 0:
            body = "-" + body
        elif flags.plus:
            body = "+" + body
        elif flags.space:
            body = " " + body
        self._padded(body, zeros=False)

    def _unicode(self, value: int) -> None:
        code = value & 0xFFFF_FFFF_FFFF_FFFF
        text = f"U+{code:X}" if code > 0xFFFF else f"U+{code:04X}"
        precision = self.flags.precision or 0
        text = "U+" + text[2:].rjust(precision, "0")
        if self.flags.sharp and is_valid_rune(code) and is_printable(chr(code)):
            text += f" '{chr(code)}'"
        self._padded(text, zeros=False)

    def _float(self, value: float, verb: str) -> None:
        if verb == "v":
            self._float_digits(value, "g", -1)
        elif verb in _FLOAT_DEFAULTS:
            self._float_digits(value, "f" if verb == "F" else verb, _FLOAT_DEFAULTS[verb])
        else:
            self._bad_verb(value, verb)

    def _float_digits(self, value: float, verb: str, precision: int) -> None:
        flags = self.flags
        if flags.precision is not None:
            precision = flags.precision
        text = format_float(value, verb, precision)
        sign, body = (text[0], text[1:]) if text[0] in "+-" else ("+", text)
        if flags.space and sign == "+" and not flags.plus:
            sign = " "
        if flags.sharp and verb != "b":
            body = _with_point(body, verb, precision)
        if not flags.plus and sign == "+":
            self._padded(body)
        elif flags.zero and not flags.minus and (flags.width or 0) > len(body) + 1:
            self.write(sign + body.rjust((flags.width or 0) - 1, "0"))
        else:
            self._padded(sign + body)

    def _complex(self, value: complex, verb: str) -> None:
        if verb != "v" and verb not in _FLOAT_DEFAULTS:
            self._bad_verb(value, verb)
            return
        plus = self.flags.plus
        self.write("(")
        self._float(value.real, verb)
        self.flags.plus = True
        self._float(value.imag, verb)
        self.flags.plus = plus
        self.write("i)")

    def _text(self, value: bytes, verb: str) -> None:
        if verb == "s" or (verb == "v" and not self.flags.sharp_v):
            self._padded(self._truncated(value))
        elif verb in "vq":
            self._quoted(value)
        elif verb in "xX":
            self._hex_bytes(value, verb)
        else:
            self._bad_verb(value, verb)

    def _truncated(self, value: bytes) -> str:
        # Characters take at most four bytes: do not decode megabytes to keep ten of them.
        precision = self.flags.precision
        return to_text(value) if precision is None else to_text(value[: 4 * precision + 4])[:precision]

    def _quoted(self, value: bytes) -> None:
        data = to_bytes(self._truncated(value))
        self._budget.step(len(data) // CHARACTERS_PER_STEP)
        if self.flags.sharp and can_backquote(data):
            self._padded(f"`{to_text(data)}`")
        else:
            self._padded(quote(data, ascii_only=self.flags.plus))

    def _hex_bytes(self, value: bytes, verb: str) -> None:
        flags = self.flags
        if flags.precision is not None:
            value = value[: flags.precision]
        pairs = value.hex(" ").split(" ") if value else []
        if verb == "X":
            pairs = [pair.upper() for pair in pairs]
        prefix = "0" + verb if flags.sharp else ""
        if flags.space:
            self._padded(" ".join(prefix + pair for pair in pairs))
        else:
            self._padded(prefix + "".join(pairs) if pairs else "")

    def _slice(self, value: Slice, verb: str) -> None:
        content = value.content()
        if content is not None and verb in "sqxX":
            self._text(content, verb)
            return
        self._budget.step(len(value))
        if self.flags.sharp_v:
            name = "[]byte" if value.type_name == "[]uint8" else value.type_name
            if value.is_nil:
                self.write(name + "(nil)")
                return
            opening, separator, closing = name + "{", ", ", "}"
        else:
            opening, separator, closing = "[", " ", "]"
        self.write(opening)
        for index in range(len(value)):
            if index:
                self.write(separator)
            self._value(value.at(index), verb)
        self.write(closing)


def _described(value: Record | Dictionary) -> str:
    return "map of secrets" if isinstance(value, Dictionary) else value.type_name.rpartition(".")[2].lower()


def _with_point(body: str, verb: str, precision: int) -> str:
    """The ``#`` flag of floats: always a decimal point, and for g the trailing zeros."""
    exponent_marks = "pP" if verb in "xX" else "eEpP"
    at = next((index for index, char in enumerate(body) if char in exponent_marks), len(body))
    number, tail = body[:at], body[at:]
    wanted = (6 if precision == -1 else precision) if verb in "gGx" else 0
    significant = number.replace(".", "").lstrip("0")
    if "." not in number:
        wanted -= number == "0"
        number += "."
    return number + "0" * (wanted - len(significant)) + tail
