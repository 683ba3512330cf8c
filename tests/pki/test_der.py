"""What is written as DER is read back the same, in the one form that DER has."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from marblerun.errors import Malformed
from marblerun.pki import der
from marblerun.pki import extensions as ext
from marblerun.pki.extensions import AltNames
from marblerun.pki.names import decode_name, encode_name
from marblerun.pki.profiles import IpAddress, Name

TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=3).map(tuple)
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


@given(st.integers(-(2**130), 2**130))
def test_an_integer_has_the_fewest_bytes(value: int) -> None:
    encoded = der.single(der.integer(value)).expect(der.INTEGER, "integer")
    assert int.from_bytes(encoded, signed=True) == value
    assert len(encoded) == 1 or encoded[:2] not in (b"\x00", b"\xff")
    assert len(encoded) == max(1, -(-(value.bit_length() + 1) // 8)) or value == -(2 ** (8 * len(encoded) - 1))


@given(st.lists(st.integers(0, 2**64), max_size=6), st.sampled_from([(0, 39), (1, 0), (2, 999), (2, 47)]))
def test_an_object_identifier_is_read_back(rest: list[int], start: tuple[int, int]) -> None:
    dotted = ".".join(str(arc) for arc in (*start, *rest))
    if len(der.oid(dotted)) <= 66:
        assert der.single(der.oid(dotted)).oid("oid") == dotted


@pytest.mark.parametrize("text", ["", "1", "1.40", "3.1", "1.2.", ".1.2", "1.-2", "1.2.x", "1.2\n", "1." + "9" * 50])
def test_text_that_is_no_object_identifier_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        der.oid(text)


@given(st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31)))
def test_a_time_is_read_back_to_the_second(value: datetime) -> None:
    at = value.replace(tzinfo=UTC)
    element = der.single(der.time(at))
    assert der.read_time(element, "time") == at.replace(microsecond=0)
    assert (element.tag == der.UTC_TIME) == (1950 <= at.year < 2050)


@pytest.mark.parametrize(
    "body", [b"", b"2611221305Z", b"261322130507Z", b"261122130507", b"2611221305+7Z", b"\xff" * 13]
)
def test_other_spellings_of_a_time_are_malformed(body: bytes) -> None:
    with pytest.raises(Malformed):
        der.read_time(der.single(der.tlv(der.UTC_TIME, body)), "time")


@given(TEXTS, TEXTS, TEXTS, TEXT, TEXT)
def test_a_name_is_read_back(
    country: tuple[str, ...], unit: tuple[str, ...], postal: tuple[str, ...], serial: str, common: str
) -> None:
    """Values that share an RDN come back in the order of their encodings, so they are compared sorted."""
    name = Name(
        country=country,
        organizational_unit=unit,
        postal_code=postal,
        serial_number=serial,
        common_name=common,
    )
    found = decode_name(encode_name(name))
    assert replace(
        found,
        country=tuple(sorted(found.country)),
        organizational_unit=tuple(sorted(found.organizational_unit)),
        postal_code=tuple(sorted(found.postal_code)),
    ) == replace(
        name,
        country=tuple(sorted(country)),
        organizational_unit=tuple(sorted(unit)),
        postal_code=tuple(sorted(postal)),
    )


@pytest.mark.parametrize(
    ("text", "tag"), [("aZ09 '()+,-./:=?", 0x13), ("a*", 0x0C), ("a&b", 0x0C), ("ü", 0x0C), ("", 0x13)]
)
def test_text_is_printable_where_possible(text: str, tag: int) -> None:
    assert der.single(der.text(text)) == der.Element(tag, text.encode(), der.tlv(tag, text.encode()))


def test_attributes_are_written_in_the_order_of_the_reference() -> None:
    """As Go 1.26.1 writes them, with which the reference was observed; other releases have O and OU after C."""
    name = Name(("a",), ("b",), ("c",), ("d",), ("e",), ("f",), ("g",), "h", "i", (("1.2.3", "j"),))
    rdns = der.children(der.single(encode_name(name)), der.SEQUENCE, "name")
    types = [der.children(der.single(rdn.content), der.SEQUENCE, "attribute")[0].oid("type") for rdn in rdns]
    assert types == [*(f"2.5.4.{arc}" for arc in (6, 8, 7, 9, 17, 10, 11, 3, 5)), "1.2.3"]


def test_several_values_of_one_attribute_share_a_sorted_set() -> None:
    values = [der.sequence(der.oid("2.5.4.6"), der.text(value)) for value in ("AT", "DE")]
    assert encode_name(Name(country=("DE", "AT"))) == der.sequence(der.tlv(der.SET, b"".join(values)))


def test_key_usage_of_a_marble_is_the_documented_bytes() -> None:
    """digitalSignature and keyAgreement (protocol, section 2.7)."""
    assert ext.key_usage(ext.DIGITAL_SIGNATURE | ext.KEY_AGREEMENT).value.hex() == "03020388"


@given(st.integers(0, 511))
def test_key_usage_bits_are_read_back(bits: int) -> None:
    value = ext.key_usage(bits).value
    encoded, unused = der.read_bit_string(der.single(value), "key usage")
    assert not encoded[-1] or encoded[-1] >> unused & 1 or not bits
    assert sum(1 << at for at in range(8 * len(encoded) - unused) if encoded[at // 8] & 0x80 >> at % 8) == bits


@given(st.lists(st.ip_addresses()), st.lists(st.text("abc.-*", max_size=5)))
def test_alternative_names_are_read_back(addresses: list[IpAddress], names: list[str]) -> None:
    canonical = tuple(getattr(address, "ipv4_mapped", None) or address for address in addresses)
    found = ext.read_alt_names(ext.subject_alt_name(AltNames(tuple(names), (), canonical, ())).value)
    assert found == AltNames(tuple(names), (), canonical, ())


def test_the_extended_key_usage_table_has_the_numbers_of_go() -> None:
    """0 any, 1 serverAuth, 2 clientAuth, 3 codeSigning, 4 emailProtection, 8 timeStamping, 9 OCSPSigning."""
    oids = x509.oid.ExtendedKeyUsageOID
    named = [oids.ANY_EXTENDED_KEY_USAGE, oids.SERVER_AUTH, oids.CLIENT_AUTH, oids.CODE_SIGNING, oids.EMAIL_PROTECTION]
    assert [oid.dotted_string for oid in named] == list(ext.EXTENDED_KEY_USAGES[:5])
    assert [oids.TIME_STAMPING.dotted_string, oids.OCSP_SIGNING.dotted_string] == list(ext.EXTENDED_KEY_USAGES[8:10])
    assert len(ext.EXTENDED_KEY_USAGES) == 14
