"""A compiled template: parsed once, run as often as needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from marblerun.errors import Malformed
from marblerun.manifest.templates.budget import Budget, TemplateFailure
from marblerun.manifest.templates.data import TemplateData
from marblerun.manifest.templates.execute import Execution
from marblerun.manifest.templates.functions import FunctionSet
from marblerun.manifest.templates.lex import LEFT
from marblerun.manifest.templates.nodes import Program
from marblerun.manifest.templates.parse import parse
from marblerun.manifest.templates.references import References, references_of
from marblerun.manifest.templates.unicode import brief, to_bytes, to_text

_NO_REFERENCES: Final = References(frozenset(), frozenset(), frozenset(), dynamic=False)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Template:
    """A template that has no mistakes of grammar. Immutable; may be kept and shared.

    ``repr`` shows neither text nor program.
    """

    name: str
    """What messages call it: a path, the name of a variable."""
    text: bytes
    functions: FunctionSet
    program: Program | None
    """None for a text without actions, which is its own result."""

    @property
    def is_static(self) -> bool:
        """Whether the result is the text itself, whatever the data."""
        return self.program is None

    def execute(self, data: TemplateData, *, budget: Budget | None = None) -> bytes:
        """The text with its actions replaced by what they print.

        ``budget`` bounds steps and output; give several templates one budget to bound them together. Text without
        actions costs nothing.

        Raises:
            Malformed: whatever Go's engine refuses at run time, a struct or map printed as a whole, or the budget is
                spent; ``where`` is the template's name and line. Never shows values.
        """
        if self.program is None:
            return self.text
        execution = Execution(self.program, self.functions, data.root, Budget() if budget is None else budget)
        try:
            return execution.run()
        except TemplateFailure as failure:
            inside = f", in template {brief(to_text(execution.calls[-1]))}" if execution.calls else ""
            raise _located(failure, self.name, to_text(self.text), execution.position, inside) from None

    def references(self) -> References:
        """The secrets the template may ask for, found without running it."""
        return _NO_REFERENCES if self.program is None else references_of(self.program)


def compile_template(text: bytes | str, functions: FunctionSet, *, name: str = "template") -> Template:
    """The template a file or variable of a manifest stands for.

    Text without ``{{`` is not looked at any further: it is its own result, ``}}`` included.

    Raises:
        Malformed: the text breaks the grammar, or calls a function that is not in ``functions``; ``where`` is the name
            and line.
    """
    try:
        data = to_bytes(text) if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise Malformed("the template is not text: it has half of a surrogate pair", where=name) from None
    if LEFT.encode() not in data:
        return Template(name, data, functions, None)
    characters = to_text(data)
    try:
        program = parse(characters, functions.functions.keys())
    except TemplateFailure as failure:
        raise _located(failure, name, characters, max(failure.position, 0), "") from None
    return Template(name, data, functions, program)


def _located(failure: TemplateFailure, name: str, text: str, position: int, inside: str) -> Malformed:
    line = text.count("\n", 0, position) + 1
    return Malformed(failure.message, where=f"{name}, line {line}{inside}")
