"""PEM: one text for one value, and nothing hidden around it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.errors import Malformed
from marblerun.wire.pem import decode_pem, encode_pem

LABEL = "CERTIFICATE"


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=4))
def test_what_was_encoded_is_decoded(values: list[bytes]) -> None:
    text = "".join(encode_pem(value, LABEL) for value in values).encode()
    assert decode_pem(text, LABEL, max_blocks=4) == tuple(values)


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_malformed(data: bytes) -> None:
    block = b"-----BEGIN CERTIFICATE-----\n" + data + b"-----END CERTIFICATE-----\n"
    for text in (data, block):
        try:
            blocks = decode_pem(text, LABEL, max_blocks=2)
        except Malformed:
            continue
        assert all(blocks)


def test_line_ends_of_both_kinds_are_accepted() -> None:
    text = encode_pem(b"abc" * 40, LABEL).replace("\n", "\r\n").encode()
    assert decode_pem(b"\r\n\n" + text + b"\r\n\n" + text, LABEL, max_blocks=2) == (b"abc" * 40,) * 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"-----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\nx", "unexpected text"),
        (b"-----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\n ", "unexpected text"),
        (b"x\n-----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\n", "unexpected text"),
        (b"-----BEGIN PRIVATE KEY-----\nYQ==\n-----END PRIVATE KEY-----\n", "unexpected text"),
        (b"-----BEGIN CERTIFICATE-----\nYQ==\n", "unexpected text"),
        (b"-----BEGIN CERTIFICATE-----\nYR==\n-----END CERTIFICATE-----\n", "canonical"),
        (b"-----BEGIN CERTIFICATE-----\nYQ\n-----END CERTIFICATE-----\n", "base64"),
        (b"-----BEGIN CERTIFICATE-----\nY\rQ==\n-----END CERTIFICATE-----\n", "base64"),
        (b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "canonical"),
        (b"-----BEGIN CERTIFICATE-----\nYQ==\n-----END CERTIFICATE-----\n" * 3, "more than 2"),
        (b" " * 2000, "at most 1000"),
    ],
)
def test_everything_else_is_malformed(text: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        decode_pem(text, LABEL, max_blocks=2, max_bytes=1000)


def test_no_block_is_no_value() -> None:
    assert decode_pem(b"\r\n\n", LABEL, max_blocks=1) == ()
