"""The server of the key exchange: the gRPC method ``GetKeyEncryptionKey`` (protocol, section 11.4)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.seal.kek import KekSealer
from marblerun.coordinator.server.attempts import FailedAttempts
from marblerun.coordinator.server.edge import EdgeConfig, ServerIdentity, server_context
from marblerun.coordinator.server.exchange import Patience, Peer
from marblerun.coordinator.server.journal import journaled
from marblerun.coordinator.server.listening import bind, bound, only_http2
from marblerun.coordinator.server.overload import Limits
from marblerun.coordinator.server.problems import INTERNAL_TEXT
from marblerun.coordinator.server.sharing.attestor import Attestor
from marblerun.coordinator.server.sharing.checks import verify_client
from marblerun.coordinator.server.turns import Overload
from marblerun.coordinator.server.unary import Method, unary_service
from marblerun.errors import Busy, Denied, Malformed, MarbleRunError, Unavailable, Untrusted
from marblerun.pki.encodings import public_key_info
from marblerun.pki.issue import Entropy, issue_key_server
from marblerun.policy.sharing import Identity, IdentityUnknown, identity_of
from marblerun.wire.limits import MAX_QUOTE_BYTES
from marblerun.wire.rpc import KEY_PATH, GrpcStatus, KeyResponse, parse_key_request

_log = logging.getLogger(__name__)

KEY_ADDRESS_VARIABLE: Final = "EDG_COORDINATOR_KEY_ADDR"
# The certificate is good for a year; a fresh one also has fresh evidence.
RENEW_AFTER: Final = timedelta(days=30)
# A deployment has some instances, and each asks every half minute at most. So many descriptors are left beside those of
# the other listeners (``overload.within_descriptors``).
LIMITS: Final = Limits(connections=96, handshakes=64, requests=64)
MAX_SECONDS: Final = 60.0
# A quote and what protobuf puts before it.
MAX_REQUEST_BYTES: Final = MAX_QUOTE_BYTES + 1024
_SECONDS_EACH: Final = 0.005


class NoCertificate(Denied):
    """The connection showed no certificate that evidence could be about."""

    code = "no-certificate"


def key_problem(error: Exception) -> tuple[GrpcStatus, str]:
    """The status and message that a refused request for the key is answered with (protocol, section 11.4)."""
    match error:
        case NoCertificate():
            return GrpcStatus.UNAUTHENTICATED, str(error)
        case IdentityUnknown():
            return GrpcStatus.INTERNAL, str(error)
        case Denied() | Untrusted() | Malformed():
            return GrpcStatus.PERMISSION_DENIED, str(error)
        case Unavailable():  # not the peer's fault: it may come again
            return GrpcStatus.UNAVAILABLE, str(error)
        case _:
            return GrpcStatus.INTERNAL, INTERNAL_TEXT


@dataclass(frozen=True, slots=True)
class _Shown:
    """What connections get to see at present."""

    context: SSL.Context
    quote: bytes
    since: datetime


class KeyServer:
    """Gives the KEK to Coordinators like this one, and to nobody else."""

    def __init__(
        self,
        attestor: Attestor,
        sealer: KekSealer,
        mode: Callable[[], Awaitable[SealMode]],
        entropy: Entropy,
        attempts: FailedAttempts | None = None,
    ) -> None:
        """``mode`` says how the stored state is sealed now, until a manifest is set as Disabled; raises Unavailable."""
        self._attestor = attestor
        self._sealer = sealer
        self._mode = mode
        self._entropy = entropy
        self._attempts = attempts or FailedAttempts()
        self._shown: _Shown | None = None
        self._server: asyncio.Server | None = None

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self, address: str, overload: Overload, patience: Patience) -> None:
        """Make certificate and evidence, and listen; raises IdentityUnknown, Unavailable, Misconfigured, ..."""
        await self.renew()
        door, desk = overload.listener("key", LIMITS, _SECONDS_EACH)
        method = Method(KEY_PATH, self.answer, key_problem, MAX_REQUEST_BYTES, MAX_SECONDS, "requests for the key")
        service = replace(journaled(unary_service(method, desk), "key", (KEY_PATH,)), patience=patience)
        config = EdgeConfig(self._context, only_http2(service), _on_handshake_error, door, patience=patience)
        self._server = await bind(config, address, KEY_ADDRESS_VARIABLE)
        _log.info("the key exchange is listening", extra={"fields": {"key": self.address}})

    @property
    def address(self) -> str:
        """Where it listens, empty if it does not."""
        return bound(self._server) if self._server is not None else ""

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def renew(self) -> None:
        """A new key with a certificate whose evidence is about it; connections from now on see it."""
        at = self._attestor.clock()
        key = self._entropy.ec_key(ec.SECP256R1())
        quote = await self._attestor.quote(public_key_info(key.public_key()))
        identity_of(await self._attestor.claims(quote, at))
        certificate = x509.load_der_x509_certificate(issue_key_server(key, quote, at, self._entropy))
        context = server_context(ServerIdentity(certificate, key), (b"h2",), demand_certificate=True)
        self._shown = _Shown(context, quote, at)

    async def renew_if_due(self) -> None:
        """:meth:`renew` in good time; what cannot be renewed now serves on, and the next call tries again."""
        shown = self._shown
        if shown is None or self._attestor.clock() - shown.since < RENEW_AFTER:
            return
        try:
            await self.renew()
        except MarbleRunError as error:
            fields = {"reason": str(error)}
            _log.error("the certificate of the key exchange could not be renewed", extra={"fields": fields})

    def _context(self) -> SSL.Context:
        return self._present().context

    def _present(self) -> _Shown:
        if self._shown is None:
            raise RuntimeError("the key server was not started")
        return self._shown

    # -- requests ------------------------------------------------------------------------------------------------

    async def answer(self, message: bytes, peer: Peer) -> bytes:
        """The response's message to a request's; raises what :func:`key_problem` knows, and Busy for who tries on."""
        quote = parse_key_request(message).quote
        fields: dict[str, object] = {"peer": peer.address}
        try:
            key = await self.give(quote, peer.leaf)
        except (Denied, Untrusted) as error:
            _log.warning("the key was refused", extra={"fields": {**fields, "reason": str(error)}})
            wait = self._attempts.record(peer.address)
            if wait:
                raise Busy("too many refused requests; try again later", retry_after=float(wait)) from error
            raise
        _log.info("the key was given to another Coordinator", extra={"fields": fields})
        return KeyResponse(key=key).SerializeToString()

    async def give(self, quote: bytes, leaf: bytes | None) -> bytes:
        """The KEK, for one who may have it; at one time for the whole decision, in the reference's order.

        1. There is a certificate (NoCertificate). 2. We know who we are, as far as the seal mode compares it
        (IdentityUnknown). 3. The quote verifies, is about the certificate, and says that the peer is like us (Denied).
        """
        at = self._attestor.clock()
        if not leaf:  # 1
            raise NoCertificate("a certificate is needed to ask for the key")
        mode = await self._mode()
        own = await self._own(at)
        own.require_known(product=mode is SealMode.PRODUCT_KEY)  # 2
        try:  # 3
            claims = await self._attestor.claims(quote, at)
            verify_client(own, mode, leaf, claims)
        except (Malformed, Untrusted) as error:
            raise Denied(f"the evidence is refused: {error}") from error
        kek = self._sealer.kek
        if kek is None:
            raise Unavailable("the key is not known here yet")
        return kek

    async def _own(self, at: datetime) -> Identity:
        """Who we are; IdentityUnknown also where our own evidence does not verify, which is not the peer's fault."""
        try:
            return identity_of(await self._attestor.claims(self._present().quote, at))
        except (Malformed, Untrusted) as error:
            raise IdentityUnknown(f"this Coordinator's own evidence does not verify: {error}") from error


def _on_handshake_error(address: str, reason: str) -> None:
    fields = {"peer": address, "reason": reason}
    _log.info("TLS handshake for the key exchange failed", extra={"fields": fields})
