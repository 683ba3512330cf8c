"""Quotes without their PCK certificate chain: types 1 to 4 verify with the rest from the collateral, or are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from tests.forge.evidence import AT, Evidence, forge, hierarchy, td_report

from marblerun.attestation.dcap.collateral import collateral_to_json, parse_collateral_json
from marblerun.attestation.dcap.pck import summarise_certification
from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, Collateral, CollateralKey, PckQuery, SgxReport, TdReport, Tee
from marblerun.attestation.simulated import quotes
from marblerun.errors import Malformed, Untrusted

OF: Final = hierarchy()
PLATFORM: Final = OF.platform
CPUSVN: Final = b"\x0f" * 16


def stated(ppid: bytes, pce_svn: int = PLATFORM.pce_svn, pce_id: bytes = PLATFORM.pce_id) -> bytes:
    """Certification data of types 1 to 3."""
    return ppid + CPUSVN + pce_svn.to_bytes(2, "little") + pce_id


def certified(
    kind: int, data: bytes, report: SgxReport | TdReport | None = None, chain: str = OF.pck_chain
) -> Evidence:
    """Good evidence, but with this certification data, and with ``chain`` among the collateral."""

    def parts(of: quotes.QuoteParts) -> quotes.QuoteParts:
        return replace(of, certification_type=kind, certification_data=data)

    return forge(report, parts=parts, collateral=lambda c: replace(c, pck_certificate_chain=chain))


def verify(evidence: Evidence) -> Claims:
    return Verifier([evidence.root]).verify(evidence.quote, evidence.collateral, AT)


def refusal(evidence: Evidence) -> tuple[str, str]:
    with pytest.raises(Untrusted) as caught:
        verify(evidence)
    return caught.value.step, caught.value.reason


GOOD = {
    "PPID in the clear": (1, stated(PLATFORM.ppid)),
    "PPID encrypted with RSA-2048": (2, stated(b"\xaa" * 256)),
    "PPID encrypted with RSA-3072": (3, stated(b"\xaa" * 384)),
    "a platform whose PCE is newer than the certificate": (3, stated(b"\xaa" * 384, PLATFORM.pce_svn + 1)),
    "the leaf, PEM": (4, OF.pck.pem.encode()),
    "the leaf, PEM with NUL": (4, OF.pck.pem.encode() + b"\x00"),
    "the leaf, DER": (4, OF.pck.certificate.public_bytes(Encoding.DER)),
    "the chain with several NULs": (5, OF.pck_chain.encode() + bytes(4)),
}


@pytest.mark.parametrize("report", [None, td_report(), td_report(version_15=True)], ids=["sgx", "tdx4", "tdx5"])
@pytest.mark.parametrize("name", GOOD)
def test_a_quote_says_the_same_whoever_brings_its_chain(name: str, report: TdReport | None) -> None:
    evidence = certified(*GOOD[name], report=report)
    claims = verify(evidence)
    assert (claims.platform, claims.report) == (PLATFORM, parse_quote(evidence.quote).report)


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (1, stated(b"\x01" * 16), ("certification-data", "mismatch")),
        (1, stated(PLATFORM.ppid, pce_id=b"\x01\x00"), ("certification-data", "mismatch")),
        (2, stated(bytes(256), pce_id=b"\x01\x00"), ("certification-data", "mismatch")),
        (3, stated(bytes(384), pce_svn=PLATFORM.pce_svn - 1), ("certification-data", "mismatch")),
        (4, b"leaf", ("certification-data", "malformed")),
        (4, b"\x30\x03abc", ("pck-chain", "malformed")),
        (4, OF.pck_chain.encode(), ("certification-data", "malformed")),
        (4, hierarchy(name="impostor").pck.pem.encode(), ("pck-chain", "bad-signature")),
        (4, OF.tcb_signer.pem.encode(), ("pck-chain", "mismatch")),
        (7, b"a platform manifest", ("certification-data", "unsupported")),
    ],
)
def test_what_does_not_fit_is_refused_by_name(kind: int, data: bytes, expected: tuple[str, str]) -> None:
    assert expected == refusal(certified(kind, data))


@pytest.mark.parametrize("kind", ["PPID in the clear", "PPID encrypted with RSA-2048", "PPID encrypted with RSA-3072"])
def test_without_the_certificate_the_refusal_says_what_is_missing(kind: str) -> None:
    assert refusal(certified(*GOOD[kind], chain="")) == ("certification-data", "missing")


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (hierarchy(name="impostor").pck_chain, ("pck-chain", "unknown-root")),
        (OF.pck.pem + OF.pck_ca.pem, ("pck-chain", "mismatch")),
        ("no chain at all", ("pck-chain", "malformed")),
        ("K\N{LATIN SMALL LETTER O WITH DIAERESIS}ln", ("pck-chain", "malformed")),
    ],
)
def test_a_chain_from_a_service_is_trusted_no_more_than_one_in_a_quote(chain: str, expected: tuple[str, str]) -> None:
    assert expected == refusal(certified(3, stated(bytes(384)), chain=chain))


def test_another_machines_certificate_does_not_fit_though_the_root_is_the_same() -> None:
    """Encrypted, the PPID tells nothing; the signature over the QE's report does."""
    elsewhere = replace(OF, pck=replace(OF.pck, key=hierarchy(name="impostor").pck.key))

    def parts(of: quotes.QuoteParts) -> quotes.QuoteParts:
        return replace(of, certification_type=3, certification_data=stated(bytes(384)))

    def with_chain(collateral: Collateral) -> Collateral:
        return replace(collateral, pck_certificate_chain=OF.pck_chain)

    evidence = forge(of=elsewhere, parts=parts, collateral=with_chain)
    assert refusal(evidence) == ("qe-report-signature", "bad-signature")


def test_an_embedded_chain_goes_before_one_of_the_collateral() -> None:
    evidence = forge(collateral=lambda c: replace(c, pck_certificate_chain="ignored"))
    assert verify(evidence).platform == PLATFORM


@pytest.mark.parametrize(
    ("kind", "ppid", "encrypted"), [(1, b"\xaa" * 16, b""), (2, b"\xaa" * 256, b""), (3, b"\xaa" * 384, b"\xaa" * 384)]
)
def test_the_key_says_how_to_ask_for_the_certificate(kind: int, ppid: bytes, encrypted: bytes) -> None:
    evidence = certified(kind, stated(ppid), td_report())
    quote = parse_quote(evidence.quote)
    query = PckQuery(quote.header.user_data[:16], CPUSVN, PLATFORM.pce_svn, PLATFORM.pce_id, encrypted)
    assert CollateralKey(Tee.TDX, b"", "", query) == Verifier([evidence.root]).collateral_key(quote)


def test_a_lone_leaf_selects_its_collateral_and_is_shown() -> None:
    evidence = certified(*GOOD["the leaf, PEM"])
    quote = parse_quote(evidence.quote)
    assert Verifier([evidence.root]).collateral_key(quote) == CollateralKey(Tee.SGX, PLATFORM.fmspc, "platform")
    assert summarise_certification(quote.certification).platform == PLATFORM


@pytest.mark.parametrize("chain", ["", OF.pck_chain])
def test_collateral_json_keeps_the_tenth_field_where_there_is_one(chain: str) -> None:
    collateral = replace(forge().collateral, pck_certificate_chain=chain)
    text = collateral_to_json(collateral)
    assert parse_collateral_json(text) == collateral
    assert ("pck_certificate_chain" in text) is bool(chain)


@given(st.sampled_from([1, 2, 3, 4, 7]), st.binary(max_size=500), st.text(max_size=60))
def test_whatever_the_certification_data_and_the_chain_are_a_verdict_comes_out(
    kind: int, data: bytes, chain: str
) -> None:
    sizes = {1: 36, 2: 276, 3: 404}
    evidence = certified(kind, data.ljust(sizes[kind], b"\x00")[: sizes[kind]] if kind in sizes else data, chain=chain)
    with pytest.raises((Malformed, Untrusted)):
        verify(evidence)
