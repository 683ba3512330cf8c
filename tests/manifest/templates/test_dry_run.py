"""Trying templates before there are values (protocol, section 5.8)."""

from __future__ import annotations

import pytest
from tests.manifest.templates.sample import refusal, render

from marblerun.manifest.templates import dry_run_data, stand_in
from marblerun.secrets.model import Secret

DATA = dry_run_data(
    {
        "key": Secret(type="symmetric-key", size=128, private=b"k" * 16, public=b"k" * 16),
        "upload": stand_in(Secret(type="plain", user_defined=True)),
        "upload_cert": stand_in(Secret(type="cert-rsa", size=2048, user_defined=True)),
    }
)
CERTIFICATE_OF_A = b"-----BEGIN CERTIFICATE-----\nQQ==\n-----END CERTIFICATE-----\n"


def test_T7_valid_templates_pass_and_mistakes_are_found() -> None:
    assert render("{{hex .Secrets.key}}", data=DATA) == b"6b" * 16
    assert render("{{raw .Previous.Secrets.key}}", data=DATA) == b"k" * 16
    assert "no such secret" in refusal("{{hex .Secrets.missing}}", data=DATA)
    assert "whole secret" in refusal("{{pem .Secrets.key}}", data=DATA)


def test_T8_raw_in_a_variable_is_refused() -> None:
    assert "'raw' is not defined" in refusal("{{raw .Secrets.key}}", "env", DATA)


def test_secrets_to_be_uploaded_pass_with_every_function_that_will_accept_them() -> None:
    assert render("{{string .Secrets.upload}}{{hex .Secrets.upload}}", "env", DATA) == b"A41"
    assert render("{{pem .Secrets.upload_cert.Cert}}", data=DATA) == CERTIFICATE_OF_A
    assert render("{{raw .Secrets.upload_cert.Private}}{{raw .Secrets.upload_cert.Public}}", data=DATA) == b"AA"
    assert render("{{.Secrets.upload_cert.Cert.DNSNames}}", data=DATA) == b"[]"


@pytest.mark.parametrize(
    "path", ["RootCA.Cert", "MarbleCert.Cert", "CoordinatorRoot.Cert", "CoordinatorIntermediate.Cert"]
)
def test_T9_reserved_certificates_can_be_used(path: str) -> None:
    assert render(f"{{{{pem .MarbleRun.{path}}}}}", data=DATA) == CERTIFICATE_OF_A


def test_T9_keys_of_the_marble_can_be_used() -> None:
    assert render("{{raw .MarbleRun.MarbleCert.Private}}{{raw .MarbleRun.MarbleCert.Public}}", data=DATA) == b"AA"


@pytest.mark.parametrize("field", ["Private", "Public"])
@pytest.mark.parametrize("name", ["RootCA", "CoordinatorRoot", "CoordinatorIntermediate"])
@pytest.mark.parametrize("function", ["pem", "hex", "raw", "base64"])
def test_T10_keys_of_the_coordinator_are_refused(name: str, field: str, function: str) -> None:
    assert "has no value" in refusal(f"{{{{{function} .MarbleRun.{name}.{field}}}}}", data=DATA)
