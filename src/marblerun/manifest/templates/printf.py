"""``print``, ``println`` and ``printf`` of Go's fmt package."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from marblerun.manifest.templates.budget import Budget
from marblerun.manifest.templates.printer import Flags, Printer
from marblerun.manifest.templates.unicode import REPLACEMENT, is_stray_byte, to_text
from marblerun.manifest.templates.values import Value, type_name

# A larger number is none to fmt. It looks before it takes a further digit, so seven digits always pass (fmt/print.go).
MAX_WIDTH: Final = 1_000_000
_FLAGS: Final = {"#": "sharp", "0": "zero", "+": "plus", "-": "minus", " ": "space"}
_DIGITS = re.compile("[0-9]*")


def sprint(arguments: Sequence[Value], budget: Budget) -> bytes:
    """``fmt.Sprint``: a space between two operands when neither is a string."""
    printer = Printer(budget)
    after_text = True
    for argument in arguments:
        is_text = isinstance(argument, bytes)
        if not is_text and not after_text:
            printer.write(" ")
        printer.argument(argument, "v")
        after_text = is_text
    return printer.result()


def sprintln(arguments: Sequence[Value], budget: Budget) -> bytes:
    """``fmt.Sprintln``: a space between operands and a newline at the end."""
    printer = Printer(budget)
    for index, argument in enumerate(arguments):
        if index:
            printer.write(" ")
        printer.argument(argument, "v")
    printer.write("\n")
    return printer.result()


def sprintf(template: bytes, arguments: Sequence[Value], budget: Budget) -> bytes:
    """``fmt.Sprintf``. A verb that does not fit its operand is reported in the text, as Go does, and is no error."""
    printer = Printer(budget)
    _FormatReader(to_text(template), arguments, printer).run()
    return printer.result()


class _FormatReader:
    """One pass over one format text.

    An operand can be chosen by number, ``%[2]d``; what is wrong with a number, a width or the count of operands is
    written where it was found.
    """

    def __init__(self, template: str, arguments: Sequence[Value], printer: Printer) -> None:
        self.template = template
        self.arguments = arguments
        self.printer = printer
        self.position = 0
        self.operand = 0
        self.reordered = False
        self.good_number = True
        """Whether every bracketed number of the current verb made sense."""
        self.after_number = False
        """Whether a bracketed number was the last thing read."""

    def run(self) -> None:
        while (found := self.template.find("%", self.position)) >= 0:
            if found > self.position:
                self.printer.write(self.template[self.position : found])
            self.position = found + 1
            self.printer.step()
            self.verb()
        if self.position < len(self.template):
            self.printer.write(self.template[self.position :])
        if not self.reordered and self.operand < len(self.arguments):
            self.surplus()

    def char(self) -> str:
        """The next character, or empty text at the end."""
        return self.template[self.position : self.position + 1]

    def verb(self) -> None:
        """One verb with all that stands between it and its percent sign."""
        self.good_number, self.after_number = True, False
        self.printer.flags = flags = Flags()
        while (char := self.char()) and char in _FLAGS:
            setattr(flags, _FLAGS[char], True)
            self.position += 1
        self.number()
        self.width(flags)
        if self.char() == "." and self.position + 1 < len(self.template):
            self.position += 1
            self.precision(flags)
        if not self.after_number:
            self.number()
        verb = self.char()
        if not verb:
            self.printer.write("%!(NOVERB)")
            return
        self.position += 1
        self.finish(REPLACEMENT if is_stray_byte(verb) else verb, flags)

    def finish(self, verb: str, flags: Flags) -> None:
        if verb == "%":
            self.printer.write("%")
        elif not self.good_number:
            self.printer.write(f"%!{verb}(BADINDEX)")
        elif self.operand >= len(self.arguments):
            self.printer.write(f"%!{verb}(MISSING)")
        else:
            flags.for_verb(verb)
            self.printer.argument(self.arguments[self.operand], verb)
            self.operand += 1

    def width(self, flags: Flags) -> None:
        if self.char() == "*":
            self.position += 1
            width = self.operand_number()
            if width is None:
                self.printer.write("%!(BADWIDTH)")
            elif width < 0:
                flags.minus, flags.zero, width = True, False, -width
            flags.width = width
            self.after_number = False
            return
        flags.width = self.decimal()
        if self.after_number and flags.width is not None:
            self.good_number = False

    def precision(self, flags: Flags) -> None:
        if self.after_number:
            self.good_number = False
        self.number()
        if self.char() == "*":
            self.position += 1
            precision = self.operand_number()
            if precision is None or precision < 0:
                self.printer.write("%!(BADPREC)")
                precision = None
            flags.precision = precision
            self.after_number = False
            return
        flags.precision = self.decimal() or 0

    def decimal(self, end: int | None = None) -> int | None:
        """A number in the format text; one that is too large takes all the rest of the text with it."""
        limit = len(self.template) if end is None else end
        found = _DIGITS.match(self.template, self.position, limit)
        assert found is not None
        value: int | None = None
        for digit in found.group():
            if (value or 0) > MAX_WIDTH:
                self.position = limit
                return None
            value = 10 * (value or 0) + int(digit)
        self.position = found.end()
        return value

    def operand_number(self) -> int | None:
        """The next operand as a width or precision; None if it is no number of sensible size."""
        if self.operand >= len(self.arguments):
            return None
        value = self.arguments[self.operand]
        self.operand += 1
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_WIDTH:
            return None
        return int(value)

    def number(self) -> None:
        """A bracketed operand number, if one stands here."""
        self.after_number = False
        if self.char() != "[":
            return
        self.reordered = True
        closing = self.template.find("]", self.position)
        if len(self.template) - self.position < 3 or closing < 0:
            self.good_number = False
            self.position += 1
            return
        self.position += 1
        value = self.decimal(closing)
        parsed = value is not None and self.position == closing
        self.position = closing + 1
        if parsed and value is not None and 1 <= value <= len(self.arguments):
            self.operand = value - 1
            self.after_number = True
        else:
            self.good_number = False
            self.after_number = parsed

    def surplus(self) -> None:
        """Name the operands that no verb used."""
        self.printer.flags = Flags()
        self.printer.write("%!(EXTRA ")
        for index, argument in enumerate(self.arguments[self.operand :]):
            if index:
                self.printer.write(", ")
            if argument is not None:
                self.printer.write(type_name(argument) + "=")
            self.printer.argument(argument, "v")
        self.printer.write(")")
