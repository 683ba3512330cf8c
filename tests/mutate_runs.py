"""Runs tests on mutants: first the tests that come by the changed lines, then, if none of them minds, all of the room.

The tests of a room are collected once and run once under coverage. For each mutant a fork of that process exchanges the
code of the changed function and runs the tests that were there, the short ones first, up to the first failure. What
survives that (or cannot be exchanged: a line that runs when the module is loaded) gets a process in which the module is
loaded anew and all tests run. Nothing that is noticed depends on the coverage, only how soon.
"""

from __future__ import annotations

import ast
import gc
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterator, Sequence
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_loader
from types import CodeType, FunctionType, ModuleType

import pytest
from coverage import Coverage
from hypothesis import Phase, settings
from tests.mutants import Mutant

SECONDS = 120
"""After which a mutant counts as noticed, where the tests do not take longer by themselves: it does not end."""
_ENOUGH = 20
"""Times as long as the tests take without a change."""


def sweep(
    waiting: Sequence[Mutant], tests: Sequence[str], *, jobs: int, known: Container[str] = (), short: bool = False
) -> Iterator[Mutant]:
    """The mutants of these that no test minds, as they are found.

    The ``known`` ones, by key, are not tried the long way, and none is if the answer is to be ``short``. RuntimeError
    if the tests fail on what is there.
    """
    tried = _collected(waiting, tests, jobs)
    left = [waiting[index] for index in tried.left]
    yield from (mutant for mutant in left if short or mutant.key in known)
    again = [mutant for mutant in left if not short and mutant.key not in known]
    statuses = _forked(len(again), lambda index: _load_and_run(again[index], tests), jobs, lambda _: tried.limit)
    yield from (again[index] for index, status in statuses if status == 0)


# A process for each run


def _forked(
    count: int, work: Callable[[int], int], jobs: int, limit: Callable[[int], int]
) -> Iterator[tuple[int, int]]:
    """The index and the exit status of each, done in a process and a temporary directory of its own."""
    waiting, running = list(range(count)), dict[int, tuple[int, str]]()
    while waiting or running:
        while waiting and len(running) < jobs:
            index = waiting.pop(0)
            directory = tempfile.mkdtemp()
            child = os.fork()
            if not child:
                _become(partial(work, index), directory, limit(index))
            running[child] = index, directory
        child, status = os.wait()
        index, directory = running.pop(child)
        shutil.rmtree(directory, ignore_errors=True)
        yield index, status


def _become(work: Callable[[], int], directory: str, seconds: int) -> None:
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = directory
    signal.alarm(seconds)
    code = 99
    try:
        code = work()
    finally:
        os._exit(code)


def _run(tests: Sequence[str], *plugins: object) -> int:
    # The same inputs for each mutant, nothing left behind from it, and no explaining of what fails.
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", database=None, derandomize=True, max_examples=30, phases=phases)
    options = ["-x", "-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "--no-cov"]
    return int(pytest.main([*options, "--hypothesis-profile=mutants", *tests], plugins=list(plugins)))


# The long way: the changed module is loaded instead


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
        self._loader = _Loader(self._name, str(mutant.path), mutant.tree())

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self._name:
            return None
        return spec_from_loader(fullname, self._loader, origin=self._loader.path, is_package=self._package)


def _load_and_run(mutant: Mutant, tests: Sequence[str]) -> int:
    sys.meta_path.insert(0, _Finder(mutant))
    return _run(tests)


# The short way: the changed function is exchanged where the tests are collected already


class _Tried:
    """What came out of the short way: mutants nobody minded, and how long the tests may take."""

    def __init__(self, left: list[int], seconds: float) -> None:
        self.left = left
        self.limit = max(SECONDS, int(_ENOUGH * seconds))


def _collected(mutants: Sequence[Mutant], tests: Sequence[str], jobs: int) -> _Tried:
    with tempfile.TemporaryDirectory() as directory:
        told = os.path.join(directory, "told")
        exchanges = _Exchanges(mutants, jobs, told)
        for _, status in _forked(1, lambda _: _run(tests, exchanges), 1, lambda _: 0):
            if status:
                raise RuntimeError(f"the tests fail on what is there: {' '.join(tests)}")
        with open(told, encoding="utf-8") as file:
            left, seconds = json.load(file)
    return _Tried(left, seconds)


class _Exchanges:
    """Instead of running what was collected: runs it once to see who comes by where, then parts of it per mutant."""

    def __init__(self, mutants: Sequence[Mutant], jobs: int, told: str) -> None:
        self._mutants = mutants
        self._jobs = jobs
        self._told = told
        self._voice = os.dup(2)  # the process that runs this is silent

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Called by pytest when everything is collected."""
        start = time.monotonic()
        visits = self._visits(session)
        took = time.monotonic() - start
        functions = _functions({str(mutant.path) for mutant in self._mutants})
        modules = [str(item.path) for item in session.items]
        chosen = [visits.of(mutant, modules) for mutant in self._mutants]
        limits = [max(SECONDS, int(_ENOUGH * sum(visits.seconds[one] for one in some))) for some in chosen]

        def attempt(index: int) -> int:
            exchanged = chosen[index] and _exchange(self._mutants[index], functions)
            return _run_items(session, chosen[index]) if exchanged else 0

        left = []
        for tried, (index, status) in enumerate(_forked(len(self._mutants), attempt, self._jobs, limits.__getitem__)):
            if status == 0:
                left.append(index)
                os.write(self._voice, f"  ({tried} tried) left: {self._mutants[index].shown}\n".encode())
        left.sort()
        with open(self._told, "w", encoding="utf-8") as file:
            json.dump([left, took], file)
        return True

    def _visits(self, session: pytest.Session) -> _Visits:
        told = f"{self._told}-visits"
        files = sorted({str(mutant.path) for mutant in self._mutants})
        for _, status in _forked(1, lambda _: _watch(session, files, told), 1, lambda _: 0):
            if status:
                raise RuntimeError("the tests fail on what is there")
        with open(told, encoding="utf-8") as file:
            lines, seconds = json.load(file)
        return _Visits(lines, seconds)


class _Visits:
    """Which tests come by which line of which file, and how long each takes."""

    def __init__(self, lines: dict[str, dict[str, list[int]]], seconds: list[float]) -> None:
        self._lines = lines
        self.seconds = seconds

    def of(self, mutant: Mutant, modules: Sequence[str]) -> list[int]:
        """The tests that come by the changed lines, the short ones first; ``modules`` says where each test is.

        Those of one module stay together: what it prepares for all of them is prepared once.
        """
        lines = self._lines.get(str(mutant.path), {})
        found = {one for line in range(mutant.line, mutant.end + 1) for one in lines.get(str(line), ())}
        costs = dict.fromkeys(modules, 0.0)
        for one in found:
            costs[modules[one]] += self.seconds[one]
        return sorted(found, key=lambda one: (costs[modules[one]], modules[one], self.seconds[one]))


def _watch(session: pytest.Session, files: list[str], told: str) -> int:
    coverage = Coverage(data_file=None, config_file=False, include=files, messages=False)
    seconds = []
    coverage.start()
    for index in range(len(session.items)):
        coverage.switch_context(str(index))
        start = time.monotonic()
        following = session.items[index + 1] if index + 1 < len(session.items) else None
        session.config.hook.pytest_runtest_protocol(item=session.items[index], nextitem=following)
        seconds.append(time.monotonic() - start)
    coverage.stop()
    data = coverage.get_data()
    lines = {
        file: {line: [int(one) for one in tests if one] for line, tests in data.contexts_by_lineno(file).items()}
        for file in data.measured_files()
    }
    with open(told, "w", encoding="utf-8") as out:
        json.dump([lines, seconds], out)
    return session.testsfailed


def _run_items(session: pytest.Session, chosen: Sequence[int]) -> int:
    items = [session.items[index] for index in chosen]
    for item, following in zip(items, [*items[1:], None], strict=True):
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return 1
    return 0


Functions = dict[tuple[str, str, int], list[FunctionType]]
"""By file, qualified name and first line."""


def _functions(files: set[str]) -> Functions:
    found: Functions = {}
    for one in gc.get_objects():
        if isinstance(one, FunctionType) and one.__code__.co_filename in files:
            found.setdefault(_place(one.__code__), []).append(one)
    return found


def _place(code: CodeType) -> tuple[str, str, int]:
    return code.co_filename, code.co_qualname, code.co_firstlineno


def _exchange(mutant: Mutant, functions: Functions) -> bool:
    """Give every function that the mutant changes its new code; false if that is none, or one that cannot be."""
    exchanged = False
    for code in _codes(compile(mutant.tree(), str(mutant.path), "exec", dont_inherit=True)):
        for function in functions.get(_place(code), ()):
            if function.__code__ != code:
                if function.__code__.co_freevars != code.co_freevars:
                    return False
                function.__code__ = code
                exchanged = True
    return exchanged


def _codes(code: CodeType) -> Iterator[CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _codes(constant)


def prepare() -> None:
    """Load once what every process needs, before the forks; nothing of what is changed."""
    for name in ("pytest", "hypothesis", "cryptography.x509", "dcap_qvl"):
        importlib.import_module(name)
