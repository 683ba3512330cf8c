"""HTTP/1 as bytes: the same whatever pieces they arrive in, and no bytes break more than themselves."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.coordinator.server.http1_heads import BadBody, BadHead, BodyReader, head_end, parse_head
from marblerun.wire.limits import MAX_HEADER_BYTES

CHUNKS = b"3;a=b\r\nabc\r\n00A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
HEAD = b"POST /a?b HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\nConnection: close\r\n\r\n"


def pieces(whole: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(whole), *(cut % (len(whole) + 1) for cut in cuts)})
    return [whole[start:end] for start, end in pairwise(places)]


@given(st.lists(st.integers(0, 200), max_size=12), st.booleans())
def test_a_body_is_the_same_in_whatever_pieces_it_comes(cuts: list[int], in_chunks: bool) -> None:
    reader = BodyReader(None if in_chunks else 13)
    received, body = bytearray(), b""
    for piece in pieces((CHUNKS if in_chunks else b"abc0123456789") + b"GET", cuts):
        received += piece
        body += reader.take(received)
    assert (body, reader.done, bytes(received)) == (b"abc0123456789", True, b"GET")


@given(st.lists(st.integers(0, 200), max_size=12))
def test_the_end_of_a_head_is_found_in_whatever_pieces_it_comes(cuts: list[int]) -> None:
    received, searched, end = bytearray(), 0, 0
    for piece in pieces(HEAD + b"body", cuts):
        received += piece
        end = end or head_end(received, searched)
        searched = len(received)
    assert end == len(HEAD)


def test_a_head_says_what_it_says() -> None:
    head = parse_head(HEAD)
    assert (head.method, head.target, head.is_1_1, head.keep, head.length) == ("POST", "/a?b", True, False, 0)
    assert head.headers == ((b"host", b"x"), (b"a", b"b c"), (b"connection", b"close"))


@given(st.binary(max_size=200) | st.text("GET /\r\n :aHost10TP.%c", max_size=60).map(str.encode))
def test_no_head_breaks_anything(noise: bytes) -> None:
    for head in (noise, b"GET / HTTP/1.1\r\nHost: x\r\n" + noise + b"\r\n\r\n"):
        assert status_of(head) in (0, 200, 400, 431, 501, 505)


def status_of(received: bytes) -> int:
    """200 for a good head, 0 for an unfinished one."""
    try:
        end = head_end(bytearray(received), 0)
        if end:
            parse_head(received[:end])
    except BadHead as bad:
        return bad.status
    return 200 if end else 0


@given(st.binary(max_size=100) | st.text("0123456789abcdef;\r\n", max_size=60).map(str.encode))
def test_no_chunks_break_anything(noise: bytes) -> None:
    reader, received = BodyReader(None), bytearray(noise)
    try:
        body = reader.take(received)
    except BadBody:
        return
    assert len(body) + len(received) <= len(noise)


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\nA: ", b"GET /", b""])
def test_a_head_without_an_end_is_given_up_at_the_limit(start: bytes) -> None:
    within = bytearray(start.ljust(MAX_HEADER_BYTES, b"a"))
    assert head_end(within, 0) == 0
    with pytest.raises(BadHead) as refused:
        head_end(within + b"a", len(within))
    assert refused.value.status == 431


def test_a_first_line_that_cannot_be_mended_is_refused_before_the_rest_comes() -> None:
    with pytest.raises(BadHead):
        head_end(bytearray(b"no request\r\n"), 0)
    with pytest.raises(BadHead):
        head_end(bytearray(b"no request\r\n"), 11)
