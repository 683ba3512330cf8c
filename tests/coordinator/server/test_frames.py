"""Cutting and writing HTTP/2 frames, beside an independent library and whatever bytes hypothesis thinks of."""

from __future__ import annotations

import random

import hpack
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hyperframe.frame import Frame as Theirs
from hypothesis import given
from hypothesis import strategies as st

from marblerun.coordinator.server import frames
from marblerun.coordinator.server.frames import MAX_FRAME_BYTES, PREFACE, ErrorCode, Frame, FrameReader, Violation
from marblerun.wire.limits import MAX_HEADER_BYTES


def feed(data: bytes, piece: int) -> list[Frame] | ErrorCode:
    reader = FrameReader()
    found: list[Frame] = []
    try:
        for start in range(0, len(data), piece):
            found += reader.feed(data[start : start + piece])
    except Violation as violation:
        return violation.code
    return found


@pytest.mark.parametrize("piece", [1, 2, 8, 9, 10, 1000, 1 << 20])
def test_legal_frames_pass_in_pieces_of_any_size(piece: int) -> None:
    block = hpack.Encoder().encode([(b"a", random.Random(3).randbytes(20_000).hex().encode())])
    sent: list[Theirs] = [PingFrame(0, b"12345678"), DataFrame(1, bytes(MAX_FRAME_BYTES))]
    for stream in (1, 3, 5):
        begun = HeadersFrame(stream, block[:16000])
        ended = ContinuationFrame(stream, block[16000:32000])
        ended.flags.add("END_HEADERS")
        sent += [begun, ended]
    data = PREFACE + b"".join(frame.serialize() for frame in sent)
    found = feed(data, piece)
    assert isinstance(found, list)
    assert [(frame.kind, frame.stream_id, len(frame.payload)) for frame in found] == [
        (frame.type, frame.stream_id, len(frame.serialize_body())) for frame in sent
    ]
    assert feed(data + (MAX_FRAME_BYTES + 1).to_bytes(3, "big") + bytes(6), piece) is ErrorCode.FRAME_SIZE_ERROR


@pytest.mark.parametrize("piece", [1, 9, 1 << 20])
def test_a_header_block_may_not_grow_beyond_its_limit_however_it_is_cut(piece: int) -> None:
    for size in (0, 1, 100, 16000):
        count = MAX_HEADER_BYTES // (size + 1) + 1
        sent = [HeadersFrame(1, b""), *(ContinuationFrame(1, bytes(size)) for _ in range(count))]
        data = PREFACE + b"".join(frame.serialize() for frame in sent)
        if piece == 1 and len(data) > 100_000:
            continue
        assert feed(data, piece) is ErrorCode.ENHANCE_YOUR_CALM


def test_a_frame_is_refused_when_it_is_announced() -> None:
    announced = (MAX_FRAME_BYTES + 1).to_bytes(3, "big") + bytes(6)
    reader = FrameReader()
    assert reader.feed(PREFACE + announced[:8]) == []
    with pytest.raises(Violation):
        reader.feed(announced[8:])


def test_the_reader_knows_when_a_header_block_is_open() -> None:
    reader = FrameReader()
    reader.feed(PREFACE + HeadersFrame(1, b"x").serialize())
    assert reader.in_header_block
    ended = ContinuationFrame(1, b"y")
    ended.flags.add("END_HEADERS")
    reader.feed(ended.serialize())
    assert not reader.in_header_block


def test_an_unfinished_frame_counts_once_however_often_it_is_looked_at() -> None:
    reader = FrameReader()
    begun = HeadersFrame(1, bytes(16000)).serialize()
    reader.feed(PREFACE)
    for byte in begun[:8000]:
        reader.feed(bytes((byte,)))
    assert len(reader.feed(begun[8000:])) == 1


@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_bytes_give_frames_or_one_violation_however_they_are_cut(data: bytes, piece: int) -> None:
    whole = feed(PREFACE + data, 1 << 20)
    assert feed(PREFACE + data, piece) == whole
    if isinstance(whole, list):
        assert sum(9 + len(frame.payload) for frame in whole) <= len(data)


@given(st.binary(min_size=1, max_size=40))
def test_what_does_not_begin_with_the_preface_is_refused_at_its_first_wrong_byte(data: bytes) -> None:
    expected: list[Frame] | ErrorCode = [] if PREFACE.startswith(data) else ErrorCode.PROTOCOL_ERROR
    if not data.startswith(PREFACE):
        assert feed(data, 1 << 20) == expected


@given(st.binary(max_size=100), st.integers(0, 255))
def test_padding_is_cut_off_or_refused(payload: bytes, flags: int) -> None:
    try:
        data = frames.without_padding(flags, payload)
    except Violation:
        assert flags & frames.PADDED
        assert not payload or payload[0] >= len(payload)
        return
    padding = payload[0] + 1 if flags & frames.PADDED else 0
    assert (len(data), data in payload) == (len(payload) - padding, True)


@pytest.mark.parametrize("payload", [b"", b"\x01", b"\x02x", b"\xff" + bytes(200)])
def test_padding_as_long_as_the_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(Violation):
        frames.without_padding(frames.PADDED, payload)


@given(st.binary(max_size=60))
def test_settings_are_read_as_the_library_reads_them_or_refused(payload: bytes) -> None:
    try:
        found = frames.read_settings(payload)
    except Violation:
        return
    theirs = SettingsFrame(0)
    theirs.parse_body(memoryview(payload))
    assert found == {name: value for name, value in theirs.settings.items() if name in list(frames.Setting)}


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        (frames.Setting.INITIAL_WINDOW_SIZE, 2**31, ErrorCode.FLOW_CONTROL_ERROR),
        (frames.Setting.MAX_FRAME_SIZE, MAX_FRAME_BYTES - 1, ErrorCode.PROTOCOL_ERROR),
        (frames.Setting.MAX_FRAME_SIZE, 1 << 24, ErrorCode.PROTOCOL_ERROR),
        (frames.Setting.ENABLE_PUSH, 2, ErrorCode.PROTOCOL_ERROR),
        (frames.Setting.ENABLE_CONNECT_PROTOCOL, 2, ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_settings_out_of_range_are_refused(name: frames.Setting, value: int, code: ErrorCode) -> None:
    with pytest.raises(Violation) as raised:
        frames.read_settings(name.to_bytes(2) + value.to_bytes(4))
    assert raised.value.code is code


@given(st.integers(1, 2**31 - 1), st.binary(max_size=200), st.booleans(), st.integers(1, 60))
def test_header_blocks_are_written_so_that_the_library_reads_them(
    stream: int, block: bytes, end_stream: bool, limit: int
) -> None:
    data = frames.header_frames(stream, block, end_stream=end_stream, limit=limit)
    read, whole, flags = 0, b"", []
    while read < len(data):
        theirs, length = Theirs.parse_frame_header(memoryview(data[read : read + 9]))
        theirs.parse_body(memoryview(data[read + 9 : read + 9 + length]))
        assert isinstance(theirs, HeadersFrame | ContinuationFrame)
        assert (theirs.stream_id, length <= limit) == (stream, True)
        flags.append(theirs.flags)
        whole += theirs.data
        read += 9 + length
    assert whole == block
    assert ["END_HEADERS" in one for one in flags] == [False] * (len(flags) - 1) + [True]
    assert "END_STREAM" in flags[0] if end_stream else all("END_STREAM" not in one for one in flags)


def test_small_frames_are_the_librarys_byte_for_byte() -> None:
    assert frames.goaway(7, ErrorCode.CANCEL) == GoAwayFrame(0, last_stream_id=7, error_code=8).serialize()
    assert frames.number_frame(frames.RST_STREAM, 5, 2) == RstStreamFrame(5, error_code=2).serialize()
    assert frames.number_frame(frames.WINDOW_UPDATE, 0, 99) == WindowUpdateFrame(0, window_increment=99).serialize()
    assert frames.settings({frames.Setting.INITIAL_WINDOW_SIZE: 8}) == SettingsFrame(0, settings={4: 8}).serialize()
