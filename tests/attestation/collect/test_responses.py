"""Answers of a provisioning service, taken apart."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.forge.evidence import forge, hierarchy

from marblerun.attestation.collect.responses import TCB_INFO_CHAIN, cut_signed_text, decode_crl, issuer_chain
from marblerun.errors import Malformed

SIGNATURE = "ab" * 64

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(max_size=4), json_values, max_size=3), st.booleans(), st.sampled_from(["", " ", "\n\t"]))
def test_the_signed_text_is_cut_out_to_the_last_character(value: dict[str, Any], first: bool, space: str) -> None:
    text = json.dumps(value, ensure_ascii=False)
    members = [f'"tcbInfo"{space}:{space}{text}', f'"signature"{space}:"{SIGNATURE}"']
    body = f"{space}{{{space}{f'{space},{space}'.join(members if first else reversed(members))}{space}}}{space}"
    assert cut_signed_text(body.encode("utf-8", "surrogatepass"), "tcbInfo") == (text, bytes.fromhex(SIGNATURE))


def test_whitespace_and_key_order_inside_the_signed_text_are_kept() -> None:
    text = '{ "z" : 1,\n "a": [1 , 2] }'
    body = f'{{"signature":"{SIGNATURE}","tcbInfo":{text}}}'
    assert cut_signed_text(body.encode(), "tcbInfo")[0] == text


def test_braces_inside_strings_do_not_end_the_text() -> None:
    text = r'{"a":"}\"}{"}'
    assert cut_signed_text(f'{{"tcbInfo":{text},"signature":"{SIGNATURE}"}}'.encode(), "tcbInfo")[0] == text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"<html>no</html>",
        f'{{"tcbInfo":{{}},"signature":"{SIGNATURE}"'.encode(),
        f'{{"tcbInfo":{{}},"signature":"{SIGNATURE}"}} trailing'.encode(),
        f'{{"tcbInfo":{{}},"tcbInfo":{{"a":1}},"signature":"{SIGNATURE}"}}'.encode(),
        f'{{"tcbInfo":[],"signature":"{SIGNATURE}"}}'.encode(),
        b'{"tcbInfo":{},"signature":"abcd"}',
        b'{"tcbInfo":{},"signature":7}',
        f'{{"tcbInfo":{{}},"signature":"{"zz" * 64}"}}'.encode(),
        f'{{"tcbInfo":{{}},"signature":"{" " * 128}"}}'.encode(),
        b'{"tcbInfo":' + b"[" * 200_000,
        b'{"tcbInfo":{"a":' + b"9" * 10_000 + b'},"signature":"' + SIGNATURE.encode() + b'"}',
        b"{" + b",".join(b'"%d":1' % n for n in range(1000)) + b"}",
    ],
)
def test_anything_else_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        cut_signed_text(body, "tcbInfo")


@given(st.binary(max_size=300))
def test_garbage_is_never_more_than_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        cut_signed_text(body, "tcbInfo")
    with pytest.raises(Malformed):
        decode_crl(body)


def test_the_issuer_chain_is_url_decoded_and_a_plus_stays_a_plus() -> None:
    chain = hierarchy().tcb_signer_chain
    assert issuer_chain(httpx.Headers({"tcb-info-issuer-chain": quote(chain)}), TCB_INFO_CHAIN) == chain
    assert issuer_chain(httpx.Headers({"SGX-TCB-Info-Issuer-Chain": quote(chain, safe="+/=")}), TCB_INFO_CHAIN) == chain


@pytest.mark.parametrize(
    "headers",
    [{}, {"TCB-Info-Issuer-Chain": ""}, {"TCB-Info-Issuer-Chain": "%ff%fe"}, {"TCB-Info-Issuer-Chain": "x" * 70_000}],
)
def test_a_missing_or_strange_chain_header_is_malformed_and_named(headers: dict[str, str]) -> None:
    with pytest.raises(Malformed, match="TCB-Info-Issuer-Chain"):
        issuer_chain(httpx.Headers(headers), TCB_INFO_CHAIN)


def test_a_crl_is_understood_in_der_pem_and_hex() -> None:
    der = forge().collateral.pck_crl
    pem = x509.load_der_x509_crl(der).public_bytes(serialization.Encoding.PEM)
    assert [decode_crl(body) for body in (der, pem, der.hex().encode(), der.hex().upper().encode() + b"\n")] == [
        der
    ] * 4
