"""Running a template: the tree walked with a stack of our own, over values that never become template text again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from marblerun.manifest.templates.budget import CALL_STEPS, MAX_CALL_DEPTH, NODE_STEPS, Budget, TemplateFailure
from marblerun.manifest.templates.functions import Function as Callee
from marblerun.manifest.templates.functions import FunctionSet, Special
from marblerun.manifest.templates.nodes import (
    Action,
    Body,
    Break,
    Chain,
    Command,
    Conditional,
    Constant,
    Continue,
    Dot,
    Field,
    Function,
    Nil,
    Node,
    Operand,
    Pipeline,
    Program,
    Range,
    TemplateCall,
    Text,
    Variable,
)
from marblerun.manifest.templates.printf import sprint
from marblerun.manifest.templates.unicode import brief, to_bytes, to_text
from marblerun.manifest.templates.values import Dictionary, Record, Slice, Value, is_true, type_name


class _Missing:
    """The type of the last argument of a command that has no command before it; nil is a value, this is none."""


_MISSING: Final = _Missing()


class _Variable:
    """A declared variable."""

    __slots__ = ("name", "value")

    def __init__(self, name: str, value: Value) -> None:
        self.name = name
        self.value = value


class _Frame:
    """A list of nodes being walked.

    ``mark`` is how many variables remain when it ends. ``items`` are the rounds of a range still to come, each with
    ``mark`` variables of the range kept by ``round_mark``; ``caller`` are the variables of the text that called a
    template.
    """

    __slots__ = ("body", "caller", "dot", "index", "is_range_else", "items", "mark", "node", "round_mark")

    def __init__(self, body: Body, dot: Value, mark: int) -> None:
        self.body = body
        self.dot = dot
        self.mark = mark
        self.index = 0
        self.is_range_else = False
        self.node: Range | None = None
        self.items: Iterator[tuple[Value, Value]] | None = None
        self.round_mark = 0
        self.caller: list[_Variable] | None = None


class Execution:
    """One run of one program; use once."""

    def __init__(self, program: Program, functions: FunctionSet, dot: Value, budget: Budget) -> None:
        self.position = 0
        """Where the run has come to, for messages."""
        self.calls: list[bytes] = []
        """The templates that are running, innermost last."""
        self._definitions = program.definitions
        self._functions = functions.functions
        self._budget = budget
        self._output: list[bytes] = []
        self._variables = [_Variable("$", dot)]
        self._frames = [_Frame(program.body, dot, 1)]

    def run(self) -> bytes:
        """The output; TemplateFailure if the program does what Go refuses, or costs too much."""
        frames = self._frames
        while frames:
            frame = frames[-1]
            if frame.index >= len(frame.body):
                self._finish(frame)
                continue
            node = frame.body[frame.index]
            frame.index += 1
            self._budget.step(NODE_STEPS)
            self.position = node.position
            self._walk(frame, node)
        return b"".join(self._output)

    # Control

    def _walk(self, frame: _Frame, node: Node) -> None:
        if isinstance(node, Text):
            self._emit(node.data)
        elif isinstance(node, Action):
            value = self._pipeline(frame.dot, node.pipeline)
            if not node.pipeline.declarations:
                self.position = node.position
                self._print(value)
        elif isinstance(node, Conditional):
            self._conditional(frame, node)
        elif isinstance(node, Range):
            self._range(frame, node)
        elif isinstance(node, TemplateCall):
            self._template(frame, node)
        elif isinstance(node, Break):
            # Go runs the else part of a range inside it, so that a break there ends that range only.
            while not (self._frames[-1].items is not None or self._frames[-1].is_range_else):
                self._drop(self._frames[-1])
            self._drop(self._frames[-1])
        else:
            assert isinstance(node, Continue)
            while self._frames[-1].items is None:
                self._drop(self._frames[-1])
            self._frames[-1].index = len(self._frames[-1].body)

    def _emit(self, data: bytes) -> None:
        self._budget.emit(len(data))
        self._output.append(data)

    def _print(self, value: Value) -> None:
        if isinstance(value, bytes):
            self._emit(value)
        else:
            self._budget.step(CALL_STEPS)
            self._emit(b"<no value>" if value is None else sprint([value], self._budget))

    def _finish(self, frame: _Frame) -> None:
        """A list of nodes is done: the next round of its range, or back to what is around it."""
        if frame.items is None or not self._next_round(frame):
            self._drop(frame)

    def _drop(self, frame: _Frame) -> None:
        self._frames.pop()
        del self._variables[frame.mark :]
        if frame.caller is not None:
            self._variables = frame.caller
            self.calls.pop()

    def _conditional(self, frame: _Frame, node: Conditional) -> None:
        mark = len(self._variables)
        for arm in node.arms:
            self._budget.step(NODE_STEPS)
            value = self._pipeline(frame.dot, arm.pipeline)
            if is_true(value):
                self._frames.append(_Frame(arm.body, value if node.sets_dot else frame.dot, mark))
                return
        self._frames.append(_Frame(node.otherwise or (), frame.dot, mark))

    def _range(self, frame: _Frame, node: Range) -> None:
        mark = len(self._variables)
        value = self._pipeline(frame.dot, node.pipeline)
        self.position = node.position
        inner = _Frame(node.body, None, mark)
        inner.node = node
        inner.round_mark = len(self._variables)
        inner.items = self._rounds(value, len(node.pipeline.declarations))
        self._frames.append(inner)
        if not self._next_round(inner):
            self._frames[-1] = _Frame(node.otherwise or (), frame.dot, mark)
            self._frames[-1].is_range_else = True

    def _rounds(self, value: Value, variables: int) -> Iterator[tuple[Value, Value]]:
        """Index and element of each round of a range over the value."""
        if value is None:
            return iter(())
        if isinstance(value, Slice):
            return ((index, value.at(index)) for index in range(len(value)))
        if isinstance(value, Dictionary):
            return iter(value.items())
        if isinstance(value, int) and not isinstance(value, bool):
            if variables > 1:
                raise TemplateFailure("a range over a number has one variable only")
            kind = type(value)
            return ((None, kind(count)) for count in range(value))
        raise TemplateFailure(f"range cannot iterate over a value of type {type_name(value)}")

    def _next_round(self, frame: _Frame) -> bool:
        """Set up the next round; false if there is none."""
        assert frame.items is not None
        assert frame.node is not None
        del self._variables[frame.round_mark :]
        self._budget.step(NODE_STEPS)
        entry = next(frame.items, None)
        if entry is None:
            return False
        index, element = entry
        pipeline = frame.node.pipeline
        names = pipeline.declarations
        if names and pipeline.assigns:
            self.position = frame.node.position
            self._assign(names[0], index if len(names) > 1 else element)
            if len(names) > 1:
                self._assign(names[1], element)
        elif names:
            self._variables[-1].value = element
            if len(names) > 1:
                self._variables[-2].value = index
        frame.dot = element
        frame.index = 0
        return True

    def _template(self, frame: _Frame, node: TemplateCall) -> None:
        body = self._definitions.get(node.name)
        if body is None:
            raise TemplateFailure(f"template {brief(to_text(node.name))} is not defined")
        if len(self.calls) >= MAX_CALL_DEPTH:
            raise TemplateFailure(
                f"templates call each other more than {MAX_CALL_DEPTH} deep; "
                f"does {brief(to_text(node.name))} call itself without an end?"
            )
        dot = None if node.pipeline is None else self._pipeline(frame.dot, node.pipeline)
        inner = _Frame(body, dot, 1)
        inner.caller = self._variables
        self._variables = [_Variable("$", dot)]
        self.calls.append(node.name)
        self._frames.append(inner)

    # Variables

    def _find(self, name: str) -> _Variable:
        for distance, variable in enumerate(reversed(self._variables)):
            if variable.name == name:
                self._budget.step(distance // 16)
                return variable
        raise TemplateFailure(f"undefined variable {brief(name)}")

    def _assign(self, name: str, value: Value) -> None:
        self._find(name).value = value

    # Expressions

    def _pipeline(self, dot: Value, pipeline: Pipeline) -> Value:
        value: Value | _Missing = _MISSING
        for command in pipeline.commands:
            self._budget.step(NODE_STEPS)
            self.position = command.position
            value = self._command(dot, command, value)
        assert not isinstance(value, _Missing)
        for name in pipeline.declarations:
            if pipeline.assigns:
                self._assign(name, value)
            else:
                self._variables.append(_Variable(name, value))
        return value

    def _command(self, dot: Value, command: Command, final: Value | _Missing) -> Value:
        first = command.arguments[0]
        if isinstance(first, Function):
            return self._call(dot, first.name, command.arguments[1:], final)
        extra = len(command.arguments) > 1 or not isinstance(final, _Missing)
        if isinstance(first, Field):
            return self._fields(dot, first.names, has_arguments=extra)
        if isinstance(first, Chain):
            return self._fields(self._operand(dot, first.operand), first.fields, has_arguments=extra)
        if isinstance(first, Variable) and first.fields:
            return self._fields(self._find(first.name).value, first.fields, has_arguments=extra)
        if extra:
            raise TemplateFailure("only functions take arguments")
        if isinstance(first, Nil):
            raise TemplateFailure("nil is not a command")
        return self._operand(dot, first)

    def _operand(self, dot: Value, operand: Operand) -> Value:
        """The value of an operand that stands alone."""
        if isinstance(operand, Dot):
            return dot
        if isinstance(operand, Constant):
            if operand.value is None:
                self.position = operand.position
                raise TemplateFailure("the number is too large for an int")
            return operand.value
        if isinstance(operand, Field):
            return self._fields(dot, operand.names)
        if isinstance(operand, Variable):
            value = self._find(operand.name).value
            return self._fields(value, operand.fields) if operand.fields else value
        if isinstance(operand, Pipeline):
            return self._pipeline(dot, operand)
        if isinstance(operand, Function):
            return self._call(dot, operand.name, (), _MISSING)
        if isinstance(operand, Chain):
            return self._fields(self._operand(dot, operand.operand), operand.fields)
        return None

    def _call(self, dot: Value, name: str, operands: tuple[Operand, ...], final: Value | _Missing) -> Value:
        function = self._functions[name]
        self._budget.step(CALL_STEPS)
        count = len(operands) + (not isinstance(final, _Missing))
        if count < function.least or (function.most is not None and count > function.most):
            raise TemplateFailure(f"wrong number of arguments for {name}: {count}")
        if function.special is not None:
            return self._short_circuit(dot, function.special, operands, final)
        arguments = [self._argument(dot, name, function, index, operand) for index, operand in enumerate(operands)]
        if not isinstance(final, _Missing):
            _require_kind(name, function, len(arguments), final)
            arguments.append(final)
        result = function.body(arguments, self._budget)
        if isinstance(result, bytes):
            self._budget.text(len(result))
        return result

    def _argument(self, dot: Value, name: str, function: Callee, index: int, operand: Operand) -> Value:
        if isinstance(operand, Nil) and not (function.first_is_text and index == 0):
            return None
        self._budget.step(NODE_STEPS)
        value = self._operand(dot, operand)
        _require_kind(name, function, index, value)
        return value

    def _short_circuit(
        self, dot: Value, special: Special, operands: tuple[Operand, ...], final: Value | _Missing
    ) -> Value:
        """``and`` stops at the first false argument, ``or`` at the first true one; the value decided by is returned."""
        value: Value = None
        for operand in operands:
            self._budget.step(NODE_STEPS)
            value = None if isinstance(operand, Nil) else self._operand(dot, operand)
            if is_true(value) == (special is Special.OR):
                return value
        return value if isinstance(final, _Missing) else final

    def _fields(self, receiver: Value, names: tuple[str, ...], *, has_arguments: bool = False) -> Value:
        """The value at the end of a chain of field names; no value has only fields without value."""
        self._budget.step(len(names) // 4)
        last = len(names) - 1
        for index, name in enumerate(names):
            if receiver is None:
                return None
            if isinstance(receiver, Record):
                self._budget.step(receiver.read_steps)
                receiver = _record_field(receiver, name)
            elif isinstance(receiver, Dictionary):
                receiver = receiver.get(to_bytes(name))
            else:
                raise TemplateFailure(f"there is no field {brief(name)} in a value of type {type_name(receiver)}")
            if has_arguments and index == last:
                raise TemplateFailure(f"{brief(name)} has arguments, but is not a function")
        return receiver


def _require_kind(name: str, function: Callee, index: int, value: Value) -> None:
    if function.first_is_text and index == 0 and not isinstance(value, bytes):
        raise TemplateFailure(f"the first argument of {name} must be a string, not {type_name(value)}")


def _record_field(record: Record, name: str) -> Value:
    try:
        return record.get(name)
    except KeyError:
        raise TemplateFailure(f"there is no field {brief(name)} in {record.type_name.rpartition('.')[2]}") from None
