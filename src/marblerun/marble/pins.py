"""How a Marble knows that it talks to the right Coordinator before it says anything.

The mesh listener shows the Marble root certificate alone: self-signed, over the key of the Coordinator's
intermediate CA (protocol, section 2.2). So what can be pinned is that key; how one comes to trust the key (a root
certificate, a verified statement) is the business of whoever builds the pin.
"""

from __future__ import annotations

from dataclasses import dataclass
from hmac import compare_digest
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from marblerun.errors import Untrusted


class CoordinatorPin(Protocol):
    """Judges the Coordinator's mesh certificate after the TLS handshake and before the first byte of a request."""

    def check(self, server_certificate: bytes) -> None:
        """Return if this certificate (DER) belongs to the expected Coordinator.

        Raises:
            Untrusted: it does not; nothing has been sent.
            Unavailable, WrongPhase: it cannot be told yet; trying again may help.
        """
        ...


@dataclass(frozen=True, slots=True)
class AnyCoordinator:
    """Accepts every server, as stock Marbles do.

    What a Marble sends is not secret, and what it gets is chosen by whoever answers: without a pin, the users who
    verify the Coordinator are the ones who notice an impostor (their services never come up under its root).
    Source: cli-marble-k8s, section 3.2, point 2.
    """

    def check(self, server_certificate: bytes) -> None:
        """Accept."""


@dataclass(frozen=True, slots=True)
class PinnedKey:
    """Accepts exactly the server whose public key this is."""

    spki: bytes
    """DER SubjectPublicKeyInfo."""

    @classmethod
    def of_certificate(cls, certificate: bytes) -> PinnedKey:
        """Return the pin on the key in ``certificate`` (DER); raises Untrusted if it cannot be read."""
        return cls(public_key_of(certificate))

    def check(self, server_certificate: bytes) -> None:
        """Raise Untrusted unless the certificate is over the pinned key; the handshake proved possession of it."""
        if not compare_digest(public_key_of(server_certificate), self.spki):
            raise Untrusted(
                "the server at the mesh address has another key than the pinned Coordinator",
                step="coordinator-pin",
                reason="mismatch",
            )


def public_key_of(certificate: bytes) -> bytes:
    """Return the DER SubjectPublicKeyInfo of a DER certificate; raises Untrusted if there is none to be read."""
    try:
        key = x509.load_der_x509_certificate(certificate).public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Untrusted(
            "the Coordinator's certificate cannot be read", step="coordinator-pin", reason="malformed"
        ) from error
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
