"""A Coordinator with an anchor, and a store that forgets nothing: what turning back is tried with."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.coordinator.running import World

from marblerun.coordinator.service import Ports
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.lineage import Anchor
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import Unavailable


@dataclass
class Anchored(World):
    """A world that remembers."""

    anchor: Anchor | None = None

    def ports(self) -> Ports:
        return replace(super().ports(), anchor=self.anchor)


@dataclass
class History(MemoryStore):
    """Keeps every state that was ever to be saved; the disk can be full."""

    all: list[Sealed] = field(default_factory=list)
    is_full: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def save(self, data: bytes, key: bytes) -> None:
        self.all.append(Sealed(data, (key,)))
        if self.is_full:
            raise Unavailable("the disk is full")
        super().save(data, key)
