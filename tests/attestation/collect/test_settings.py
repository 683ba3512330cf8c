"""Settings of the collateral client and Intel's own configuration file."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.attestation.collect.qcnl import QcnlSettings, parse_qcnl
from marblerun.attestation.collect.settings import INTEL_ROOT_CRL, CollateralSettings
from marblerun.errors import Malformed, Misconfigured


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://pccs.example:8081", "https://pccs.example:8081"),
        ("https://pccs.example:8081/", "https://pccs.example:8081"),
        ("https://localhost:8081/sgx/certification/v4/", "https://localhost:8081"),
        ("http://[::1]:8081/sgx/certification/v4", "http://[::1]:8081"),
        ("https://pccs.example/behind/proxy/sgx/certification/v4/", "https://pccs.example/behind/proxy"),
    ],
)
def test_every_usual_way_to_write_the_url_means_the_same(url: str, base: str) -> None:
    settings = CollateralSettings(url=url)
    assert settings.base == base
    assert settings.root_crl == f"{base}/sgx/certification/v4/rootcacrl"


def test_intels_service_is_the_default_and_has_its_root_crl_elsewhere() -> None:
    assert CollateralSettings().base == "https://api.trustedservices.intel.com"
    assert CollateralSettings().root_crl == INTEL_ROOT_CRL


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8081",
        "ftp://pccs.example",
        "file:///etc/passwd",
        "https://",
        "https://user:secret@pccs.example",
        "https://pccs.example/?a=b",
        "https://pccs.example:99999",
        "https://pccs.example/sgx/certification/v3/",
        "https://[",
    ],
)
def test_a_url_that_cannot_be_a_service_is_refused(url: str) -> None:
    with pytest.raises(Misconfigured) as refusal:
        CollateralSettings(url=url)
    assert "secret" not in str(refusal.value)


def test_times_and_channel_are_checked() -> None:
    with pytest.raises(Misconfigured):
        CollateralSettings(timeout=0)
    with pytest.raises(Misconfigured):
        CollateralSettings(attempts=0)
    with pytest.raises(Misconfigured):
        CollateralSettings(update="late")


NEW_FORM = b"""
// Configuration of the quote provider library
{
  // *** ATTENTION : this file is in JSON format
  "pccs_url": "https://pccs.example:8081/sgx/certification/v4/" /* with a // inside */
  ,"use_secure_cert": false
  //,"collateral_service": "https://api.trustedservices.intel.com/sgx/certification/v4/"
  ,"retry_times": 6, "local_pck_url": "http://localhost/x"
}
"""
OLD_FORM = b"""
# PCCS server address
PCCS_URL=https://pccs.example:8081/sgx/certification/v3/
# To accept insecure HTTPS certificate, set this option to FALSE
USE_SECURE_CERT=FALSE
"""


def test_the_json_form_is_read_comments_and_all() -> None:
    assert parse_qcnl(NEW_FORM) == QcnlSettings("https://pccs.example:8081/sgx/certification/v4/", False)


def test_the_line_form_is_read() -> None:
    assert parse_qcnl(OLD_FORM) == QcnlSettings("https://pccs.example:8081/sgx/certification/v3/", False)


def test_certificates_are_verified_unless_the_file_says_otherwise() -> None:
    assert parse_qcnl(b"{}") == QcnlSettings(None, True)
    assert parse_qcnl(b"") == QcnlSettings(None, True)


def test_a_collateral_service_of_its_own_is_found() -> None:
    text = b'{"collateral_service": "https://c.example", "pccs_url": "https://p.example"}'
    assert parse_qcnl(text) == QcnlSettings("https://p.example", True, "https://c.example")


@pytest.mark.parametrize(
    "data",
    [
        b'{"pccs_url": 7}',
        b'{"use_secure_cert": "perhaps"}',
        b'{"use_secure_cert": 1}',
        b'{"pccs_url": ',
        b"{" * 50_000,
        b"PCCS_URL https://x",
        b"USE_SECURE_CERT=perhaps",
        b"\xff\xfe",
        b"#" * 70_000,
    ],
)
def test_a_file_in_neither_form_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed, match="qcnl"):
        parse_qcnl(data)


@pytest.mark.parametrize("start", [b"{", b""])
@pytest.mark.parametrize("piece", [b'\\"', b"/*", b'"', b"//", b"a=\n"])
def test_a_hostile_file_takes_no_time(start: bytes, piece: bytes) -> None:
    before = time.process_time()
    with contextlib.suppress(Malformed):
        parse_qcnl(start + b'"' + piece * (65_000 // len(piece)))
    assert time.process_time() - before < 1


@given(st.binary(max_size=200))
def test_garbage_is_settings_or_malformed(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert isinstance(parse_qcnl(data), QcnlSettings)
