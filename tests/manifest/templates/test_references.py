"""Which secrets a template can reach is known without running it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given, settings
from tests.manifest.templates.grammar import TEMPLATES
from tests.manifest.templates.sample import FUNCTIONS, SAMPLE

from marblerun.errors import Malformed
from marblerun.manifest.templates import References, TemplateData, compile_template
from marblerun.secrets.model import Secret


def _references(text: str) -> References:
    return compile_template(text, FUNCTIONS["files"]).references()


NAMED: dict[str, set[str]] = {
    "{{hex .Secrets.a}}": {"a"},
    '{{hex (index .Secrets "my-name")}}': {"my-name"},
    "{{.Secrets.a.Type}}{{$.Secrets.b}}": {"a", "b"},
    "{{$s := .Secrets}}{{hex $s.a}}": {"a"},
    "{{with .Secrets}}{{hex .a}}{{end}}": {"a"},
    "{{with .Secrets.a}}{{hex .Private}}{{hex $.Secrets.b}}{{end}}": {"a", "b"},
    "{{if .Secrets.a}}{{else if .Secrets.b}}{{else}}{{hex .Secrets.c}}{{end}}": {"a", "b", "c"},
    "{{range .Secrets.a.Private}}{{.}}{{$.Secrets.b}}{{else}}{{hex .Secrets.c}}{{end}}": {"a", "b", "c"},
    '{{define "t"}}{{hex .a}}{{end}}{{template "t" .Secrets}}': {"a"},
    '{{define "t"}}{{hex .Secrets.a}}{{template "t" .}}{{end}}{{template "t" .}}': {"a"},
    '{{block "t" .Secrets.a}}{{hex .Cert}}{{end}}': {"a"},
    "{{hex (.Secrets).a}}{{(.Secrets.b).Type}}": {"a", "b"},
    "{{len .Secrets}}": set(),
    "{{/* .Secrets.a */}}.Secrets.b": set(),
    '{{define "unused"}}{{.Secrets.a}}{{end}}x{{1}}': set(),
    "no action": set(),
}


@pytest.mark.parametrize("text", NAMED)
def test_named_secrets_are_found(text: str) -> None:
    references = _references(text)
    assert (set(references.secrets), references.dynamic) == (NAMED[text], False)


def test_previous_and_reserved_secrets_are_told_apart() -> None:
    references = _references(
        '{{hex .Previous.Secrets.a}}{{index .Previous.Secrets "b"}}{{.MarbleRun.RootCA.Cert}}{{.Secrets.c}}'
    )
    assert references == References(frozenset("c"), frozenset("ab"), frozenset({"RootCA"}), dynamic=False)


@pytest.mark.parametrize(
    "text",
    [
        "{{range .Secrets}}{{.Type}}{{end}}",
        "{{range $n, $s := .Previous.Secrets}}{{$n}}{{end}}",
        '{{index .Secrets (print "a")}}',
        '{{"a" | index .Secrets}}',
        "{{.}}",
        "{{print .Previous}}",
        "{{$x := 1}}{{$x = .Secrets}}{{hex $x.a}}",
        "{{$x := .Secrets}}{{if 1}}{{$x := 2}}{{end}}{{hex $x.a}}",
        "{{(and 1 .Secrets).a}}",
        "{{(.Secrets | and 1).a}}",
    ],
)
def test_template_that_may_ask_for_any_secret_is_dynamic(text: str) -> None:
    assert _references(text).dynamic


class _Asked(Mapping[str, Secret]):
    """Secrets that remember which of them were asked for."""

    def __init__(self, secrets: Mapping[str, Secret]) -> None:
        self.secrets = secrets
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> Secret:
        self.names.add(name)
        return self.secrets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.secrets)

    def __len__(self) -> int:
        return len(self.secrets)


def test_only_secrets_that_a_run_reaches_are_asked_for() -> None:
    asked = _Asked(SAMPLE.secrets)
    template = compile_template(
        "{{if 0}}{{hex .Secrets.cert}}{{end}}{{hex .Secrets.key}}{{.Secrets.missing}}", FUNCTIONS["files"]
    )
    template.execute(TemplateData(SAMPLE.marblerun, asked, asked))
    assert asked.names == {"key", "missing"}


@settings(max_examples=200, deadline=None)
@given(text=TEMPLATES)
def test_static_names_cover_whatever_a_run_asks_for(text: str) -> None:
    current, previous = _Asked(SAMPLE.secrets), _Asked(SAMPLE.previous)
    try:
        template = compile_template(text, FUNCTIONS["files"])
        references = template.references()
        template.execute(TemplateData(SAMPLE.marblerun, current, previous))
    except Malformed:
        return
    if not references.dynamic:
        assert (current.names <= references.secrets, previous.names <= references.previous) == (True, True)
