"""A client that costs little: genuine Marbles, prepared ahead, each call one TLS connection and one ready-made request.

The standard library's ``ssl`` shakes hands without holding Python's lock, the HTTP/2 frames of the request are made
before the clock runs, and of the answer only frame headers and the trailers are read. Every Marble has a key,
certificate, quote and UUID of its own, so that no cache of the server can know a call from an earlier one.
"""

from __future__ import annotations

import os
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from cryptography.hazmat.primitives.asymmetric import ec
from hpack import Decoder, Encoder

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.issue import EvidenceIssuer, detect_issuer
from marblerun.marble.credentials import make_credentials
from marblerun.marble.settings import Endpoint
from marblerun.pki.profiles import SubjectNames
from marblerun.wire.rpc import ACTIVATE_PATH, encode_activation_request
from marblerun.wire.rpc.framing import encode_message

SECONDS = 60.0
"""Longest that one call may take."""
OK = "0"
REFUSED = "7"
"""PERMISSION_DENIED."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _GO_AWAY, _CONTINUATION = 0, 1, 3, 4, 7, 9
_END_STREAM, _END_HEADERS, _PADDED, _PRIORITY = 1, 4, 8, 32
_NAMES = SubjectNames.parse("localhost")


class CallFailed(Exception):
    """A call that got no gRPC answer."""


@dataclass(frozen=True, slots=True)
class Marble:
    """One Marble, ready to be activated on one connection or several."""

    context: ssl.SSLContext
    request: bytes
    """The whole request as HTTP/2 frames."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: str
    """grpc-status; 0 is success."""
    reason: str
    size: int
    """Bytes of messages."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes Marbles of one type with evidence from ``issuer``."""

    issuer: EvidenceIssuer
    marble_type: str = "service"
    curve: Callable[[], ec.EllipticCurve] = ec.SECP384R1
    """Of the TLS key: P-384 as stock Marbles have it."""
    change_quote: Callable[[bytes], bytes] = bytes
    """To spoil it."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **settings: Any) -> Maker:
        """With the evidence that these variables choose, as a Marble would."""
        return cls(detect_issuer(environment), **settings)

    def make(self) -> Marble:
        """A new Marble."""
        credentials = make_credentials(_NAMES, self.curve())
        quote = self.change_quote(self.issuer.issue(report_data_for(credentials.certificate)))
        message = encode_activation_request(
            quote=quote, csr=credentials.csr, marble_type=self.marble_type, uuid=str(uuid4())
        )
        return Marble(credentials.client_context(), request_frames(ACTIVATE_PATH, encode_message(message)))

    def pool(self, size: int) -> list[Marble]:
        """So many new ones."""
        return [self.make() for _ in range(size)]


def request_frames(path: str, body: bytes) -> bytes:
    """The bytes of one gRPC request on stream 1 of a new connection; ValueError beyond the first flow window."""
    if len(body) > 65535:
        raise ValueError("the request does not fit into the window that every server opens with")
    headers = Encoder().encode(
        [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", "localhost"),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", "marblerun-benchmark"),
        ]
    )
    pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)]
    last = len(pieces) - 1
    data = b"".join(_frame(_DATA, _END_STREAM if n == last else 0, 1, piece) for n, piece in enumerate(pieces))
    return _PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_HEADERS, _END_HEADERS, 1, headers) + data


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def call(endpoint: Endpoint, marble: Marble, seconds: float = SECONDS) -> Answer:
    """Activate: connect, shake hands, send, read the answer to its end; CallFailed or OSError without an answer."""
    deadline = time.monotonic() + seconds
    plain = socket.create_connection((endpoint.host, endpoint.port), seconds)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with marble.context.wrap_socket(plain, server_hostname=endpoint.host) as connection:
        connection.sendall(marble.request)
        connection.settimeout(max(deadline - time.monotonic(), 0.001))
        return _read_answer(connection)


def _read_answer(connection: ssl.SSLSocket) -> Answer:
    """Read frames until stream 1 ends."""
    buffer, size, headers = bytearray(), 0, Decoder()
    fields: dict[str, str] = {}
    block = bytearray()
    while True:
        while len(buffer) >= 9 and len(buffer) >= 9 + (length := int.from_bytes(buffer[:3], "big")):
            kind, flags, payload = buffer[3], buffer[4], bytes(buffer[9 : 9 + length])
            del buffer[: 9 + length]
            if kind in (_HEADERS, _CONTINUATION):
                block += _without_padding(payload, flags) if kind == _HEADERS else payload
                if flags & _END_HEADERS:
                    fields |= {_text(name): _text(value) for name, value in headers.decode(bytes(block))}
                    block.clear()
            elif kind == _DATA:
                size += length
            elif kind in (_RESET, _GO_AWAY):
                raise CallFailed(f"the server gave up: frame {kind}, {payload.hex()}")
            if kind in (_HEADERS, _DATA) and flags & _END_STREAM:
                if "grpc-status" not in fields:
                    raise CallFailed(f"no gRPC answer: {fields}")
                return Answer(fields["grpc-status"], fields.get("grpc-message", ""), size)
        data = connection.recv(65536)
        if not data:
            raise CallFailed("the server closed the connection before it had answered")
        buffer += data


def _without_padding(payload: bytes, flags: int) -> bytes:
    start, end = 0, len(payload)
    if flags & _PADDED:
        start, end = 1, end - payload[0]
    return payload[start + (5 if flags & _PRIORITY else 0) : end]


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")


def quote_spoiler(quote: bytes) -> bytes:
    """The quote with one bit of its signature turned."""
    at = len(quote) // 3
    return quote[:at] + bytes([quote[at] ^ 1]) + quote[at + 1 :]


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """The process's environment with ``variables`` over it."""
    return {**os.environ, **variables}
