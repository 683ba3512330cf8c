"""Where sealed state lives: a tiny interface and the file store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


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
