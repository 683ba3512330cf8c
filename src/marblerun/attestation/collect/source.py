"""Where collateral comes from, as everybody else sees it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from marblerun.attestation.model import Collateral, CollateralKey


class CollateralSource(Protocol):
    """Something that can be asked for collateral."""

    async def fetch(self, key: CollateralKey) -> Collateral:
        """The collateral for ``key``, unverified. ``key.pck`` is for ``CachedSource`` and ``DirectorySource`` only.

        Raises:
            Unavailable: it cannot be had now, or not from here; the message says what failed.
            Malformed: what came is not collateral, or not for ``key``.
        """
        ...


@runtime_checkable
class Closable(Protocol):
    """A source with something to give back, such as connections."""

    async def aclose(self) -> None:
        """Close it."""
        ...


def describe_key(key: CollateralKey) -> str:
    """A key in words, for messages."""
    if key.pck is not None:
        return f"the {key.tee.value} platform with QE ID {key.pck.qe_id.hex()}"
    return f"{key.tee.value} platform FMSPC {key.fmspc.hex()} ({key.ca} CA)"
