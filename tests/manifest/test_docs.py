"""The reference page names every key, and the page of rules is what the table of rules says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marblerun.cli.lint_page import render
from marblerun.manifest import parse
from marblerun.wire import limits
from marblerun.wire.gojson import Shape

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "manifest.md").read_text()


def keys(shape: Shape[Any], name: str = "") -> Iterator[str]:
    """Every key of the document, except those inside of ``Cert``, which are Go's."""
    inside = shape.inside()
    for below in (inside.elements, inside.entries):
        if below is not None:
            yield from keys(below)
    for field in inside.fields:
        yield field.name
        if field.name != "Cert":
            yield from keys(field.shape, field.name)


ALL = sorted(set(keys(parse.manifest)))


def test_the_document_has_the_keys_we_know() -> None:
    assert len(ALL) > 60


@pytest.mark.parametrize("key", ALL)
def test_every_key_is_on_the_page(key: str) -> None:
    assert re.search(rf"`(?:[A-Za-z]+\.\*\.)?{key}`", PAGE)


def test_limits_on_the_page_are_those_of_the_code() -> None:
    assert f"{limits.MAX_MANIFEST_BYTES >> 20} MiB, {limits.MAX_JSON_VALUES:,} values" in PAGE
    assert f"{limits.MAX_JSON_DEPTH:,} levels" in PAGE
    assert f"take {limits.MAX_TEMPLATE_STEPS:,} steps and print {limits.MAX_TEMPLATE_OUTPUT_BYTES >> 20} MiB" in PAGE


def test_the_page_of_rules_is_what_the_table_says() -> None:
    """After a change: ``python -m marblerun.cli.lint_page > docs/lint-rules.md``."""
    assert (DOCS / "lint-rules.md").read_text() == render()
