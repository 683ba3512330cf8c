"""HTTP/2 header blocks: bytes to a request's head that obeys the rules, and ours to bytes.

HPACK itself is the library's. Blocks that are the first of their connection mean the same on every connection, and
Marbles of one kind all send the same one: what such a block says is kept, by its bytes, in a small table.

Source: RFC 7541; RFC 9113, section 8.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from hpack import Decoder
from hpack.exceptions import HPACKError

from marblerun.coordinator.server.exchange import Headers
from marblerun.coordinator.server.frames import ErrorCode, Violation
from marblerun.wire.limits import MAX_HEADER_BYTES

MAX_KEPT_BLOCKS: Final = 256
# Of a block, and of what it says: a few bytes can say a lot.
MAX_KEPT_BYTES: Final = 2048

_NAME: Final = re.compile(rb":?[!-9;-@\[-~]+")  # visible ASCII, no upper case, no colon but the first
_NOT_IN_VALUE: Final = re.compile(rb"[\0-\x08\x0a-\x1f\x7f]|\A[ \t]|[ \t]\Z")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
_OF_CONNECTIONS: Final = frozenset(
    (b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade")
)
_OF_REQUESTS: Final = frozenset((b":method", b":scheme", b":path", b":authority"))

_STATUS_200: Final = b"\x88"
_STATUS_NAME: Final = b"\x08"  # literal without indexing, name 8 of the static table
_FORGET_TABLE: Final = b"\x20"


@dataclass(frozen=True, slots=True)
class Head:
    """The checked head of a request."""

    method: str
    target: str
    headers: Headers
    """Without the pseudo-headers."""
    length: int | None
    """Of the body, if it was announced."""


class HeadReader:
    """Reads the header blocks of one connection, in the order in which they arrive."""

    __slots__ = ("_decoder", "_first")

    def __init__(self) -> None:
        self._decoder: Decoder | None = None
        self._first: bytes | None = None  # read from the table, so the decoder has not seen it yet

    def request(self, block: bytes) -> Head:
        """The head of a request; raises Violation."""
        if self._decoder is not None or self._first is not None:
            return request_head(self._decode(block))
        head = _KEPT.get(block)
        if head is not None:
            self._first = block
            return head
        found = self._decode(block)
        head = request_head(found)
        if len(block) <= MAX_KEPT_BYTES and sum(len(name) + len(value) for name, value in found) <= MAX_KEPT_BYTES:
            if len(_KEPT) >= MAX_KEPT_BLOCKS:
                _KEPT.clear()
            _KEPT[block] = head
        return head

    def trailers(self, block: bytes) -> None:
        """Read trailers, which nobody looks at; raises Violation if they break the rules."""
        found = self._decode(block)
        _check_fields(found)
        if any(name.startswith(b":") for name, _ in found):
            raise Violation(ErrorCode.PROTOCOL_ERROR)

    def skip(self, block: bytes) -> None:
        """Read a block that no stream wants any more: later ones may refer to what it says."""
        self._decode(block)

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        if self._decoder is None:
            self._decoder = Decoder(MAX_HEADER_BYTES)
            if self._first is not None:
                self._decoder.decode(self._first, raw=True)
        try:
            return [(bytes(name), bytes(value)) for name, value in self._decoder.decode(block, raw=True)]
        except (HPACKError, ValueError, IndexError, OverflowError) as error:
            raise Violation(ErrorCode.COMPRESSION_ERROR) from error


_KEPT: Final[dict[bytes, Head]] = {}


def request_head(found: list[tuple[bytes, bytes]]) -> Head:
    """The head that a decoded header list is; raises Violation for one that breaks the rules."""
    _check_fields(found)
    pseudo: dict[bytes, bytes] = {}
    headers: list[tuple[bytes, bytes]] = []
    for name, value in found:
        if not name.startswith(b":"):
            headers.append((name, value))
        elif headers or name in pseudo or name not in _OF_REQUESTS:
            raise Violation(ErrorCode.PROTOCOL_ERROR)
        else:
            pseudo[name] = value
    _check_pseudo(pseudo)
    _check_host(pseudo, headers)
    return Head(
        method=pseudo[b":method"].decode("ascii", "replace"),
        target=pseudo.get(b":path", b"").decode("latin-1"),
        headers=_joined_cookies(headers),
        length=_length(headers),
    )


def _check_fields(found: list[tuple[bytes, bytes]]) -> None:
    """RFC 9113, sections 8.2.1 and 8.2.2."""
    for name, value in found:
        if (
            not _NAME.fullmatch(name)
            or _NOT_IN_VALUE.search(value)
            or name in _OF_CONNECTIONS
            or (name == b"te" and value.lower() != b"trailers")
        ):
            raise Violation(ErrorCode.PROTOCOL_ERROR)


def _check_pseudo(pseudo: dict[bytes, bytes]) -> None:
    """RFC 9113, sections 8.3.1 and 8.5."""
    if pseudo.get(b":method") == b"CONNECT":
        wrong = b":scheme" in pseudo or b":path" in pseudo
    else:
        wrong = not (b":method" in pseudo and b":scheme" in pseudo and pseudo.get(b":path"))
    if wrong:
        raise Violation(ErrorCode.PROTOCOL_ERROR)


def _check_host(pseudo: dict[bytes, bytes], headers: list[tuple[bytes, bytes]]) -> None:
    hosts = [value for name, value in headers if name == b"host"]
    hosts += [pseudo[b":authority"]] if b":authority" in pseudo else []
    if not hosts or len(hosts) > 2 or hosts[0] != hosts[-1] or (len(hosts) == 2 and b":authority" not in pseudo):
        raise Violation(ErrorCode.PROTOCOL_ERROR)


def _length(headers: list[tuple[bytes, bytes]]) -> int | None:
    lengths = {value for name, value in headers if name == b"content-length"}
    if not lengths:
        return None
    value = lengths.pop()
    if lengths or not _LENGTH.fullmatch(value):
        raise Violation(ErrorCode.PROTOCOL_ERROR)
    return int(value)


def _joined_cookies(headers: list[tuple[bytes, bytes]]) -> Headers:
    """Cookies may arrive in pieces (RFC 9113, section 8.2.3)."""
    cookies = [value for name, value in headers if name == b"cookie"]
    if len(cookies) < 2:
        return tuple(headers)
    return (*(header for header in headers if header[0] != b"cookie"), (b"cookie", b"; ".join(cookies)))


# -- writing -----------------------------------------------------------------------------------------------------


def response_block(status: int, headers: Headers, *, forget: bool) -> bytes:
    """The header block of a response, without using the peer's table.

    ``forget`` says so at its beginning, which is due after the peer changed the size of its table.
    """
    start = _STATUS_200 if status == 200 else _STATUS_NAME + _string(b"%d" % status)
    return (_FORGET_TABLE if forget else b"") + start + _fields(headers)


def trailer_block(headers: Headers, *, forget: bool) -> bytes:
    """The same for trailers."""
    return (_FORGET_TABLE if forget else b"") + _fields(headers)


def _fields(headers: Headers) -> bytes:
    """Each field written out."""
    return b"".join([b"\0" + _string(name) + _string(value) for name, value in headers])


def _string(value: bytes) -> bytes:
    """A string literal, not Huffman-coded (RFC 7541, sections 5.1 and 5.2)."""
    size = len(value)
    if size < 127:
        return bytes((size,)) + value
    size -= 127
    prefix = bytearray(b"\x7f")
    while size >= 128:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + value
