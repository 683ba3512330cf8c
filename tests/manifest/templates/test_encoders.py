"""``pem hex raw base64 string`` on every kind of value (protocol, section 5.7)."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from tests.manifest.templates.sample import KEY, SAMPLE, refusal, render

PREFIXES = {"current": "", "previous": ".Previous"}


def test_T1_raw_hex_and_base64_of_a_symmetric_key_give_the_key_and_pem_refuses_it() -> None:
    assert render("{{raw .Secrets.key}}") == KEY
    assert render("{{hex .Secrets.key}}") == KEY.hex().encode()
    assert render("{{base64 .Secrets.key}}") == base64.b64encode(KEY)
    assert "pem of a whole secret" in refusal("{{pem .Secrets.key}}")


def test_T2_pem_and_raw_of_a_certificate_are_the_certificate() -> None:
    der = SAMPLE.secrets["cert"].certificate
    assert x509.load_pem_x509_certificate(render("{{pem .Secrets.cert.Cert}}")) == x509.load_der_x509_certificate(der)
    assert render("{{raw .Secrets.cert.Cert}}") == der


def test_T3_pem_of_reserved_keys_has_the_right_headers_and_can_be_loaded() -> None:
    public = render("{{pem .MarbleRun.MarbleCert.Public}}")
    private = render("{{pem .MarbleRun.MarbleCert.Private}}")
    assert public.startswith(b"-----BEGIN PUBLIC KEY-----\n")
    assert private.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert load_pem_private_key(private, None).public_key() == load_pem_public_key(public)


def test_pem_breaks_lines_after_64_columns_and_ends_with_a_line_feed() -> None:
    lines = render("{{pem .Secrets.cert.Cert}}").split(b"\n")
    body = lines[1:-2]
    assert (lines[-2:], {len(line) for line in body[:-1]}) == ([b"-----END CERTIFICATE-----", b""], {64})


@pytest.mark.parametrize("function", ["raw", "hex", "base64", "pem"])
@pytest.mark.parametrize("prefix", PREFIXES.values(), ids=PREFIXES)
def test_T4_T6_missing_and_unset_secrets_are_refused(prefix: str, function: str) -> None:
    assert "there is no such secret" in refusal(f"{{{{{function} {prefix}.Secrets.missing}}}}")
    assert "has no value" in refusal(f"{{{{{function} {prefix}.Secrets.unset.Private}}}}")
    assert refusal(f"{{{{{function} {prefix}.Secrets.unset}}}}")


def test_T5_string_gives_a_plain_secret_and_refuses_other_types_and_nul() -> None:
    assert render("{{string .Secrets.word}}", "env") == b"secret"
    assert "NUL" in refusal("{{string .Secrets.nul}}", "env")
    assert "type plain" in refusal("{{string .Secrets.key}}", "env")
    assert "cannot be used" in refusal("{{string .Secrets.word.Private}}", "env")


def test_T6_previous_secrets_are_encoded_alike() -> None:
    old = KEY[::-1]
    assert render("{{raw .Previous.Secrets.key}}") == old
    assert render("{{hex .Previous.Secrets.key}}") == old.hex().encode()
    assert render("{{string .Previous.Secrets.word}}", "env") == b"older"
    assert refusal("{{pem .Previous.Secrets.key}}")
    der = SAMPLE.previous["cert"].certificate
    assert render("{{pem .Previous.Secrets.cert.Cert}}") == render("{{pem .MarbleRun.MarbleCert.Cert}}")
    assert render("{{raw .Previous.Secrets.cert.Cert}}") == der
    assert render("{{base64 .Previous.Secrets.key}}") == base64.b64encode(old)


def test_T6_string_of_a_previous_secret_refuses_nul_and_other_types() -> None:
    data = replace(SAMPLE, secrets={}, previous=SAMPLE.secrets)
    assert "NUL" in refusal("{{string .Previous.Secrets.nul}}", "env", data)
    assert "type plain" in refusal("{{string .Previous.Secrets.key}}", "env", data)


def test_raw_is_for_files_only_and_string_for_variables_only() -> None:
    assert "function 'raw' is not defined here" in refusal("{{raw .Secrets.word}}", "env")
    assert "function 'string' is not defined here" in refusal("{{string .Secrets.word}}", "files")


def test_value_of_a_secret_is_never_read_as_a_template() -> None:
    hostile = b"{{raw .Secrets.key}}{{define `x`}}"
    secrets = {**SAMPLE.secrets, "text": replace(SAMPLE.secrets["text"], public=hostile, private=hostile)}
    data = replace(SAMPLE, secrets=secrets)
    assert render("{{raw .Secrets.text}}", data=data) == hostile
    assert render("{{string .Secrets.text}}{{printf (string .Secrets.text)}}", "env", data) == 2 * hostile
