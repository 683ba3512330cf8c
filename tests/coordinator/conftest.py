"""What the tests of this folder share: a running Coordinator of each kind, and the Go client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.coordinator.manifests import INTEGRATION, encode, integration
from tests.coordinator.marbles import GoClient, go_client
from tests.coordinator.running import Running, World, new_platform, running

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.coordinator.server.exchange import Patience


@pytest.fixture(scope="session")
def optional_go(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GoClient | None]:
    with go_client(tmp_path_factory.mktemp("go")) as client:
        yield client


@pytest.fixture
def go(optional_go: GoClient | None) -> GoClient:
    if optional_go is None:
        pytest.skip("Go or google.golang.org/grpc cannot be had: nothing was compared with a stock Marble or client")
    return optional_go


@pytest.fixture(scope="session")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    return new_platform(tmp_path_factory.mktemp("simulated") / "platform")


@pytest.fixture(scope="session")
def attested(platform: SimulatedPlatform) -> Iterator[Running]:
    """A Coordinator that demands evidence, with the integration manifest set."""
    with running(World(platform=platform), manifest=INTEGRATION) as up:
        yield up


@pytest.fixture(scope="session")
def unattested() -> Iterator[Running]:
    """A Coordinator without evidence, with the integration manifest set."""
    with running(manifest=INTEGRATION) as up:
        yield up


@pytest.fixture(scope="session")
def waiting() -> Iterator[Running]:
    """A Coordinator that has no manifest."""
    with running() as up:
        yield up


@pytest.fixture(scope="session")
def large_manifest() -> bytes:
    """One that is too large for any socket buffer."""
    document = integration()
    document["Marbles"]["bare"]["Parameters"] = {"Files": {"/large": "x" * (6 << 20)}}
    return encode(document)


@pytest.fixture(scope="session")
def patient(large_manifest: bytes) -> Iterator[Running]:
    """One with a large manifest to read that closes nothing for being slow.

    What is closed here was closed for what it sent, and an honest request is not cut off on a busy machine either.
    """
    long = Patience(handshake=600, request=600, response=600, keep_alive=600, idle=600)
    with running(manifest=large_manifest, patience=long) as up:
        yield up


@pytest.fixture
def state_directory(tmp_path: Path) -> Path:
    return tmp_path / "state"
