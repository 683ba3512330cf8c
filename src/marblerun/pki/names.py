"""Distinguished names between our value and DER, with Go's choices of order and string type.

Source: RFC 5280, section 4.1.2.4; order and string types: protocol, section 2.7.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from marblerun.errors import Malformed
from marblerun.pki import der
from marblerun.pki.profiles import Name

EMPTY_NAME: Final = der.sequence()

COMMON_NAME: Final = "2.5.4.3"
SERIAL_NUMBER: Final = "2.5.4.5"
# Attribute types that may have several values, in the order in which Go 1.26 writes them
# (crypto/x509/pkix, Name.ToRDNSequence; other releases of it have the organization second).
_LISTS: Final = {
    "2.5.4.6": "country",
    "2.5.4.8": "province",
    "2.5.4.7": "locality",
    "2.5.4.9": "street_address",
    "2.5.4.17": "postal_code",
    "2.5.4.10": "organization",
    "2.5.4.11": "organizational_unit",
}
# Reading is more lenient than writing: wildcards and company names occur in the wild under the wrong type.
_PRINTABLE_READ = re.compile(rb"[A-Za-z0-9 '()+,\-./:=?*&]*")


def _attribute(dotted: str, value: str) -> bytes:
    return der.sequence(der.oid(dotted), der.text(value))


def encode_name(name: Name) -> bytes:
    """The RDNSequence: several values of one type share a SET, extra names come last and replace standard ones.

    ``Malformed`` for an extra name whose type is no object identifier.
    """
    replaced = {dotted for dotted, _ in name.extra_names}
    rdns: list[bytes] = []
    for dotted, field in _LISTS.items():
        values: tuple[str, ...] = getattr(name, field)
        if values and dotted not in replaced:
            rdns.append(der.set_of(_attribute(dotted, value) for value in values))
    for dotted, value in ((COMMON_NAME, name.common_name), (SERIAL_NUMBER, name.serial_number)):
        if value and dotted not in replaced:
            rdns.append(der.set_of([_attribute(dotted, value)]))
    rdns.extend(der.set_of([_attribute(dotted, value)]) for dotted, value in name.extra_names)
    return der.sequence(*rdns)


def decode_name(data: bytes) -> Name:
    """The known attributes of an RDNSequence; other types are dropped, of single-valued ones the last counts."""
    lists: dict[str, list[str]] = {field: [] for field in _LISTS.values()}
    single = {COMMON_NAME: "", SERIAL_NUMBER: ""}
    for rdn in der.children(der.single(data), der.SEQUENCE, "name"):
        for attribute in der.children(rdn, der.SET, "name"):
            parts = der.children(attribute, der.SEQUENCE, "name", limit=2)
            if len(parts) != 2:
                raise Malformed("name: an attribute is a type and a value")
            dotted, value = parts[0].oid("name"), _read_text(parts[1])
            if value is None:
                continue
            if dotted in single:
                single[dotted] = value
            elif field := _LISTS.get(dotted):
                lists[field].append(value)
    return Name(
        country=tuple(lists["country"]),
        organization=tuple(lists["organization"]),
        organizational_unit=tuple(lists["organizational_unit"]),
        locality=tuple(lists["locality"]),
        province=tuple(lists["province"]),
        street_address=tuple(lists["street_address"]),
        postal_code=tuple(lists["postal_code"]),
        common_name=single[COMMON_NAME],
        serial_number=single[SERIAL_NUMBER],
    )


def _decode_utf8(body: bytes) -> str:
    return body.decode()


def _decode_ascii(body: bytes) -> str:
    return body.decode("ascii")


def _decode_printable(body: bytes) -> str:
    if not _PRINTABLE_READ.fullmatch(body):
        raise ValueError
    return body.decode("ascii")


def _decode_bmp(body: bytes) -> str:
    return body.removesuffix(b"\x00\x00").decode("utf-16-be")


_TEXT: Final[dict[int, Callable[[bytes], str]]] = {
    der.UTF8_STRING: _decode_utf8,
    der.PRINTABLE_STRING: _decode_printable,
    der.IA5_STRING: _decode_ascii,
    der.NUMERIC_STRING: _decode_ascii,
    der.T61_STRING: _decode_utf8,
    der.BMP_STRING: _decode_bmp,
}


def _read_text(element: der.Element) -> str | None:
    """The value of a string type, ``None`` for any other type."""
    decode = _TEXT.get(element.tag)
    if decode is None:
        return None
    try:
        return decode(element.content)
    except ValueError as error:
        raise Malformed("name: an attribute is not valid text of its type") from error
