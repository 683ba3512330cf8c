"""Damaged state files, and what a Coordinator that finds them must do: come up in recovery, or refuse with our error.

``python -m tests.coordinator.damage`` tries every truncation and every changed byte; the tests try some of them.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from tests.coordinator.parties import manifest
from tests.coordinator.running import World, new_platform
from tests.coordinator.states import fresh

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.coordinator.commands import start
from marblerun.coordinator.service import Coordinator
from marblerun.coordinator.state import Phase
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import MarbleRunError


def sealed_state(platform: SimulatedPlatform | None) -> Sealed:
    """What a Coordinator with a small deployment left."""
    world = World(platform=platform)
    asyncio.run(_deploy(world.coordinator()))
    sealed = world.store.load()
    assert sealed is not None
    return sealed


async def _deploy(coordinator: Coordinator) -> None:
    await coordinator.start()
    await coordinator.set_manifest(manifest(2))
    await coordinator.stop()


def damages(sealed: Sealed, step: int = 1) -> Iterator[tuple[str, Sealed]]:
    """Truncations and changed bytes of both files, each with its name; every ``step``-th of the data."""
    data, key = sealed.data, sealed.keys[0]
    for size in _some(len(data), step):
        yield f"data cut to {size}", replace(sealed, data=data[:size])
    for at in _some(len(data), step):
        yield f"data changed at {at}", replace(sealed, data=_changed(data, at))
    for size in _some(len(key), max(1, step // 8)):
        yield f"key cut to {size}", replace(sealed, keys=(key[:size],))
    for at in _some(len(key), max(1, step // 8)):
        yield f"key changed at {at}", replace(sealed, keys=(_changed(key, at),))


def _some(size: int, step: int) -> Iterable[int]:
    edges = set(range(min(size, 12))) | set(range(max(0, size - 3), size))
    return sorted(edges | set(range(0, size, step)))


def _changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


async def outcome(sealed: Sealed, platform: SimulatedPlatform | None) -> str:
    """``recovery``, ``refused`` or ``running``; the stored state must be the same afterwards, unless it runs."""
    store = MemoryStore(sealed)
    coordinator = World(platform=platform, store=store).coordinator()
    try:
        await coordinator.start()
    except MarbleRunError:
        found = "refused"
    else:
        found = "recovery" if coordinator.state.phase is Phase.RECOVERY else "running"
        await coordinator.stop()
    assert found == "running" or store.load() == sealed
    return found


def main() -> int:
    """The whole sweep; prints what does not hold."""
    logging.disable()
    # The CA of the recovery phase is made anew each time, and is not what is looked at.
    authority = fresh().authority
    start.new_authority = lambda names, inputs: authority
    platform = new_platform(Path(tempfile.mkdtemp()) / "platform")
    bad = total = 0
    for kind in (platform, None):
        sealed = sealed_state(kind)
        for name, damaged in damages(sealed):
            found = asyncio.run(outcome(damaged, kind))
            total += 1
            # Without a platform the key is bound to nothing, and the list of secrets is not authenticated.
            harmless = kind is None and damaged.data[149:] == sealed.data[149:] and len(damaged.keys[0]) in (16, 32)
            if found == "running" and not harmless:
                bad += 1
                print(f"{name}: {found}")
    print(f"{total} damaged states, {bad} were believed")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
