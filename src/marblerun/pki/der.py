"""DER of certificates: a writer that emits what Go's ``encoding/asn1`` emits, and what reading needs beyond the wire's.

Certificates are written here instead of by pyca's builder because the reference fixes details that builder does not
let us choose: the ASN.1 string type of each name, a zero serial number, extension order, and non-DER extension values.

Source: ITU-T X.690; string and time choices: protocol, sections 2.7 and 3.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from marblerun.errors import Malformed
from marblerun.wire.der import (
    BOOLEAN,
    INTEGER,
    OBJECT_IDENTIFIER,
    OCTET_STRING,
    SEQUENCE,
    Element,
    elements,
    single,
)

__all__ = ["BOOLEAN", "INTEGER", "OBJECT_IDENTIFIER", "OCTET_STRING", "SEQUENCE", "Element", "elements", "single"]

# No list in a certificate that anybody issues comes near this.
MAX_CHILDREN: Final = 4096

BIT_STRING: Final = 0x03
UTF8_STRING: Final = 0x0C
NUMERIC_STRING: Final = 0x12
PRINTABLE_STRING: Final = 0x13
T61_STRING: Final = 0x14
IA5_STRING: Final = 0x16
UTC_TIME: Final = 0x17
GENERALIZED_TIME: Final = 0x18
BMP_STRING: Final = 0x1E
SET: Final = 0x31
NULL: Final = b"\x05\x00"

# The PrintableString set of X.680, without the asterisk and ampersand that Go tolerates only when reading.
_PRINTABLE = re.compile(r"[A-Za-z0-9 '()+,\-./:=?]*")
_OID_TEXT = re.compile(r"[0-9]{1,40}(?:\.[0-9]{1,40}){1,63}")
_UTC_TIME = re.compile(rb"[0-9]{12}Z")
_GENERALIZED_TIME = re.compile(rb"[0-9]{14}Z")


def context(number: int, *, constructed: bool) -> int:
    """The tag byte of a context-specific element; ``number`` below 31."""
    return (0xA0 if constructed else 0x80) | number


def tlv(tag: int, body: bytes) -> bytes:
    """One element with the shortest length encoding."""
    size = len(body)
    if size < 0x80:
        return bytes((tag, size)) + body
    octets = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(octets))) + octets + body


def sequence(*parts: bytes) -> bytes:
    """A SEQUENCE of already encoded elements."""
    return tlv(SEQUENCE, b"".join(parts))


def set_of(parts: Iterable[bytes]) -> bytes:
    """A SET OF, its elements in the ascending order DER asks for."""
    return tlv(SET, b"".join(sorted(parts)))


def integer(value: int) -> bytes:
    """An INTEGER in the fewest bytes, two's complement."""
    return tlv(INTEGER, value.to_bytes((value + (value < 0)).bit_length() // 8 + 1, signed=True))


def boolean(value: bool) -> bytes:
    """A BOOLEAN."""
    return b"\x01\x01\xff" if value else b"\x01\x01\x00"


def octet_string(value: bytes) -> bytes:
    """An OCTET STRING."""
    return tlv(OCTET_STRING, value)


def bit_string(value: bytes, unused: int = 0) -> bytes:
    """A BIT STRING whose last ``unused`` bits (0 to 7) do not count."""
    return tlv(BIT_STRING, bytes((unused,)) + value)


@lru_cache(maxsize=256)
def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER from dotted text; ``Malformed`` if the text is not one."""
    if not _OID_TEXT.fullmatch(dotted):
        raise Malformed(f"not an object identifier: {dotted[:80]!r}")
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    if first > 2 or (first < 2 and second >= 40):
        raise Malformed(f"not an object identifier: {dotted[:80]!r}")
    body = bytearray()
    for arc in (first * 40 + second, *rest):
        groups = [arc & 0x7F]
        while arc := arc >> 7:
            groups.append(arc & 0x7F | 0x80)
        body += bytes(reversed(groups))
    return tlv(OBJECT_IDENTIFIER, bytes(body))


def text(value: str) -> bytes:
    """A PrintableString where its small alphabet suffices, else a UTF8String, as Go chooses."""
    try:
        body = value.encode()
    except UnicodeEncodeError as error:
        raise Malformed("text is not valid Unicode") from error
    return tlv(PRINTABLE_STRING if _PRINTABLE.fullmatch(value) else UTF8_STRING, body)


def ia5(value: str, tag: int, *, where: str) -> bytes:
    """ASCII text under ``tag``; ``Malformed`` naming ``where`` for anything else."""
    try:
        return tlv(tag, value.encode("ascii"))
    except UnicodeEncodeError as error:
        raise Malformed(f"only ASCII is possible in {value[:80]!r}", where=where) from error


def time(value: datetime) -> bytes:
    """UTCTime for the years 1950 to 2049, else GeneralizedTime; cut to whole seconds."""
    value = value.astimezone(UTC)
    clock = f"{value.month:02}{value.day:02}{value.hour:02}{value.minute:02}{value.second:02}Z"
    if 1950 <= value.year < 2050:
        return tlv(UTC_TIME, f"{value.year % 100:02}{clock}".encode())
    return tlv(GENERALIZED_TIME, f"{value.year:04}{clock}".encode())


def children(element: Element, tag: int, what: str, *, limit: int = MAX_CHILDREN) -> tuple[Element, ...]:
    """The elements inside a constructed one that has ``tag``; ``Malformed`` for another tag or above ``limit``."""
    return elements(element.expect(tag, what), limit=limit)


def raw(element: Element, tag: int, what: str) -> bytes:
    """The complete bytes of an element that has ``tag``; ``Malformed`` for another tag."""
    element.expect(tag, what)
    return element.encoded


def read_bit_string(element: Element, what: str) -> tuple[bytes, int]:
    """Bytes and number of unused bits of a BIT STRING; unused bits are zero."""
    body = element.expect(BIT_STRING, what)
    if not body or body[0] > 7 or (body[0] and (len(body) == 1 or body[-1] & ((1 << body[0]) - 1))):
        raise Malformed(f"{what}: bit string is not DER")
    return body[1:], body[0]


def read_time(element: Element, what: str) -> datetime:
    """Aware UTC time of a UTCTime or GeneralizedTime written with seconds and ``Z``."""
    form = {UTC_TIME: _UTC_TIME, GENERALIZED_TIME: _GENERALIZED_TIME}.get(element.tag)
    if form is None or not form.fullmatch(element.content):
        raise Malformed(f"{what}: not a time")
    digits = element.content[:-1].decode("ascii")
    if element.tag == UTC_TIME:
        digits = ("20" if digits < "50" else "19") + digits
    try:
        year, month, day, hour, minute, second = int(digits[:4]), *(int(digits[at : at + 2]) for at in range(4, 14, 2))
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError as error:
        raise Malformed(f"{what}: not a time") from error
