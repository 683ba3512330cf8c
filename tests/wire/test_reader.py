"""The binary reader gives exactly what is there, and Malformed otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.errors import Malformed
from marblerun.wire.reader import Reader


def test_integers_are_little_endian() -> None:
    reader = Reader(bytes(range(1, 15)), "test")
    assert (reader.u16("a"), reader.u32("b"), reader.u64("c")) == (0x0201, 0x06050403, 0x0E0D0C0B0A090807)
    reader.expect_end()


def test_an_error_names_the_field_and_the_offset() -> None:
    reader = Reader(b"\x01\x02\x03", "thing")
    reader.u16("head")
    with pytest.raises(Malformed, match="thing: tail needs 4 bytes at offset 2, but 1 are left"):
        reader.u32("tail")


def test_reserved_bytes_must_be_zero() -> None:
    Reader(bytes(4), "test").zeros(4, "reserved")
    with pytest.raises(Malformed, match="reserved at offset 0 must be zero"):
        Reader(b"\x00\x00\x01\x00", "test").zeros(4, "reserved")


def test_what_is_left_is_refused_at_the_end() -> None:
    reader = Reader(b"\x00", "test")
    with pytest.raises(Malformed, match="1 bytes follow"):
        reader.expect_end()
    assert reader.rest() == b"\x00"
    reader.expect_end()


@given(st.binary(max_size=40), st.lists(st.integers(-3, 2**70), max_size=8))
def test_no_size_reads_past_the_end(data: bytes, sizes: list[int]) -> None:
    """Whatever sizes are asked for, what came out is a prefix of the input and all else is Malformed."""
    reader = Reader(data, "test")
    taken = b""
    for size in sizes:
        try:
            taken += reader.take(size, "x")
        except Malformed:
            assert size < 0 or size > len(data) - len(taken)
    assert data.startswith(taken)
    assert (reader.offset, reader.remaining) == (len(taken), len(data) - len(taken))
