"""Compiled templates: the fast path, messages, and the one place where ours differs from Go on purpose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.manifest.templates.sample import FUNCTIONS, KEY, SAMPLE, refusal, render

from marblerun.errors import Malformed
from marblerun.manifest.templates import FILE_FUNCTIONS, compile_template


@given(text=st.binary().filter(lambda text: b"{{" not in text))
def test_text_without_actions_is_its_own_result(text: bytes) -> None:
    template = compile_template(text, FILE_FUNCTIONS)
    assert (template.is_static, template.execute(SAMPLE)) == (True, text)


@given(text=st.binary().filter(lambda text: b"{{" not in text and not text.endswith(b"{")))
def test_bytes_around_an_action_are_kept(text: bytes) -> None:
    assert render(text + b"{{``}}" + text) == text + text


def test_template_can_run_again_with_the_same_result() -> None:
    template = compile_template("{{$x := 0}}{{range 3}}{{$x = .}}{{end}}{{$x}}{{hex .Secrets.key}}", FILE_FUNCTIONS)
    assert template.execute(SAMPLE) == template.execute(SAMPLE) == b"2" + KEY.hex().encode()


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("a\n\n{{if}}", "/etc/x, line 3"),
        ("a\n{{ 1\n }}\n{{foo}}", "/etc/x, line 4"),
        ("\n{{hex .Secrets.missing}}", "/etc/x, line 2"),
        ('{{define "t"}}\n{{hex .x}}{{end}}{{template "t" .}}', "/etc/x, line 2, in template 't'"),
        ("{{range 2}}\n{{if eq . 1}}\n{{index `` 1}}{{end}}{{end}}", "/etc/x, line 3"),
        ("\n{{if 1}}", "/etc/x, line 2"),
        ("{{/* \n\n */}}{{1 | 2}}", "/etc/x, line 3"),
    ],
)
def test_message_names_template_and_line(text: str, where: str) -> None:
    with pytest.raises(Malformed) as caught:
        compile_template(text, FILE_FUNCTIONS, name="/etc/x").execute(SAMPLE)
    assert caught.value.where == where


def test_name_with_a_dash_is_refused_with_the_way_to_write_it() -> None:
    assert 'index .Secrets "my-name"' in refusal("{{.Secrets.my-name}}")


WHOLE = [
    ".",
    ".Secrets",
    ".Secrets.key",
    ".Secrets.cert.Cert",
    ".MarbleRun",
    ".MarbleRun.MarbleCert",
    ".Previous.Secrets",
]
PRINTED = ["{{%s}}", "{{print %s}}", '{{printf "%%v" %s}}', '{{printf "%%d" 1 %s}}', "{{html 1 %s}}", "{{println %s}}"]


@pytest.mark.parametrize("form", PRINTED)
@pytest.mark.parametrize("value", WHOLE)
def test_whole_secret_map_or_certificate_is_not_printed(value: str, form: str) -> None:
    """Go prints all of it, private keys included; a deliberate difference."""
    assert "is not printed" in refusal(form % value)


@pytest.mark.parametrize("functions", FUNCTIONS)
def test_messages_never_show_values(functions: str) -> None:
    failures = [
        "{{index .Secrets.word.Private (print .Secrets.word.Private)}}",
        "{{.Secrets.word.Private.x}}",
        "{{printf .Secrets.word.Private}}",
        "{{eq (printf `%s` .Secrets.word.Private) 1}}",
        "{{range (printf `%s` .Secrets.word.Private)}}{{end}}",
        "{{call (printf `%s` .Secrets.word.Private)}}",
        "{{hex (printf `%s` .Secrets.word.Private)}}",
        "{{lt .Secrets.word.Private .Secrets.word.Private}}",
        "{{.Secrets.word.Private 1}}",
    ]
    messages = [refusal(text, functions) for text in failures]
    assert [bool(message) and "secret'" not in message and "115" not in message for message in messages] == [
        True
    ] * len(failures)


def test_text_with_half_a_surrogate_pair_is_refused() -> None:
    assert "surrogate" in refusal("{{`\ud800`}}")
