"""The first PEM block of a text, found as tolerantly as Go's ``encoding/pem`` finds it.

Manifests carry certificates and keys as PEM text, and what counts in it must be what counts for the reference: text
before the block, headers, odd line lengths and everything after the block are allowed, a block that is broken is
passed over. For text that we make or sign nothing of this is wanted; that is :mod:`marblerun.wire.pem`.
Source: protocol, section 13.4; Go 1.26 ``encoding/pem``, compared with it in ``tests/wire/test_gopem.py``.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from marblerun.wire.gojson import decode_base64

_BEGIN: Final = b"-----BEGIN "
_END: Final = b"\n-----END "
_DASHES: Final = b"-----"


class Block(NamedTuple):
    """A PEM block: its label and what it encodes."""

    label: str
    data: bytes


def first_block(text: str) -> Block | None:
    """The first complete block, or ``None``. Linear in the length of the text."""
    raw = text.encode(errors="replace")
    start = 0
    while (end := raw.find(_END, start)) >= 0:
        block = _block_before(raw, start, end)
        if isinstance(block, Block):
            return block
        if block is None:
            return None
        start = block
    return None


def _block_before(raw: bytes, start: int, end: int) -> Block | int | None:
    """The block whose END line starts at ``end``; the offset where to go on if it is broken; None to give up."""
    behind = end + len(_END)
    begin = raw.rfind(_BEGIN, start, end)
    # The very start of what is left counts as a start of line.
    if begin < 0 or (begin > start and raw[begin - 1] != 0x0A):
        return behind
    label, at = _line(raw, begin + len(_BEGIN))
    if not label.endswith(_DASHES):
        return behind
    label = label.removesuffix(_DASHES)
    body = at
    while True:
        if at == len(raw):
            return None
        line, following = _line(raw, at)
        if b":" not in line:
            break
        at = following
    if at > body and at > end:
        return behind if at <= behind else None
    closing = label + _DASHES
    if not raw.startswith(closing, behind) or _line(raw, behind + len(closing))[0]:
        return behind
    try:
        inside = raw[at:end].translate(None, b" \t").decode("ascii")
        return Block(label.decode(errors="replace"), decode_base64(inside))
    except ValueError:
        return behind


def _line(raw: bytes, at: int) -> tuple[bytes, int]:
    """The line from an offset on, without white space at its end, and where the next one starts."""
    end = raw.find(b"\n", at)
    if end < 0:
        return raw[at:].rstrip(b" \t"), len(raw)
    return raw[at : end - 1 if end > at and raw[end - 1] == 0x0D else end].rstrip(b" \t"), end + 1
