"""No parser of evidence or collateral raises anything but our errors, whatever the bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.forge.dcap import NOW, Dcap, new_keys, sgx_extension
from tests.vectors import parameters

from marblerun.attestation.dcap.certificates import read_certificate
from marblerun.attestation.dcap.collateral import collateral_to_json, parse_collateral_json
from marblerun.attestation.dcap.crl import read_crl
from marblerun.attestation.dcap.pck import collateral_key, parse_sgx_extension, summarise_certification
from marblerun.attestation.dcap.qe import parse_identity
from marblerun.attestation.dcap.quote import parse_quote, parse_quote_prefix, ppid_certification
from marblerun.attestation.dcap.tcb import parse_tcb_info
from marblerun.attestation.dcap.verify import Verifier
from marblerun.errors import Malformed, Untrusted
from marblerun.wire import der
from marblerun.wire.pem import decode_pem, encode_pem

pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")

KEYS = new_keys()
MINTED = Dcap(revoked_by_root=("pck",), keys=KEYS).mint()
TDX = Dcap(tdx=True, version=5).mint()
ROOT_DER, CA_DER = (
    MINTED.root_der,
    decode_pem(MINTED.collateral.pck_crl_issuer_chain.encode(), "CERTIFICATE", max_blocks=2)[0],
)
EXTENSION = sgx_extension((5,) * 16, 13, "0000", "00606a000000")


@st.composite
def mutated(draw: st.DrawFn, original: bytes) -> bytes:
    """``original`` with a few bytes changed, cut out, doubled or put in."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(("set", "cut", "insert", "double")))
        if kind == "set" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 40))]
    return bytes(data)


def only_ours(action: object, *arguments: object) -> None:
    """Calls ``action``; our errors are an answer, all others come through."""
    assert callable(action)
    try:
        action(*arguments)
    except (Malformed, Untrusted):
        return


@given(mutated(MINTED.quote) | mutated(TDX.quote) | st.binary(max_size=300))
def test_quotes(data: bytes) -> None:
    def everything() -> None:
        quote, _ = parse_quote_prefix(data)
        ppid_certification(quote.certification)
        summarise_certification(quote.certification)
        collateral_key(parse_quote(data))

    only_ours(everything)
    only_ours(Verifier([MINTED.root]).verify, data, MINTED.collateral, NOW)


@settings(max_examples=400)
@given(mutated(ROOT_DER) | mutated(CA_DER) | st.binary(max_size=200))
def test_certificates(encoded: bytes) -> None:
    only_ours(read_certificate, encoded, "step", "a certificate")


@settings(max_examples=400)
@given(mutated(MINTED.collateral.root_ca_crl) | st.binary(max_size=200))
def test_revocation_lists(encoded: bytes) -> None:
    issuer = read_certificate(ROOT_DER, "step", "the root")
    only_ours(read_crl, encoded, issuer, "step", "a list")


@settings(max_examples=400)
@given(mutated(der.elements(der.single(MINTED.collateral.root_ca_crl).content, limit=3)[0].encoded))
def test_revocation_lists_that_the_issuer_signed(changed: bytes) -> None:
    """The signature is right, so that dates, extensions and entries are really looked at."""
    _, algorithm, _ = der.elements(der.single(MINTED.collateral.root_ca_crl).content, limit=3)
    signature = KEYS["root"].sign(changed, ec.ECDSA(hashes.SHA256()))
    content = changed + algorithm.encoded + bytes([3, len(signature) + 1, 0]) + signature
    encoded = b"\x30\x82" + len(content).to_bytes(2, "big") + content
    only_ours(read_crl, encoded, read_certificate(ROOT_DER, "step", "the root"), "step", "a list")


@given(mutated(EXTENSION) | st.binary(max_size=100))
def test_sgx_extensions(value: bytes) -> None:
    only_ours(parse_sgx_extension, value, "platform")


@lru_cache(maxsize=1)
def collateral_json() -> str:
    return collateral_to_json(MINTED.collateral)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@st.composite
def changed_json(draw: st.DrawFn, original: str) -> str:
    """A JSON document in which one member somewhere has another value, or is gone."""
    document = json.loads(original)
    here = document
    while True:
        key = draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
        if isinstance(here[key], (dict, list)) and here[key] and draw(st.booleans()):
            here = here[key]
            continue
        if draw(st.booleans()):
            here[key] = draw(json_values)
        else:
            del here[key]
        return json.dumps(document)


@given(changed_json(MINTED.collateral.tcb_info) | changed_json(TDX.collateral.tcb_info) | st.text(max_size=50))
def test_tcb_infos(text: str) -> None:
    only_ours(parse_tcb_info, text)


@given(changed_json(MINTED.collateral.qe_identity) | st.text(max_size=50))
def test_identities(text: str) -> None:
    only_ours(parse_identity, text)


@given(changed_json(collateral_json()) | st.text(max_size=50) | st.binary(max_size=50))
def test_collateral(text: str | bytes) -> None:
    only_ours(parse_collateral_json, text)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        '{"a":' * 100_000,
        '{"a": ' + "9" * 10_000 + "}",
        '{"a": 1e999}',
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        "\ud800",
        "{}",
        "[]",
        "",
    ],
)
def test_hostile_json_is_malformed(text: str) -> None:
    for parse in (parse_tcb_info, parse_identity, parse_collateral_json):
        with pytest.raises(Malformed):
            parse(text)


@settings(max_examples=60)
@given(
    st.sampled_from(["pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain"]),
    mutated(ROOT_DER) | mutated(CA_DER) | st.binary(min_size=1, max_size=80),
    st.text(max_size=20),
)
def test_issuer_chains(field: str, encoded: bytes, text: str) -> None:
    root = x509.load_der_x509_certificate(ROOT_DER).public_bytes(Encoding.PEM).decode()
    for chain in (encode_pem(encoded, "CERTIFICATE") + root, root + text):
        changes: dict[str, Any] = {field: chain}
        collateral = replace(MINTED.collateral, **changes)
        only_ours(Verifier([MINTED.root]).verify, MINTED.quote, collateral, NOW)


@given(st.sampled_from(["tcb_info", "qe_identity"]), st.text(max_size=40), st.binary(max_size=70))
def test_signed_texts(field: str, text: str, signature: bytes) -> None:
    changes: dict[str, Any] = {field: text, f"{field}_signature": signature}
    collateral = replace(MINTED.collateral, **changes)
    with pytest.raises(Untrusted):
        Verifier([MINTED.root]).verify(MINTED.quote, collateral, NOW)


@pytest.mark.parametrize("name", parameters("sgx", "tdx", "sim"))
def test_collateral_survives_the_way_through_json(name: str) -> None:
    from tests.vectors import load

    collateral = load(name).collateral
    if collateral is None:
        pytest.skip("without collateral")
    assert collateral == parse_collateral_json(collateral_to_json(collateral))
