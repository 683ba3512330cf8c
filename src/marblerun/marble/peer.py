"""Who is on the other end of a mesh connection: the Marble's type and instance, from its certificate."""

from __future__ import annotations

import ssl
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

from marblerun.errors import Untrusted

MARBLE_TYPE_OID: Final = x509.ObjectIdentifier("1.3.9903.2.1")
"""Holds the type as raw UTF-8, in no ASN.1 wrapping. Source: protocol, section 2.7."""

_STEP: Final = "mesh-peer"


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """A member of the mesh."""

    marble_type: str
    """The Marble's name in the manifest."""
    uuid: UUID
    """Which instance of it."""


class UnexpectedPeer(Untrusted, ssl.SSLCertVerificationError):
    """The handshake succeeded, but with somebody we do not want to talk to; also an ``ssl.SSLError`` for servers."""

    def __init__(self, message: str, *, reason: str = "mismatch") -> None:
        Untrusted.__init__(self, message, step=_STEP, reason=reason)


@dataclass(frozen=True, slots=True)
class PeerRule:
    """Which Marbles are welcome. ``None`` is every one; an empty collection is none."""

    marble_types: frozenset[str] | None = None
    uuids: frozenset[UUID] | None = None

    @classmethod
    def of(cls, marble_types: Collection[str] | None, uuids: Collection[UUID] | None) -> PeerRule:
        """Return the rule for these collections; a single string would be taken apart into letters: TypeError."""
        if isinstance(marble_types, str):
            raise TypeError("marble_types is a collection of names, not one name")
        return cls(
            None if marble_types is None else frozenset(marble_types), None if uuids is None else frozenset(uuids)
        )

    def verify(self, peer: PeerIdentity) -> None:
        """Raise UnexpectedPeer unless this Marble is welcome."""
        if self.marble_types is not None and peer.marble_type not in self.marble_types:
            raise UnexpectedPeer(f"a Marble of type {peer.marble_type!r} is not welcome here")
        if self.uuids is not None and peer.uuid not in self.uuids:
            raise UnexpectedPeer(f"the Marble instance {peer.uuid} is not welcome here")


def peer_identity(connection: ssl.SSLObject | ssl.SSLSocket) -> PeerIdentity:
    """Return who the peer of a finished mesh handshake is.

    Only meaningful on a connection of a context of :class:`.tls.Identity`, which verified the chain.

    Raises:
        UnexpectedPeer: the peer showed no certificate, or one that is not a Marble's.
    """
    certificate = connection.getpeercert(binary_form=True)
    if certificate is None:
        raise UnexpectedPeer("the peer showed no certificate", reason="missing")
    return parse_identity(certificate)


def parse_identity(certificate: bytes) -> PeerIdentity:
    """Return the identity in a DER certificate whose chain was verified before.

    A Marble's certificate names its type in an extension of its own. The Coordinator's CAs, and certificates that it
    makes as secrets of a manifest, hang on the same root but do not, so they are nobody in the mesh.

    Raises:
        UnexpectedPeer: it is not a Marble's certificate.
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate)
        extension = parsed.extensions.get_extension_for_oid(MARBLE_TYPE_OID).value
        names = parsed.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        if not isinstance(extension, x509.UnrecognizedExtension) or len(names) != 1:
            raise ValueError("not in the shape of a Marble's certificate")
        return PeerIdentity(extension.value.decode("utf-8"), UUID(str(names[0].value)))
    except x509.ExtensionNotFound as error:
        raise UnexpectedPeer("the peer's certificate is not that of a Marble", reason="missing") from error
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise UnexpectedPeer("the peer's certificate names no Marble instance", reason="malformed") from error
