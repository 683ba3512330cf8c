"""DER writing, as much as the SGX extension of a PCK certificate needs.

Source: ITU-T X.690, sections 8.2 to 8.19 and 10.
"""

from __future__ import annotations

from typing import Final

_BOOLEAN: Final = 0x01
_INTEGER: Final = 0x02
_OCTET_STRING: Final = 0x04
_OID: Final = 0x06
_ENUMERATED: Final = 0x0A
_SEQUENCE: Final = 0x30


def _tagged(tag: int, content: bytes) -> bytes:
    if len(content) < 0x80:
        return bytes((tag, len(content))) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def _minimal(value: int) -> bytes:
    # One bit more than the magnitude: 128 and above need a leading zero byte, else they read as negative.
    return value.to_bytes(value.bit_length() // 8 + 1, "big")


def boolean(value: bool) -> bytes:
    """BOOLEAN; true is 0xff, the only form DER allows."""
    return _tagged(_BOOLEAN, b"\xff" if value else b"\x00")


def integer(value: int) -> bytes:
    """INTEGER of a non-negative value."""
    return _tagged(_INTEGER, _minimal(value))


def enumerated(value: int) -> bytes:
    """ENUMERATED of a non-negative value."""
    return _tagged(_ENUMERATED, _minimal(value))


def octet_string(value: bytes) -> bytes:
    """OCTET STRING."""
    return _tagged(_OCTET_STRING, value)


def sequence(*items: bytes) -> bytes:
    """SEQUENCE of items that are DER already."""
    return _tagged(_SEQUENCE, b"".join(items))


def oid(dotted: str) -> bytes:
    """OBJECT IDENTIFIER from its dotted form."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    return _tagged(_OID, b"".join(_base128(arc) for arc in (first * 40 + second, *rest)))


def _base128(arc: int) -> bytes:
    groups = [arc & 0x7F]
    while arc := arc >> 7:
        groups.append(0x80 | (arc & 0x7F))
    return bytes(reversed(groups))
