"""The TLS edge: terminates TLS inside this process and keeps the leaf certificate the client proved to hold.

Both listeners ask for client certificates that no CA vouches for: evidence or the manifest does, later. Python's
``ssl`` cannot ask without also verifying, so the handshake runs on pyOpenSSL with memory BIOs over a plain asyncio
transport (ADR 1). Nothing about the certificate is trusted here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, cast

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from marblerun.coordinator.server.exchange import Patience, Peer
from marblerun.coordinator.server.overload import Refusal, Ticket, network_of
from marblerun.coordinator.server.turns import Door, Overload

# A handshake with a client certificate is a few KiB; chains of real deployments stay below 32 KiB.
MAX_HANDSHAKE_BYTES: Final = 128 * 1024
# The first flight is one message of some hundred bytes; with keys against quantum computers 2 KiB.
MAX_HELLO_BYTES: Final = 32 * 1024
# Above this nothing more is taken from a peer whose handshake waits for its turn; a large request may follow it.
_WAITING_BYTES: Final = 64 * 1024
# Go's FIPS set (protocol, section 3.6) and ChaCha20 for everybody else: AEAD only.
_TLS12_CIPHERS: Final = b"ECDHE+AESGCM:ECDHE+CHACHA20"
_READ_CHUNK: Final = 64 * 1024
# OpenSSL gives one record at a time, however much room there is.
_RECORD_BYTES: Final = 16 * 1024
# Plaintext that one connection may deliver before the others get their turn.
_TURN_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """The certificate and key that a listener shows; a listener may be given another one at any time."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def server_context(identity: ServerIdentity, alpn: tuple[bytes, ...], *, demand_certificate: bool) -> SSL.Context:
    """A TLS 1.2/1.3 server context that shows ``identity`` and asks for, or demands, any client certificate."""
    context = SSL.Context(SSL.TLS_SERVER_METHOD)
    context.set_min_proto_version(SSL.TLS1_2_VERSION)
    context.set_cipher_list(_TLS12_CIPHERS)
    context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
    # A resumed session would carry the client certificate of an earlier handshake.
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    context.use_privatekey(cast(Any, identity.key))
    context.use_certificate(cast(Any, identity.certificate))
    mode = SSL.VERIFY_PEER | (SSL.VERIFY_FAIL_IF_NO_PEER_CERT if demand_certificate else 0)
    context.set_verify(mode, _accept_any_certificate)
    # Nobody looks at the rest of the chain, so no time goes into building and checking one.
    context.set_verify_depth(0)

    def select(_connection: SSL.Connection, offered: list[bytes]) -> Any:
        chosen = next((name for name in alpn if name in offered), None)
        if chosen is not None:
            return chosen
        if b"h2" in alpn and b"http/1.1" in offered:  # Go lets these in, as if they had offered nothing
            return SSL.NO_OVERLAPPING_PROTOCOLS
        raise NoCommonProtocol  # pyOpenSSL sends the alert no_application_protocol

    context.set_alpn_select_callback(select)
    return context


class NoCommonProtocol(Exception):
    """The client offers application protocols, and none of them is ours."""


def _accept_any_certificate(_connection: SSL.Connection, _certificate: Any, _errno: int, _depth: int, _ok: int) -> bool:
    """Possession of the leaf's key is proven by the handshake; what the certificate says is judged later."""
    return True


InnerFactory = Callable[[Peer, bytes], asyncio.Protocol]
"""Makes the protocol for one connection from the peer and the ALPN protocol (empty if none was negotiated)."""


@dataclass(slots=True)
class EdgeStatistics:
    """Counters of the edge, for metrics and tests."""

    open_connections: int = 0
    handshakes: int = 0
    failed_handshakes: int = 0
    refused_connections: int = 0


@dataclass(frozen=True, slots=True)
class EdgeConfig:
    """Everything a listener's connections share. ``context`` is asked anew for every connection."""

    context: Callable[[], SSL.Context]
    inner: InnerFactory
    on_handshake_error: Callable[[str, str], None]
    """Called with the peer's address and a reason."""
    door: Door = field(default_factory=lambda: Overload().mesh)
    statistics: EdgeStatistics = field(default_factory=EdgeStatistics)
    patience: Patience = field(default_factory=Patience)


class TlsEdge(asyncio.Protocol):
    """One TLS connection: bytes from the network in, plaintext to the inner protocol out."""

    __slots__ = (
        "_address",
        "_closing",
        "_config",
        "_connection",
        "_counted",
        "_early",
        "_flushing",
        "_inner",
        "_paused",
        "_received",
        "_shaking",
        "_source",
        "_ticket",
        "_timer",
        "_transport",
        "_turn",
    )

    def __init__(self, config: EdgeConfig) -> None:
        self._config = config
        self._connection: SSL.Connection | None = None
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._turn: asyncio.Handle | None = None
        self._flushing: asyncio.Handle | None = None
        self._address = self._source = ""
        self._received = 0
        self._early = bytearray()  # of the handshake, until it is this connection's turn
        self._ticket: Ticket | None = None
        self._counted = self._shaking = False
        self._closing = False
        self._paused = False

    # -- asyncio callbacks ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A TCP connection arrived: start the handshake clock."""
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if peer else "unknown"
        self._source = network_of(self._address)
        statistics, door = self._config.statistics, self._config.door
        if not door.enter(self._source):
            self._refuse()
            return
        statistics.open_connections += 1
        self._counted = self._shaking = True
        self._start_timer(door.patience(self._config.patience.handshake), self._on_handshake_timeout)

    def data_received(self, data: bytes) -> None:
        """Ciphertext from the network."""
        if self._closing:  # read on, so that the peer can read our last words
            return
        if self._inner is None:
            self._on_handshake_data(data)
        elif self._connection is not None:
            self._connection.bio_write(data)
            self._read_plaintext()

    def eof_received(self) -> bool:
        """The peer closed its side; TLS has no half-open state worth keeping."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The TCP connection is gone: free everything that belongs to it."""
        self._stop_timer()
        for handle in (self._turn, self._flushing):
            if handle is not None:
                handle.cancel()
        self._turn = self._flushing = None
        self._end_handshake()
        if self._counted:
            self._config.statistics.open_connections -= 1
            self._config.door.connections.give(self._source)
            self._counted = False
        inner, self._inner = self._inner, None
        self._connection = None
        self._transport = None
        if inner is not None:
            inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The network is slower than we write."""
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The network caught up."""
        if self._inner is not None:
            self._inner.resume_writing()

    # -- handshake -----------------------------------------------------------------------------------------------

    def _refuse(self) -> None:
        """There is no room: end the connection before anything has been spent on it."""
        self._config.statistics.refused_connections += 1
        self.abort()

    def _on_handshake_data(self, data: bytes) -> None:
        door, first = self._config.door, self._connection is None
        self._received += len(data)
        if first and self._received > MAX_HELLO_BYTES:
            self._fail_handshake("handshake too large")
            return
        if not door.hold(len(data)):
            self._refuse()
            return
        self._early += data
        if self._ticket is None:
            answer = door.step(self._source, self._step, first=first)
            if isinstance(answer, Refusal):
                self._refuse()
                return
            self._ticket = answer
        if self._ticket is not None and len(self._early) > _WAITING_BYTES:
            self._set_reading(False)

    def _step(self) -> None:
        """It is our turn: give OpenSSL what has arrived."""
        self._ticket = None
        if self._closing:
            return
        connection = self._connection
        if connection is None:
            connection = self._connection = SSL.Connection(self._config.context(), None)
            connection.set_accept_state()
        if len(self._early) > _WAITING_BYTES:
            self._set_reading(True)
        connection.bio_write(bytes(self._early))
        self._forget_early()
        if self._continue_handshake(connection):
            self._read_plaintext()

    def _forget_early(self) -> None:
        self._config.door.release(len(self._early))
        self._early.clear()

    def _end_handshake(self) -> None:
        """The handshake is over, one way or the other: make room for the next one."""
        if self._shaking:
            self._shaking = False
            self._forget_early()
            self._config.door.handshakes.give(self._source)
        if self._ticket is not None:
            self._config.door.give_up(self._ticket)
            self._ticket = None

    def _continue_handshake(self, connection: SSL.Connection) -> bool:
        try:
            connection.do_handshake()
        except SSL.WantReadError:
            self._flush(connection)
            if self._received > MAX_HANDSHAKE_BYTES:
                self._fail_handshake("handshake too large")
            return False
        except SSL.Error as error:
            self._flush(connection)  # the alert tells an honest client what went wrong
            self._fail_handshake(_reason(error))
            return False
        except NoCommonProtocol:
            with contextlib.suppress(SSL.Error):  # takes OpenSSL's own errors off the queue that all connections share
                connection.do_handshake()
            self._flush(connection)
            self._fail_handshake("no application protocol in common")
            return False
        self._stop_timer()
        self._end_handshake()
        self._config.statistics.handshakes += 1
        inner = self._config.inner(Peer(self._address, _leaf(connection)), connection.get_alpn_proto_negotiated())
        self._inner = inner
        inner.connection_made(_TlsTransport(self))
        return not self._closing

    def _on_handshake_timeout(self) -> None:
        if self._ticket is not None:  # it is we who are late
            self._start_timer(self._config.patience.handshake, self._on_handshake_timeout)
            return
        self._fail_handshake("handshake timed out")

    def _fail_handshake(self, reason: str) -> None:
        self._end_handshake()
        self._config.statistics.failed_handshakes += 1
        self._config.on_handshake_error(self._address, reason)
        self._connection = None
        self._linger()

    # -- plaintext -----------------------------------------------------------------------------------------------

    def _read_plaintext(self) -> None:
        """Deliver what OpenSSL has decrypted, as long as it is this connection's turn and somebody wants it."""
        delivered = 0
        self._turn = None
        while True:
            inner, connection = self._inner, self._connection
            if inner is None or connection is None or self._closing or self._paused:
                return
            if delivered >= _TURN_BYTES:
                self._set_reading(False)
                self._turn = asyncio.get_running_loop().call_soon(self._take_turn)
                return
            try:
                data = connection.recv(_RECORD_BYTES)
            except SSL.WantReadError:
                self._flush_soon()
                return
            except SSL.Error:  # close_notify, unexpected data, a broken record: nothing more will come
                self.close()
                return
            delivered += len(data)
            inner.data_received(data)

    def _take_turn(self) -> None:
        self._set_reading(not self._paused)
        self._read_plaintext()

    def pause(self, paused: bool) -> None:
        """Stop or go on with delivering plaintext, and with taking ciphertext from the network."""
        if paused == self._paused or self._closing:
            return
        self._paused = paused
        self._set_reading(not paused)
        if not paused and self._turn is None:  # what is decrypted already must not wait for the network
            self._turn = asyncio.get_running_loop().call_soon(self._take_turn)

    def _set_reading(self, reading: bool) -> None:
        if self._transport is not None:
            if reading:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def write(self, data: bytes) -> None:
        """Encrypt and send; silently dropped once the connection is gone, as asyncio transports do."""
        connection = self._connection
        if connection is None or self._closing or not data:
            return
        try:
            connection.sendall(data)
        except SSL.Error:
            self.abort()
            return
        self._flush(connection)

    def close(self) -> None:
        """Send what is buffered and close_notify, then close; nothing more is delivered."""
        connection = self._connection
        if connection is not None and not self._closing:
            with contextlib.suppress(SSL.Error):
                connection.shutdown()
            self._flush(connection)
        self._linger()

    def abort(self) -> None:
        """Close at once."""
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _linger(self) -> None:
        """Close our side and read on for a moment.

        A socket that is closed with unread data in it is reset, and then the peer never sees our answer. Whoever does
        not close his side in time, or does not take our last bytes, is cut off.
        """
        if self._closing or self._transport is None:
            return
        self._closing = True
        self._start_timer(self._config.patience.close, self.abort)
        self._set_reading(True)
        try:
            self._transport.write_eof()
        except OSError:  # the peer has reset the connection
            self._transport.abort()

    @property
    def transport(self) -> asyncio.Transport | None:
        """The TCP transport while it lives."""
        return self._transport

    @property
    def is_closing(self) -> bool:
        """Whether nothing more is delivered or sent."""
        return self._closing or self._transport is None or self._transport.is_closing()

    def _flush_soon(self) -> None:
        """Send what TLS itself has to say (session tickets, key updates) with the answer, if there is one at once."""
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_soon(self._flush_later)

    def _flush_later(self) -> None:
        self._flushing = None
        if self._connection is not None:
            self._flush(self._connection)

    def _flush(self, connection: SSL.Connection) -> None:
        transport = self._transport
        if transport is None or self.is_closing:
            return
        while True:
            try:
                chunk = connection.bio_read(_READ_CHUNK)
            except SSL.Error:  # WantReadError: empty
                return
            transport.write(chunk)
            if len(chunk) < _READ_CHUNK:  # that was all; asking again would only raise
                return

    def _start_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _leaf(connection: SSL.Connection) -> bytes | None:
    """DER of the peer's own certificate. Not parsed: OpenSSL reads certificates that stricter libraries refuse."""
    certificate = connection.get_peer_certificate(as_cryptography=False)
    return None if certificate is None else crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate)


def _reason(error: SSL.Error) -> str:
    """A short text of an OpenSSL error; it names the failure and holds nothing secret."""
    details = error.args[0] if error.args and isinstance(error.args[0], list) else None
    if details:
        return "; ".join(str(entry[-1]) for entry in details)
    return str(error) or type(error).__name__


class _TlsTransport(asyncio.Transport):
    """What the inner protocol sees: a transport of plaintext."""

    __slots__ = ("_edge",)

    def __init__(self, edge: TlsEdge) -> None:
        super().__init__()
        self._edge = edge

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._edge.write(bytes(data))

    def close(self) -> None:
        self._edge.close()

    def abort(self) -> None:
        self._edge.abort()

    def is_closing(self) -> bool:
        return self._edge.is_closing

    def pause_reading(self) -> None:
        self._edge.pause(True)

    def resume_reading(self) -> None:
        self._edge.pause(False)

    def get_write_buffer_size(self) -> int:
        transport = self._edge.transport
        return 0 if transport is None else transport.get_write_buffer_size()
