"""Who can show evidence, and what happens where it cannot be looked at."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from tests.coordinator.server.sharing.instances import attestor, now

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.issue.none import NoEvidenceIssuer
from marblerun.attestation.registry import NoEvidence, Registry
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.errors import Unavailable
from marblerun.policy.sharing import IdentityUnknown


def test_a_coordinator_has_evidence_unless_its_issuer_makes_none(platform: SimulatedPlatform) -> None:
    assert attestor(platform).has_evidence
    assert not attestor(platform, issuer=NoEvidenceIssuer()).has_evidence


def test_without_a_collateral_service_evidence_cannot_be_looked_at_and_the_reason_says_what_to_set(
    platform: SimulatedPlatform,
) -> None:
    evidence = platform.quote_as(EnclaveIdentity(), report_data_for(b"key"))
    assert asyncio.run(attestor(platform).claims(evidence, now())).report_data == report_data_for(b"key")
    with pytest.raises(Unavailable, match="EDG_PCCS_URL"):
        asyncio.run(replace(attestor(platform), collateral=None).claims(evidence, now()))


def test_who_may_come_without_evidence_elsewhere_may_not_come_without_here(platform: SimulatedPlatform) -> None:
    open_to_all = replace(attestor(platform), registry=Registry([NoEvidence()]))
    with pytest.raises(IdentityUnknown):
        asyncio.run(open_to_all.claims(b"", now()))
