"""Sweeps over recorded quotes: every byte changed, every length cut. Slow; run ``python -m tests.attestation.sweep``.

Nothing but our own errors may come out, and nothing changed may be accepted.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.vectors import Vector, load, names

from marblerun.attestation.dcap.verify import Verifier
from marblerun.errors import Malformed, Untrusted

# One bit, the bit between upper and lower case, the top bit, all bits.
MASKS = (0x01, 0x20, 0x80, 0xFF)

# What no rule covers: the NUL behind the certificate chain and the line ends between its blocks may become other line
# ends, or the NUL go (with all lengths changed accordingly), as producers differ there (formats, section 1.4). No mask
# above does that, so nothing changed by them may be accepted: header and body are signed, lengths must fit, the
# certificates are signed up to the root, which signs itself, and their base64 must be canonical.


@dataclass
class Result:
    """What became of the changed quotes: how often each step refused, and which changes were accepted."""

    refused: Counter[str] = field(default_factory=Counter)
    accepted: list[str] = field(default_factory=list)


def flipped(quote: bytes, offsets: Iterable[int], masks: Iterable[int] = MASKS) -> Iterator[tuple[str, bytes]]:
    """The quote with one byte changed, for each offset and mask."""
    for offset in offsets:
        for mask in masks:
            changed = bytearray(quote)
            changed[offset] ^= mask
            yield f"byte {offset} ^ 0x{mask:02x}", bytes(changed)


def truncated(quote: bytes, lengths: Iterable[int]) -> Iterator[tuple[str, bytes]]:
    """The quote cut off at each length."""
    for length in lengths:
        yield f"cut at {length}", quote[:length]


def sweep(vector: Vector, changes: Iterable[tuple[str, bytes]], verifier: Verifier | None = None) -> Result:
    """Verifies every changed quote with the vector's own collateral and time; other errors than ours come through."""
    collateral, at = vector.verifiable()
    verifier = verifier or Verifier([vector.root])
    result = Result()
    for what, changed in changes:
        try:
            verifier.verify(changed, collateral, at)
        except Malformed:
            result.refused["parse"] += 1
        except Untrusted as refusal:
            result.refused[refusal.step] += 1
        else:
            result.accepted.append(what)
    return result


def genuine() -> list[str]:
    """The recorded and simulated quotes that verify, each quote once."""
    unique: dict[bytes, str] = {}
    for name in names("sgx", "tdx", "sim"):
        vector = load(name)
        if vector.ok:
            unique.setdefault(vector.quote, name)
    return list(unique.values())


def main() -> int:
    """All genuine quotes, every byte and every length; 1 if a changed one was accepted."""
    bad = 0
    for name in genuine():
        vector = load(name)
        start = time.perf_counter()
        size = len(vector.quote)
        flips = sweep(vector, flipped(vector.quote, range(size)))
        cuts = sweep(vector, truncated(vector.quote, range(size)))
        bad += len(flips.accepted) + len(cuts.accepted)
        print(f"{name}: {size} bytes, {time.perf_counter() - start:.1f} s")
        print(f"  flipped:   {dict(flips.refused.most_common())}, accepted: {flips.accepted or 'none'}")
        print(f"  truncated: {dict(cuts.refused.most_common())}, accepted: {cuts.accepted or 'none'}", flush=True)
    print(f"{bad} changed quotes were accepted" if bad else "every changed quote was refused")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
