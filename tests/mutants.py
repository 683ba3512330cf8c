"""One check less: programs that differ from what is there in one thing.

What is changed: a condition under which something is raised, yielded or returned early never holds, or holds without
one of its parts; the other branch is taken; a call whose only purpose is to raise is left out; ``<`` becomes ``<=``;
a function that answers yes or no says yes.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

SOURCES = Path(__file__).resolve().parents[1] / "src" / "marblerun"


@dataclass(frozen=True)
class Mutant:
    """A module in which one thing is different."""

    module: str
    line: int
    end: int
    function: str
    change: str
    tree: Callable[[], ast.Module]

    @property
    def path(self) -> Path:
        """The file of the module."""
        return SOURCES / f"{self.module}.py"

    @property
    def key(self) -> str:
        """What names it, whatever the line."""
        return f"{self.module} {self.function}: {self.change}"

    @property
    def shown(self) -> str:
        """The same with the line."""
        return f"{self.module}.py:{self.line} {self.function}: {self.change}"


def mutants(module: str) -> Iterator[Mutant]:
    """Every mutant of the module, a path below the package without ending."""
    tree = ast.parse((SOURCES / f"{module}.py").read_text())
    for function, node in _nodes(tree, ""):
        for change, replacement in _changes(node):
            changed = partial(_replaced, tree, node, replacement)
            line = getattr(node, "lineno", 0)
            yield Mutant(module, line, getattr(node, "end_lineno", line), function, change, changed)


def _nodes(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", "") if isinstance(child, (ast.FunctionDef, ast.ClassDef)) else ""
        inside = f"{function}.{name}".strip(".") if name else function
        yield inside, child
        yield from _nodes(child, inside)


def _changes(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.If(test=test, body=body, orelse=orelse):
            yield f"never `if {ast.unparse(test)}`", ast.If(ast.Constant(False), body, orelse)
            if not isinstance(body[-1], ast.Raise):
                yield f"always `if {ast.unparse(test)}`", ast.If(ast.Constant(True), body, orelse)
        case ast.IfExp(test=test, body=yes, orelse=no):
            yield f"always the first of `{ast.unparse(node)}`", yes
            yield f"always the second of `{ast.unparse(node)}`", no
        case ast.BoolOp(op=op, values=values):
            for index, part in enumerate(values):
                others = values[:index] + values[index + 1 :]
                rest: ast.expr = others[0] if len(others) == 1 else ast.BoolOp(op, others)
                yield f"without `{ast.unparse(part)}` in `{ast.unparse(node)}`", rest
        case ast.Compare(left=left, ops=[op], comparators=others) if type(op) in _NEIGHBOURS:
            other = _NEIGHBOURS[type(op)]()
            changed = ast.Compare(left, [other], others)
            yield f"`{ast.unparse(changed)}` for `{ast.unparse(node)}`", changed
        case ast.Compare(left=left, ops=ops, comparators=others) if len(ops) > 1:
            for index in range(len(ops)):
                last = ast.Compare(([left, *others])[index], [ops[index]], [others[index]])
                yield f"only `{ast.unparse(last)}` of `{ast.unparse(node)}`", last
        case ast.Expr(value=ast.Call(func=func)) if _name(func).lstrip("_").split("_")[0] in ("verify", "expect"):
            yield f"without `{ast.unparse(node)}`", ast.Pass()
        case ast.FunctionDef(returns=ast.Name(id="bool"), args=args):
            said = ast.Return(ast.Constant(True))
            yield "always yes", ast.FunctionDef(node.name, args, [said], node.decorator_list, node.returns)


_NEIGHBOURS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}


def _name(func: ast.expr) -> str:
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _replaced(tree: ast.Module, node: ast.AST, replacement: ast.AST) -> ast.Module:
    """A copy of the tree with one node exchanged."""

    class Exchange(ast.NodeTransformer):
        def visit(self, one: ast.AST) -> ast.AST:
            return ast.copy_location(replacement, one) if one is node else self.generic_visit(one)

    memo: dict[int, ast.AST] = {}
    copy = deepcopy(tree, memo)
    node, replacement = memo[id(node)], deepcopy(replacement, memo)
    return ast.fix_missing_locations(cast("ast.Module", Exchange().visit(copy)))
