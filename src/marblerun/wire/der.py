"""A small strict reader for DER (X.690): just enough for vendor extensions that no library knows.

Certificates and CRLs themselves are parsed by pyca/cryptography; this reads what is inside an unknown extension.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from marblerun.errors import Malformed

BOOLEAN: Final = 0x01
INTEGER: Final = 0x02
BIT_STRING: Final = 0x03
OCTET_STRING: Final = 0x04
OBJECT_IDENTIFIER: Final = 0x06
ENUMERATED: Final = 0x0A
SEQUENCE: Final = 0x30
SET: Final = 0x31


class Element(NamedTuple):
    """One tag-length-value: the tag byte and the content bytes, and both with the length between them."""

    tag: int
    content: bytes
    encoded: bytes

    def expect(self, tag: int, field: str) -> bytes:
        """The content if the tag is ``tag``; Malformed otherwise."""
        if self.tag != tag:
            raise Malformed(f"{field}: tag 0x{self.tag:02x} where 0x{tag:02x} is expected", where="DER")
        return self.content

    def unsigned(self, tag: int, field: str, *, limit: int) -> int:
        """An INTEGER or ENUMERATED between 0 and ``limit``, in its shortest encoding."""
        content = self.expect(tag, field)
        if not content or content[0] & 0x80 or (len(content) > 1 and content[0] == 0 and not content[1] & 0x80):
            raise Malformed(f"{field}: not a shortest non-negative integer", where="DER")
        if (value := int.from_bytes(content, "big")) > limit:
            raise Malformed(f"{field}: {value} is above {limit}", where="DER")
        return value

    def octets(self, size: int, field: str) -> bytes:
        """An OCTET STRING of exactly ``size`` bytes."""
        content = self.expect(OCTET_STRING, field)
        if len(content) != size:
            raise Malformed(f"{field}: {len(content)} bytes where {size} are expected", where="DER")
        return content

    def boolean(self, field: str) -> bool:
        """A BOOLEAN, which in DER is 00 or FF."""
        content = self.expect(BOOLEAN, field)
        if content not in (b"\x00", b"\xff"):
            raise Malformed(f"{field}: not a DER boolean", where="DER")
        return content == b"\xff"

    def oid(self, field: str) -> str:
        """An OBJECT IDENTIFIER in dotted form."""
        return _dotted(self.expect(OBJECT_IDENTIFIER, field), field)


def elements(data: bytes, *, limit: int) -> tuple[Element, ...]:
    """All elements that ``data`` consists of, without looking inside them; Malformed for more than ``limit``."""
    found: list[Element] = []
    offset, size = 0, len(data)
    while offset < size:
        if len(found) == limit:
            raise Malformed(f"more than {limit} elements", where="DER")
        if size - offset < 2:
            raise Malformed(f"cut off at offset {offset}", where="DER")
        start, tag, length = offset, data[offset], data[offset + 1]
        if tag & 0x1F == 0x1F:
            raise Malformed(f"multi-byte tag at offset {offset}", where="DER")
        offset += 2
        if length & 0x80:
            length, offset = _long_length(data, offset, length & 0x7F)
        end = offset + length
        if end > size:
            raise Malformed(f"length {length} at offset {offset} runs past the end", where="DER")
        found.append(Element(tag, data[offset:end], data[start:end]))
        offset = end
    return tuple(found)


def single(data: bytes) -> Element:
    """The one element that ``data`` is; Malformed for none, more, or trailing bytes."""
    found = elements(data, limit=1)
    if not found:
        raise Malformed("empty", where="DER")
    return found[0]


def _long_length(data: bytes, offset: int, octets: int) -> tuple[int, int]:
    # Four octets reach 4 GiB; the indefinite form (0) is BER, not DER.
    if not 1 <= octets <= 4 or offset + octets > len(data):
        raise Malformed(f"bad length at offset {offset}", where="DER")
    length = int.from_bytes(data[offset : offset + octets], "big")
    if length < 0x80 or length >> (8 * (octets - 1)) == 0:
        raise Malformed(f"length at offset {offset} is not in its shortest form", where="DER")
    return length, offset + octets


def _dotted(content: bytes, field: str) -> str:
    if not content or len(content) > 64 or content[-1] & 0x80:
        raise Malformed(f"{field}: bad object identifier", where="DER")
    arcs: list[int] = []
    value = 0
    for octet in content:
        if value == 0 and octet == 0x80:
            raise Malformed(f"{field}: object identifier not in its shortest form", where="DER")
        value = value << 7 | octet & 0x7F
        if not octet & 0x80:
            arcs.append(value)
            value = 0
    root = min(arcs[0] // 40, 2)
    return ".".join(map(str, (root, arcs[0] - 40 * root, *arcs[1:])))
