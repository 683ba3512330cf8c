"""Every behaviour of the acceptance list has a test that carries its id, or stands in ``NOT_YET`` with the reason.

A test carries an id in its name (``test_m14_...``) or in its docstring. The table holds the ids of the list, in its
order; what each row demands is in the list itself.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

ROWS: Mapping[str, tuple[str, int]] = {
    "C": ("core and start-up", 9),
    "S": ("secret generation", 7),
    "A": ("activation", 23),
    "T": ("templates", 10),
    "M": ("manifest parsing and checks", 16),
    "SM": ("set manifest", 6),
    "Q": ("quote, status, signatures", 5),
    "U": ("users and secrets API", 9),
    "F": ("sign-quote, features, counters", 10),
    "P": ("package update", 6),
    "X": ("full and multi-party update", 19),
    "R": ("recovery", 9),
    "K": ("sealing and stores", 15),
    "D": ("key exchange", 4),
    "B": ("TCB", 4),
    "N": ("metrics", 1),
    "I": ("integration", 16),
    "E": ("end to end on Kubernetes", 21),
}

_HSM = "HSM sealing is not built yet"

NOT_YET: Mapping[str, str] = {
    "E20": _HSM,
}


@cache
def carried() -> frozenset[str]:
    """All ids that tests carry."""
    return frozenset(found for path in sorted(TESTS.rglob("test_*.py")) for found in _ids(path))


def _ids(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield from (f"{kind}{number}".upper() for kind, number in _IN_NAME.findall(node.name))
            yield from (f"{kind}{number}" for kind, number in _IN_TEXT.findall(ast.get_docstring(node) or ""))


_KINDS = "|".join(sorted(ROWS, key=len, reverse=True))
_IN_NAME = re.compile(rf"(?<=_)({_KINDS})([0-9]+)(?=_|$)", re.IGNORECASE)
_IN_TEXT = re.compile(rf"\b({_KINDS})([0-9]+)\b")
ALL = [f"{kind}{number}" for kind, (_, count) in ROWS.items() for number in range(1, count + 1)]


@pytest.mark.parametrize("row", ALL)
def test_a_row_has_a_test_that_carries_its_id_or_a_reason_why_not_yet(row: str) -> None:
    assert (row in carried()) is not (row in NOT_YET), "take it out of NOT_YET" if row in NOT_YET else "write a test"


def test_every_exception_is_a_row_and_has_a_reason() -> None:
    assert set(NOT_YET) <= set(ALL)
    assert all(len(reason) > 10 for reason in NOT_YET.values())


@pytest.mark.parametrize("kind", ["S", "T", "M", "SM", "A"])
def test_the_rows_of_the_manifest_and_of_activation_have_no_exceptions(kind: str) -> None:
    assert not [row for row in NOT_YET if row.rstrip("0123456789") == kind]
