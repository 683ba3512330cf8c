"""Generated templates give here what they give in Go."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from tests.go.oracle import Oracle, running
from tests.manifest.templates.grammar import TEMPLATES
from tests.manifest.templates.sample import FUNCTIONS, SAMPLE

from marblerun.errors import Malformed
from marblerun.manifest.templates import compile_template


@pytest.fixture(scope="module")
def oracle() -> Iterator[Oracle]:
    with TemporaryDirectory() as folder, running("tmpldiff", Path(folder)) as program:
        if program is None:
            pytest.skip("Go is not installed: 2 differential tests of templates against text/template are skipped")
        yield program


def _ours(text: str, functions: str) -> bytes | str:
    """Output, or the message of a refusal."""
    try:
        return compile_template(text, FUNCTIONS[functions]).execute(SAMPLE)
    except Malformed as error:
        return error.message


@pytest.mark.parametrize("functions", ["files", "env"])
def test_generated_template_gives_the_same_bytes_or_a_refusal_in_both(oracle: Oracle, functions: str) -> None:
    @settings(max_examples=500, deadline=None)
    @given(text=TEMPLATES)
    def check(text: str) -> None:
        ours = _ours(text, functions)
        theirs = oracle.ask(functions, text.encode())
        if isinstance(ours, str):
            # The one deliberate difference: Go prints a whole struct or map, private keys included.
            assert not theirs.ok or "is not printed" in ours, (text, ours)
        else:
            assert theirs.ok, (text, theirs.value)
            assert base64.b64decode(theirs.value) == ours

    check()
