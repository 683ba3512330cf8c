"""No sealing at all, as the reference does without an enclave: the data key lies beside the state in the clear."""

from __future__ import annotations

from marblerun.coordinator.seal import EMPTY_KEY, SealMode
from marblerun.errors import Unavailable, Untrusted


class PlainSealer:
    """For ``OE_SIMULATION=1`` only: nothing is protected there, and the key file says so by its content."""

    name = "none (simulation)"
    vouches = True
    """There is no evidence in simulation, so nobody relies on it; a restart then leaves the state as it is."""

    def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
        """The key itself (protocol, section 10.2, "noenclave")."""
        return key

    def machine_id(self) -> bytes:
        """16 zero bytes: all machines are one in simulation (protocol, section 11.3)."""
        return bytes(16)

    def unseal(self, sealed: bytes, additional: bytes) -> bytes:
        """The key itself."""
        if not sealed:
            raise Untrusted(EMPTY_KEY, step="sealed-key")
        if len(sealed) not in (16, 32):
            raise Untrusted(f"the key file has {len(sealed)} bytes, not 16 or 32", step="sealed-key")
        return sealed


class AbsentSealer:
    """For machines without a sealing key: every restart needs recovery."""

    name = "absent"

    def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
        """Nothing: the state is written, its key is not."""
        return b""

    def unseal(self, sealed: bytes, additional: bytes) -> bytes:
        """Raise Unavailable."""
        raise Unavailable("this machine has no sealing key; recover with the recovery keys")

    def machine_id(self) -> bytes:
        """Raise Unavailable."""
        raise Unavailable("this machine has no sealing key")
