"""Input made to hurt costs little time and memory, however large it may be: sizes go up to the ceilings."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tests.forge.dcap import NOW
from tests.fuzz.evidence import KEYS, minted, signed_list

from marblerun.attestation.dcap.certificates import read_certificate, read_chain
from marblerun.attestation.dcap.collateral import MAX_COLLATERAL_JSON_BYTES, parse_collateral_json
from marblerun.attestation.dcap.crl import read_crl
from marblerun.attestation.dcap.pck import parse_sgx_extension
from marblerun.attestation.dcap.qe import parse_identity
from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.dcap.tcb import parse_tcb_info
from marblerun.attestation.dcap.verify import Verifier
from marblerun.errors import Malformed, Untrusted
from marblerun.wire import der
from marblerun.wire.limits import MAX_COLLATERAL_FIELD_BYTES, MAX_QUOTE_BYTES
from marblerun.wire.pem import MAX_PEM_BYTES, decode_pem

SECONDS = 15.0
"""Of this process. Most take a few milliseconds; but memory is being traced, and lines may be counted too."""
BYTES_FOR_EACH_BYTE = 80
"""Python's lists and dicts need 56 and 64 bytes where JSON needs two, and the input itself counts too."""
CEILING = MAX_COLLATERAL_FIELD_BYTES


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """Fails if what is inside takes long, or memory out of proportion to ``size`` bytes of input."""
    tracemalloc.start()
    begin = time.process_time()
    try:
        yield
        took, most = time.process_time() - begin, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert took < SECONDS
    assert most < 1024 * 1024 + BYTES_FOR_EACH_BYTE * size


def refused(action: Callable[..., object], *arguments: Any) -> None:
    """Calls it; our errors are an answer."""
    with suppress(Malformed, Untrusted):
        action(*arguments)


BOMBS = {
    "nested lists": "[" * CEILING,
    "nested objects": ('{"a":' * CEILING)[:CEILING],
    "closed lists": "[" * (CEILING // 2) + "]" * (CEILING // 2),
    "a long number": "9" * CEILING,
    "a long number in a member": '{"version":' + "9" * (CEILING - 20) + "}",
    "a long exponent": '{"version":1e' + "9" * (CEILING - 20) + "}",
    "a long string": '"' + "a" * (CEILING - 2) + '"',
    "escapes": '"' + "\\u0000" * ((CEILING - 2) // 6) + '"',
    "many empty lists": "[" + "[]," * ((CEILING - 4) // 3) + "[]]",
    "many members": "{" + ",".join(f'"{i}":0' for i in range(CEILING // 12)) + "}",
    "one member many times": "{" + '"a":0,' * ((CEILING - 8) // 6) + '"a":0}',
    "many levels": '{"id":"SGX","version":3,"tcbType":0,"tcbLevels":[' + "{}," * ((CEILING - 60) // 3) + "{}]}",
    "spaces": " " * CEILING,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_json_bomb_costs_little(name: str) -> None:
    text = BOMBS[name]
    assert len(text) <= CEILING
    for parse in (parse_tcb_info, parse_identity, parse_collateral_json):
        with bounded(len(text)), pytest.raises(Malformed):
            parse(text)


def test_collateral_above_its_ceiling_is_not_read() -> None:
    text = " " * (MAX_COLLATERAL_JSON_BYTES + 1)
    with bounded(0), pytest.raises(Malformed, match="more than"):
        parse_collateral_json(text)


def huge_lengths() -> Iterator[bytes]:
    """DER values that announce far more than there is, or lie in each other very deep."""
    for size in ((1 << 16) - 1, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 1008) - 1):
        encoded = size.to_bytes((size.bit_length() + 7) // 8, "big")
        for tag in (0x30, 0x02, 0x03, 0x04, 0x06):
            yield bytes([tag, 0x80 | len(encoded)]) + encoded + b"\x30" * 100
    yield b"\x30\x80" * (MAX_QUOTE_BYTES // 2)
    yield b"\x30\xff" + b"\xff" * 127
    data = b""
    while len(data) < MAX_QUOTE_BYTES:
        length = len(data).to_bytes(4, "big")
        data = b"\x30\x84" + length + data if len(data) > 127 else b"\x30" + bytes([len(data)]) + data
    yield data
    yield b"\x06\x84" + (MAX_QUOTE_BYTES).to_bytes(4, "big") + b"\xff" * MAX_QUOTE_BYTES
    yield b"\x02\x84" + (MAX_QUOTE_BYTES).to_bytes(4, "big") + b"\x7f" * MAX_QUOTE_BYTES


def test_huge_lengths_and_deep_nesting_in_asn1_cost_little() -> None:
    root = read_certificate(minted()[0].root_der, "step", "the root")
    values = list(huge_lengths())
    with bounded(CEILING):
        for value in values:
            refused(parse_sgx_extension, value, "platform")
            refused(read_certificate, value, "step", "a certificate")
            refused(read_crl, value, root, "root-crl", "a list")
            refused(read_crl, signed_list(value), root, "root-crl", "a list")


@pytest.mark.parametrize(
    "text",
    [
        b"-----BEGIN CERTIFICATE-----\n" * (MAX_PEM_BYTES // 28),
        b"-----BEGIN CERTIFICATE-----\n" + b"A" * (MAX_PEM_BYTES - 60) + b"\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n" * (MAX_PEM_BYTES // 60),
        b"\n" * MAX_PEM_BYTES,
        b"\r\n" * (MAX_PEM_BYTES // 2 - 20) + b"-----BEGIN CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\n" + b"\r\n" * (MAX_PEM_BYTES // 2 - 60),
        b"-----" * (MAX_PEM_BYTES // 5),
    ],
)
def test_a_long_pem_chain_costs_little(text: bytes) -> None:
    with bounded(len(text)):
        refused(read_chain, text, "step", "a chain")
        for blocks in (3, 1_000_000):
            refused(lambda most: decode_pem(text, "CERTIFICATE", max_blocks=most), blocks)


def der_length(content: bytes) -> bytes:
    """As DER has it: no more bytes than needed."""
    size = len(content).to_bytes(4, "big").lstrip(b"\0")
    return size if len(content) < 128 else bytes([0x80 | len(size)]) + size


def revoking(count: int) -> bytes:
    """A list of the root with so many entries, as the vendor writes them."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Forged SGX Root CA")])
    builder = x509.CertificateRevocationListBuilder(name, NOW, NOW + timedelta(days=1))
    empty = builder.sign(KEYS["root"], hashes.SHA256()).public_bytes(Encoding.DER)
    members = [
        one.encoded for one in der.elements(der.elements(der.single(empty).content, limit=3)[0].content, limit=10)
    ]
    tail = b"\x17\x0d260301120000Z" + bytes.fromhex("300c300a0603551d1504030a0101")
    entries = b"".join(b"\x30\x33\x02\x14" + b"\x11" * 16 + i.to_bytes(4, "big") + tail for i in range(count))
    content = b"".join((*members, b"\x30", der_length(entries), entries))
    return signed_list(b"\x30" + der_length(content) + content)


def test_a_list_as_long_as_the_ceiling_allows_is_read_and_a_longer_one_is_refused() -> None:
    """100 000 entries are far above it; the longest real list has 57."""
    root = read_certificate(minted()[0].root_der, "step", "the root")
    readable, refusable = revoking(19_000), revoking(100_000)
    assert len(readable) < CEILING < len(refusable)
    with bounded(len(readable)):
        found = read_crl(readable, root, "root-crl", "a list")
    assert len(found.serials) == 19_000
    with bounded(0), pytest.raises(Untrusted, match=f"has {len(refusable)} bytes"):
        read_crl(refusable, root, "root-crl", "a list")
    first = minted()[0]
    with bounded(len(readable)):
        refused(Verifier([first.root]).verify, first.quote, replace(first.collateral, root_ca_crl=readable), NOW)


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\x03\x00\x02\x00", b"\x01\x00\x00\x00\x02\x00\x00\x00"])
def test_a_quote_above_the_ceiling_costs_nothing(filling: bytes) -> None:
    data = filling * (8 * 1024 * 1024 // len(filling))
    with bounded(MAX_QUOTE_BYTES), pytest.raises(Malformed, match="at most"):
        parse_quote(data)
