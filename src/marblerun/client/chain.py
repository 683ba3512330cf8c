"""The two certificates that a Coordinator hands to its clients: intermediate, then root (protocol, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from marblerun.client.pinning import PinnedRoot
from marblerun.errors import Malformed, Untrusted
from marblerun.wire.pem import decode_pem

MAX_CHAIN_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class CoordinatorChain:
    """The Coordinator's root certificate and the intermediate that it issued."""

    root: x509.Certificate
    intermediate: x509.Certificate
    root_der: bytes
    """The root as it was received; its hash is in the quote."""

    @property
    def root_pem(self) -> bytes:
        """The root, PEM."""
        return self.root.public_bytes(Encoding.PEM)

    @property
    def intermediate_pem(self) -> bytes:
        """The intermediate, PEM."""
        return self.intermediate.public_bytes(Encoding.PEM)

    @property
    def pem(self) -> bytes:
        """Both, PEM, intermediate first."""
        return self.intermediate_pem + self.root_pem

    @property
    def pin(self) -> PinnedRoot:
        """What the Coordinator has to present in TLS."""
        return PinnedRoot(self.root_der)

    def verify_intermediate(self) -> None:
        """Raises :class:`Untrusted` unless the root issued the intermediate.

        The quote vouches for the root alone; without this check somebody between could hand out an intermediate of
        their own, and whoever trusts it would accept that person's Marbles.
        """
        try:
            self.intermediate.verify_directly_issued_by(self.root)
        except (ValueError, TypeError, InvalidSignature):
            raise Untrusted(
                "the root certificate did not issue the intermediate certificate", step="chain", reason="bad-signature"
            ) from None


def parse_chain(pem: bytes) -> CoordinatorChain:
    """Reads exactly two certificates, intermediate first.

    Raises:
        Malformed: another number, or something that is no certificate.
    """
    blocks = decode_pem(pem, "CERTIFICATE", max_blocks=2, max_bytes=MAX_CHAIN_BYTES)
    if len(blocks) != 2:
        raise Malformed(f"expected intermediate and root, found {len(blocks)} certificates", where="certificate chain")
    try:
        intermediate, root = (x509.load_der_x509_certificate(der) for der in blocks)
        root.public_key()
        intermediate.public_key()
    except Exception:  # the parser's errors are not one family, and these bytes come from anyone
        raise Malformed("holds something that is not an X.509 certificate", where="certificate chain") from None
    return CoordinatorChain(root, intermediate, blocks[1])
