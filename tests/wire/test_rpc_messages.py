"""The protobuf messages of the Marble API and of the key exchange."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.errors import Malformed
from marblerun.wire.rpc import (
    ActivationReq,
    ActivationResp,
    KeyRequest,
    KeyResponse,
    Parameters,
    encode_activation_request,
    parse_activation_request,
    parse_activation_response,
    parse_key_request,
    parse_key_response,
)


def test_the_request_has_the_field_numbers_and_types_of_the_protocol() -> None:
    wire = encode_activation_request(quote=b"Q", csr=b"C", marble_type="T", uuid="U")
    assert wire == b"\x0a\x01Q\x12\x01C\x1a\x01T\x22\x01U"
    assert parse_activation_request(wire) == ActivationReq(Quote=b"Q", CSR=b"C", MarbleType="T", UUID="U")


def test_the_response_has_the_field_numbers_and_types_of_the_protocol() -> None:
    response = ActivationResp(Parameters=Parameters(Files={"/f": b"1"}, Env={"E": b"2"}, Argv=["a", "b"]))
    wire = b"\x0a\x18" + b"\x0a\x07\x0a\x02/f\x12\x011" + b"\x12\x06\x0a\x01E\x12\x012" + b"\x1a\x01a\x1a\x01b"
    wire = wire.replace(b"\x0a\x18", bytes((0x0A, len(wire) - 2)), 1)
    assert response.SerializeToString(deterministic=True) == wire
    assert parse_activation_response(wire) == response


def test_the_key_exchange_has_the_field_numbers_and_types_of_the_protocol() -> None:
    """Protocol, section 11.4: ``quote`` and ``key`` are number 1, both bytes."""
    assert KeyRequest(quote=b"Q").SerializeToString() == b"\x0a\x01Q"
    assert parse_key_request(b"\x0a\x01Q\x7a\x03new").quote == b"Q"
    assert KeyResponse(key=b"K").SerializeToString() == b"\x0a\x01K"
    assert parse_key_response(b"\x0a\x01K").key == b"K"
    assert KeyRequest.DESCRIPTOR.full_name == "keypb.KeyRequest"


@given(st.binary(max_size=64))
def test_no_bytes_in_the_key_exchange_raise_anything_but_malformed(data: bytes) -> None:
    for parse in (parse_key_request, parse_key_response):
        with suppress(Malformed):
            parse(data)


def test_unknown_fields_are_ignored() -> None:
    assert parse_activation_request(b"\x1a\x01T\x7a\x03new").MarbleType == "T"


@pytest.mark.parametrize("data", [b"\x1a\x02\xff\xfe", b"\x0a\x80", b"\x0a\x05abc", b"\xff" * 20])
def test_broken_protobuf_and_invalid_utf8_are_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_activation_request(data)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_malformed(data: bytes) -> None:
    for parse in (parse_activation_request, parse_activation_response):
        with suppress(Malformed):
            assert parse(data).ByteSize() <= len(data)
