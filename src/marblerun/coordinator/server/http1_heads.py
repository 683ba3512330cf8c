"""HTTP/1 requests as bytes: heads and the framing of bodies, strict where Go's server is and lenient where it is.

A stock client of the reference talks to Go's server, so what that one takes is taken here, and what it refuses is
refused with the same status. Pure.

Source: RFC 9112, and Go's ``net/http``, ``net/textproto`` and ``net/url`` (1.26) where it leaves room.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NoReturn

from marblerun.coordinator.server.exchange import Headers
from marblerun.coordinator.server.routing import split_target
from marblerun.wire.limits import MAX_HEADER_BYTES

# Of the line before a chunk and of the trailers behind the last one.
MAX_CHUNK_LINE_BYTES: Final = 4096
# Of chunk lines, beyond what small chunks need: extensions could say any amount and carry nothing.
_MAX_EXCESS_BYTES: Final = 16 * 1024
_FREE_BYTES_PER_CHUNK: Final = 16

_HEAD_END: Final = re.compile(rb"\n\r?\n")
_METHOD: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VERSION: Final = re.compile(rb"HTTP/([0-9])\.([0-9])")
_CONTROL: Final = re.compile(rb"[\0-\x1f\x7f]")
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z ]+")  # Go refuses blanks too, but later and in other words
_NOT_IN_VALUE: Final = re.compile(rb"[\0-\x08\x0a-\x1f\x7f]")
_HOST: Final = re.compile(rb"[0-9A-Za-z!$%&()*+,\-.:;=\['\]_~]*")
_LENGTH: Final = re.compile(rb"[0-9]{1,30}")
_CHUNK_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,16}")
_MAX_LENGTH: Final = (1 << 63) - 1
_NOT_IN_TRAILERS: Final = frozenset((b"transfer-encoding", b"trailer", b"content-length"))


class BadHead(Exception):
    """Not a request that is answered; ``status`` and ``text`` are all that the peer is told."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class BadBody(Exception):
    """The framing of a body is broken: where the next request begins cannot be known."""


@dataclass(frozen=True, slots=True)
class Head1:
    """The checked head of a request. Header names are in lower case, folded values on one line."""

    method: str
    target: str
    is_1_1: bool
    """HTTP/1.1 or a later 1.x; HTTP/1.0 otherwise."""
    headers: Headers
    length: int | None
    """Of the body; ``None`` if it comes in chunks."""
    keep: bool
    """Whether the connection may go on after the answer."""
    expects_continue: bool
    is_expectation_unknown: bool


# -- heads -------------------------------------------------------------------------------------------------------


def head_end(received: bytearray, searched: int) -> int:
    """Where the head at the beginning of ``received`` ends, 0 if it does not yet.

    ``searched`` bytes were there at the last call. Raises BadHead for a first line or a length that no rest can mend.
    """
    if not searched or received.find(b"\n", 0, searched) < 0:
        line_end = received.find(b"\n", max(searched - 1, 0))
        if line_end >= 0:
            _request_line(bytes(received[:line_end]))
    found = _HEAD_END.search(received, max(searched - 2, 0))
    if (found.end() if found else len(received)) > MAX_HEADER_BYTES:
        raise BadHead(431, "Request Header Fields Too Large")
    return found.end() if found else 0


def parse_head(head: bytes) -> Head1:
    """The request that a complete head, with the empty line behind it, announces; raises BadHead."""
    lines = head.split(b"\n")
    method, target, version = _request_line(lines[0])
    if target != b"*" and split_target(target.decode("latin-1"), method.decode("ascii")) is None:
        _refuse()
    headers = _fields(lines[1:-2])
    hosts = _values(headers, b"host")
    if len(hosts) > 1:
        _refuse()
    is_1_1 = version != (1, 0)
    length = _framing(headers, is_1_1=version > (1, 0))
    if version[0] != 1 and not (method == b"PRI" and target == b"*" and version == (2, 0)):
        raise BadHead(505, "HTTP Version Not Supported: unsupported protocol version")
    if is_1_1 and not hosts and method not in (b"CONNECT", b"PRI"):
        _refuse("missing required Host header")
    if hosts and not _HOST.fullmatch(hosts[0]):
        _refuse("malformed Host header")
    if any(b" " in name for name, _ in headers):
        _refuse("invalid header name")
    connections, expect = _values(headers, b"connection"), b"".join(_values(headers, b"expect")[:1])
    first_connection = b"".join(connections[:1])
    closes = _has_token(first_connection, b"close") or any(b"close" in _elements(value) for value in connections)
    keep = not closes if is_1_1 else _has_token(first_connection, b"keep-alive")
    asks = _has_token(expect, b"100-continue")
    return Head1(
        method=method.decode("ascii"),
        target=target.decode("latin-1"),
        is_1_1=is_1_1,
        headers=tuple(headers),
        length=length,
        keep=keep,
        expects_continue=asks and is_1_1 and length != 0,
        is_expectation_unknown=bool(expect) and not asks,
    )


def _refuse(text: str = "") -> NoReturn:
    raise BadHead(400, f"Bad Request: {text}" if text else "Bad Request")


def _request_line(line: bytes) -> tuple[bytes, bytes, tuple[int, int]]:
    method, _, rest = line.removesuffix(b"\r").partition(b" ")
    target, separator, name = rest.partition(b" ")
    version = _VERSION.fullmatch(name)
    if not separator or not _METHOD.fullmatch(method) or version is None or _CONTROL.search(target):
        _refuse()
    return method, target, (int(version[1]), int(version[2]))


def _fields(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    """The header fields, those that continue on a further line joined."""
    fields: list[tuple[bytes, bytes]] = []
    for raw in lines:
        line = raw.removesuffix(b"\r")
        if line[:1] in (b" ", b"\t"):
            if not fields:
                _refuse()
            name, value = fields.pop()
            value = (value + b" " + line.strip(b" \t")).lstrip(b" \t")
        else:
            name, colon, value = line.rstrip(b" \t").partition(b":")
            if not colon or not _NAME.fullmatch(name):
                _refuse()
            name, value = name.lower(), value.lstrip(b" \t")
        if _NOT_IN_VALUE.search(value):
            _refuse()
        fields.append((name, value))
    return fields


def _framing(headers: list[tuple[bytes, bytes]], *, is_1_1: bool) -> int | None:
    """The length of the body, ``None`` for chunks. An encoding counts for more than a length, as RFC 9112 has it."""
    encodings = _values(headers, b"transfer-encoding") if is_1_1 else []
    if encodings and (len(encodings) > 1 or encodings[0].lower() != b"chunked"):
        raise BadHead(501, "Not Implemented")
    lengths = {value.strip(b" \t") for value in _values(headers, b"content-length")}
    length = lengths.pop() if lengths else b"0"
    if lengths or not _LENGTH.fullmatch(length) or int(length) > _MAX_LENGTH:
        _refuse()
    if not encodings:
        return int(length)
    for value in _values(headers, b"trailer"):
        if not _NOT_IN_TRAILERS.isdisjoint(_elements(value)):
            _refuse()
    return None


def _values(headers: list[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name == wanted]


def _elements(value: bytes) -> list[bytes]:
    return [element.strip(b" \t").lower() for element in value.split(b",")]


def _has_token(value: bytes, token: bytes) -> bool:
    """Whether a word of the value, between blanks and commas, is this one."""
    return token in value.lower().replace(b",", b" ").replace(b"\t", b" ").split(b" ")


# -- bodies ------------------------------------------------------------------------------------------------------


class BodyReader:
    """Takes one body out of the bytes that arrive."""

    __slots__ = ("_excess", "_left", "_step", "done")

    def __init__(self, length: int | None) -> None:
        self.done = length == 0
        """Whether all of it, with everything that belongs to it, was taken."""
        self._left = length or 0
        self._step = self._take_length if length is not None else self._take_size
        self._excess = 0

    def take(self, received: bytearray) -> bytes:
        """Remove what belongs to the body from the beginning of ``received``; its data. Raises BadBody."""
        taken: list[bytes] = []
        while not self.done:
            data = self._step(received)
            if data is None:
                break
            taken.append(data)
        return b"".join(taken)

    def _take_length(self, received: bytearray) -> bytes | None:
        data = _cut(received, self._left)
        self._left -= len(data)
        self.done = not self._left
        return data or None

    def _take_size(self, received: bytearray) -> bytes | None:
        end = received.find(b"\n", 0, MAX_CHUNK_LINE_BYTES) + 1
        if not end:
            if len(received) >= MAX_CHUNK_LINE_BYTES:
                raise BadBody
            return None
        line = _cut(received, end)
        if line.find(b"\r") != end - 2:  # a bare line feed, or a carriage return where none belongs
            raise BadBody
        size = line[:-2].rstrip(b" \t").partition(b";")[0]
        if not _CHUNK_SIZE.fullmatch(size):
            raise BadBody
        self._left = int(size, 16)
        self._excess = max(0, self._excess + end - _FREE_BYTES_PER_CHUNK - 2 * self._left)
        if self._excess > _MAX_EXCESS_BYTES:
            raise BadBody
        self._step = self._take_chunk if self._left else self._take_trailers
        return b""

    def _take_chunk(self, received: bytearray) -> bytes | None:
        if self._left:
            data = _cut(received, self._left)
            self._left -= len(data)
            return data or None
        if len(received) < 2:
            return None
        if _cut(received, 2) != b"\r\n":
            raise BadBody
        self._step = self._take_size
        return b""

    def _take_trailers(self, received: bytearray) -> bytes | None:
        if len(received) < 2:
            return None
        end = 2 if received.startswith(b"\r\n") else received.find(b"\r\n\r\n", 0, MAX_CHUNK_LINE_BYTES) + 4
        if end == 3:  # not found
            if len(received) >= MAX_CHUNK_LINE_BYTES:
                raise BadBody
            return None
        trailers = _cut(received, end)
        try:
            _fields(trailers.split(b"\n")[:-2])
        except BadHead:
            raise BadBody from None
        self.done = True
        return b""


def _cut(received: bytearray, size: int) -> bytes:
    data = bytes(received[:size])
    del received[: len(data)]
    return data
