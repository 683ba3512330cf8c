"""One unary gRPC call over one TLS connection of its own, synchronous, with a deadline for everything.

The server's certificate is shown to a pin after the handshake; only then the first byte of HTTP/2 leaves.
"""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import dataclass
from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error
from hpack.exceptions import HPACKError
from hyperframe.exceptions import HyperframeError

from marblerun.errors import Malformed, Misconfigured, Unavailable
from marblerun.marble.pins import CoordinatorPin
from marblerun.marble.settings import Endpoint
from marblerun.version import __version__
from marblerun.wire.limits import MAX_GRPC_MESSAGE_BYTES
from marblerun.wire.rpc.framing import MessageReader, decode_grpc_message, encode_message
from marblerun.wire.rpc.status import GrpcStatus, parse_status, status_of_http

_READ_BYTES: Final = 64 * 1024
_MAX_REASON_CHARACTERS: Final = 2000


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for each part of one call."""

    connect: float = 20.0
    """TCP, then again for the TLS handshake: gRPC's own, and what a Coordinator under load reckons with."""
    answer: float = 60.0
    """From the request to the last byte of the answer; the Coordinator may have to fetch collateral."""

    def within(self, seconds: float) -> Timeouts:
        """Return these, none longer than ``seconds``."""
        return Timeouts(min(self.connect, seconds), min(self.answer, seconds))


DEFAULT_TIMEOUTS: Final = Timeouts()


@dataclass(frozen=True, slots=True, repr=False)
class Answer:
    """What a call came back with; ``body`` may hold keys, so ``repr`` leaves it out."""

    status: GrpcStatus
    reason: str
    """The server's text on one line, control characters escaped; empty if it gave none."""
    body: bytes = b""
    retry_after: float | None = None
    """Seconds after which the server wants to be asked again; infinite if it does not; None if it said nothing."""

    def __repr__(self) -> str:
        return f"Answer(status={self.status.name}, reason={self.reason!r}, body of {len(self.body)} bytes)"


def call_unary(
    endpoint: Endpoint,
    path: str,
    message: bytes,
    *,
    context: ssl.SSLContext,
    pin: CoordinatorPin,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
) -> Answer:
    """Send ``message`` (protobuf bytes) to the method ``path`` and return the server's answer, whatever its status.

    1. Connect and shake hands. 2. The pin judges the server's certificate. 3. Request out, answer in.

    Raises:
        Unavailable: no connection, no handshake, or the connection ended or broke before the answer was complete.
        Misconfigured: the server does not speak HTTP/2, or its name can never be resolved as written.
        Untrusted: the pin refuses the server (nothing was sent).
        Malformed: an answer that is too large or not one message.
    """
    with _connect(endpoint, context, timeouts) as connection:  # 1
        certificate = connection.getpeercert(binary_form=True)
        if certificate is None:
            raise Unavailable(f"{endpoint} showed no certificate")
        pin.check(certificate)  # 2
        try:
            return _Call(connection, endpoint, path, timeouts.answer).run(message)  # 3
        except TimeoutError as error:
            raise Unavailable(f"{endpoint} did not answer within {timeouts.answer:g} s") from error
        except OSError as error:
            raise Unavailable(f"the connection to {endpoint} broke: {_words_of(error)}") from error
        except (H2Error, HPACKError, HyperframeError) as error:
            raise Unavailable(f"{endpoint} broke the rules of HTTP/2") from error


def _connect(endpoint: Endpoint, context: ssl.SSLContext, timeouts: Timeouts) -> ssl.SSLSocket:
    """Return a connection after its handshake, HTTP/2 agreed on."""
    try:
        plain = socket.create_connection((endpoint.host, endpoint.port), timeouts.connect)
    except UnicodeError as error:
        raise Misconfigured(f"{endpoint.host!r} is not a host name") from error
    except OSError as error:
        raise Unavailable(f"cannot connect to {endpoint}: {_words_of(error)}") from error
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = context.wrap_socket(plain, server_hostname=endpoint.host)
    except (OSError, ValueError) as error:
        plain.close()
        raise Unavailable(f"the TLS handshake with {endpoint} failed: {_words_of(error)}") from error
    if connection.selected_alpn_protocol() != "h2":
        connection.close()
        raise Misconfigured(f"{endpoint} does not speak HTTP/2: is it the Coordinator's mesh address?")
    return connection


class _Call:
    """The HTTP/2 side of one call on a fresh connection."""

    def __init__(self, connection: ssl.SSLSocket, endpoint: Endpoint, path: str, seconds: float) -> None:
        self._connection = connection
        self._endpoint = endpoint
        self._path = path
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._reader = MessageReader(MAX_GRPC_MESSAGE_BYTES)
        self._messages: list[bytes] = []
        self._headers: dict[str, str] = {}
        self._ended = False

    def run(self, message: bytes) -> Answer:
        self._h2.initiate_connection()
        stream = self._h2.get_next_available_stream_id()
        self._h2.send_headers(stream, self._request_headers())
        self._send_body(stream, encode_message(message))
        while not self._ended:
            self._receive()
        return self._answer()

    def _request_headers(self) -> list[tuple[str, str]]:
        return [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", self._path),
            (":authority", str(self._endpoint)),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", f"marblerun-python/{__version__}"),
            ("grpc-timeout", f"{max(1, min(int(self._seconds * 1000), 99_999_999))}m"),
        ]

    def _send_body(self, stream: int, body: bytes) -> None:
        """Send everything as flow control allows; stop if the server answers early."""
        sent = 0
        while sent < len(body) and not self._ended:
            window = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size)
            if window <= 0:
                self._receive()
                continue
            chunk = body[sent : sent + window]
            sent += len(chunk)
            self._h2.send_data(stream, chunk, end_stream=sent == len(body))
            self._flush()

    def _flush(self) -> None:
        self._connection.settimeout(self._remaining())
        self._connection.sendall(self._h2.data_to_send())

    def _remaining(self) -> float:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining

    def _receive(self) -> None:
        """Take one read from the network through all its consequences."""
        self._connection.settimeout(self._remaining())
        data = self._connection.recv(_READ_BYTES)
        if not data:
            raise Unavailable(f"{self._endpoint} closed the connection before it had answered")
        for event in self._h2.receive_data(data):
            self._handle(event)
        if not self._ended and (answer := self._h2.data_to_send()):
            self._connection.sendall(answer)

    def _handle(self, event: Event) -> None:
        match event:
            case ResponseReceived(headers=headers) | TrailersReceived(headers=headers):
                self._headers.update((_text(name), _text(value)) for name, value in headers or ())
            case DataReceived(stream_id=int(stream), data=bytes(data), flow_controlled_length=int(size)):
                if self._headers.get(":status") == "200":
                    self._messages += self._reader.feed(data)
                if len(self._messages) > 1:
                    raise Malformed("the answer has more than one message", where="grpc message")
                self._h2.acknowledge_received_data(size, stream)
            case StreamEnded():
                self._ended = True
            case StreamReset(error_code=code) if not self._ended:
                raise Unavailable(f"{self._endpoint} gave up the call (HTTP/2 error {int(code or 0)})")
            case ConnectionTerminated(error_code=code) if not self._ended:
                raise Unavailable(f"{self._endpoint} is closing the connection (HTTP/2 error {int(code or 0)})")
            case _:
                pass

    def _answer(self) -> Answer:
        """Return what the headers and trailers say, by gRPC's rules for answers that are no gRPC answers, too."""
        http_status = self._headers.get(":status", "")
        reason = _one_line(decode_grpc_message(self._headers.get("grpc-message", "")))
        if "grpc-status" not in self._headers:
            if http_status == "200":
                raise Unavailable(f"{self._endpoint} ended the call without a status")
            status = status_of_http(int(http_status) if http_status.isascii() and http_status.isdigit() else 0)
            return Answer(status, f"HTTP status {_one_line(http_status)}: is it the Coordinator's mesh address?")
        status = parse_status(self._headers["grpc-status"])
        if status is not GrpcStatus.OK:
            return Answer(status, reason, retry_after=_pushback(self._headers.get("grpc-retry-pushback-ms")))
        self._reader.finish()
        if not self._messages:
            raise Malformed("the answer has no message", where="grpc message")
        return Answer(status, reason, self._messages[0])


def _pushback(text: str | None) -> float | None:
    """Return the hint in seconds; a negative or unreadable one means "not again". Source: gRPC proposal A6."""
    if text is None:
        return None
    return int(text) / 1000 if text.isascii() and text.isdigit() and len(text) < 10 else float("inf")


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def _one_line(text: str) -> str:
    """Return foreign text so that it cannot forge log lines or move a terminal's cursor."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_MAX_REASON_CHARACTERS])


def _words_of(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, ssl.SSLError):
        return error.reason or type(error).__name__
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
