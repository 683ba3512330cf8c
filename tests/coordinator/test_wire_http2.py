"""Hostile HTTP/2, on the client listener and on the mesh, and what a gRPC call may look like."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import hpack
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from tests.coordinator.peers import (
    LAST_REQUEST,
    Answer,
    Header,
    Http2,
    http1,
    push,
    read_all,
    status_of,
    tls,
)
from tests.coordinator.running import Running, running
from tests.coordinator.states import UUID_1, applicant

from marblerun.coordinator.server.exchange import Patience
from marblerun.coordinator.server.http2 import MAX_CONCURRENT_STREAMS, MAX_FRAME_BYTES, MAX_RESET_STREAMS
from marblerun.wire.rpc import ACTIVATE_PATH, encode_activation_request, encode_message

GET = [(b":method", b"GET"), (b":path", b"/status"), (b":scheme", b"https"), (b":authority", b"x")]


# Much longer than the patience that a test gives, much shorter than every other one: what took less was cut off for it.
SOON_SECONDS = 25.0


def lives(up: Running) -> bool:
    """Whether an honest request is answered; how soon is what the benchmarks measure."""
    return status_of(http1(up.client, LAST_REQUEST)) == 200


@pytest.fixture
def peer(patient: Running) -> Iterator[Http2]:
    with Http2(patient.client) as connection:
        yield connection
    assert lives(patient)


@pytest.fixture(params=["client", "mesh"])
def either(patient: Running, request: pytest.FixtureRequest) -> Iterator[Http2]:
    mesh = request.param == "mesh"
    with Http2(patient.mesh if mesh else patient.client, mesh=mesh) as connection:
        yield connection
    assert lives(patient)


def headers(stream: int, block: bytes | None = None, *, end_headers: bool = True, end: bool = True) -> HeadersFrame:
    frame = HeadersFrame(stream, hpack.Encoder().encode(GET) if block is None else block)
    if end_headers:
        frame.flags.add("END_HEADERS")
    if end:
        frame.flags.add("END_STREAM")
    return frame


def on_stream(stream: int, frame: Frame) -> Frame:
    frame.stream_id = stream
    return frame


def test_many_requests_at_once_are_all_answered(peer: Http2) -> None:
    streams = [peer.request() for _ in range(MAX_CONCURRENT_STREAMS - 1)]
    assert {peer.answer(stream).status for stream in streams} == {200}


def test_a_head_request_gets_no_body(peer: Http2) -> None:
    """A body after the headers of a HEAD response is a protocol error for strict clients."""
    answer = peer.answer(peer.request(b"HEAD"))
    assert (answer.status, bytes(answer.body), answer.ended) == (405, b"", True)


def test_rapid_resets_end_the_connection(peer: Http2) -> None:
    """CVE-2023-44487."""
    for number in range(MAX_RESET_STREAMS + 50):
        stream = 2 * number + 1
        peer.frames(headers(stream), RstStreamFrame(stream, error_code=8))
    peer.until_closed()
    assert peer.goaway == ErrorCodes.ENHANCE_YOUR_CALM


def test_resets_that_we_are_made_to_send_count_too(peer: Http2) -> None:
    """CVE-2025-8671."""
    for number in range(MAX_RESET_STREAMS + 50):
        stream = 2 * number + 1
        peer.frames(headers(stream, end=False), WindowUpdateFrame(stream, window_increment=2**31 - 1))
    peer.until_closed()
    assert peer.goaway == ErrorCodes.ENHANCE_YOUR_CALM


def test_an_honest_client_may_cancel_now_and_then_for_as_long_as_it_likes(peer: Http2) -> None:
    for _ in range(MAX_RESET_STREAMS + 20):
        cancelled = peer.request(end=False)
        peer.h2.reset_stream(cancelled)
        assert peer.answer(peer.request()).status == 200


@pytest.mark.parametrize(
    "frame",
    [PingFrame(0, b"12345678"), SettingsFrame(0), PriorityFrame(3, depends_on=5, stream_weight=1)],
    ids=["ping", "settings", "priority"],
)
def test_others_are_answered_during_a_flood_by_a_peer_that_reads_nothing(patient: Running, frame: Frame) -> None:
    with Http2(patient.client) as peer:
        push(peer.socket, frame.serialize() * 2000, 0.7, 30 << 20)
        assert lives(patient)


def test_header_bombs_are_refused(either: Http2) -> None:
    """A table entry of 3 KiB referred to 200 times: 600 KiB of headers in a few hundred bytes."""
    encoder = hpack.Encoder()
    block = encoder.encode([*GET, (b"x", b"y" * 3000)])
    either.frames(headers(1, block + b"\xbe" * 200))
    either.until_closed()
    assert either.goaway is not None


def test_endless_continuations_are_cut_off(either: Http2) -> None:
    """CVE-2024-27316 and relatives."""
    block = hpack.Encoder().encode([*GET, (b"x", b"y" * 16000)])
    either.frames(headers(1, block[:16000], end_headers=False))
    for _ in range(2000):
        either.frames(ContinuationFrame(1, b"\0" * 10))
        if either.closed:
            break
    either.until_closed()
    assert either.closed


def test_a_header_block_that_never_ends_is_not_waited_for() -> None:
    with running(patience=Patience(request=0.4)) as up:
        start = time.monotonic()
        with Http2(up.client) as peer:
            peer.lost = True  # an acknowledgment of settings inside a header block would be an error of its own
            peer.frames(headers(1, end_headers=False))
            peer.until_closed()
            assert 0.4 <= time.monotonic() - start < SOON_SECONDS
            assert peer.goaway == ErrorCodes.NO_ERROR


def test_a_header_block_is_cut_off_at_its_limit_and_not_when_it_ends(either: Http2) -> None:
    """The library would hold a megabyte of it."""
    either.frames(headers(1, bytes(16000), end_headers=False))
    for _ in range(5):
        either.frames(ContinuationFrame(1, bytes(16000)))
    either.until_closed()
    assert either.goaway == ErrorCodes.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("size", [MAX_FRAME_BYTES + 1, 0xFFFFFF])
def test_a_frame_that_is_too_long_is_refused_when_it_is_announced(either: Http2, size: int) -> None:
    """The library would wait for all of it: 16 MiB."""
    either.frames(headers(1, end=False))
    either.raw(size.to_bytes(3, "big") + bytes.fromhex("0000 0000 0001"))
    either.until_closed()
    assert either.goaway == ErrorCodes.FRAME_SIZE_ERROR


def test_frames_may_arrive_in_pieces_of_any_size(peer: Http2) -> None:
    peer.answers[1] = Answer()
    peer.h2.send_headers(1, GET, end_stream=True)
    for byte in peer.h2.data_to_send():
        peer.raw(bytes([byte]))
    assert peer.answer(1).status == 200


def test_too_many_streams_end_the_connection(either: Http2) -> None:
    either.frames(*(headers(2 * number + 1, end=False) for number in range(MAX_CONCURRENT_STREAMS + 1)))
    either.until_closed()
    assert either.goaway is not None


@pytest.mark.parametrize(
    "frames",
    [
        (headers(2),),
        (on_stream(0, headers(1)),),
        (headers(5), headers(3)),
        (DataFrame(1, b"x"),),
        (on_stream(0, DataFrame(1, b"x")),),
        (WindowUpdateFrame(0, window_increment=2**31 - 1),),
        (WindowUpdateFrame(0, window_increment=0),),
        (RstStreamFrame(7, error_code=0),),
        (ContinuationFrame(1, b""),),
        (headers(1, end_headers=False), PingFrame(0, b"12345678")),
        (headers(1, b"\xff\xff\xff\xff\xff\xff\xff"),),
        (headers(1, hpack.Encoder().encode(GET[:2])),),
        (headers(1, hpack.Encoder().encode([*GET, (b"X-UPPER", b"y")])),),
        (headers(1, hpack.Encoder().encode([*GET, (b":path", b"/b")])),),
        (headers(1, hpack.Encoder().encode([*GET, (b"connection", b"close")])),),
        (headers(1, hpack.Encoder().encode([*GET, (b"a", b"b\r\nc: d")])),),
        (headers(1, hpack.Encoder().encode([*GET, (b"content-length", b"5")])),),
        (headers(1, hpack.Encoder().encode([*GET, (b"content-length", b"nonsense")])),),
    ],
)
def test_frames_that_break_the_rules_end_at_most_their_connection(either: Http2, frames: tuple[Frame, ...]) -> None:
    either.frames(*frames)
    either.until_closed()
    assert either.closed


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff\x00\x00\x00\x00\x00\x01",
        b"\x00\x00\x05\x04\x00\x00\x00\x00\x00abcde",
        b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x04\xff\xff\xff\xff",
        b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00",
        b"\x00\x00\x08\x06\x00\x00\x00\x00\x01abcdefgh",
        b"\x00\x00\x01\x00\x08\x00\x00\x00\x01\xff",
        bytes(100_000),
    ],
    ids=["length", "settings", "window", "frame size", "ping", "padding", "zeros"],
)
def test_broken_frames_end_at_most_their_connection(either: Http2, raw: bytes) -> None:
    either.frames(headers(1, end=False))
    either.raw(raw)
    either.until_closed()
    assert either.closed


def test_a_wrong_preface_ends_the_connection(patient: Running) -> None:
    for start in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", bytes(24)):
        with tls(patient.client, alpn="h2") as connection:
            connection.sendall(start)
            assert b"HTTP/1.1 200" not in read_all(connection)


# -- bodies, windows, patience -----------------------------------------------------------------------------------


def test_a_body_over_the_limit_is_answered_and_the_rest_is_not_wanted(patient: Running) -> None:
    """A hundred megabytes, to a peer that stops when told."""
    with Http2(patient.client) as peer:
        stream = peer.request(b"POST", b"/manifest", bytes(30 << 20))
        answer = peer.answer(stream)
        assert (answer.status, answer.reset) == (413, ErrorCodes.NO_ERROR)
        assert peer.answer(peer.request()).status == 200


def test_one_connection_cannot_fill_memory_with_half_requests(patient: Running) -> None:
    """Twenty megabytes on each of five streams: what is over the connection's share is refused at once."""
    with Http2(patient.client) as peer:
        streams = [peer.request(b"POST", b"/manifest", bytes(20 << 20), end=False) for _ in range(3)]
        answers = [peer.answers[stream].status for stream in streams]
        assert answers == [0, 503, 503]
        assert peer.answer(peer.request()).status == 200
    with Http2(patient.client) as again:
        assert again.answer(again.request(b"POST", b"/manifest", bytes(20 << 20))).status == 400


def test_a_request_that_trickles_in_is_reset() -> None:
    with running(patience=Patience(request=1.0)) as up:
        start = time.monotonic()
        with Http2(up.client) as peer:
            assert peer.answer(peer.request()).status == 200  # from now on a connection may be idle for long
            stream = peer.request(b"POST", b"/manifest", b"x", end=False)
            while not peer.finished(stream) and time.monotonic() < start + SOON_SECONDS:
                peer.h2.send_data(stream, b"x")
                peer.flush()
                with contextlib.suppress(TimeoutError):
                    peer.pump(lambda: peer.finished(stream), 0.05)
            assert peer.answers[stream].reset == ErrorCodes.CANCEL
            assert time.monotonic() - start >= 1.0


@pytest.mark.parametrize("listener", ["client", "mesh"])
def test_pings_do_not_keep_an_idle_connection_open(listener: str) -> None:
    mesh = listener == "mesh"
    with running(patience=Patience(request=0.7)) as up:
        start = time.monotonic()
        with Http2(up.mesh if mesh else up.client, mesh=mesh) as peer:
            while not peer.closed and time.monotonic() < start + SOON_SECONDS:
                peer.frames(PingFrame(0, b"12345678"))
                with contextlib.suppress(TimeoutError):
                    peer.pump(lambda: False, 0.1)
            assert peer.closed
        assert time.monotonic() - start >= 0.7  # nothing was asked: as long as a request may take


def test_responses_that_nobody_takes_are_dropped(large_manifest: bytes) -> None:
    """Zero-window stall: a dozen large responses, and not one byte of window."""
    with running(manifest=large_manifest, patience=Patience(response=0.9)) as up:
        with Http2(up.client, settings={SettingCodes.INITIAL_WINDOW_SIZE: 0}) as peer:
            streams = [peer.request(path=b"/manifest") for _ in range(12)]
            for stream in streams:
                peer.answer(stream)
            statuses = [peer.answers[stream].status for stream in streams]
            assert set(statuses) == {200, 503}
            assert statuses.count(200) <= 4
            assert {peer.answers[stream].reset for stream in streams} == {ErrorCodes.CANCEL}
        assert lives(up)


def test_a_large_response_goes_through_a_small_window(patient: Running) -> None:
    with Http2(patient.client, settings={SettingCodes.INITIAL_WINDOW_SIZE: 100_000}) as peer:
        answer = peer.answer(peer.request(path=b"/manifest"))
        assert (answer.status, answer.ended, len(answer.body) > 8_000_000) == (200, True, True)


def test_a_peer_that_leaves_with_requests_under_way_is_forgotten(patient: Running) -> None:
    for _ in range(5):
        with Http2(patient.client) as peer:
            for _ in range(20):
                peer.request(path=b"/manifest")
    assert lives(patient)


def test_after_a_goaway_nothing_is_owed(either: Http2) -> None:
    either.request(path=b"/manifest", method=b"POST")
    either.h2.close_connection()
    either.flush()
    either.until_closed()
    assert either.closed


def test_a_redirect_of_an_odd_path_is_answered_and_not_swallowed(peer: Http2) -> None:
    for path in (b"//a b", b"//\xff", b'//"<'):
        assert peer.answer(peer.request(path=path)).status == 307
    assert peer.answer(peer.request(path=b"//a\tb")).status == 400


def test_every_answer_says_how_long_it_is(peer: Http2) -> None:
    """As those of Go's server do; to HEAD without what it is long."""
    for method, path, status in ((b"GET", b"/status", 200), (b"POST", b"//x", 307), (b"HEAD", b"/status", 405)):
        answer = peer.answer(peer.request(method, path))
        assert answer.status == status
        assert int(answer.headers[b"content-length"]) == (31 if method == b"HEAD" else len(answer.body))


@pytest.mark.parametrize("byte", [0, 1, 8, 10, 13, 31, 127])
def test_control_bytes_in_a_header_end_the_connection(peer: Http2, byte: int) -> None:
    peer.request(headers=[(b"a", b"x" + bytes((byte,)) + b"y")])
    peer.until_closed()
    assert peer.goaway == 1


# -- gRPC --------------------------------------------------------------------------------------------------------

GRPC: list[Header] = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
OK, INTERNAL, UNIMPLEMENTED, DEADLINE, EXHAUSTED, INVALID, UNKNOWN = 0, 13, 12, 4, 8, 3, 2


def good_request(uuid: str = UUID_1) -> bytes:
    return encode_activation_request(quote=b"", csr=applicant().csr, marble_type="bare", uuid=uuid)


@pytest.fixture
def mesh(unattested: Running) -> Iterator[Http2]:
    with Http2(unattested.mesh, mesh=True) as connection:
        yield connection
        assert call(connection, encode_message(good_request())) == OK  # the connection is still good


def call(mesh: Http2, body: bytes, path: str = ACTIVATE_PATH, extra: list[Header] | None = None) -> int:
    answer = mesh.answer(mesh.request(b"POST", path.encode(), body, [*GRPC, *(extra or [])]))
    assert answer.status == 200
    assert answer.headers[b"content-type"] == b"application/grpc"
    return answer.grpc


def test_a_good_call_ends_with_trailers(mesh: Http2) -> None:
    answer = mesh.answer(mesh.request(b"POST", ACTIVATE_PATH.encode(), encode_message(good_request()), GRPC))
    assert (answer.trailers, answer.headers.get(b"grpc-status")) == ({b"grpc-status": b"0"}, None)


@pytest.mark.parametrize(
    "content_type",
    [b"", b"application/json", b"application/grpcx", b"text/application/grpc", b"application/grp", b"APPLICATION/JSON"],
)
def test_other_content_types_are_415(mesh: Http2, content_type: bytes) -> None:
    extra = [(b"content-type", content_type)] if content_type else []
    answer = mesh.answer(mesh.request(b"POST", ACTIVATE_PATH.encode(), b"", extra))
    assert (answer.status, answer.grpc, answer.headers[b"content-type"]) == (415, 3, b"application/grpc")


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"HEAD", b"OPTIONS"])
def test_other_methods_are_405_with_a_status_of_grpc(mesh: Http2, method: bytes) -> None:
    """As grpc-go answers them."""
    answer = mesh.answer(mesh.request(method, ACTIVATE_PATH.encode(), None, GRPC))
    assert (answer.status, answer.grpc, answer.headers[b"content-type"]) == (405, 13, b"application/grpc")


@pytest.mark.parametrize(
    "content_type", [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=utf-8"]
)
def test_the_subtypes_of_grpc_are_served(mesh: Http2, content_type: bytes) -> None:
    body = encode_message(good_request())
    answer = mesh.answer(mesh.request(b"POST", ACTIVATE_PATH.encode(), body, [(b"content-type", content_type)]))
    assert (answer.status, answer.grpc) == (200, OK)


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"HEAD"])
def test_calls_are_posts(mesh: Http2, method: bytes) -> None:
    assert mesh.answer(mesh.request(method, ACTIVATE_PATH.encode(), None, GRPC)).status == 405


@pytest.mark.parametrize(
    "path", ["/rpc.Marble/activate", "/rpc.Marble", "/", "/rpc.Marble/Activate/", "/rpc.Marble/Activate?x", "//x"]
)
def test_other_methods_are_unimplemented(mesh: Http2, path: str) -> None:
    assert call(mesh, encode_message(good_request()), path) == UNIMPLEMENTED


def string_field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value)]) + value


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", UNKNOWN),
        (b"\0", UNKNOWN),
        (b"\0\0\0\0", UNKNOWN),
        (encode_message(good_request())[:-1], UNKNOWN),
        (encode_message(good_request()) + b"\0", OK),
        (encode_message(good_request()) * 2, OK),
        (b"\1" + encode_message(good_request())[1:], INTERNAL),
        (b"\7" + encode_message(good_request())[1:], INTERNAL),
        (encode_message(b"\xff\xff\xff"), INTERNAL),
        (encode_message(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), INTERNAL),
        (encode_message(b"\x0b" * 1000), INTERNAL),
        (encode_message(string_field(3, b"\xff\xfe")), INTERNAL),
        (encode_message(string_field(4, b"\xed\xa0\x80")), INTERNAL),
        (encode_message(b""), 7),
        (b"\0\xff\xff\xff\xff", EXHAUSTED),
        (b"\0" + (5 << 20).to_bytes(4, "big") + b"short", EXHAUSTED),
        (b"\0" + (5 << 20).to_bytes(4, "big") + bytes(5 << 20), EXHAUSTED),
    ],
    ids=[
        "nothing", "flag only", "half a prefix", "truncated", "one byte more", "two messages", "compressed", "flag 7",
        "no protobuf", "overlong field", "groups", "bad utf-8", "surrogate", "empty message", "4 GiB announced",
        "5 MiB announced", "5 MiB sent",
    ],
)  # fmt: skip
def test_bodies_that_are_not_one_message_have_their_status(mesh: Http2, body: bytes, status: int) -> None:
    assert call(mesh, body) == status


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ((b"grpc-timeout", b"0n"), DEADLINE),
        ((b"grpc-timeout", b"99999999H"), OK),
        ((b"grpc-timeout", b"nonsense"), INTERNAL),
        ((b"grpc-timeout", b"-1S"), INTERNAL),
        ((b"grpc-timeout", b""), INTERNAL),
        ((b"grpc-timeout", b"S"), INTERNAL),
        ((b"grpc-timeout", b"999999999S"), INTERNAL),
        ((b"grpc-encoding", b"gzip"), UNIMPLEMENTED),
        ((b"grpc-encoding", b"identity"), OK),
        ((b"grpc-accept-encoding", b"gzip,deflate"), OK),
        ((b"some-bin", b"!!!"), INTERNAL),
        ((b"some-bin", b"YQ=="), OK),
        ((b"some-bin", b"YQ"), OK),
        ((b"some-bin", b"YQ="), INTERNAL),
        ((b"some-bin", b"Y"), INTERNAL),
        ((b"some-bin", b""), OK),
    ],
)
def test_headers_of_a_call_have_their_effect(mesh: Http2, header: Header, status: int) -> None:
    answer = mesh.answer(mesh.request(b"POST", ACTIVATE_PATH.encode(), encode_message(good_request()), [*GRPC, header]))
    assert (answer.grpc, answer.status) == (status, 400 if status == INTERNAL else 200)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (b"application/grpc", b"application/grpc"),
        (b"application/grpc+proto", b"application/grpc+proto"),
        (b"application/grpc+json", b"application/grpc+json"),
        (b"application/grpc;proto", b"application/grpc+proto"),
        (b"application/grpc+", b"application/grpc"),
    ],
)
def test_an_answer_has_the_content_type_of_its_call_as_with_grpc_go(mesh: Http2, asked: bytes, answered: bytes) -> None:
    for body, status in ((encode_message(good_request()), OK), (b"", UNKNOWN)):
        headers = [(b"content-type", asked), (b"te", b"trailers")]
        answer = mesh.answer(mesh.request(b"POST", ACTIVATE_PATH.encode(), body, headers))
        assert (answer.grpc, answer.headers[b"content-type"]) == (status, answered)


def test_the_reason_is_printable_ascii_whatever_the_caller_sent(mesh: Http2) -> None:
    name = "böse\n\0%\x7f" * 50
    body = encode_activation_request(quote=b"", csr=b"", marble_type=name, uuid="")
    answer = mesh.answer(mesh.request(b"POST", ACTIVATE_PATH.encode(), encode_message(body), GRPC))
    assert answer.grpc == 7
    assert all(0x20 <= byte <= 0x7E for byte in answer.headers[b"grpc-message"])
    assert len(answer.headers[b"grpc-message"]) < 4000


def test_unknown_fields_of_newer_marbles_are_ignored(mesh: Http2) -> None:
    assert call(mesh, encode_message(good_request() + string_field(9, b"new"))) == OK
