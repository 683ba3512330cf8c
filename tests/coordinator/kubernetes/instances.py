"""Several Coordinators on one Secret, each with a store of its own, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tests.coordinator.running import World
from tests.forge.kubernetes import Pod

from marblerun.coordinator.service import Coordinator, Ports
from marblerun.coordinator.store import SharedStore
from marblerun.coordinator.store.kubernetes import SecretStore
from marblerun.coordinator.store.lineage import Anchor

T = TypeVar("T")
NAME = "marblerun-state"


def store_in(pod: Pod) -> SecretStore:
    """As the pod's service account sees it."""
    return SecretStore(pod.api(), NAME)


@dataclass
class Shared(World):
    """What one of several Coordinators is started on."""

    pod: Pod | None = None
    anchor: Anchor | None = None
    shared: SharedStore | None = None

    def ports(self) -> Ports:
        assert self.pod is not None
        return replace(super().ports(), store=self.shared or store_in(self.pod), anchor=self.anchor)


@asynccontextmanager
async def started(world: World) -> AsyncIterator[Coordinator]:
    coordinator = world.coordinator()
    await coordinator.start()
    try:
        yield coordinator
    finally:
        await coordinator.stop()


def together(pod: Pod, count: int, scenario: Callable[..., Coroutine[Any, Any, T]], **settings: Any) -> T:
    """A scenario with as many Coordinators, started one after the other."""

    async def main() -> T:
        coordinators = [Shared(pod=pod, **settings).coordinator() for _ in range(count)]
        for coordinator in coordinators:
            await coordinator.start()
        try:
            return await scenario(*coordinators)
        finally:
            await asyncio.gather(*(coordinator.stop() for coordinator in coordinators))

    return asyncio.run(main())
