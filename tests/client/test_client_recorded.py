"""A real Coordinator of the reference, as recorded: its own answer, Intel's own collateral, Intel's pinned root."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from tests.client.coordinators import FakeCoordinator, mint, serving
from tests.vectors import Vector, load, vectors_directory

from marblerun.attestation.model import Collateral, CollateralKey, Origin
from marblerun.attestation.roots import INTEL
from marblerun.client import CoordinatorPolicy, Trust, attest, attest_async
from marblerun.errors import Denied, Untrusted

pytestmark = pytest.mark.skipif(vectors_directory() is None, reason="no vectors: 3 tests of a recorded Coordinator")

NAME = "sgx/marblerun-coordinator-00906ed5"
POLICY = CoordinatorPolicy(
    signer_id="cd01f66e1fb9a6379e9185ca5a1b6ea43f4e0f4a73f6bf62b57578344a5be84e", product_id=3, security_version=1
)


@dataclass(frozen=True)
class Recorded:
    """A source that has one collateral, for the platform that was recorded."""

    collateral: Collateral

    async def fetch(self, key: CollateralKey) -> Collateral:
        assert (key.fmspc.hex(), key.ca) == ("00906ed50000", "processor")
        return self.collateral

    async def aclose(self) -> None:
        """Nothing is open."""


def _trust(vector: Vector) -> Trust:
    collateral, _ = vector.verifiable()
    return Trust((INTEL,), lambda: Recorded(collateral))


@pytest.fixture
def server() -> FakeCoordinator:
    directory = vectors_directory()
    assert directory is not None
    answer = (directory / NAME / "coordinator-quote-response.json").read_bytes()
    stranger = mint("nobody knows the real key")
    return FakeCoordinator(stranger, stranger, lambda _: b"", stranger, routes={"GET /quote": lambda _: (200, answer)})


def test_it_is_attested(server: FakeCoordinator) -> None:
    vector = load(NAME)
    _, at = vector.verifiable()
    with serving(server):
        found = attest(server.endpoint, POLICY, trust=_trust(vector), at=at)
        again = asyncio.run(attest_async(server.endpoint, POLICY, trust=_trust(vector), at=at))
    assert found == again
    assert found.claims is not None
    assert (found.claims.origin, found.claims.report_data.hex()) == (Origin.HARDWARE, vector.expected["report_data"])
    assert "INTEL-SA-00615" in " ".join(found.warnings)


def test_its_evidence_does_not_help_who_has_not_its_key(server: FakeCoordinator) -> None:
    """Exactly this server: it shows the real quote, and TLS gives it away."""
    vector = load(NAME)
    _, at = vector.verifiable()
    with serving(server):
        found = attest(server.endpoint, POLICY, trust=_trust(vector), at=at)
        with found.client() as client, pytest.raises(Untrusted) as refusal:
            client.status()
    assert refusal.value.step == "tls-pin"
    assert server.sent_requests == ["GET /api/v2/quote", "GET /quote"]


def test_time_policy_and_enforced_recoveries_count(server: FakeCoordinator) -> None:
    vector, later = load(NAME), load(f"{NAME}@2025-05-27-eval19")
    _, at = vector.verifiable()
    _, at_later = later.verifiable()
    with serving(server):
        with pytest.raises(Untrusted) as expired:
            attest(server.endpoint, POLICY, trust=_trust(vector), at=at + timedelta(days=400))
        with pytest.raises(Denied, match="OutOfDate"):
            attest(server.endpoint, POLICY, trust=_trust(later), at=at_later)
        accepting = replace(POLICY, accepted_tcb_statuses=("OutOfDate",))
        assert attest(server.endpoint, accepting, trust=_trust(later), at=at_later).claims is not None
        with pytest.raises(Denied, match="SignerID"):
            attest(server.endpoint, replace(POLICY, signer_id="00" * 32), trust=_trust(vector), at=at)
    assert expired.value.reason == "expired"
