"""A registry admits the kinds of evidence it was given, and nothing by default."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.forge.dcap import NOW, Dcap

from marblerun.attestation.dcap.quote import add_oe_header
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, CollateralKey, Origin, Tee, Unattested
from marblerun.attestation.registry import DcapEvidence, NoEvidence, Registry
from marblerun.attestation.roots import INTEL
from marblerun.errors import Malformed, Untrusted

FORGED = Dcap().mint()
DCAP = Registry([DcapEvidence(Verifier([FORGED.root]))])


@pytest.mark.parametrize(("evidence", "reason"), [(b"", "missing"), (b"{}", "unknown"), (bytes(500), "unknown")])
def test_evidence_of_no_admitted_kind_is_refused_with_its_reason(evidence: bytes, reason: str) -> None:
    for refuse in (lambda: DCAP.verify(evidence, None, NOW), lambda: DCAP.collateral_key(evidence)):
        with pytest.raises(Untrusted) as refusal:
            refuse()
        assert (refusal.value.step, refusal.value.reason) == ("evidence", reason)


@pytest.mark.parametrize("evidence", [b"", FORGED.quote])
def test_an_empty_registry_refuses_everything(evidence: bytes) -> None:
    with pytest.raises(Untrusted):
        Registry([]).verify(evidence, FORGED.collateral, NOW)


@pytest.mark.parametrize("wrap", [bytes, add_oe_header])
def test_a_quote_goes_to_its_verifier_with_and_without_header(wrap: object) -> None:
    assert callable(wrap)
    evidence = wrap(FORGED.quote)
    assert DCAP.collateral_key(evidence) == CollateralKey(Tee.SGX, bytes.fromhex("00606a000000"), "platform")
    verdict = DCAP.verify(evidence, FORGED.collateral, NOW)
    assert isinstance(verdict, Claims)
    assert (verdict.origin, verdict.root) == (Origin.SIMULATED, "forged")


def test_a_quote_without_collateral_is_refused() -> None:
    with pytest.raises(Untrusted) as refusal:
        DCAP.verify(FORGED.quote, None, NOW)
    assert (refusal.value.step, refusal.value.reason) == ("collateral", "missing")


def test_a_quote_of_another_root_is_refused() -> None:
    with pytest.raises(Untrusted) as refusal:
        Registry([DcapEvidence(Verifier([INTEL]))]).verify(FORGED.quote, FORGED.collateral, NOW)
    assert refusal.value.reason == "unknown-root"


@pytest.mark.parametrize("evidence", [b"", b"garbage", FORGED.quote])
def test_no_evidence_admits_everybody_as_unattested(evidence: bytes) -> None:
    registry = Registry([NoEvidence()])
    assert registry.collateral_key(evidence) is None
    assert registry.verify(evidence, None, NOW) == Unattested(Origin.NONE)


@given(st.binary(max_size=600) | st.binary(max_size=600).map(lambda tail: FORGED.quote[:60] + tail))
def test_any_bytes_are_judged_or_refused_with_our_errors(evidence: bytes) -> None:
    with pytest.raises((Malformed, Untrusted)):
        DCAP.verify(evidence, FORGED.collateral, NOW)
    with pytest.raises((Malformed, Untrusted)):
        DCAP.collateral_key(evidence)
