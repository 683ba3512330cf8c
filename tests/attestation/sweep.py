"""Sweeps over recorded quotes. Slow; run ``python -m tests.attestation.sweep`` (``make fuzz``); short forms are tests.

1. every byte changed, every length cut    2. parts of two quotes put together    3. collateral of others
4. each date, a second before, at and after    5. changed inputs before us and before dcap-qvl

Nothing but our own errors may come out, and nothing may be accepted that does not belong together.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from tests.vectors import Vector, load, names

from marblerun.attestation.dcap.quote import parse_quote, strip_oe_header
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral
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


PARTS = ("header", "body", "signature", "attestation key", "QE report", "QE report signature", "QE data", "chain")


def parts(quote: bytes) -> dict[str, tuple[int, int]]:
    """Where each part of a raw quote lies, as start and end."""
    version = int.from_bytes(quote[:2], "little")
    parsed = parse_quote(quote)
    signed, start = len(parsed.signed), len(parsed.signed) + 4
    report = start + 128 + (6 if version >= 4 else 0)
    data = report + 448
    chain = data + 2 + len(parsed.qe_auth_data)
    return {
        "header": (0, 48),
        "body": (48, signed),
        "signature": (start, start + 64),
        "attestation key": (start + 64, start + 128),
        "QE report": (report, report + 384),
        "QE report signature": (report + 384, report + 448),
        "QE data": (data, chain),
        "chain": (chain, chain + 6 + len(parsed.certification.data)),
    }


def exchanged(one: bytes, other: bytes) -> Iterator[tuple[str, bytes]]:
    """The first quote with each part, and each run of parts, from the second, where lengths fit and bytes differ."""
    mine, theirs = parts(one), parts(other)
    for first in range(len(PARTS)):
        for last in range(first, len(PARTS)):
            start, end = mine[PARTS[first]][0], mine[PARTS[last]][1]
            piece = other[theirs[PARTS[first]][0] : theirs[PARTS[last]][1]]
            whole = one[:start] + piece + one[end:]
            # What comes out is neither of the two, or there is nothing to refuse.
            if len(piece) == end - start and whole not in (one, other):
                yield f"{PARTS[first]} to {PARTS[last]}", whole


SIGNED_TOGETHER = {
    "tcb_info": ("tcb_info", "tcb_info_signature", "tcb_info_issuer_chain"),
    "qe_identity": ("qe_identity", "qe_identity_signature", "qe_identity_issuer_chain"),
    "pck_crl": ("pck_crl", "pck_crl_issuer_chain"),
    "root_ca_crl": ("root_ca_crl",),
}


def borrowed(mine: Collateral, other: Collateral) -> Iterator[tuple[str, Collateral]]:
    """The first collateral with one signed part, and all that belongs to its signature, from the second."""
    for name, fields in SIGNED_TOGETHER.items():
        changes: dict[str, Any] = {field: getattr(other, field) for field in fields}
        yield name, replace(mine, **changes)


def belongs(name: str, vector: Vector, other: Vector) -> bool:
    """Whether a part of another's collateral is about the vector's platform as well, and genuine under its root."""
    mine, theirs = vector.verifiable()[0], other.verifiable()[0]
    if vector.root != other.root:
        return False
    if name == "root_ca_crl":
        return True
    if name == "pck_crl":
        return _issuer(mine.pck_crl) == _issuer(theirs.pck_crl)
    keys = ("id", "fmspc", "pceId") if name == "tcb_info" else ("id",)
    ours, others = json.loads(getattr(mine, name)), json.loads(getattr(theirs, name))
    return all(str(ours.get(key)).lower() == str(others.get(key)).lower() for key in keys)


def _issuer(crl: bytes) -> x509.Name:
    return x509.load_der_x509_crl(crl).issuer


def periods(vector: Vector) -> list[tuple[datetime, datetime]]:
    """From when to when each part of quote and collateral is valid, read without the verifier."""
    collateral, _ = vector.verifiable()
    chains = (collateral.tcb_info_issuer_chain, collateral.qe_identity_issuer_chain, collateral.pck_crl_issuer_chain)
    pem = parse_quote(vector.quote).certification.data.rstrip(b"\0")
    found = [
        (one.not_valid_before_utc, one.not_valid_after_utc)
        for text in (*(chain.encode() for chain in chains), pem)
        for one in x509.load_pem_x509_certificates(text)
    ]
    for encoded in (collateral.root_ca_crl, collateral.pck_crl):
        crl = x509.load_der_x509_crl(encoded)
        assert crl.next_update_utc is not None
        found.append((crl.last_update_utc, crl.next_update_utc))
    for text in (collateral.tcb_info, collateral.qe_identity):
        document = json.loads(text)
        found.append((_time(document["issueDate"]), _time(document["nextUpdate"])))
    return found


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def at_the_edges(vector: Vector) -> list[str]:
    """Times a second before, at and after each boundary at which the verifier did not say what the dates say."""
    verifier, wrong = Verifier([vector.root]), []
    collateral, _ = vector.verifiable()
    dates = periods(vector)
    second = timedelta(seconds=1)
    moments = {edge + step for period in dates for edge in period for step in (-second, timedelta(), second)}
    for at in sorted(moments):
        expected = all(first <= at <= last for first, last in dates)
        try:
            verifier.verify(vector.quote, collateral, at)
            accepted = True
        except Untrusted as refusal:
            accepted = refusal.reason not in ("expired", "not-yet-valid")
        if accepted != expected:
            wrong.append(f"{vector.name} at {at:%Y-%m-%dT%H:%M:%SZ}: accepted is {accepted}")
    return wrong


def swaps(one: Vector, other: Vector, verifier: Verifier) -> list[str]:
    """What was wrongly accepted of the one's quote with parts of the other's, and with the other's collateral."""
    wrong = []
    if raw(one)[:8] == raw(other)[:8]:
        result = sweep(replace(one, quote=raw(one)), exchanged(raw(one), raw(other)), verifier)
        wrong += [f"{one.name} with {what} of {other.name}" for what in result.accepted]
    collateral, at = one.verifiable()
    for name, changed in borrowed(collateral, other.verifiable()[0]):
        try:
            verifier.verify(one.quote, changed, at)
        except Untrusted:
            continue
        if not belongs(name, one, other):
            wrong.append(f"{one.name} with {name} of {other.name}")
    return wrong


def raw(vector: Vector) -> bytes:
    """The quote without Open Enclave's header."""
    return strip_oe_header(vector.quote)


def main() -> int:
    """All sweeps over all genuine quotes; 1 if one found something."""
    warnings.simplefilter("ignore")
    names = genuine()
    found = [*_every_byte(names), *_every_pair(names)]
    edges = [line for name in names for line in at_the_edges(load(name))]
    print(f"dates: {len(edges)} wrong at the boundaries of {len(names)} quotes")
    for line in (*found, *edges):
        print(f"  WRONG {line}")
    print(f"{len(found) + len(edges)} findings" if found or edges else "nothing was accepted that should not be")
    try:
        from tests.attestation import differential
    except ImportError:
        print("dcap-qvl is not installed; no differential run")
        return bool(found or edges)
    return max(int(bool(found or edges)), differential.main())


def _every_byte(names: list[str]) -> Iterator[str]:
    for name in names:
        vector = load(name)
        start = time.perf_counter()
        size = len(vector.quote)
        flips = sweep(vector, flipped(vector.quote, range(size)))
        cuts = sweep(vector, truncated(vector.quote, range(size)))
        print(f"{name}: {size} bytes, {time.perf_counter() - start:.1f} s")
        print(f"  flipped:   {dict(flips.refused.most_common())}")
        print(f"  truncated: {dict(cuts.refused.most_common())}", flush=True)
        yield from (f"{name}: {what}" for what in (*flips.accepted, *cuts.accepted))


def _every_pair(names: list[str]) -> Iterator[str]:
    pairs = 0
    for one in map(load, names):
        verifier = Verifier([one.root])
        for other in map(load, names):
            if one.name != other.name:
                pairs += 1
                yield from swaps(one, other, verifier)
    print(f"swaps: {pairs} pairs", flush=True)


if __name__ == "__main__":
    sys.exit(main())
