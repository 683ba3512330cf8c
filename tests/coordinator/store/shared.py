"""A shared store in memory that can be as bad as real ones: others write at any moment, and answers get lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tests.coordinator.running import World

from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.service import Ports
from marblerun.coordinator.store import Sealed, Versioned
from marblerun.coordinator.store.lineage import Anchor, Mark
from marblerun.errors import Conflict, Unavailable, Untrusted


@dataclass
class Place:
    """What all Coordinators see."""

    number: int = 0
    sealed: Sealed | None = None
    aside: list[Sealed] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class SharedMemory:
    """One Coordinator's way to the place."""

    place: Place
    before_write: list[Callable[[], None]] = field(default_factory=list)
    """Each is called once, in the moment before a write."""
    answers_lost: int = 0
    """So many writes are done, and their answers get lost."""
    is_away: bool = False
    looks: int = 0
    reads: int = 0
    conflicts: int = 0

    def version(self) -> str:
        self._reach()
        self.looks += 1
        return str(self.place.number)

    def read(self) -> Versioned:
        self._reach()
        self.reads += 1
        with self.place.lock:
            return Versioned(str(self.place.number), self.place.sealed)

    def replace(self, version: str, data: bytes, key: bytes) -> str:
        self._reach()
        if self.before_write:
            self.before_write.pop()()
        with self.place.lock:
            if version != (str(self.place.number)) and (version, self.place.number) != ("", 0):
                self.conflicts += 1
                raise Conflict("somebody else was faster")
            self.place.number += 1
            self.place.sealed = Sealed(data, (key,) if key else ())
            number = self.place.number
        if self.answers_lost:
            self.answers_lost -= 1
            raise Unavailable("the answer got lost")
        return str(number)

    def set_aside(self) -> None:
        if self.place.sealed is not None:
            self.place.aside.append(self.place.sealed)

    def _reach(self) -> None:
        if self.is_away:
            raise Unavailable("the store is away")


@dataclass
class Memory:
    """What the anchors of all Coordinators have in common."""

    mark: Mark | None = None


@dataclass
class SharedAnchor:
    """One Coordinator's anchor, with the contract of the one in etcd."""

    memory: Memory
    before_advance: list[Callable[[], None]] = field(default_factory=list)
    seen: Mark | None = None
    is_away: bool = False

    def load(self) -> Mark | None:
        self._reach()
        self.seen = self.memory.mark
        return self.seen

    def advance(self, mark: Mark) -> None:
        if self.before_advance:
            self.before_advance.pop()()
        self._reach()
        if self.memory.mark != self.seen and self.memory.mark != mark:
            raise Untrusted("somebody else moved it", step="anchor", reason="overtaken")
        self.memory.mark = self.seen = mark

    def _reach(self) -> None:
        if self.is_away:
            raise Unavailable("the anchor is away")


@dataclass
class Instance(World):
    """What one of several Coordinators is started on."""

    shared: SharedMemory = field(default_factory=lambda: SharedMemory(Place()))
    anchor: Anchor | None = None

    def ports(self) -> Ports:
        return replace(super().ports(), store=self.shared, anchor=self.anchor)


class KeyOf:
    """A sealing key that some machines have: opens what was sealed under the same name, and only with its state."""

    vouches = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.modes: list[SealMode] = []

    def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
        self.modes.append(mode)
        return self.name.encode().ljust(16) + additional + key

    def unseal(self, sealed: bytes, additional: bytes) -> bytes:
        head = self.name.encode().ljust(16) + additional
        if not sealed.startswith(head):
            raise Untrusted("sealed elsewhere, or with another state", step="sealed-key")
        return sealed.removeprefix(head)
