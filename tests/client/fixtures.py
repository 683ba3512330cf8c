"""Fixtures that tests of the client and of the command line share; the two conftest files import them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.client.coordinators import FakeCoordinator, coordinator, serving

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.attestation.simulated.identity import DEFAULT_SIGNER_ID, DEFAULT_UNIQUE_ID
from marblerun.client import CoordinatorPolicy, Trust, trust_from_environment

PRODUCT = 3
SIGNER_ID = DEFAULT_SIGNER_ID.hex()
UNIQUE_ID = DEFAULT_UNIQUE_ID.hex()
POLICY = CoordinatorPolicy(signer_id=SIGNER_ID, product_id=PRODUCT, security_version=1)


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    """One simulated platform for the whole run."""
    return SimulatedPlatform.create(tmp_path_factory.mktemp("platform") / "sim", at=datetime.now(UTC))


@pytest.fixture
def trust(platform: SimulatedPlatform) -> Trust:
    """Intel and the simulated platform."""
    return trust_from_environment({"EDG_SIMULATED_PLATFORM": str(platform.directory)})


@pytest.fixture
def honest(platform: SimulatedPlatform) -> Iterator[FakeCoordinator]:
    """A running Coordinator that fulfils ``POLICY``; tests add routes."""
    with serving(coordinator(platform, product_id=PRODUCT)) as fake:
        yield fake


@pytest.fixture
def other_platform(tmp_path: Path) -> SimulatedPlatform:
    """A platform that nobody trusts."""
    return SimulatedPlatform.create(tmp_path / "other-platform", at=datetime.now(UTC))
