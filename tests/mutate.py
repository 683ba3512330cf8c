"""Takes one check at a time out of the rooms that decide, and says which ones no test misses.

Run in the project's root: ``python -m tests.mutate [ROOM...] [--jobs N] [--only TEXT] [--again FILE] [--list]``. For
every mutant the fast tests of its room run in a forked process, up to the first failure; the files themselves are not
touched. A mutant that all tests pass is a survivor: either a test is missing, or the change means nothing, and then it
stands in ``mutate_explained.json`` with its reason. 1 if there are other survivors. ``--again`` takes what an earlier
run said and tries its survivors only.

What is changed: a condition under which something is raised, yielded or returned early never holds, or holds without
one of its parts; the other branch is taken; a call whose only purpose is to raise is left out; ``<`` becomes ``<=``;
a function that answers yes or no says yes.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import cast

SOURCES = Path(__file__).resolve().parents[1] / "src" / "marblerun"


@dataclass(frozen=True)
class Room:
    """Modules, and the tests that must notice when a check of theirs is missing."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


ROOMS = {
    "dcap": Room(
        (
            *(f"attestation/dcap/{file.stem}" for file in sorted(SOURCES.glob("attestation/dcap/[!_]*.py"))),
            *("attestation/" + name for name in ("sgx", "tdx", "binding", "registry", "roots/__init__")),
        ),
        (
            *("tests/attestation/" + name for name in ("test_binding.py", "test_registry.py", "dcap")),
            *("tests/attestation/" + name for name in ("test_verify.py", "test_matrix.py", "test_vectors.py")),
            *("tests/attestation/" + name for name in ("simulated/test_forge.py", "test_fuzz.py")),
        ),
    ),
    "admission": Room(
        ("policy/admission",), ("tests/policy/test_admission_strict.py", "tests/policy/test_admission.py")
    ),
    "box": Room(("secrets/box",), ("tests/secrets/test_box.py",)),
}

EQUIVALENT: dict[str, str] = json.loads(Path(__file__).with_name("mutate_explained.json").read_text())
"""Survivors that change nothing anyone can notice: what :attr:`Mutant.key` says, and why."""

_LINE = re.compile(r"\.py:\d+ | \(explained\)$")
SECONDS = 120
"""After which a mutant counts as noticed: it does not end."""


@dataclass(frozen=True)
class Mutant:
    """A module in which one thing is different."""

    module: str
    line: int
    function: str
    change: str
    tree: Callable[[], ast.Module]

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
            yield Mutant(module, getattr(node, "lineno", 0), function, change, changed)


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


class _Loader(SourceFileLoader):
    """Gives the changed tree for the code of one module."""

    def __init__(self, name: str, path: str, tree: ast.Module) -> None:
        super().__init__(name, path)
        self._tree = tree

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._tree, self.path, "exec", dont_inherit=True)


class _Finder(MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._name = "marblerun." + mutant.module.removesuffix("/__init__").replace("/", ".")
        self._package = mutant.module.endswith("/__init__")
        self._loader = _Loader(self._name, str(SOURCES / f"{mutant.module}.py"), mutant.tree())

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        return spec_from_loader(fullname, self._loader, origin=self._loader.path, is_package=self._package)


def _start(mutant: Mutant | None, tests: Sequence[str]) -> int:
    """A forked process that runs the tests on the mutant, or on what is there; its process id."""
    child = os.fork()
    if child:
        return child
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    code = 99
    try:
        if mutant is not None:
            sys.meta_path.insert(0, _Finder(mutant))
        import pytest
        from hypothesis import Phase, settings

        # The same inputs for each mutant, nothing left behind from it, and no explaining of what fails.
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", database=None, derandomize=True, max_examples=30, phases=phases)
        signal.alarm(SECONDS)
        options = ["-x", "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "--no-cov"]
        code = int(pytest.main([*options, "--hypothesis-profile=mutants", *tests]))
    finally:
        os._exit(code)


def sweep(waiting: list[Mutant], tests: Sequence[str], *, jobs: int) -> list[Mutant]:
    """The survivors of these, known ones too."""
    running: dict[int, Mutant] = {}
    survivors: list[Mutant] = []
    total, start = len(waiting), time.monotonic()
    while waiting or running:
        while waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[_start(mutant, tests)] = mutant
        child, status = os.wait()
        mutant = running.pop(child)
        if status == 0:
            survivors.append(mutant)
            print(f"  {mutant.shown}{' (explained)' if mutant.key in EQUIVALENT else ''}", flush=True)
    print(f"{len(survivors)} of {total} mutants survive, {time.monotonic() - start:.0f} s", flush=True)
    return survivors


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description="Which checks does no test miss?")
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--only", default="", help="mutants with this text in what names them")
    parser.add_argument("--again", metavar="FILE", help="mutants that survived in this output of an earlier run")
    parser.add_argument("--list", action="store_true", help="name the mutants and run nothing")
    arguments = parser.parse_args()
    for name in ("pytest", "hypothesis", "cryptography.x509", "dcap_qvl"):
        importlib.import_module(name)  # once, before the forks
    found: list[Mutant] = []
    for name in arguments.rooms or ROOMS:
        room = ROOMS[name]
        wanted = [one for module in room.modules for one in mutants(module) if arguments.only in one.key]
        if arguments.again:
            earlier = {_LINE.sub(" ", line).strip() for line in Path(arguments.again).read_text().splitlines()}
            wanted = [one for one in wanted if one.key in earlier]
        if arguments.list:
            print("\n".join(one.shown for one in wanted))
            continue
        print(f"{name}:")
        _, status = os.waitpid(_start(None, room.tests), 0)
        if status:
            parser.error(f"the tests of {name} fail on what is there")
        found += sweep(wanted, room.tests, jobs=arguments.jobs)
    unexplained = [mutant for mutant in found if mutant.key not in EQUIVALENT]
    print(f"{len(unexplained)} survivors without explanation")
    return bool(unexplained)


if __name__ == "__main__":
    sys.exit(main())
