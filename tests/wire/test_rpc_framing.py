"""gRPC framing and header texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.errors import Malformed
from marblerun.wire.rpc.framing import (
    MAX_MESSAGE_TEXT_BYTES,
    MessageReader,
    decode_grpc_message,
    encode_grpc_message,
    encode_message,
    parse_timeout,
)
from marblerun.wire.rpc.status import GrpcStatus, parse_status, status_of_http


def test_a_message_is_flag_length_and_bytes() -> None:
    assert encode_message(b"abc") == b"\x00\x00\x00\x00\x03abc"


@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(1, 9))
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(messages: list[bytes], step: int) -> None:
    stream = b"".join(map(encode_message, messages))
    reader = MessageReader(64)
    got = [message for i in range(0, len(stream), step) for message in reader.feed(stream[i : i + step])]
    reader.finish()
    assert got == messages


def test_a_message_at_the_limit_passes_and_one_above_is_refused_by_its_prefix_alone() -> None:
    assert MessageReader(4).feed(encode_message(b"1234")) == [b"1234"]
    with pytest.raises(Malformed) as refusal:
        MessageReader(4).feed(b"\x00\x00\x00\x00\x05")
    assert str(refusal.value) == "grpc message: the message has 5 bytes, the limit is 4"


@pytest.mark.parametrize("flag", [1, 2, 255])
def test_a_compressed_or_unknown_flag_is_refused(flag: int) -> None:
    with pytest.raises(Malformed, match="compressed"):
        MessageReader(100).feed(bytes((flag, 0, 0, 0, 0)))


def test_a_stream_that_ends_inside_a_message_is_refused() -> None:
    reader = MessageReader(100)
    assert reader.feed(encode_message(b"abc")[:-1]) == []
    assert reader.pending == 7
    with pytest.raises(Malformed, match="ended inside"):
        reader.finish()


@given(st.binary(max_size=300))
def test_any_bytes_give_messages_or_malformed(data: bytes) -> None:
    reader = MessageReader(32)
    try:
        messages = reader.feed(data)
    except Malformed:
        return
    assert all(len(message) <= 32 for message in messages)
    assert reader.pending < 5 + 32


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("plain text ~", "plain text ~"),
        ("100%", "100%25"),
        ("line\nbreak", "line%0Abreak"),
        ("Ä☺", "%C3%84%E2%98%BA"),
    ],
)
def test_a_status_message_is_percent_encoded(text: str, wire: str) -> None:
    assert encode_grpc_message(text) == wire
    assert decode_grpc_message(wire) == text


@given(st.text())
def test_a_status_message_survives_the_way_there_and_back_in_printable_ascii(text: str) -> None:
    wire = encode_grpc_message(text)
    assert all(" " <= c <= "~" for c in wire)
    assert decode_grpc_message(wire) == text.encode("utf-8", "replace").decode()


@given(st.text(max_size=60))
def test_decoding_a_status_message_never_fails(text: str) -> None:
    assert isinstance(decode_grpc_message(text), str)


def test_broken_escapes_stay_as_written() -> None:
    assert decode_grpc_message("50% of %zz %4") == "50% of %zz %4"


def test_a_long_status_message_is_cut_at_a_character() -> None:
    assert decode_grpc_message(encode_grpc_message("ä" * MAX_MESSAGE_TEXT_BYTES)) == "ä" * (MAX_MESSAGE_TEXT_BYTES // 2)


@pytest.mark.parametrize(("text", "seconds"), [("1S", 1.0), ("250m", 0.25), ("2M", 120.0), ("99999999n", 0.099999999)])
def test_a_timeout_header_is_read_in_its_unit(text: str, seconds: float) -> None:
    assert parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "S", "1", "1s", "123456789S", "-1S", "1 S", "١S", "1S\n"])
def test_what_is_not_a_timeout_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_timeout(text)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("0", GrpcStatus.OK),
        ("7", GrpcStatus.PERMISSION_DENIED),
        ("16", GrpcStatus.UNAUTHENTICATED),
        ("17", GrpcStatus.UNKNOWN),
        ("", GrpcStatus.UNKNOWN),
        ("-1", GrpcStatus.UNKNOWN),
        ("٣", GrpcStatus.UNKNOWN),
        ("9" * 5000, GrpcStatus.UNKNOWN),
    ],
)
def test_a_status_header_names_a_code_or_unknown(text: str, status: GrpcStatus) -> None:
    assert parse_status(text) == status


def test_an_http_status_without_grpc_status_never_reads_as_ok() -> None:
    assert {status_of_http(code) for code in range(100, 600)}.isdisjoint({GrpcStatus.OK})
    assert status_of_http(503) == GrpcStatus.UNAVAILABLE
