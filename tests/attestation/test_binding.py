"""Report data is bound to the whole message; nothing passes by being empty, short, long or a prefix."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from tests.vectors import vectors_directory

from marblerun.attestation.binding import report_data_for, verify_binding, verify_key_binding
from marblerun.attestation.dcap.quote import parse_quote
from marblerun.errors import Untrusted
from marblerun.wire.pem import encode_pem

MESSAGE = b"certificate"


def test_report_data_is_the_digest_and_zeros() -> None:
    assert report_data_for(MESSAGE) == hashlib.sha256(MESSAGE).digest() + bytes(32)


@given(st.binary(min_size=1), st.booleans())
def test_a_message_is_bound_to_its_own_report_data(message: bytes, strict: bool) -> None:
    verify_binding(report_data_for(message), message, strict=strict)


@given(st.binary(min_size=1), st.integers(0, 31), st.integers(1, 255), st.booleans())
def test_any_change_in_the_digest_is_refused(message: bytes, at: int, mask: int, strict: bool) -> None:
    changed = bytearray(report_data_for(message))
    changed[at] ^= mask
    with pytest.raises(Untrusted) as refusal:
        verify_binding(bytes(changed), message, strict=strict)
    assert (refusal.value.step, refusal.value.reason) == ("report-data", "mismatch")


def test_the_second_half_counts_only_if_strict() -> None:
    changed = report_data_for(MESSAGE)[:32] + b"\x01" * 32
    verify_binding(changed, MESSAGE, strict=False)
    with pytest.raises(Untrusted, match="not bound"):
        verify_binding(changed, MESSAGE, strict=True)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("report_data", "message"),
    [
        (b"", MESSAGE),
        (report_data_for(MESSAGE)[:32], MESSAGE),
        (report_data_for(MESSAGE)[:63], MESSAGE),
        (report_data_for(MESSAGE) + b"\x00", MESSAGE),
        (bytes(64), MESSAGE),
        (bytes(64), b""),
        (b"", b""),
        (hashlib.sha256(b"").digest() + bytes(32), b""),
    ],
)
def test_empty_short_long_and_zero_fail_closed(report_data: bytes, message: bytes, strict: bool) -> None:
    with pytest.raises(Untrusted) as refusal:
        verify_binding(report_data, message, strict=strict)
    assert refusal.value.step == "report-data"


def test_an_empty_message_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="binds nothing"):
        report_data_for(b"")


@pytest.mark.skipif(vectors_directory() is None, reason="no vectors: 1 recorded Coordinator answer is not tested")
def test_a_real_coordinators_quote_is_bound_to_its_root_certificate() -> None:
    directory = vectors_directory()
    assert directory is not None
    path = directory / "sgx/marblerun-coordinator-00906ed5/coordinator-quote-response.json"
    answer = json.loads(path.read_text())["data"]
    root = x509.load_pem_x509_certificates(answer["Cert"].encode())[-1].public_bytes(Encoding.DER)
    quote = parse_quote(base64.b64decode(answer["Quote"]))
    verify_binding(quote.report.report_data, root, strict=True)


def open_enclave(key: bytes) -> bytes:
    """Report data as Open Enclave makes them for a key: of its PEM text and the zero byte that ends it."""
    return hashlib.sha256(encode_pem(key, "PUBLIC KEY").encode() + b"\x00").digest() + bytes(32)


def test_a_key_is_bound_by_its_der_or_by_its_text() -> None:
    verify_key_binding(report_data_for(b"key"), b"key")
    verify_key_binding(open_enclave(b"key"), b"key")


@pytest.mark.parametrize(
    ("report_data", "key"),
    [
        (report_data_for(b"key"), b"another key"),
        (open_enclave(b"key"), b"another key"),
        (open_enclave(b"key")[:32], b"key"),
        (open_enclave(b"key") + b"\x00", b"key"),
        (report_data_for(b"key")[:32], b"key"),
        (open_enclave(b""), b""),
        (b"", b""),
        (bytes(64), b"key"),
    ],
)
def test_no_other_report_data_are_bound_to_a_key(report_data: bytes, key: bytes) -> None:
    with pytest.raises(Untrusted) as refused:
        verify_key_binding(report_data, key)
    assert refused.value.step == "report-data"
