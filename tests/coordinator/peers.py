"""Clients that do what well-behaved ones never do: raw TLS sockets and hand-made HTTP/2 frames."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from cryptography.hazmat.primitives.asymmetric import ec
from hyperframe.frame import Frame
from tests.coordinator.running import Address

from marblerun.marble.credentials import make_credentials
from marblerun.pki.profiles import SubjectNames

Header = tuple[bytes, bytes]

LIMIT_SECONDS = 60.0
"""How long anything is waited for that must come: long enough for the slowest machine, and no test's subject."""


def wait_until(done: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> None:
    """Until ``done()``; TimeoutError if it never comes to that."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come to that")
        time.sleep(0.005)


@cache
def _marble_context() -> ssl.SSLContext:
    return make_credentials(SubjectNames(), ec.SECP256R1()).client_context()


def tls(
    address: Address, *, alpn: str = "http/1.1", mesh: bool = False, seconds: float = LIMIT_SECONDS
) -> ssl.SSLSocket:
    """A connection after its handshake; ``mesh`` shows a Marble's self-signed certificate and speaks h2."""
    if mesh:
        context = _marble_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([alpn])
    plain = socket.create_connection(address, timeout=seconds)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(plain, server_hostname="localhost")


def read_all(connection: socket.socket, seconds: float = LIMIT_SECONDS) -> bytes:
    """Everything until the other side closes or resets; TimeoutError if it does neither in time."""
    received = bytearray()
    deadline = time.monotonic() + seconds
    while True:
        connection.settimeout(max(deadline - time.monotonic(), 0.01))
        try:
            chunk = connection.recv(65536)
        except TimeoutError:
            raise TimeoutError(f"still open after {seconds} s, received {bytes(received[:200])!r}") from None
        except OSError:
            return bytes(received)
        if not chunk:
            return bytes(received)
        received += chunk


def push(connection: ssl.SSLSocket, data: bytes, seconds: float, limit: int) -> int:
    """Send ``data`` again and again without ever reading; how many bytes were taken in that time."""
    connection.settimeout(None)
    connection.setblocking(False)
    taken, deadline, rest = 0, time.monotonic() + seconds, data
    while time.monotonic() < deadline and taken < limit:
        try:
            sent = connection.send(rest)
            taken += sent
            rest = rest[sent:] or data
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError, BlockingIOError):
            select.select([], [connection], [], 0.05)
        except OSError:
            break
    return taken


def http1(address: Address, request: bytes, seconds: float = LIMIT_SECONDS) -> bytes:
    """The answer to the bytes of ``request`` on a connection of their own, until it is closed."""
    with tls(address) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request)
        return read_all(connection, seconds)


def status_of(answer: bytes) -> int:
    """The status of the first response in ``answer``; 0 if there is none."""
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


REQUEST = b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_REQUEST = b"GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@dataclass
class Answer:
    """One HTTP/2 response."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None

    @property
    def status(self) -> int:
        return int(self.headers.get(b":status", b"0"))

    @property
    def grpc(self) -> int:
        """gRPC status; -1 if there is none."""
        return int({**self.headers, **self.trailers}.get(b"grpc-status", b"-1"))


class Http2:
    """An HTTP/2 client without any of the checks that would keep it honest."""

    def __init__(
        self, address: Address, *, mesh: bool = False, settings: dict[h2.settings.SettingCodes, int] | None = None
    ) -> None:
        self.socket = tls(address, alpn="h2", mesh=mesh)
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
                validate_inbound_headers=True,
            )
        )
        if settings:
            self.h2.local_settings = h2.settings.Settings(client=True, initial_values=settings)
        self.h2.initiate_connection()
        self.lost = False
        """Whether raw frames have confused our side of the protocol; from then on only GOAWAYs are noticed."""
        self._received = bytearray()
        self.answers: dict[int, Answer] = {}
        self.goaway: int | None = None
        self.closed = False
        self.flush()

    def __enter__(self) -> Http2:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.raw(self.h2.data_to_send())

    def raw(self, data: bytes) -> None:
        """Bytes as they are; a closed connection is noted."""
        try:
            self.socket.settimeout(LIMIT_SECONDS)
            self.socket.sendall(data)
        except OSError:
            self.closed = True

    def frames(self, *frames: Frame) -> None:
        self.raw(b"".join(frame.serialize() for frame in frames))

    def request(
        self,
        method: bytes = b"GET",
        path: bytes = b"/status",
        body: bytes | None = None,
        headers: Iterable[Header] = (),
        *,
        end: bool = True,
    ) -> int:
        """Send a request, as far as the window lets the body through; its stream."""
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        pseudo = [(b":method", method), (b":path", path), (b":scheme", b"https"), (b":authority", b"x")]
        self.h2.send_headers(stream, [*pseudo, *headers], end_stream=end and body is None)
        self.flush()
        if body is not None:
            self.send(stream, body, end=end)
        return stream

    def send(self, stream: int, body: bytes, *, end: bool) -> None:
        start = 0
        while start < len(body) and not self.closed and not self.finished(stream):
            size = min(self.h2.local_flow_control_window(stream), 16384, len(body) - start)
            if size <= 0:
                self.pump(lambda: self.h2.local_flow_control_window(stream) > 0 or self.finished(stream), LIMIT_SECONDS)
                continue
            self.h2.send_data(stream, body[start : start + size])
            start += size
            self.flush()
        if end and not self.closed and not self.finished(stream):
            self.h2.end_stream(stream)
            self.flush()

    def finished(self, stream: int) -> bool:
        answer = self.answers[stream]
        return answer.ended or answer.reset is not None or self.closed

    def answer(self, stream: int, seconds: float = LIMIT_SECONDS) -> Answer:
        """Wait for the end of a response, of its stream, or of the connection."""
        self.pump(lambda: self.finished(stream), seconds)
        return self.answers[stream]

    def pump(self, done: object, seconds: float) -> None:
        """Read until ``done()``; TimeoutError if that never comes."""
        assert callable(done)
        deadline = time.monotonic() + seconds
        while not done() and not self.closed:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(f"nothing happened in {seconds} s")
            self.socket.settimeout(remaining)
            try:
                data = self.socket.recv(65536)
            except TimeoutError:
                continue
            except OSError:
                data = b""
            if not data:
                self.closed = True
                return
            self._look_for_goaway(data)
            try:
                events = [] if self.lost else self.h2.receive_data(data)
            except h2.exceptions.ProtocolError:
                self.lost = True
                continue
            for event in events:
                self._on(event)
            self.flush()

    def until_closed(self, seconds: float = LIMIT_SECONDS) -> None:
        """Read until the other side closes."""
        self.pump(lambda: False, seconds)

    def _look_for_goaway(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= 9:
            end = 9 + int.from_bytes(self._received[:3], "big")
            if len(self._received) < end:
                return
            if self._received[3] == 7:
                self.goaway = int.from_bytes(self._received[13:17], "big")
            del self._received[:end]

    def _on(self, event: h2.events.Event) -> None:
        answer = self.answers.setdefault(getattr(event, "stream_id", 0) or 0, Answer())
        match event:
            case h2.events.ResponseReceived():
                answer.headers.update((bytes(k), bytes(v)) for k, v in event.headers or ())
            case h2.events.TrailersReceived():
                answer.trailers.update((bytes(k), bytes(v)) for k, v in event.headers or ())
            case h2.events.DataReceived():
                answer.body += event.data or b""
                if event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id or 0)
            case h2.events.StreamEnded():
                answer.ended = True
            case h2.events.StreamReset():
                answer.reset = int(event.error_code or 0)
            case _:
                pass
