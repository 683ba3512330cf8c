"""Keys of this machine that seal the data key, so that a restart needs nobody (protocol, section 10.2)."""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Protocol, runtime_checkable

from marblerun.errors import Malformed

EMPTY_KEY: Final = "it is empty: where the state was written last, there was no sealing key or it could not be used"


class SealMode(StrEnum):
    """What the sealing key depends on."""

    PRODUCT_KEY = "ProductKey"
    """The enclave's signer and product: a newer version opens it."""
    UNIQUE_KEY = "UniqueKey"
    """Exactly this enclave."""
    DISABLED = "Disabled"
    """Nothing is written."""


def seal_mode(text: str) -> SealMode:
    """The mode a manifest's ``Config.SealMode`` names; empty means ``ProductKey`` (protocol, section 10.2)."""
    try:
        return SealMode(text or SealMode.PRODUCT_KEY)
    except ValueError:
        raise Malformed(f"unknown seal mode {text!r}", where="Config.SealMode") from None


class KeySealer(Protocol):
    """Seals the data key to this machine and enclave.

    ``additional`` is bound: a key only opens together with the state it was sealed with. ``unseal`` raises
    :class:`marblerun.errors.Untrusted` when the key does not open here (another machine, another enclave, another
    state) and :class:`marblerun.errors.Unavailable` when this machine has no sealing key at all.
    """

    @property
    def name(self) -> str:
        """What to call it in the log."""
        ...

    def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
        """The sealed form of ``key``; empty where this machine cannot seal."""
        ...

    def unseal(self, sealed: bytes, additional: bytes) -> bytes:
        """The key."""
        ...


class MachineSealer(KeySealer, Protocol):
    """A sealing key of a machine among several."""

    def machine_id(self) -> bytes:
        """16 bytes under which instances find what was sealed on this machine; Unavailable if nothing can be.

        Enclaves of one product on one machine get the same, whatever their version.
        """
        ...


@runtime_checkable
class SharedKeySealer(KeySealer, Protocol):
    """A sealer whose key the instances of a deployment have in common; it is made by the first one of them."""

    def settled(self, mode: SealMode) -> None:
        """The state that was sealed or unsealed last is stored, in this mode, and believed: so its key is the
        deployment's, and is kept. Never raises.
        """
        ...


def is_vouching(sealer: KeySealer) -> bool:
    """Whether only enclaves of the same product can have sealed what ``sealer`` opens (its attribute ``vouches``).

    A TPM seals for whoever is on its machine: a state that opens with it may be one of the host's own making
    (docs/adr/0007-provenance.md). A sealer that says nothing does not vouch.
    """
    return bool(getattr(sealer, "vouches", False))
