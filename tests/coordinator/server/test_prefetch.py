"""A Coordinator fetches collateral for its own machine before the first Marble comes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

from tests.coordinator.running import World

from marblerun.attestation.collect import CachedSource, Upkeep
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.coordinator.server.main import prefetch_own_platform
from marblerun.coordinator.service import Coordinator
from marblerun.pki.profiles import SubjectNames


def test_collateral_for_the_coordinators_own_machine_is_there_before_anybody_asks(tmp_path: Path) -> None:
    platform = SimulatedPlatform.create(tmp_path / "machine", at=datetime.now(UTC))

    async def scenario() -> tuple[int, int, int]:
        ports = World(platform=platform).ports()
        source = ports.collateral
        assert isinstance(source, CachedSource)
        upkeep = Upkeep(source)
        coordinator = Coordinator(ports, SubjectNames())
        await coordinator.start()
        try:
            await prefetch_own_platform(coordinator, ports.registry, upkeep)
            async with asyncio.timeout(60):
                while not source.statistics.fetches:
                    await asyncio.sleep(0.001)
            key = ports.registry.collateral_key(platform.quote(b""))
            assert key is not None
            await source.prefetch(key)  # whatever is under way is waited for
            await source.fetch(key)
        finally:
            await coordinator.stop()
            await upkeep.aclose()
        return source.statistics.fetches, source.statistics.hits, source.statistics.failures

    fetches, hits, failures = asyncio.run(scenario())
    assert (fetches, failures) == (1, 0)
    assert hits >= 1


def test_a_coordinator_without_evidence_has_nothing_to_fetch_for() -> None:
    async def scenario() -> None:
        ports = World().ports()
        upkeep = Upkeep(None)
        coordinator = Coordinator(ports, SubjectNames())
        await coordinator.start()
        await prefetch_own_platform(coordinator, ports.registry, upkeep)
        await coordinator.stop()
        await upkeep.aclose()

    assert asyncio.run(scenario()) is None
