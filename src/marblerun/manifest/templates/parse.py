"""Tokens to a tree, by the grammar of Go's text/template.

Blocks are kept on a stack of our own, so that their depth is limited by a number and not by Python's stack; only
parentheses recurse.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Final

from marblerun.manifest.templates.budget import MAX_BLOCK_DEPTH, MAX_EXPRESSION_DEPTH, MAX_VARIABLES, TemplateFailure
from marblerun.manifest.templates.constants import character, complex_number, number, unquote
from marblerun.manifest.templates.lex import Kind, Token, lex
from marblerun.manifest.templates.nodes import (
    Action,
    Arm,
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
from marblerun.manifest.templates.unicode import GO_SPACES, brief, to_bytes, to_text

_OPERAND_STARTS: Final = frozenset(
    {
        Kind.BOOL, Kind.CHAR_CONSTANT, Kind.COMPLEX, Kind.DOT, Kind.FIELD, Kind.IDENTIFIER, Kind.NUMBER, Kind.NIL,
        Kind.RAW_STRING, Kind.STRING, Kind.VARIABLE, Kind.LEFT_PAREN,
    }
)  # fmt: skip


@dataclass(slots=True)
class _Open:
    """A block whose end has not been read."""

    keyword: str
    position: int
    pipeline: Pipeline | None = None
    name: bytes = b""
    """Of a define or block."""
    items: list[Node] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)
    body: Body | None = None
    """What was read before a plain else."""
    scope: int = 0
    """How many variables there were before."""
    outer: tuple[_Scope, int] | None = None
    """Variables and range depth of the text around a define or block, which do not reach into it."""


class _Scope:
    """The variables that are declared at one place of a text, ``$`` always among them."""

    __slots__ = ("_counts", "_names")

    def __init__(self) -> None:
        self._names = ["$"]
        self._counts = Counter(self._names)

    def __contains__(self, name: str) -> bool:
        return self._counts[name] > 0

    def declare(self, variable: Token) -> None:
        if len(self._names) > MAX_VARIABLES:
            raise TemplateFailure(f"more than {MAX_VARIABLES} variables", position=variable.position)
        self._names.append(variable.text)
        self._counts[variable.text] += 1

    def mark(self) -> int:
        """A value for :meth:`restore`."""
        return len(self._names)

    def restore(self, mark: int) -> None:
        """Forget what was declared since ``mark``."""
        while len(self._names) > mark:
            self._counts[self._names.pop()] -= 1


def parse(text: str, functions: Set[str]) -> Program:
    """The tree of a template text.

    Raises:
        TemplateFailure: the text breaks the grammar, names a function that is not in ``functions`` or a variable that
            is not declared, or is nested too deeply; with its position.
    """
    return _Parser(lex(text), functions).run()


class _Parser:
    """One pass over one list of tokens."""

    def __init__(self, tokens: list[Token], functions: Set[str]) -> None:
        self.tokens = tokens
        self.index = 0
        self.functions = functions
        self.variables = _Scope()
        self.range_depth = 0
        self.expression_depth = 0
        self.open: list[_Open] = [_Open("", 0)]
        self.definitions: dict[bytes, Body] = {}

    # Tokens

    def next(self) -> Token:
        token = self.tokens[self.index]
        if token.kind is not Kind.EOF:
            self.index += 1
        return token

    def peek(self) -> Token:
        return self.tokens[self.index]

    def skip_space(self) -> Token:
        """The next token that is not a space, not consumed."""
        while self.tokens[self.index].kind is Kind.SPACE:
            self.index += 1
        return self.tokens[self.index]

    def next_solid(self) -> Token:
        self.skip_space()
        return self.next()

    def unexpected(self, token: Token, context: str) -> TemplateFailure:
        return TemplateFailure(f"unexpected {token.describe()} in {context}", position=token.position)

    def expect_close(self, context: str) -> None:
        token = self.next_solid()
        if token.kind is not Kind.RIGHT_DELIM:
            raise self.unexpected(token, context)

    # Blocks

    def run(self) -> Program:
        while (token := self.next_solid()).kind is not Kind.EOF:
            if token.kind is Kind.TEXT:
                self.append(Text(token.position, to_bytes(token.text)))
            elif token.kind is Kind.LEFT_DELIM:
                self.action(token)
            else:
                raise self.unexpected(token, "input")
        if len(self.open) > 1:
            block = self.open[-1]
            raise TemplateFailure(f"{{{{{block.keyword}}}}} is never closed by {{{{end}}}}", position=block.position)
        return Program(tuple(self.open[0].items), self.definitions)

    def append(self, node: Node) -> None:
        self.open[-1].items.append(node)

    def action(self, delimiter: Token) -> None:
        """Read what stands between ``{{`` and ``}}`` and act on it."""
        token = self.skip_space()
        if token.kind is not Kind.KEYWORD:
            pipeline = self.pipeline("command", Kind.RIGHT_DELIM)
            self.append(Action(token.position, pipeline))
            return
        self.next()
        if token.text == "define" and len(self.open) > 1:
            raise TemplateFailure("{{define}} must not stand inside another block", position=token.position)
        match token.text:
            case "if" | "with" | "range":
                self.open_control(token)
            case "define" | "block":
                self.open_definition(token)
            case "else":
                self.otherwise(token)
            case "end":
                self.expect_close("end")
                self.end(token)
            case "break" | "continue":
                self.leave_loop(token)
            case "template":
                self.call(token)

    def push(self, block: _Open) -> None:
        if len(self.open) > MAX_BLOCK_DEPTH:
            raise TemplateFailure(f"blocks are nested more than {MAX_BLOCK_DEPTH} deep", position=block.position)
        self.open.append(block)

    def open_control(self, token: Token) -> None:
        scope = self.variables.mark()
        pipeline = self.pipeline(token.text, Kind.RIGHT_DELIM)
        if token.text == "range":
            self.range_depth += 1
        self.push(_Open(token.text, token.position, pipeline=pipeline, scope=scope))

    def open_definition(self, token: Token) -> None:
        """Open a define, or a block: a definition that is also called where it stands."""
        context = f"{token.text} clause"
        name = self.template_name(context)
        if token.text == "define":
            self.expect_close(context)
        else:
            pipeline = self.pipeline(context, Kind.RIGHT_DELIM)
            self.append(TemplateCall(token.position, name, pipeline))
        self.push(_Open(token.text, token.position, name=name, outer=(self.variables, self.range_depth)))
        self.variables, self.range_depth = _Scope(), 0

    def template_name(self, context: str) -> bytes:
        token = self.next_solid()
        if token.kind not in (Kind.STRING, Kind.RAW_STRING):
            raise self.unexpected(token, context)
        return self.constant_of(token)

    def otherwise(self, token: Token) -> None:
        """Start the else part of the innermost block, or its next condition."""
        block = self.open[-1]
        if block.keyword not in ("if", "with", "range") or block.body is not None:
            raise TemplateFailure("unexpected {{else}}", position=token.position)
        assert block.pipeline is not None
        following = self.skip_space()
        body = tuple(block.items)
        block.items = []
        if following.kind is Kind.KEYWORD and following.text == block.keyword and block.keyword != "range":
            self.next()
            block.arms.append(Arm(block.pipeline, body))
            block.pipeline = self.pipeline(block.keyword, Kind.RIGHT_DELIM)
            return
        self.expect_close("else")
        if block.keyword == "range":
            self.range_depth -= 1
        block.body = body

    def end(self, token: Token) -> None:
        """Close the innermost block and put its node where it belongs."""
        block = self.open[-1]
        if not block.keyword:
            raise TemplateFailure("unexpected {{end}}", position=token.position)
        self.open.pop()
        items = tuple(block.items)
        if block.outer is not None:
            self.variables, self.range_depth = block.outer
            self.define(block, items)
            return
        assert block.pipeline is not None
        self.variables.restore(block.scope)
        body, otherwise = (items, None) if block.body is None else (block.body, items)
        if block.keyword == "range":
            self.range_depth -= block.body is None
            self.append(Range(block.position, block.pipeline, body, otherwise))
            return
        arms = (*block.arms, Arm(block.pipeline, body))
        self.append(Conditional(block.position, block.keyword == "with", arms, otherwise))

    def define(self, block: _Open, body: Body) -> None:
        """Keep a definition; a second one of the same name is an error unless one of them is blank."""
        present = self.definitions.get(block.name)
        if present is None or _is_blank(present):
            self.definitions[block.name] = body
        elif not _is_blank(body):
            name = to_text(block.name)
            raise TemplateFailure(f"template {brief(name)} is defined twice", position=block.position)

    def leave_loop(self, token: Token) -> None:
        self.expect_close(token.text)
        if not self.range_depth:
            raise TemplateFailure(f"{{{{{token.text}}}}} outside {{{{range}}}}", position=token.position)
        self.append(Break(token.position) if token.text == "break" else Continue(token.position))

    def call(self, token: Token) -> None:
        name = self.template_name("template clause")
        pipeline = None
        if self.skip_space().kind is Kind.RIGHT_DELIM:
            self.next()
        else:
            pipeline = self.pipeline("template clause", Kind.RIGHT_DELIM)
        self.append(TemplateCall(token.position, name, pipeline))

    # Expressions

    def pipeline(self, context: str, end: Kind) -> Pipeline:
        """Declarations if any, then commands, up to and with the token ``end``."""
        position = self.skip_space().position
        declarations, assigns = self.declarations(context)
        commands: list[Command] = []
        while (token := self.skip_space()).kind is not end:
            if token.kind not in _OPERAND_STARTS:
                raise self.unexpected(token, context)
            commands.append(self.command())
        self.next()
        if not commands:
            raise TemplateFailure(f"missing value for {context}", position=position)
        for stage, command in enumerate(commands[1:], start=2):
            if isinstance(command.arguments[0], Constant | Dot | Nil):
                raise TemplateFailure(f"stage {stage} of the pipeline is not a function", position=command.position)
        return Pipeline(position, tuple(declarations), assigns, tuple(commands))

    def declarations(self, context: str) -> tuple[list[str], bool]:
        """``$x :=``, ``$x =`` or, for a range, ``$x, $y :=``; nothing is consumed if there is none."""
        names: list[str] = []
        while (variable := self.skip_space()).kind is Kind.VARIABLE:
            start = self.index
            self.next()
            following = self.skip_space()
            if following.kind in (Kind.ASSIGN, Kind.DECLARE):
                self.next()
                self.declare(names, variable)
                return names, following.kind is Kind.ASSIGN
            if following.kind is not Kind.CHAR or following.text != ",":
                self.index = start
                break
            self.next()
            self.declare(names, variable)
            if context != "range" or len(names) > 1:
                raise TemplateFailure(f"too many declarations in {context}", position=variable.position)
            if self.skip_space().kind not in (Kind.VARIABLE, Kind.RIGHT_DELIM, Kind.RIGHT_PAREN):
                raise TemplateFailure("range can only initialize variables", position=self.peek().position)
        return names, False

    def declare(self, names: list[str], variable: Token) -> None:
        names.append(variable.text)
        self.variables.declare(variable)

    def command(self) -> Command:
        """Operands with spaces between, up to a ``|``, which is consumed, or a closing token, which is not."""
        position = self.skip_space().position
        arguments: list[Operand] = []
        while True:
            self.skip_space()
            operand = self.operand()
            if operand is not None:
                arguments.append(operand)
            token = self.peek()
            if token.kind is Kind.SPACE:
                self.next()
                continue
            if token.kind is Kind.PIPE:
                self.next()
            elif token.kind not in (Kind.RIGHT_DELIM, Kind.RIGHT_PAREN):
                raise self.unexpected(token, "operand")
            break
        if not arguments:
            raise TemplateFailure("empty command", position=position)
        return Command(position, tuple(arguments))

    def operand(self) -> Operand | None:
        """A term and the fields behind it; None if the next token starts none."""
        position = self.peek().position
        term = self.term()
        if term is None or self.peek().kind is not Kind.FIELD:
            return term
        fields: list[str] = []
        while self.peek().kind is Kind.FIELD:
            fields.append(self.next().text[1:])
        if isinstance(term, Field):
            return Field(position, (*term.names, *fields))
        if isinstance(term, Variable):
            return Variable(position, term.name, tuple(fields))
        if isinstance(term, Constant | Nil | Dot):
            raise TemplateFailure("unexpected field after a constant or dot", position=position)
        return Chain(position, term, tuple(fields))

    def term(self) -> Operand | None:
        token = self.skip_space()
        position = token.position
        match token.kind:
            case Kind.DOT:
                term: Operand = Dot(position)
            case Kind.NIL:
                term = Nil(position)
            case Kind.FIELD:
                term = Field(position, (token.text[1:],))
            case Kind.VARIABLE:
                if token.text not in self.variables:
                    raise TemplateFailure(f"undefined variable {brief(token.text)}", position=position)
                term = Variable(position, token.text, ())
            case Kind.IDENTIFIER:
                if token.text not in self.functions:
                    raise TemplateFailure(f"function {brief(token.text)} is not defined here", position=position)
                term = Function(position, token.text)
            case Kind.LEFT_PAREN:
                return self.parenthesized(token)
            case Kind.BOOL:
                term = Constant(position, token.text == "true")
            case Kind.STRING | Kind.RAW_STRING:
                term = Constant(position, self.constant_of(token))
            case Kind.NUMBER | Kind.COMPLEX | Kind.CHAR_CONSTANT:
                term = Constant(position, self.number_of(token))
            case _:
                return None
        self.next()
        return term

    def parenthesized(self, token: Token) -> Pipeline:
        if self.expression_depth >= MAX_EXPRESSION_DEPTH:
            raise TemplateFailure(
                f"parentheses are nested more than {MAX_EXPRESSION_DEPTH} deep", position=token.position
            )
        self.next()
        self.expression_depth += 1
        pipeline = self.pipeline("parenthesized pipeline", Kind.RIGHT_PAREN)
        self.expression_depth -= 1
        return pipeline

    def constant_of(self, token: Token) -> bytes:
        try:
            return unquote(token.text)
        except TemplateFailure as error:
            raise TemplateFailure(error.message, position=token.position) from None

    def number_of(self, token: Token) -> int | float | complex | None:
        try:
            if token.kind is Kind.CHAR_CONSTANT:
                return character(token.text)
            return complex_number(token.text) if token.kind is Kind.COMPLEX else number(token.text)
        except TemplateFailure as error:
            raise TemplateFailure(error.message, position=token.position) from None


def _is_blank(body: Body) -> bool:
    """Whether a definition holds nothing but white space."""
    return all(isinstance(node, Text) and not to_text(node.data).strip(GO_SPACES) for node in body)
