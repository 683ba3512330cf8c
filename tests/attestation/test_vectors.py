"""Every recorded SGX, TDX and simulated quote, and every negative one, gives what the index expects."""

from __future__ import annotations

import pytest
from tests.vectors import Vector, load, parameters, vectors_directory

from marblerun.attestation.dcap.pck import collateral_key
from marblerun.attestation.dcap.quote import add_oe_header, parse_quote
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, Origin, SgxReport, TdReport, TrustRoot
from marblerun.attestation.roots import INTEL, root_from_certificate
from marblerun.errors import Malformed, Untrusted

REFUSALS: dict[str, tuple[str, str]] = {
    # What the index expects: our step and reason. "parse" stands for Malformed.
    "signature: quote": ("quote-signature", "bad-signature"),
    "signature: qe report": ("qe-report-signature", "bad-signature"),
    "qe report data": ("qe-report-data", "mismatch"),
    "pck chain": ("pck-chain", "bad-signature"),
    "revoked pck": ("pck-crl", "revoked"),
    "TCB revoked": ("tcb-level", "revoked"),
    "TCB not supported (no level)": ("tcb-level", "not-supported"),
    "signature: tcb info": ("tcb-info", "bad-signature"),
    "signature: qe identity": ("qe-identity", "bad-signature"),
    "qe identity time": ("qe-identity", "expired"),
    "tcb info time": ("tcb-info", "not-yet-valid"),
    "fmspc": ("collateral-match", "mismatch"),
    "version": ("parse", ""),
    "att key type": ("parse", ""),
    "short": ("parse", ""),
    "sig len": ("parse", ""),
    "body type": ("parse", ""),
    "malformed: a strict parser rejects it": ("parse", ""),
}
OTHERWISE: dict[str, tuple[str, str]] = {
    # We look in another order than the verifier that wrote the index; each reason is as true as the expected one.
    # The list is of another CA and also stale; we compare its issuer before its dates.
    "negative/pck-crl-of-other-ca": ("pck-crl", "mismatch"),
    # Same, seen from the other side: expected "pck crl issuer" is what a broken signature looked like there.
    "negative/flip-pck-crl": ("pck-crl", "bad-signature"),
    # The list is of another CA, so its issuer is wrong before its signature is.
    "negative/root-crl-replaced-by-pck-crl": ("root-crl", "mismatch"),
    # An empty list is missing for us, a parser's error text there.
    "negative/root-crl-missing": ("root-crl", "missing"),
    "negative/stale-pck-crl": ("pck-crl", "mismatch"),
    # The chain has no TCB signer; there the PCK CA's key was tried on the signature.
    "negative/tcb-signer-is-pck-chain": ("tcb-signer", "mismatch"),
    # The identity is genuine and is of the other TEE: compared in step 6, with the quote, not when it is read.
    "negative/td-qe-identity-for-sgx": ("collateral-match", "mismatch"),
}


def verify(vector: Vector) -> Claims:
    collateral, at = vector.verifiable()
    return Verifier([vector.root]).verify(vector.quote, collateral, at)


def shown(claims: Claims) -> dict[str, object]:
    """Everything that the index may expect of a genuine quote, by the index's names."""
    return {
        "ok": True,
        "tcb_status": claims.tcb_status.value,
        "advisories": list(claims.advisories),
        "qe_status": claims.parts["qe"].status.value,
        **report_shown(claims.report),
    }


def report_shown(report: SgxReport | TdReport) -> dict[str, object]:
    """The report by the index's names."""
    common = {"debug": report.debug, "report_data": report.report_data.hex()}
    if isinstance(report, SgxReport):
        return common | {
            "mrenclave": report.mrenclave.hex(),
            "mrsigner": report.mrsigner.hex(),
            "isv_prod_id": report.isv_prod_id,
            "isv_svn": report.isv_svn,
            "attributes": report.attributes.hex(),
        }
    return common | {
        "mrtd": report.mrtd.hex(),
        "rtmr": [rtmr.hex() for rtmr in report.rtmrs],
        "mrseam": report.mrseam.hex(),
        "tee_tcb_svn": report.tee_tcb_svn.hex(),
        "td_attributes": report.td_attributes.hex(),
        "xfam": report.xfam.hex(),
        "mrconfigid": report.mrconfigid.hex(),
        "mrowner": report.mrowner.hex(),
        "mrservicetd": None if report.mrservicetd is None else report.mrservicetd.hex(),
    }


@pytest.mark.parametrize("name", parameters("sgx", "tdx", "sim", "negative"))
def test_the_verdict_is_the_expected_one(name: str) -> None:
    vector = load(name)
    if vector.ok is None:
        pytest.skip("without collateral: parsed in another test")
    if vector.ok:
        claims = verify(vector)
        expected = {key: value for key, value in vector.expected.items() if key != "report_data_binding"}
        actual = shown(claims)
        assert expected == {key: actual[key] for key in expected}
        assert (claims.root, claims.origin) == (vector.root.name, vector.root.origin)
        return
    with pytest.raises((Malformed, Untrusted)) as refusal:
        verify(vector)
    expected_step = OTHERWISE.get(name) or REFUSALS[vector.expected["error"]]
    error = refusal.value
    assert expected_step == ((error.step, error.reason) if isinstance(error, Untrusted) else ("parse", ""))


@pytest.mark.parametrize("name", parameters("sgx", "tdx", "sim"))
def test_the_report_and_platform_are_parsed_as_expected(name: str) -> None:
    vector = load(name)
    quote = parse_quote(vector.quote)
    assert quote == parse_quote(add_oe_header(vector.quote))
    actual = report_shown(quote.report)
    assert {key: actual[key] for key in vector.expected if key in actual} == {
        key: value for key, value in vector.expected.items() if key in actual
    }
    if vector.identity:
        assert vector.identity["quote_version"] == quote.header.version
        assert vector.identity["cert_data_type"] == quote.certification.type
    if vector.identity.get("fmspc"):
        key = collateral_key(quote)
        assert (vector.identity["fmspc"], vector.identity["pck_ca"]) == (key.fmspc.hex().upper(), key.ca)


@pytest.mark.parametrize("name", parameters("sgx", "tdx", "sim"))
def test_no_root_refuses_everything(name: str) -> None:
    vector = load(name)
    if vector.collateral is None or vector.at is None:
        pytest.skip("without collateral")
    with pytest.raises(Untrusted) as refusal:
        Verifier([]).verify(vector.quote, vector.collateral, vector.at)
    assert (refusal.value.step, refusal.value.reason) == ("root", "unknown-root")


@pytest.mark.parametrize("name", parameters("sim"))
def test_a_simulated_quote_is_refused_under_intels_root(name: str) -> None:
    vector = load(name)
    collateral, at = vector.verifiable()
    with pytest.raises(Untrusted) as refusal:
        Verifier([INTEL]).verify(vector.quote, collateral, at)
    assert refusal.value.reason == "unknown-root"


def test_one_verifier_with_two_roots_says_which_one_signed() -> None:
    simulated, genuine = load("sim/sgx-uptodate-platform"), load("sgx/automata-00606a-platform")
    verifier = Verifier([genuine.root, simulated.root])
    for vector in (simulated, genuine, simulated):
        collateral, at = vector.verifiable()
        claims = verifier.verify(vector.quote, collateral, at)
        assert (claims.origin, claims.root) == (vector.root.origin, vector.root.name)


def test_a_simulated_root_does_not_vouch_for_hardware() -> None:
    """Collateral under a simulated root cannot decide over a genuine quote, though both roots are trusted."""
    simulated, genuine = load("sim/sgx-uptodate-platform"), load("sgx/automata-00606a-platform")
    collateral, at = simulated.verifiable()
    with pytest.raises(Untrusted) as refusal:
        Verifier([genuine.root, simulated.root]).verify(genuine.quote, collateral, at)
    assert (refusal.value.step, refusal.value.reason) == ("pck-chain", "mismatch")


@pytest.mark.skipif(vectors_directory() is None, reason="no vectors: Intel's root certificate is not compared")
def test_the_pinned_key_is_that_of_intels_root_certificate() -> None:
    directory = vectors_directory()
    assert directory is not None
    der = (directory / "intel-sgx-root-ca.der").read_bytes()
    assert TrustRoot(INTEL.name, INTEL.spki_sha256, Origin.HARDWARE) == root_from_certificate(
        der, INTEL.name, Origin.HARDWARE
    )
