"""Where sealed state lives: two tiny interfaces, for one Coordinator and for several that share a state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed state as it lies in storage (protocol, sections 10.1 and 10.2).

    ``keys`` are the candidates for the sealed data key, newest first: a crash between two renames may leave the
    matching key under its interim name. Usually there is one.
    """

    data: bytes
    keys: tuple[bytes, ...]


class Store(Protocol):
    """Keeps one sealed state.

    ``save`` returns only when the new state is durable, and a crash at any moment leaves the old state or the new
    one, with its key. Both raise :class:`marblerun.errors.Unavailable` naming what failed; then the old state stands.
    """

    def load(self) -> Sealed | None:
        """The stored state, or ``None`` if there has never been one."""

    def save(self, data: bytes, key: bytes) -> None:
        """Replace the stored state."""

    def set_aside(self) -> None:
        """Keep a copy of the stored state that no later ``save`` removes: a new deployment is about to replace it."""


@dataclass(frozen=True, slots=True)
class Versioned:
    """A sealed state, ``None`` if there is none, with what the store calls this version of it."""

    version: str
    sealed: Sealed | None


@runtime_checkable
class SharedStore(Protocol):
    """Keeps one sealed state that several Coordinators write.

    All raise :class:`marblerun.errors.Unavailable` naming what failed. Every answer is as new as the question.
    """

    def version(self) -> str:
        """The version that is stored now; cheaper than :meth:`read`."""
        ...

    def read(self) -> Versioned:
        """What is stored now."""
        ...

    def replace(self, version: str, data: bytes, key: bytes) -> str:
        """Put a state in the place of ``version``; the new version, once it is durable.

        Raises :class:`marblerun.errors.Conflict`, and has changed nothing, if another version is stored by now. After
        Unavailable it may have been stored or not.
        """
        ...

    def set_aside(self) -> None:
        """Keep a copy of the stored state for good: a new deployment is about to replace it."""
        ...
