"""The tree of a parsed template. Every node knows its position, the character offset in the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

# Nodes are compared by identity: equality and repr of a deep tree would recurse.


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Dot:
    """``.``"""

    position: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Nil:
    """``nil``"""

    position: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Constant:
    """A boolean, string or number. ``value`` is None for an integer above Go's int, an error when it is used."""

    position: int
    value: bool | int | float | complex | bytes | None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Field:
    """``.a.b``"""

    position: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Variable:
    """``$x.a.b``; ``name`` has its dollar sign."""

    position: int
    name: str
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Function:
    """The name of a function."""

    position: int
    name: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Chain:
    """Fields of something that is neither field nor variable: ``(index .Secrets "x").Cert``."""

    position: int
    operand: Operand
    fields: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Command:
    """An operand, or a function or field with its arguments."""

    position: int
    arguments: tuple[Operand, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Pipeline:
    """Commands, each of which gets the result of the one before as last argument, and the variables that keep it."""

    position: int
    declarations: tuple[str, ...]
    assigns: bool
    """``=`` rather than ``:=``."""
    commands: tuple[Command, ...]


Operand: TypeAlias = Dot | Nil | Constant | Field | Variable | Function | Chain | Pipeline


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Text:
    """Bytes to print as they are."""

    position: int
    data: bytes


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Action:
    """``{{pipeline}}``"""

    position: int
    pipeline: Pipeline


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Arm:
    """One condition of an if or with, and what it guards."""

    pipeline: Pipeline
    body: Body


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Conditional:
    """``if`` or ``with``; ``sets_dot`` tells them apart."""

    position: int
    sets_dot: bool
    arms: tuple[Arm, ...]
    otherwise: Body | None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Range:
    """``range``"""

    position: int
    pipeline: Pipeline
    body: Body
    otherwise: Body | None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Break:
    """``{{break}}``"""

    position: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Continue:
    """``{{continue}}``"""

    position: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TemplateCall:
    """``{{template "name" pipeline}}``, also the place of a ``block``."""

    position: int
    name: bytes
    pipeline: Pipeline | None


Node: TypeAlias = Text | Action | Conditional | Range | Break | Continue | TemplateCall
Body: TypeAlias = tuple[Node, ...]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Program:
    """A whole text: its own body and the templates it defines, by name."""

    body: Body
    definitions: Mapping[bytes, Body]
