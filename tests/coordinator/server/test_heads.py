"""Header blocks: what a request's head may be, the same on every way to it, and ours as a library reads them."""

from __future__ import annotations

import hpack
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError
from hypothesis import example, given
from hypothesis import strategies as st

from marblerun.coordinator.server import heads
from marblerun.coordinator.server.frames import ErrorCode, Violation
from marblerun.coordinator.server.heads import MAX_KEPT_BLOCKS, Head, HeadReader, request_head
from marblerun.wire.limits import MAX_HEADER_BYTES

Fields = list[tuple[bytes, bytes]]

GET: Fields = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/a?b"), (b":authority", b"x")]
GOOD = Head("GET", "/a?b", (), None)


def encoded(*fields: tuple[bytes, bytes]) -> bytes:
    return hpack.Encoder().encode(list(fields))


def read(block: bytes, reader: HeadReader | None = None) -> Head | ErrorCode:
    try:
        return (reader or HeadReader()).request(block)
    except Violation as violation:
        return violation.code


def library(fields: Fields) -> bool:
    """Whether h2 takes these as a request."""
    client = H2Connection(
        H2Configuration(
            client_side=True, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
        )
    )
    server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    for one in (client, server):
        one.initiate_connection()
    try:
        client.send_headers(1, fields, end_stream=True)
        server.receive_data(client.data_to_send())
    except ProtocolError:
        return False
    return True


BAD: list[Fields] = [
    GET[1:],
    [GET[0], *GET[2:]],
    [*GET[:2], GET[3]],
    GET[:3],
    [*GET, GET[2]],
    [*GET[:2], (b":path", b""), GET[3]],
    [*GET, (b"a", b"b"), (b":x", b"y")],
    [*GET[:3], (b"a", b"b"), GET[3]],
    [*GET, (b":status", b"200")],
    [*GET, (b":protocol", b"websocket")],
    [*GET, (b":nonsense", b"x")],
    [*GET, (b"", b"x")],
    [*GET, (b":", b"x")],
    [*GET, (b"A", b"x")],
    [*GET, (b"a b", b"x")],
    [*GET, (b"a:b", b"x")],
    [*GET, (b"\xe4", b"x")],
    [*GET, (b"a", b"x\0y")],
    [*GET, (b"a", b"x\ry")],
    [*GET, (b"a", b"x\ny")],
    [*GET, (b"a", b"x\n")],
    [*GET, (b"a", b" x")],
    [*GET, (b"a", b"x\t")],
    [*GET, (b"te", b"gzip")],
    [*GET, (b"connection", b"close")],
    [*GET, (b"proxy-connection", b"close")],
    [*GET, (b"keep-alive", b"1")],
    [*GET, (b"transfer-encoding", b"chunked")],
    [*GET, (b"upgrade", b"h2c")],
    [*GET, (b"host", b"y")],
    [*GET[:3], (b"host", b"x"), (b"host", b"x")],
    [*GET, (b"content-length", b"x")],
    [*GET, (b"content-length", b"-1")],
    [*GET, (b"content-length", b"")],
    [(b":method", b"CONNECT"), *GET[1:]],
]


@pytest.mark.parametrize("fields", BAD, ids=str)
def test_heads_that_break_the_rules_are_refused_as_the_library_refuses_them(fields: Fields) -> None:
    assert read(encoded(*fields)) is ErrorCode.PROTOCOL_ERROR
    assert not library(fields) or (b":protocol", b"websocket") in fields


@pytest.mark.parametrize(
    ("extra", "head"),
    [
        ([], GOOD),
        ([(b"host", b"x")], Head("GET", "/a?b", ((b"host", b"x"),), None)),
        ([(b"te", b"trailers")], Head("GET", "/a?b", ((b"te", b"trailers"),), None)),
        ([(b"a", b"")], Head("GET", "/a?b", ((b"a", b""),), None)),
        ([(b"content-length", b"12")], Head("GET", "/a?b", ((b"content-length", b"12"),), 12)),
        ([(b"cookie", b"a=1"), (b"b", b"c"), (b"cookie", b"d=2")],
         Head("GET", "/a?b", ((b"b", b"c"), (b"cookie", b"a=1; d=2")), None)),
    ],
)  # fmt: skip
def test_good_heads_are_taken_apart(extra: Fields, head: Head) -> None:
    assert read(encoded(*GET, *extra)) == head
    assert library([*GET, *extra])


def test_connect_has_neither_scheme_nor_path() -> None:
    fields = [(b":method", b"CONNECT"), (b":authority", b"x")]
    assert read(encoded(*fields)) == Head("CONNECT", "", (), None)
    assert library(fields)


TOKEN = st.binary(min_size=0, max_size=4)
# Without cookies: the library joins them before it looks, and then finds white space at their end that nobody sent.
NAMES = st.sampled_from([b":method", b":scheme", b":path", b":authority", b":status", b"host", b"te", b"a"]) | TOKEN
VALUES = st.sampled_from([b"GET", b"CONNECT", b"https", b"/", b"x", b"trailers"]) | TOKEN


@given(st.lists(st.tuples(NAMES, VALUES), max_size=3))
@example([(b"a", b"\x01")])
@example([(b"a", b"x\ty")])
def test_we_take_what_the_library_takes_but_for_control_bytes(extra: Fields) -> None:
    """Those in values are refused, all but the tab, as Go's server does it (and RFC 9110, section 5.5, asks)."""
    fields = [*GET, *extra]
    control = any((byte < 0x20 and byte != 0x09) or byte == 0x7F for _, value in extra for byte in value)
    assert isinstance(read(encoded(*fields)), Head) == (library(fields) and not control)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_head_or_a_violation_and_mean_the_same_twice(block: bytes) -> None:
    first = read(block)
    assert read(block) == first
    again = HeadReader()
    start = read(encoded(*GET), again)
    assert start == GOOD
    assert isinstance(read(block, again), Head | ErrorCode)


def test_a_later_block_may_refer_to_one_that_was_not_decoded_again() -> None:
    """The first block comes from the table; the second refers to what its first said."""
    for _ in range(3):
        encoder, reader = hpack.Encoder(), HeadReader()
        first = encoder.encode([*GET, (b"custom", b"value one")])
        second = encoder.encode([*GET, (b"custom", b"value one")])
        assert len(second) < len(first)
        assert read(first, reader) == read(second, reader) == Head("GET", "/a?b", ((b"custom", b"value one"),), None)


def test_a_block_that_refers_to_earlier_ones_is_not_kept() -> None:
    encoder, reader = hpack.Encoder(), HeadReader()
    read(encoder.encode([*GET, (b"custom", b"value two")]), reader)
    second = encoder.encode([*GET, (b"custom", b"value two")])
    assert isinstance(read(second, reader), Head)
    assert read(second) is ErrorCode.COMPRESSION_ERROR


def test_what_is_kept_has_a_limit_in_number_and_size() -> None:
    for number in range(2 * MAX_KEPT_BLOCKS):
        read(encoded(*GET, (b"number", b"%d" % number)))
    assert 0 < len(heads._KEPT) <= MAX_KEPT_BLOCKS
    large = encoded(*GET, (b"large", bytes(b"x" * 4000)))
    assert isinstance(read(large), Head)
    bomb = encoded(*GET, (b"bomb", b"y" * 1000)) + b"\xbe" * 10
    assert isinstance(read(bomb), Head)
    assert large not in heads._KEPT
    assert bomb not in heads._KEPT


def test_a_list_of_headers_has_a_limit_when_it_is_decoded() -> None:
    bomb = encoded(*GET, (b"bomb", b"y" * 1000)) + b"\xbe" * (MAX_HEADER_BYTES // 1000)
    assert read(bomb) is ErrorCode.COMPRESSION_ERROR


def test_trailers_have_no_pseudo_headers() -> None:
    reader = HeadReader()
    reader.trailers(encoded((b"a", b"b")))
    for fields in ([(b":path", b"/")], [(b"A", b"b")], [(b"connection", b"close")]):
        with pytest.raises(Violation):
            HeadReader().trailers(encoded(*fields))


@given(
    st.integers(100, 999),
    st.lists(st.tuples(st.binary(max_size=300), st.binary(max_size=20_000)), max_size=4),
    st.booleans(),
)
def test_our_blocks_are_what_the_library_reads(status: int, fields: Fields, forget: bool) -> None:
    decoder = hpack.Decoder(1 << 20)
    block = heads.response_block(status, tuple(fields), forget=forget)
    assert [tuple(map(bytes, field)) for field in decoder.decode(block, raw=True)] == [
        (b":status", b"%d" % status),
        *fields,
    ]
    assert decoder.header_table_size == (0 if forget else 4096)
    trailers = heads.trailer_block(tuple(fields), forget=False)
    assert [tuple(map(bytes, field)) for field in decoder.decode(trailers, raw=True)] == fields


@pytest.mark.parametrize("size", [0, 1, 126, 127, 128, 254, 255, 256, 383, 16510, 16511, 16512, 70_000])
def test_lengths_around_the_steps_of_their_encoding(size: int) -> None:
    decoder = hpack.Decoder(1 << 20)
    block = heads.trailer_block(((b"a", bytes(size)),), forget=False)
    assert [tuple(map(bytes, field)) for field in decoder.decode(block, raw=True)] == [(b"a", bytes(size))]


def test_a_head_is_judged_without_its_connection() -> None:
    assert request_head(GET) == GOOD
