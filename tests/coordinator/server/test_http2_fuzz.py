"""An HTTP/2 connection under any frames: it answers or ends, says nothing wrong, and gives everything back."""

from __future__ import annotations

import asyncio

import hpack
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from marblerun.coordinator.server.exchange import BufferBudget, Peer, Request, Response, Service
from marblerun.coordinator.server.frames import PREFACE
from marblerun.coordinator.server.http2 import Http2Connection

LIMIT = 1 << 24
GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"x")]


async def echo(request: Request) -> Response:
    if request.target == "/slow":
        await asyncio.sleep(0)
    return Response(200, ((b"size", b"%d" % len(request.body)),), request.body, ((b"done", b"1"),))


def service() -> Service:
    empty = Response(503)
    return Service(echo, 1 << 20, lambda: Response(413), lambda: empty, lambda: empty, budget=BufferBudget(LIMIT))


class Wire(asyncio.Transport):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.closing = self.late = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.late |= self.closing
        self.sent += data

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


def talk(pieces: list[bytes]) -> tuple[bytes, bool, int]:
    """What a connection says to ``pieces``, whether it has ended, and what is left of the budget when it is lost."""

    async def run() -> tuple[bytes, bool, int]:
        what, wire = service(), Wire()
        connection = Http2Connection(what, Peer("test"))
        connection.connection_made(wire)
        for piece in pieces:
            if wire.closing:
                break
            connection.data_received(piece)
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        closing = wire.closing
        assert not wire.late
        connection.connection_lost(None)
        return bytes(wire.sent), closing, what.budget.left

    return asyncio.run(run())


def frames_of(data: bytes) -> list[Frame]:
    """Everything in ``data``, which must be whole frames."""
    found, position = [], 0
    while position < len(data):
        frame, length = Frame.parse_frame_header(memoryview(data[position : position + 9]))
        assert position + 9 + length <= len(data)
        frame.parse_body(memoryview(data[position + 9 : position + 9 + length]))
        found.append(frame)
        position += 9 + length
    return found


def flagged(frame: Frame, *flags: str) -> Frame:
    for flag in flags:
        frame.flags.add(flag)
    return frame


STREAMS = st.sampled_from([1, 3, 5])
WHOLE, LENGTH = (hpack.Encoder().encode([*GET, *more]) for more in ([], [(b"content-length", b"3")]))
BLOCKS = st.sampled_from([WHOLE, LENGTH, b"\x82\x87\x84", b"\xff", b""])
INCREMENTS = st.integers(1, 2**31 - 1)
FRAMES = st.one_of(
    st.builds(
        lambda stream, block, flags: flagged(HeadersFrame(stream, block), *flags),
        STREAMS, BLOCKS, st.sets(st.sampled_from(["END_HEADERS", "END_STREAM"])),
    ),
    st.builds(
        lambda stream, data, flags: flagged(DataFrame(stream, data), *flags),
        STREAMS, st.binary(max_size=5), st.sets(st.just("END_STREAM")),
    ),
    st.builds(lambda stream, size: WindowUpdateFrame(stream, window_increment=size), STREAMS | st.just(0), INCREMENTS),
    st.builds(lambda stream: RstStreamFrame(stream, error_code=8), STREAMS),
    st.builds(lambda stream: PriorityFrame(stream, depends_on=7, stream_weight=1), STREAMS),
    st.builds(lambda stream, block: flagged(ContinuationFrame(stream, block), "END_HEADERS"), STREAMS, BLOCKS),
    st.builds(lambda size, most: SettingsFrame(0, settings={4: size, 5: most, 1: 0}),
              st.integers(0, 2**31 - 1), st.integers(16384, 2**24 - 1)),
    st.just(PingFrame(0, b"12345678")),
    st.just(flagged(SettingsFrame(0), "ACK")),
    st.just(GoAwayFrame(0)),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(FRAMES, max_size=12), st.integers(1, 60), st.booleans())
def test_any_frames_are_answered_or_end_the_connection(sent: list[Frame], piece: int, at_once: bool) -> None:
    data = PREFACE + SettingsFrame(0).serialize() + b"".join(frame.serialize() for frame in sent)
    pieces = [data] if at_once else [data[at : at + piece] for at in range(0, len(data), piece)]
    said, closed, left = talk(pieces)
    assert left == LIMIT
    answers = frames_of(said)
    left_at_once = closed and any(isinstance(frame, GoAwayFrame) for frame in sent)
    assert isinstance(answers[0], SettingsFrame) if answers else left_at_once
    goodbyes = [frame for frame in answers if isinstance(frame, GoAwayFrame)]
    assert not goodbyes or (closed and answers[-1] is goodbyes[0])
    ended = [frame.stream_id for frame in answers if "END_STREAM" in frame.flags]
    assert len(ended) == len(set(ended))
    assert not closed or goodbyes or any(isinstance(frame, GoAwayFrame) for frame in sent)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_after_the_preface_are_survived(noise: bytes) -> None:
    said, _, left = talk([PREFACE + SettingsFrame(0).serialize() + noise])
    assert left == LIMIT
    frames_of(said)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([b"/", b"/slow"]), st.integers(0, 70_000)), min_size=1, max_size=4),
    st.sampled_from([0, 1000, 65535, 2**20]),
    st.sampled_from([16384, 40_000]),
)
def test_a_library_gets_its_answers_through_any_window(
    requests: list[tuple[bytes, int]], window: int, most: int
) -> None:
    """Bodies both ways, with windows that are opened bit by bit; the library checks every frame of ours."""

    async def run() -> dict[int, bytes]:
        what, wire = service(), Wire()
        connection = Http2Connection(what, Peer("test"))
        connection.connection_made(wire)
        client = H2Connection(H2Configuration(client_side=True, header_encoding=None))
        client.initiate_connection()
        client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window, SettingCodes.MAX_FRAME_SIZE: most})
        waiting: dict[int, int] = {}
        for path, size in requests:
            stream = client.get_next_available_stream_id()
            client.send_headers(
                stream, [(b":method", b"POST"), (b":scheme", b"https"), (b":path", path), (b":authority", b"x")],
                end_stream=not size,
            )  # fmt: skip
            waiting[stream] = size
        got: dict[int, bytes] = dict.fromkeys(waiting, b"")
        ended: set[int] = set()
        for _ in range(400):
            for stream, size in list(waiting.items()):
                room = min(size, client.local_flow_control_window(stream), client.max_outbound_frame_size)
                if room > 0:
                    client.send_data(stream, bytes(room), end_stream=room == size)
                    waiting[stream] = size - room
            connection.data_received(client.data_to_send())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            answer = bytes(wire.sent)
            wire.sent.clear()
            for event in client.receive_data(answer):
                if isinstance(event, DataReceived):
                    got[event.stream_id or 0] += event.data or b""
                    client.increment_flow_control_window(30_000)
                elif isinstance(event, StreamEnded):
                    ended.add(event.stream_id or 0)
                elif isinstance(event, ResponseReceived):
                    assert event.headers is not None
            for stream in set(waiting) - ended:
                client.increment_flow_control_window(30_000, stream)
            if ended == set(waiting):
                break
        connection.connection_lost(None)
        assert what.budget.left == LIMIT
        return got

    assert [len(body) for body in asyncio.run(run()).values()] == [size for _, size in requests]


def test_the_peers_smaller_table_is_confirmed_before_the_next_headers() -> None:
    """Strict clients end the connection otherwise (RFC 7541, section 4.2)."""
    request = flagged(HeadersFrame(1, hpack.Encoder().encode(GET)), "END_HEADERS", "END_STREAM").serialize()
    said, _, _ = talk([PREFACE + SettingsFrame(0, settings={1: 0}).serialize() + request])
    block = next(frame for frame in frames_of(said) if isinstance(frame, HeadersFrame)).data
    assert block.startswith(b"\x20")


@pytest.mark.parametrize("start", [PingFrame(0, b"12345678"), flagged(SettingsFrame(0), "ACK")], ids=["ping", "ack"])
def test_the_first_frame_must_be_settings(start: Frame) -> None:
    said, closed, _ = talk([PREFACE + start.serialize()])
    assert (closed, frames_of(said)[-1].type) == (True, GoAwayFrame.type)


def test_more_than_the_window_ends_the_connection() -> None:
    begun = flagged(HeadersFrame(1, hpack.Encoder().encode(GET)), "END_HEADERS").serialize()
    wide = DataFrame(1, bytes(16384)).serialize()

    async def run() -> int:
        what, wire = service(), Wire()
        connection = Http2Connection(what, Peer("test"))
        connection.connection_made(wire)
        connection._window = 10_000  # as if we had granted no more than that
        connection.data_received(PREFACE + SettingsFrame(0).serialize() + begun + wide)
        connection.connection_lost(None)
        last = frames_of(bytes(wire.sent))[-1]
        assert isinstance(last, GoAwayFrame)
        return last.error_code

    assert asyncio.run(run()) == 3


def post(stream: int, *more: tuple[bytes, bytes]) -> Frame:
    fields = [(b":method", b"POST"), *GET[1:], *more]
    return flagged(HeadersFrame(stream, hpack.Encoder().encode(fields)), "END_HEADERS")


@pytest.mark.parametrize(
    ("announced", "sent"),
    [(b"3", b"xx"), (b"3", b"xxxx"), (b"0", b"x"), (b"1", b"")],
    ids=["less", "more", "any", "none"],
)
def test_a_body_of_another_length_than_announced_ends_the_connection(announced: bytes, sent: bytes) -> None:
    frames = [SettingsFrame(0), post(1, (b"content-length", announced)), flagged(DataFrame(1, sent), "END_STREAM")]
    said, closed, _ = talk([PREFACE + b"".join(frame.serialize() for frame in frames)])
    last = frames_of(said)[-1]
    assert isinstance(last, GoAwayFrame)
    assert (closed, last.error_code) == (True, 1)


def test_a_window_beyond_its_limit_resets_its_stream_and_not_the_others() -> None:
    overflow = WindowUpdateFrame(1, window_increment=2**31 - 1)
    other = flagged(HeadersFrame(3, WHOLE), "END_HEADERS", "END_STREAM")
    said, closed, _ = talk([PREFACE + b"".join(f.serialize() for f in (SettingsFrame(0), post(1), overflow, other))])
    resets = [(frame.stream_id, frame.error_code) for frame in frames_of(said) if isinstance(frame, RstStreamFrame)]
    assert (closed, resets) == (False, [(1, 3)])
    assert any(isinstance(frame, HeadersFrame) and frame.stream_id == 3 for frame in frames_of(said))


def test_what_is_answered_or_reset_gives_its_bytes_back_at_once() -> None:
    async def run() -> list[int]:
        what, wire = service(), Wire()
        connection = Http2Connection(what, Peer("test"))
        connection.connection_made(wire)
        left: list[int] = []
        for sent in (
            [SettingsFrame(0), post(1), DataFrame(1, bytes(1000))],
            [flagged(DataFrame(1, b"x"), "END_STREAM")],
            [post(3), DataFrame(3, bytes(500))],
            [RstStreamFrame(3, error_code=8)],
        ):
            start = b"" if left else PREFACE
            connection.data_received(start + b"".join(frame.serialize() for frame in sent))
            for _ in range(5):
                await asyncio.sleep(0)
            left.append(LIMIT - what.budget.left)
        return left

    assert asyncio.run(run()) == [1000, 0, 500, 0]
