"""gRPC's message framing and header texts, as pure functions of bytes.

Every message travels as one byte "compressed" flag, four bytes big-endian length, then that many bytes.
Source: gRPC over HTTP/2 (``PROTOCOL-HTTP2``), "Length-Prefixed-Message".
"""

from __future__ import annotations

import re
from typing import Final

from marblerun.errors import Malformed

PREFIX_BYTES: Final = 5
MAX_MESSAGE_TEXT_BYTES: Final = 8 * 1024
"""Ceiling on a status message before percent-encoding; header lists are limited on the other side."""

_TIMEOUT: Final = re.compile(r"([0-9]{1,8})([HMSmun])", re.ASCII)
_SECONDS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_ESCAPE: Final = re.compile(rb"%([0-9A-Fa-f]{2})")


def encode_message(message: bytes) -> bytes:
    """Return ``message`` with its five-byte prefix, uncompressed."""
    if len(message) > 0xFFFFFFFF:
        raise ValueError("a gRPC message cannot exceed 4 GiB")
    return b"\x00" + len(message).to_bytes(4, "big") + message


class MessageReader:
    """Cuts a stream of DATA payloads into messages; at most one message of ``limit`` bytes is ever held.

    A length above the limit is refused when its prefix arrives, before any of the body is kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """How many bytes of an unfinished message are held."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that ``data`` completes, in order.

        Raises:
            Malformed: the compressed flag is set (no encoding is ever negotiated here), the flag is neither 0 nor 1,
                or a message is longer than the limit. The reader must not be used afterwards.
        """
        if not self._buffer and len(data) >= PREFIX_BYTES and data[0] == 0:
            size = int.from_bytes(data[1:PREFIX_BYTES], "big")
            if size <= self._limit and len(data) == PREFIX_BYTES + size:
                return [data[PREFIX_BYTES:]]  # one message, complete and alone, as unary calls have it
        self._buffer += data
        messages: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= PREFIX_BYTES:
            end = start + PREFIX_BYTES + self._length_at(start)
            if len(self._buffer) < end:
                break
            messages.append(bytes(self._buffer[start + PREFIX_BYTES : end]))
            start = end
        del self._buffer[:start]
        return messages

    def finish(self) -> None:
        """Check that the stream did not end inside a message; raises Malformed if it did."""
        if self._buffer:
            raise Malformed("the stream ended inside a gRPC message", where="grpc message")

    def _length_at(self, start: int) -> int:
        flag = self._buffer[start]
        if flag != 0:
            raise Malformed("the message is compressed, but no encoding was agreed on", where="grpc message")
        length = int.from_bytes(self._buffer[start + 1 : start + PREFIX_BYTES], "big")
        if length > self._limit:
            raise Malformed(f"the message has {length} bytes, the limit is {self._limit}", where="grpc message")
        return length


def encode_grpc_message(text: str) -> str:
    """Return ``text`` in the percent-encoding of the ``grpc-message`` trailer, cut to its ceiling.

    Space to tilde stay as they are except ``%``; every other byte of the UTF-8 form becomes ``%XX``.
    Source: gRPC over HTTP/2, "Status-Message".
    """
    raw = text.encode("utf-8", "replace")[:MAX_MESSAGE_TEXT_BYTES].decode("utf-8", "ignore").encode()
    return "".join(chr(b) if 0x20 <= b <= 0x7E and b != 0x25 else f"%{b:02X}" for b in raw)


def decode_grpc_message(text: str) -> str:
    """Return what a ``grpc-message`` trailer says; broken escapes stay as written, broken UTF-8 becomes U+FFFD.

    Never fails, as the specification asks: an odd message must not hide the status.
    """
    raw = text.encode("utf-8", "replace")[: 3 * MAX_MESSAGE_TEXT_BYTES]
    return _ESCAPE.sub(lambda found: bytes((int(found[1], 16),)), raw).decode("utf-8", "replace")


def parse_timeout(text: str) -> float:
    """Return the seconds that a ``grpc-timeout`` header grants; raises Malformed if it is none.

    Source: gRPC over HTTP/2, "Timeout" (at most eight digits, then one of ``H M S m u n``).
    """
    found = _TIMEOUT.fullmatch(text)
    if found is None:
        raise Malformed("not a gRPC time-out", where="grpc-timeout")
    return int(found[1]) * _SECONDS[found[2]]
