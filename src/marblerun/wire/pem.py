"""PEM text to DER and back, strictly and with limits (RFC 7468, strict form of section 3).

One DER value has one accepted base64 text here: unused bits must be zero, nothing may stand between the blocks but
line ends. Otherwise bytes of a message could be changed without changing its meaning.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import lru_cache
from typing import Final

from marblerun.errors import Malformed

MAX_PEM_BYTES: Final = 1024 * 1024

_LINE: Final = 64


@lru_cache(maxsize=16)
def _block(label: str) -> re.Pattern[bytes]:
    begin = re.escape(f"-----BEGIN {label}-----".encode())
    end = re.escape(f"-----END {label}-----".encode())
    # No nested quantifier over the same characters: one pass, whatever the input.
    return re.compile(rb"[\r\n]*" + begin + rb"\r?\n([A-Za-z0-9+/=\r\n]*)" + end)


def decode_pem(text: bytes, label: str, *, max_blocks: int, max_bytes: int = MAX_PEM_BYTES) -> tuple[bytes, ...]:
    """The DER of every ``label`` block in ``text``, in order; an empty tuple for text without any block.

    Raises Malformed for more than ``max_blocks`` blocks, more than ``max_bytes`` bytes, another label, anything but
    line ends around the blocks, or base64 that is not the canonical text of its bytes.
    """
    if len(text) > max_bytes:
        raise Malformed(f"{len(text)} bytes, at most {max_bytes} are read", where="PEM")
    pattern = _block(label)
    blocks: list[bytes] = []
    offset = 0
    while match := pattern.match(text, offset):
        if len(blocks) == max_blocks:
            raise Malformed(f"more than {max_blocks} {label} blocks", where="PEM")
        blocks.append(_canonical_base64(match.group(1), offset))
        offset = match.end()
    if text[offset:].strip(b"\r\n"):
        raise Malformed(f"unexpected text at offset {offset}, where a {label} block or the end should be", where="PEM")
    return tuple(blocks)


def _canonical_base64(lines: bytes, offset: int) -> bytes:
    packed = lines.replace(b"\r\n", b"\n").replace(b"\n", b"")
    try:
        der = binascii.a2b_base64(packed, strict_mode=True)
    except ValueError as error:
        raise Malformed(f"block at offset {offset} is not base64", where="PEM") from error
    if not der or binascii.b2a_base64(der, newline=False) != packed:
        raise Malformed(f"block at offset {offset} is not canonical base64", where="PEM")
    return der


def encode_pem(der: bytes, label: str) -> str:
    """``der`` as one PEM block with lines of 64 characters and a final newline."""
    packed = base64.b64encode(der).decode("ascii")
    lines = [packed[i : i + _LINE] for i in range(0, len(packed), _LINE)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])
