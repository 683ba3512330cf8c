"""Every row of the table gives what Go's own text/template gave.

``go run . -golden ../../manifest/templates/golden.json`` in tests/go/tmpldiff computes the table anew; a new row needs
its template and function set only.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from tests.manifest.templates.sample import refusal, render

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden.json").read_bytes())


def _bytes(case: dict[str, Any], key: str) -> bytes | None:
    if key in case:
        return str(case[key]).encode()
    encoded = case.get(f"{key}_base64")
    return None if encoded is None else base64.b64decode(encoded)


def _groups() -> list[str]:
    return list(dict.fromkeys(case["about"] for case in CASES))


@pytest.mark.parametrize("about", _groups())
def test_rows_give_what_go_gave(about: str) -> None:
    for case in (case for case in CASES if case["about"] == about):
        text = _bytes(case, "template")
        assert text is not None
        if case.get("error"):
            assert refusal(text, case["functions"]), f"Go refuses {text!r}"
        else:
            assert _bytes(case, "output") == render(text, case["functions"]), text


def test_table_is_large_and_has_both_results_and_refusals() -> None:
    refused = sum(bool(case.get("error")) for case in CASES)
    assert (len(CASES) >= 200, refused >= 50, len(CASES) - refused >= 50) == (True, True, True)
