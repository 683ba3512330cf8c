"""Which secrets a template can reach, found without running it.

The analysis follows what the dot and variables may be: the whole data, a map of secrets, or something below. It errs
on the side of more: a name in a branch that never runs is listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum, auto

from marblerun.manifest.templates.nodes import (
    Action,
    Body,
    Chain,
    Conditional,
    Constant,
    Dot,
    Field,
    Function,
    Node,
    Operand,
    Pipeline,
    Program,
    Range,
    TemplateCall,
    Variable,
)
from marblerun.manifest.templates.unicode import to_text


@dataclass(frozen=True, slots=True)
class References:
    """Names of secrets that a template may ask for.

    ``dynamic`` says that the template may ask for others too, for example by ``range .Secrets`` or a computed name.
    """

    secrets: frozenset[str]
    previous: frozenset[str]
    marblerun: frozenset[str]
    """Reserved entries: ``RootCA``, ``MarbleCert``, ..."""
    dynamic: bool


class _Shape(Enum):
    """What a value is, as far as it matters here."""

    ROOT = auto()
    SECRETS = auto()
    PREVIOUS = auto()
    PREVIOUS_SECRETS = auto()
    MARBLERUN = auto()
    OTHER = auto()
    """A secret, a part of one, or no secret at all."""


_ROOT_FIELDS = {"Secrets": _Shape.SECRETS, "Previous": _Shape.PREVIOUS, "MarbleRun": _Shape.MARBLERUN}


def references_of(program: Program) -> References:
    """The secrets a program may ask for when its dot is the template data."""
    return _Analysis(program).run()


@dataclass(slots=True)
class _Task:
    """A list of nodes still to be looked at, with the dot they see and the variables of their template."""

    nodes: Iterator[Node]
    dot: _Shape
    variables: dict[str, _Shape]


@dataclass(slots=True)
class _Analysis:
    program: Program
    names: dict[_Shape, set[str]] = field(default_factory=dict)
    dynamic: bool = False
    seen: set[tuple[bytes, _Shape]] = field(default_factory=set)
    tasks: list[_Task] = field(default_factory=list)

    def run(self) -> References:
        self.enter(self.program.body, _Shape.ROOT, {"$": _Shape.ROOT})
        while self.tasks:
            task = self.tasks[-1]
            node = next(task.nodes, None)
            if node is None:
                self.tasks.pop()
            else:
                self.node(node, task)
        found = {shape: frozenset(names) for shape, names in self.names.items()}
        return References(
            secrets=found.get(_Shape.SECRETS, frozenset()),
            previous=found.get(_Shape.PREVIOUS_SECRETS, frozenset()),
            marblerun=found.get(_Shape.MARBLERUN, frozenset()),
            dynamic=self.dynamic,
        )

    def enter(self, body: Body | None, dot: _Shape, variables: dict[str, _Shape]) -> None:
        self.tasks.append(_Task(iter(body or ()), dot, variables))

    def node(self, node: Node, task: _Task) -> None:
        if isinstance(node, Action):
            shape = self.pipeline(node.pipeline, task)
            if not node.pipeline.declarations:
                self.used(shape)
        elif isinstance(node, Conditional):
            # Else parts first: tasks are a stack, and variables have to be declared in the order of the text.
            self.enter(node.otherwise, task.dot, task.variables)
            for arm in node.arms:
                shape = self.pipeline(arm.pipeline, task)
                self.enter(arm.body, shape if node.sets_dot else task.dot, task.variables)
        elif isinstance(node, Range):
            self.used(self.pipeline(node.pipeline, task))
            self.enter(node.otherwise, task.dot, task.variables)
            self.enter(node.body, _Shape.OTHER, task.variables)
        elif isinstance(node, TemplateCall):
            self.call(node, task)

    def call(self, node: TemplateCall, task: _Task) -> None:
        shape = _Shape.OTHER if node.pipeline is None else self.pipeline(node.pipeline, task)
        if (node.name, shape) not in self.seen:
            self.seen.add((node.name, shape))
            self.enter(self.program.definitions.get(node.name), shape, {"$": shape})

    def used(self, shape: _Shape) -> None:
        """A value is used as a whole: if it holds secrets, all of them are."""
        if shape is not _Shape.OTHER:
            self.dynamic = True

    def pipeline(self, pipeline: Pipeline, task: _Task) -> _Shape:
        shape = _Shape.OTHER
        for command in pipeline.commands:
            # What one command hands to the next is an argument of a function.
            self.used(shape)
            first = command.arguments[0]
            if isinstance(first, Function):
                shape = self.function(first.name, command.arguments[1:], task)
            else:
                shape = self.operand(first, task)
        for name in pipeline.declarations:
            self.remember(name, shape, task)
        return shape

    def remember(self, name: str, shape: _Shape, task: _Task) -> None:
        """A variable may hold one shape only, whatever its scope; otherwise we no longer know what it names."""
        if task.variables.setdefault(name, shape) is not shape:
            self.dynamic = True

    def function(self, name: str, arguments: tuple[Operand, ...], task: _Task) -> _Shape:
        shapes = [self.operand(argument, task) for argument in arguments]
        if name == "index" and len(arguments) > 1:
            key = arguments[1]
            if isinstance(key, Constant) and isinstance(key.value, bytes):
                shapes[0] = self.member(shapes[0], to_text(key.value), by_index=True)
        if name != "len":
            for shape in shapes:
                self.used(shape)
        return _Shape.OTHER

    def operand(self, operand: Operand, task: _Task) -> _Shape:
        if isinstance(operand, Dot):
            return task.dot
        if isinstance(operand, Field):
            return self.fields(task.dot, operand.names)
        if isinstance(operand, Variable):
            return self.fields(task.variables.get(operand.name, _Shape.OTHER), operand.fields)
        if isinstance(operand, Chain):
            return self.fields(self.operand(operand.operand, task), operand.fields)
        if isinstance(operand, Pipeline):
            return self.pipeline(operand, task)
        return _Shape.OTHER

    def fields(self, shape: _Shape, names: tuple[str, ...]) -> _Shape:
        for name in names:
            shape = self.member(shape, name, by_index=False)
        return shape

    def member(self, shape: _Shape, name: str, *, by_index: bool) -> _Shape:
        """The shape of a field or map entry, whose name is noted if it is a secret's."""
        if shape is _Shape.ROOT and not by_index:
            return _ROOT_FIELDS.get(name, _Shape.OTHER)
        if shape is _Shape.PREVIOUS and not by_index:
            return _Shape.PREVIOUS_SECRETS if name == "Secrets" else _Shape.OTHER
        if shape in (_Shape.SECRETS, _Shape.PREVIOUS_SECRETS, _Shape.MARBLERUN):
            self.names.setdefault(shape, set()).add(name)
        return _Shape.OTHER
