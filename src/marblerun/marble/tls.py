"""TLS between services of the mesh: contexts that accept only Marbles, decided in the handshake.

The trust anchor is the Marble root, which the Coordinator gave together with the key. On top of the chain, the peer's
certificate must name a Marble type: the check runs as part of the handshake of sockets and of asyncio, before the
first byte of the application, so nobody has to remember it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from marblerun.errors import Malformed, Misconfigured
from marblerun.marble.credentials import AEAD_SUITES
from marblerun.marble.keyfile import load_key_pair
from marblerun.marble.peer import PeerIdentity, PeerRule, parse_identity, peer_identity

ROOT_VARIABLE: Final = "MARBLE_PREDEFINED_ROOT_CA"
CHAIN_VARIABLE: Final = "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"
KEY_VARIABLE: Final = "MARBLE_PREDEFINED_PRIVATE_KEY"
COORDINATOR_ROOT_VARIABLE: Final = "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"


@dataclass(frozen=True, slots=True, repr=False)
class Identity:
    """A Marble's place in the mesh: its certificate chain, key and root. ``repr`` shows who it is, never the key."""

    marble_root: bytes
    """PEM; the trust anchor for every peer."""
    chain: bytes
    """PEM: the Marble's certificate, then the Coordinator's intermediate."""
    private_key: bytes
    """PEM PKCS#8."""
    coordinator_root: bytes
    """PEM; for the Coordinator's client API. Empty if it is not known."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Identity:
        """Return the identity that a Coordinator put into the environment (of this process, if None is given).

        Raises:
            Misconfigured: a ``MARBLE_PREDEFINED_*`` variable is missing.
        """
        source = os.environ if environment is None else environment
        return cls.from_variables({name: value.encode() for name, value in source.items()})

    @classmethod
    def from_variables(cls, variables: Mapping[str, bytes]) -> Identity:
        """Return the identity in variables as they come with an activation; errors as :meth:`from_environment`."""
        if missing := [name for name in (ROOT_VARIABLE, CHAIN_VARIABLE, KEY_VARIABLE) if not variables.get(name)]:
            raise Misconfigured(
                f"{', '.join(missing)} not set: this process was not activated (start it with `marblerun run`)"
            )
        return cls(
            marble_root=variables[ROOT_VARIABLE],
            chain=variables[CHAIN_VARIABLE],
            private_key=variables[KEY_VARIABLE],
            coordinator_root=variables.get(COORDINATOR_ROOT_VARIABLE, b""),
        )

    @property
    def peer(self) -> PeerIdentity:
        """Who we are in the eyes of our peers; raises UnexpectedPeer if the chain is not a Marble's."""
        leaf = self.chain.decode("ascii", "replace").partition("-----END CERTIFICATE-----")
        try:
            return parse_identity(ssl.PEM_cert_to_DER_cert((leaf[0] + leaf[1]).strip()))
        except ValueError as error:
            raise Malformed("not PEM", where=CHAIN_VARIABLE) from error

    def __repr__(self) -> str:
        return f"Identity({self.peer.marble_type!r}, {self.peer.uuid})"

    def server_context(
        self, *, marble_types: Collection[str] | None = None, uuids: Collection[UUID] | None = None
    ) -> ssl.SSLContext:
        """Return a context for a server that only Marbles can connect to.

        Args:
            marble_types: which types are welcome; None is every Marble of the mesh.
            uuids: which instances are welcome; None is every one.

        A connection by anybody else ends in the handshake with :class:`.peer.UnexpectedPeer`, an ``ssl.SSLError``.

        Raises:
            Malformed: this identity's chain, key or root cannot be used.
        """
        return self._context(ssl.PROTOCOL_TLS_SERVER, PeerRule.of(marble_types, uuids))

    def client_context(
        self,
        *,
        marble_types: Collection[str] | None = None,
        uuids: Collection[UUID] | None = None,
        check_hostname: bool = True,
    ) -> ssl.SSLContext:
        """Return a context for connections to servers of the mesh.

        Args:
            marble_types: which types we want to talk to; None is every Marble. Naming it is the stronger check: every
                Marble may carry any name that its own environment asked for.
            uuids: which instances we want to talk to; None is every one.
            check_hostname: whether the name that is connected to must be in the server's certificate.

        Raises:
            Malformed: this identity's chain, key or root cannot be used.
        """
        context = self._context(ssl.PROTOCOL_TLS_CLIENT, PeerRule.of(marble_types, uuids))
        context.check_hostname = check_hostname
        return context

    def _context(self, protocol: ssl._SSLMethod, rule: PeerRule) -> ssl.SSLContext:
        context = _MeshContext(protocol)
        context.rule = rule
        context.sslsocket_class = _MeshSocket
        context.sslobject_class = _MeshObject
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(AEAD_SUITES)
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(cadata=self.marble_root.decode("ascii"))
            load_key_pair(context, self.chain, self.private_key)
        except (ssl.SSLError, ValueError) as error:
            raise Malformed("the Marble's root, chain and key cannot be used for TLS", where="identity") from error
        return context


class _MeshContext(ssl.SSLContext):
    """Remembers who is welcome; the two classes below ask at the end of each handshake."""

    rule: PeerRule = PeerRule(frozenset(), frozenset())


class _MeshSocket(ssl.SSLSocket):
    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        try:
            _verify_peer(self)
        except BaseException:
            self.close()  # a caller that swallows the error must not be able to go on
            raise


class _MeshObject(ssl.SSLObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        _verify_peer(self)


def _verify_peer(connection: ssl.SSLObject | ssl.SSLSocket) -> None:
    if not isinstance(connection.context, _MeshContext):
        raise RuntimeError("a mesh connection outside its context")
    connection.context.rule.verify(peer_identity(connection))
