"""A store that forgets: for tests and for Coordinators that shall leave no trace."""

from __future__ import annotations

from marblerun.coordinator.store import Sealed


class MemoryStore:
    """Keeps the sealed state in this process."""

    def __init__(self, sealed: Sealed | None = None) -> None:
        self._sealed = sealed
        self.aside: list[Sealed] = []
        """What was set aside."""

    def load(self) -> Sealed | None:
        """The last saved state."""
        return self._sealed

    def save(self, data: bytes, key: bytes) -> None:
        """Replace it."""
        self._sealed = Sealed(data, (key,))

    def set_aside(self) -> None:
        """Keep the present state for good."""
        if self._sealed is not None:
            self.aside.append(self._sealed)
