"""The Coordinator's whole state as one immutable value; a request lives on one such snapshot. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from marblerun.coordinator.provenance import UNRECORDED, Provenance
from marblerun.manifest.model import Config, Infrastructure, Marble, Package, TlsTag
from marblerun.pki.issue import Issuer
from marblerun.policy.access import User
from marblerun.secrets.model import Secret


class Phase(IntEnum):
    """Where in its life the Coordinator is; the numbers are those of the wire (protocol, section 1.4)."""

    UNINITIALIZED = 0
    RECOVERY = 1
    ACCEPTING_MANIFEST = 2
    ACCEPTING_MARBLES = 3


PHASE_MESSAGES: Mapping[Phase, str] = {
    Phase.RECOVERY: "Coordinator is in recovery mode: its sealed state is not used on this machine. "
    "Upload a recovery key, or set a new manifest and start over.",
    Phase.ACCEPTING_MANIFEST: "Coordinator is ready to accept a manifest.",
    Phase.ACCEPTING_MARBLES: "Coordinator is running correctly and ready to accept marbles.",
}
"""Source: protocol, sections 1.4 and 14 (the beginnings are matched by clients)."""


@dataclass(frozen=True)
class Authority:
    """The Coordinator's CA: root, intermediate, and the Marble root over the intermediate's key (protocol, 3.1)."""

    root: x509.Certificate
    root_key: ec.EllipticCurvePrivateKey
    intermediate: x509.Certificate
    intermediate_key: ec.EllipticCurvePrivateKey
    marble_root: x509.Certificate

    @cached_property
    def root_der(self) -> bytes:
        """The root certificate in DER: what the Coordinator's own evidence covers."""
        return self.root.public_bytes(Encoding.DER)

    @cached_property
    def root_pem(self) -> bytes:
        """The root certificate in PEM."""
        return self.root.public_bytes(Encoding.PEM)

    @cached_property
    def intermediate_pem(self) -> bytes:
        """The intermediate certificate in PEM."""
        return self.intermediate.public_bytes(Encoding.PEM)

    @cached_property
    def marble_root_pem(self) -> bytes:
        """The Marble root certificate in PEM."""
        return self.marble_root.public_bytes(Encoding.PEM)

    @cached_property
    def intermediate_der(self) -> bytes:
        """The intermediate certificate in DER."""
        return self.intermediate.public_bytes(Encoding.DER)

    @cached_property
    def marble_root_der(self) -> bytes:
        """The Marble root certificate in DER."""
        return self.marble_root.public_bytes(Encoding.DER)

    @cached_property
    def marble_issuer(self) -> Issuer:
        """What signs Marble and secret certificates: the Marble root with the intermediate's key."""
        return Issuer.of_many(self.marble_root, self.intermediate_key)

    @property
    def chain_pem(self) -> str:
        """Intermediate, then root, as clients expect them (protocol, section 3.4)."""
        return (self.intermediate_pem + self.root_pem).decode("ascii")


@dataclass(frozen=True, slots=True)
class Deployment:
    """What a manifest became: everything an activation is decided on, apart from counters.

    Activations compare deployments by identity: same object, same rules.
    """

    manifest: bytes
    signature: bytes
    config: Config
    packages: Mapping[str, Package]
    infrastructures: Mapping[str, Infrastructure]
    marbles: Mapping[str, Marble]
    tls: Mapping[str, TlsTag]
    users: Mapping[str, User]
    secrets: Mapping[str, Secret]
    """Shared and user-defined ones with their values; per-instance ones as placeholders (protocol, section 6.1)."""
    previous_secrets: Mapping[str, Secret]
    compiled: dict[str, object] = field(default_factory=dict, compare=False, repr=False)
    """Memo of what is derived from the rest; whoever derives it says what it holds."""


@dataclass(frozen=True, slots=True)
class PendingUpdate:
    """A full update that waits for acknowledgments (protocol, section 9.3)."""

    manifest: bytes
    """The new manifest, byte for byte; whoever acknowledges sends the same."""
    acknowledged: Mapping[str, bool]
    """Everybody who may acknowledge, fixed when the update was started, and whether they did."""
    missing: int
    """How many acknowledgments are still needed: fewer than there are users left where there is a threshold.

    Not above 0 in a state of the reference that stopped between the last acknowledgment and applying the update.
    """

    @property
    def missing_users(self) -> tuple[str, ...]:
        """Who has not acknowledged yet, sorted."""
        return tuple(sorted(name for name, done in self.acknowledged.items() if not done))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the new manifest, hex."""
        return hashlib.sha256(self.manifest).hexdigest()


@dataclass(frozen=True, slots=True, repr=False)
class DataKey:
    """The key the state is sealed with, and the recovery data that lies beside it in the clear."""

    key: bytes
    """32 bytes (16 in states from old releases)."""
    recovery_data: bytes
    """JSON; ``null`` if there is nothing to tell (protocol, section 10.3)."""

    def __repr__(self) -> str:
        return "DataKey(...)"


@dataclass(frozen=True, slots=True, repr=False)
class State:
    """Everything the Coordinator knows. ``deployment`` is ``None`` until a manifest is set."""

    phase: Phase
    authority: Authority
    root_secret: bytes
    previous_root_secret: bytes | None = None
    deployment: Deployment | None = None
    data_key: DataKey | None = None
    activations: Mapping[str, int] = field(default_factory=dict)
    """Successful activations per Marble type; only counted where there is a limit."""
    counters: Mapping[str, int] = field(default_factory=dict)
    """Monotonic counters, 64 bits each, by the id that ``commands.monotonic_counter`` makes."""
    update_log: str = ""
    pending_update: PendingUpdate | None = None
    provenance: Provenance = UNRECORDED
    other_entries: Mapping[str, bytes] = field(default_factory=dict)
    """Store entries this version does not interpret; kept as they are."""

    def __repr__(self) -> str:
        return f"State(phase={self.phase.name})"
