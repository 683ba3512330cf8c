"""The DER reader accepts the one encoding of a value and nothing else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.errors import Malformed
from marblerun.wire import der


def test_nested_elements_are_read_level_by_level() -> None:
    outer = der.single(bytes.fromhex("300b06092a864886f84d010d01"))
    (oid,) = der.elements(outer.expect(der.SEQUENCE, "outer"), limit=1)
    assert oid.oid("id") == "1.2.840.113741.1.13.1"


@pytest.mark.parametrize(("encoded", "value"), [("020100", 0), ("02017f", 127), ("020200ff", 255), ("0a0102", 2)])
def test_integers_are_read_in_their_shortest_form(encoded: str, value: int) -> None:
    element = der.single(bytes.fromhex(encoded))
    assert element.unsigned(element.tag, "n", limit=255) == value


@pytest.mark.parametrize("encoded", ["0200", "020180", "02020001", "02020100"])
def test_empty_negative_padded_and_too_large_integers_are_malformed(encoded: str) -> None:
    with pytest.raises(Malformed):
        der.single(bytes.fromhex(encoded)).unsigned(der.INTEGER, "n", limit=255)


@pytest.mark.parametrize(
    "encoded",
    [
        "",  # nothing
        "02",  # no length
        "0202ff",  # cut off
        "02810100",  # long form for a short length
        "0282000100",  # leading zero in the length
        "0480",  # indefinite length
        "0485000000000100",  # five octets of length
        "1f0100",  # multi-byte tag
        "04000400",  # two where one belongs
    ],
)
def test_what_is_not_der_is_malformed(encoded: str) -> None:
    with pytest.raises(Malformed):
        der.single(bytes.fromhex(encoded))


@pytest.mark.parametrize(("encoded", "value"), [("0101ff", True), ("010100", False)])
def test_booleans_are_00_or_ff(encoded: str, value: bool) -> None:
    assert der.single(bytes.fromhex(encoded)).boolean("b") is value
    with pytest.raises(Malformed):
        der.single(bytes.fromhex("010101")).boolean("b")


@pytest.mark.parametrize("content", ["", "80", "2a8001", "2a80", "ff" * 65])
def test_object_identifiers_have_one_encoding(content: str) -> None:
    raw = bytes.fromhex(content)
    with pytest.raises(Malformed):
        der.single(bytes([6, len(raw)]) + raw).oid("id")


@given(st.binary(max_size=80))
def test_any_bytes_are_elements_that_add_up_or_malformed(data: bytes) -> None:
    try:
        found = der.elements(data, limit=8)
    except Malformed:
        return
    assert b"".join(element.encoded for element in found) == data
    for element in found:
        with contextlib.suppress(Malformed):
            element.oid("x")
        with contextlib.suppress(Malformed):
            element.unsigned(element.tag, "x", limit=9)
