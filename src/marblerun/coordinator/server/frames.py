"""HTTP/2 frames as bytes: cutting a stream of bytes into frames, within limits, and writing ours. Pure.

Source: RFC 9113, sections 3.4, 4 and 6.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from marblerun.wire.limits import MAX_HEADER_BYTES

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# What the protocol allows without asking (RFC 9113, section 4.2), and we do not ask for more.
MAX_FRAME_BYTES: Final = 16384
MAX_WINDOW: Final = 2**31 - 1
DEFAULT_WINDOW: Final = 65535
DEFAULT_TABLE_BYTES: Final = 4096

DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
HAS_PRIORITY: Final = 0x20

_HEADER_BYTES: Final = 9
_HEADER: Final = struct.Struct(">HBBBI")
_PRIORITY_BYTES: Final = 5
_SETTING: Final = struct.Struct(">HI")


class ErrorCode(IntEnum):
    """Why a stream or a connection ended (RFC 9113, section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    INADEQUATE_SECURITY = 0xC
    HTTP_1_1_REQUIRED = 0xD


class Setting(IntEnum):
    """What an endpoint may say about itself (RFC 9113, section 6.5.2; RFC 8441)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6
    ENABLE_CONNECT_PROTOCOL = 0x8


class Violation(Exception):
    """The peer broke the protocol in a way that ends the whole connection."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.name)
        self.code = code


class Frame(NamedTuple):
    """One frame as it arrived."""

    kind: int
    flags: int
    stream_id: int
    payload: bytes


class FrameReader:
    """Cuts what a client sends into frames; holds at most one unfinished frame.

    A frame that is too long, and a header block that grows beyond its limit, are refused when their frame is announced
    and not when it has arrived.
    """

    __slots__ = ("_announced", "_begun", "_block", "_rest")

    def __init__(self) -> None:
        self._rest = b""
        self._begun = False
        self._announced = False  # whether the header of the unfinished frame was judged already
        self._block = 0

    @property
    def in_header_block(self) -> bool:
        """Whether a header block has begun and not ended."""
        return self._block > 0

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that ``data`` completes; raises Violation, and is not to be used any more then."""
        if self._rest:
            data = self._rest + data
        position, size = 0, len(data)
        if not self._begun:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise Violation(ErrorCode.PROTOCOL_ERROR)
            if size < len(PREFACE):
                self._rest = data
                return []
            self._begun = True
            position = len(PREFACE)
        frames: list[Frame] = []
        while size - position >= _HEADER_BYTES:
            high, low, kind, flags, stream_id = _HEADER.unpack_from(data, position)
            length = high << 8 | low
            if not self._announced:
                self._judge(length, kind, flags)
            end = position + _HEADER_BYTES + length
            self._announced = end > size
            if self._announced:
                break
            frames.append(Frame(kind, flags, stream_id & MAX_WINDOW, data[position + _HEADER_BYTES : end]))
            position = end
        self._rest = data[position:]
        return frames

    def _judge(self, length: int, kind: int, flags: int) -> None:
        if length > MAX_FRAME_BYTES:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR)
        if kind in (HEADERS, CONTINUATION):
            self._block += length + 1
            if self._block > MAX_HEADER_BYTES:
                raise Violation(ErrorCode.ENHANCE_YOUR_CALM)
            if flags & END_HEADERS:
                self._block = 0


# -- reading payloads --------------------------------------------------------------------------------------------


def without_padding(flags: int, payload: bytes) -> bytes:
    """The payload of a DATA or HEADERS frame without its padding (RFC 9113, section 6.1)."""
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Violation(ErrorCode.PROTOCOL_ERROR)
    return payload[1 : len(payload) - payload[0]]


def header_fragment(flags: int, stream_id: int, payload: bytes) -> bytes:
    """The piece of a header block in a HEADERS frame, without padding and priority."""
    fragment = without_padding(flags, payload)
    if flags & HAS_PRIORITY:
        if len(fragment) < _PRIORITY_BYTES:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR)
        require_priority(stream_id, fragment[:_PRIORITY_BYTES])
        return fragment[_PRIORITY_BYTES:]
    return fragment


def require_priority(stream_id: int, payload: bytes) -> None:
    """Check a priority, which nobody follows any more: five bytes, and not dependent on itself."""
    if len(payload) != _PRIORITY_BYTES:
        raise Violation(ErrorCode.FRAME_SIZE_ERROR)
    if int.from_bytes(payload[:4]) & MAX_WINDOW == stream_id:
        raise Violation(ErrorCode.PROTOCOL_ERROR)


def read_number(payload: bytes) -> int:
    """The 32 bits that RST_STREAM and WINDOW_UPDATE consist of."""
    if len(payload) != 4:
        raise Violation(ErrorCode.FRAME_SIZE_ERROR)
    return int.from_bytes(payload)


def read_settings(payload: bytes) -> dict[int, int]:
    """The settings in a frame, within their ranges; of several equal ones the last, unknown ones are left out."""
    if len(payload) % _SETTING.size:
        raise Violation(ErrorCode.FRAME_SIZE_ERROR)
    found: dict[int, int] = {}
    for name, value in _SETTING.iter_unpack(payload):
        if name == Setting.INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW:
                raise Violation(ErrorCode.FLOW_CONTROL_ERROR)
        elif name == Setting.MAX_FRAME_SIZE:
            if not MAX_FRAME_BYTES <= value < 1 << 24:
                raise Violation(ErrorCode.PROTOCOL_ERROR)
        elif name in (Setting.ENABLE_PUSH, Setting.ENABLE_CONNECT_PROTOCOL):
            if value > 1:
                raise Violation(ErrorCode.PROTOCOL_ERROR)
        elif name not in (Setting.HEADER_TABLE_SIZE, Setting.MAX_CONCURRENT_STREAMS, Setting.MAX_HEADER_LIST_SIZE):
            continue
        found[name] = value
    return found


# -- writing -----------------------------------------------------------------------------------------------------


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def settings(values: dict[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


def number_frame(kind: int, stream_id: int, number: int) -> bytes:
    """A RST_STREAM or WINDOW_UPDATE frame."""
    return frame(kind, 0, stream_id, number.to_bytes(4))


def goaway(last_stream: int, code: ErrorCode) -> bytes:
    """A GOAWAY frame without debug data."""
    return frame(GOAWAY, 0, 0, last_stream.to_bytes(4) + code.to_bytes(4))


def header_frames(stream_id: int, block: bytes, *, end_stream: bool, limit: int) -> bytes:
    """A header block as one HEADERS frame and as many CONTINUATION frames as it takes."""
    flags = END_STREAM if end_stream else 0
    if len(block) <= limit:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    pieces = [block[at : at + limit] for at in range(0, len(block), limit)]
    last = len(pieces) - 1
    return frame(HEADERS, flags, stream_id, pieces[0]) + b"".join(
        frame(CONTINUATION, END_HEADERS if at == last else 0, stream_id, piece) for at, piece in enumerate(pieces) if at
    )
