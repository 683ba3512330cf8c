"""A template cannot take unbounded time, memory or stack, and says so when it tries."""

from __future__ import annotations

import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.manifest.templates.grammar import TEMPLATES
from tests.manifest.templates.sample import FUNCTIONS, SAMPLE, refusal, render

from marblerun.errors import Malformed
from marblerun.manifest.templates import Budget, compile_template

DOUBLING = '{{$x := "aaaaaaaaaaaaaaaa"}}{{range 60}}{{$x = print $x $x}}{{end}}'
HOSTILE = {
    "endless range": ("{{range 9223372036854775807}}{{end}}", "steps"),
    "nested ranges": ("{{range 99999}}{{range 99999}}{{.}}{{end}}{{end}}", "steps"),
    "doubling a text": (DOUBLING, "the template "),
    "printing gigabytes": ("{{range 9999}}{{printf `%9999999d` 1}}{{end}}", "prints more than"),
    "padding gigabytes unseen": ("{{range 9999}}{{$x := printf `%9999999d` 1}}{{end}}", "steps"),
    "template that calls itself": ('{{define "a"}}{{template "a"}}{{end}}{{template "a"}}', "does 'a' call itself"),
    "templates in a circle": (
        '{{define "a"}}{{template "b"}}{{end}}{{define "b"}}{{template "a"}}{{end}}{{template "a"}}',
        "call each other",
    ),
    "fork": (
        '{{define "a"}}{{if .}}{{template "a" (slice . 1)}}{{template "a" (slice . 1)}}{{end}}{{end}}'
        '{{template "a" "' + "a" * 60 + '"}}',
        "steps",
    ),
    "deep parentheses": ("{{" + "(" * 20_000 + "1" + ")" * 20_000 + "}}", "parentheses are nested"),
    "deep blocks": ("{{if 1}}" * 5_000 + "{{end}}" * 5_000, "blocks are nested"),
    "many actions": ("{{1}}" * 1_000_000, "tokens"),
    "many comments": ("{{/**/}}" * 1_000_000, "tokens"),
    "many escapes": ('{{"' + "\\n" * 1_000_000 + '"}}', "tokens"),
    "long number": ("{{" + "1" * 1_000_000 + "}}", "1000 characters"),
    "many variables": ("".join(f"{{{{$v{i} := 1}}}}" for i in range(2_000)), "variables"),
    "quoting megabytes": (
        '{{$x := "\\u2028\\u2028"}}{{range 20}}{{$x = print $x $x}}{{end}}{{printf "%q" $x}}',
        "steps",
    ),
    "comparing megabytes": (
        "{{$x := printf `%9999999d` 1}}{{$y := printf `%9999999d` 1}}{{range 999}}{{eq $x $y}}{{end}}",
        "steps",
    ),
    "reading a certificate": ("{{range 999999999}}{{$x := $.Secrets.cert.Cert.DNSNames}}{{end}}", "steps"),
}


@pytest.mark.parametrize(("text", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_template_is_refused_in_seconds(text: str, reason: str) -> None:
    start = time.process_time()
    message = refusal(text)
    assert (reason in message, len(message) < 300, time.process_time() - start < 15) == (True, True, True), message


def test_deep_nesting_within_the_limits_needs_little_of_pythons_stack() -> None:
    blocks = "{{if 1}}" * 900 + "x" + "{{end}}" * 900
    chain = "{{if 0}}" + "{{else if 0}}" * 5_000 + "{{else}}y{{end}}"
    calls = '{{define "a"}}{{if .}}{{template "a" (slice . 1)}}{{end}}{{end}}{{template "a" "' + "a" * 5_000 + '"}}z'
    parentheses = "{{" + "(" * 50 + "1" + ")" * 50 + "}}"
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(_frames()) + 400)
    try:
        results = [render(text) for text in (blocks, chain, calls, parentheses)]
    finally:
        sys.setrecursionlimit(before)
    assert results == [b"x", b"y", b"z", b"1"]


def _frames() -> list[object]:
    frames: list[object] = []
    frame = sys._getframe()
    while frame is not None:
        frames.append(frame)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return frames


def test_one_budget_bounds_several_templates_together() -> None:
    template = compile_template("{{range 30}}{{.}}{{end}}", FUNCTIONS["files"])
    budget = Budget(steps=500)
    template.execute(SAMPLE, budget=budget)
    with pytest.raises(Malformed, match="more than 500 steps"):
        template.execute(SAMPLE, budget=budget)


def test_output_ceiling_counts_text_and_values() -> None:
    template = compile_template("aaaa{{`bbbb`}}", FUNCTIONS["files"])
    assert template.execute(SAMPLE, budget=Budget(output=8)) == b"aaaabbbb"
    with pytest.raises(Malformed, match="prints more than 7 bytes"):
        template.execute(SAMPLE, budget=Budget(output=7))


FRAGMENTS = [
    "{{",
    "}}",
    "-",
    " ",
    "if",
    "range",
    "end",
    "$x",
    ":=",
    ".",
    "a",
    "(",
    ")",
    "|",
    '"',
    "1",
    "`",
    "e",
    ",",
    "/*",
]
TEXTS = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60),
    st.lists(st.sampled_from(FRAGMENTS)).map("".join),
    st.tuples(TEMPLATES, st.floats(0, 1)).map(lambda drawn: drawn[0][: int(len(drawn[0]) * drawn[1])]),
)


@settings(max_examples=500, deadline=None)
@given(text=TEXTS, functions=st.sampled_from(["files", "env"]))
def test_any_text_compiles_or_is_malformed_and_runs_or_is_malformed(text: bytes | str, functions: str) -> None:
    result: object
    try:
        template = compile_template(text, FUNCTIONS[functions])
        template.references()
        result = template.execute(SAMPLE, budget=Budget(steps=20_000, output=100_000))
    except Malformed as error:
        result = error.where
    assert isinstance(result, bytes) or str(result).startswith("template")
