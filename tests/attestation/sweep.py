"""Sweeps over recorded quotes. Slow; run ``python -m tests.attestation.sweep`` (``make fuzz``); short forms are tests.

1. every byte changed, every length cut, bytes put behind    2. parts of two quotes put together
3. collateral of others    4. each date, a second before, at and after

``python -m tests.attestation.sweep bytes swaps dates`` runs some of them, ``--vector TEXT`` those quotes only.
Nothing but our own errors may come out, and nothing may be accepted that does not belong together.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

from cryptography import x509
from tests.vectors import EXPECTED_DCAP_VECTORS, Vector, load, names, vectors_directory

from marblerun.attestation.dcap.pck import collateral_key
from marblerun.attestation.dcap.quote import add_oe_header, parse_quote, strip_oe_header
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral
from marblerun.errors import Malformed, Untrusted

# Each bit alone, and all of them.
MASKS = (*(1 << bit for bit in range(8)), 0xFF)
ALL_MASKS = range(1, 256)

LINE_END = "a line end behind a certificate: CR for LF, or the other way round"
FINAL_NUL = "the NULs behind the chain, of which producers write none, one or several: line ends for NULs and back"


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


def unsigned(quote: bytes) -> set[int]:
    """Offsets of a raw quote that no signature covers: lengths, types, and the PEM text around the base64."""
    found, start = parts(quote), parts(quote)["chain"][0] + 6
    text = quote[start:]
    base64 = {start + i for match in _BASE64.finditer(text) for i in range(match.start(1), match.end(1))}
    covered = [found[name] for name in PARTS if name not in ("QE data", "chain")]
    covered.append((found["QE data"][0] + 2, found["QE data"][1]))
    return set(range(len(quote))) - {i for first, last in covered for i in range(first, last)} - base64


_BASE64 = re.compile(rb"(?:^|\n)([A-Za-z0-9+/=]+)\r?(?=\n)")


def uncovered(quote: bytes) -> dict[tuple[int, int], str]:
    """What may be changed in a raw quote without anybody noticing: offset, new value and the reason. Exact.

    The chain is text; which line ends stand behind its certificates and how many NULs end it says nothing, and
    producers differ (formats, section 1.4). Everything else is refused: header and body are signed, lengths and types
    must fit, certificates are signed up to the root, which signs itself, and their base64 must be canonical.
    """
    start = parts(quote)["chain"][0] + 6
    text, found = quote[start:], dict[tuple[int, int], str]()
    for match in re.finditer(rb"(?<=-----END CERTIFICATE-----)[\r\n]+", text):
        for at in range(match.start(), match.end()):
            found[start + at, 0x0A ^ 0x0D ^ text[at]] = LINE_END
    for match in re.finditer(rb"\r(?=\n)", text):
        found[start + match.start(), 0x0A] = LINE_END
    ending = text[len(text.rstrip(b"\r\n\0")) :]
    for i, value in product(range(len(ending)), b"\r\n\0"):
        changed = ending[:i] + bytes([value]) + ending[i + 1 :]
        if changed != ending and re.fullmatch(rb"[\r\n]*\0*", changed):
            found.setdefault((start + len(text) - len(ending) + i, value), FINAL_NUL)
    return found


def extended(quote: bytes) -> Iterator[tuple[str, bytes]]:
    """The quote with bytes behind it, also where all lengths count them."""
    for name, more in (("a NUL", b"\0"), ("a line end", b"\n"), ("16 NULs", bytes(16)), ("a quote", quote)):
        yield f"{name} behind", quote + more
    signature = len(parse_quote(quote).signed)
    for more in (b"\0 ", b" ", b"\0\n", b"A", b"-----BEGIN"):
        longer = bytearray(quote + more)
        # v3: signature data, chain; from v4 on the outer certification data too.
        chain = parts(quote)["chain"][0]
        fields = [signature, chain + 2, *([signature + 4 + 130] if quote[0] >= 4 else [])]
        for offset in fields:
            size = int.from_bytes(longer[offset : offset + 4], "little") + len(more)
            longer[offset : offset + 4] = size.to_bytes(4, "little")
        yield f"{more!r} behind the chain, counted", bytes(longer)


def every_byte(quote: bytes) -> Iterator[tuple[str, bytes]]:
    """The raw quote with each byte changed: each bit, and to every other value where no signature covers it."""
    free, listed = unsigned(quote), uncovered(quote)
    for offset, value in enumerate(quote):
        for mask in ALL_MASKS if offset in free else MASKS:
            if (offset, value ^ mask) not in listed:
                yield from flipped(quote, [offset], [mask])


def stale(vector: Vector, verifier: Verifier) -> list[str]:
    """Changes that are listed as not covered, but are refused."""
    collateral, at = vector.verifiable()
    found = []
    for (offset, value), reason in uncovered(vector.quote).items():
        try:
            verifier.verify(vector.quote[:offset] + bytes([value]) + vector.quote[offset + 1 :], collateral, at)
        except (Malformed, Untrusted) as error:
            found.append(f"byte {offset} to 0x{value:02x} is listed ({reason}), but: {error}")
    return found


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


def every_genuine() -> list[str]:
    """The recorded and simulated entries that verify; some have the same quote with other collateral."""
    return [name for name in names("sgx", "tdx", "sim") if load(name).ok]


def genuine() -> list[str]:
    """The recorded and simulated quotes that verify, each quote once."""
    unique: dict[bytes, str] = {}
    for name in every_genuine():
        unique.setdefault(load(name).quote, name)
    return list(unique.values())


def others() -> list[str]:
    """The recorded entries that cannot be verified: without collateral, or not genuine."""
    return [name for name in names("sgx", "tdx", "sim") if not load(name).ok]


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


def periods(vector: Vector) -> list[tuple[datetime, datetime, str]]:
    """From when to when each part of quote and collateral is valid, and the step that must say so.

    Read without the verifier.
    """
    collateral, _ = vector.verifiable()
    chains = (
        (collateral.tcb_info_issuer_chain.encode(), "tcb-signer"),
        (collateral.qe_identity_issuer_chain.encode(), "tcb-signer"),
        (collateral.pck_crl_issuer_chain.encode(), "pck-crl"),
        (parse_quote(vector.quote).certification.data.rstrip(b"\0"), "pck-chain"),
    )
    found = [
        (one.not_valid_before_utc, one.not_valid_after_utc, step)
        for text, step in chains
        for one in x509.load_pem_x509_certificates(text)
    ]
    for encoded, step in ((collateral.root_ca_crl, "root-crl"), (collateral.pck_crl, "pck-crl")):
        crl = x509.load_der_x509_crl(encoded)
        assert crl.next_update_utc is not None
        found.append((crl.last_update_utc, crl.next_update_utc, step))
    for text, step in ((collateral.tcb_info, "tcb-info"), (collateral.qe_identity, "qe-identity")):
        document = json.loads(text)
        found.append((_time(document["issueDate"]), _time(document["nextUpdate"]), step))
    return found


def _time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def at_the_edges(vector: Vector) -> list[str]:
    """Times a second before, at and after each boundary at which the verifier did not say what the dates say.

    A refusal must name a part that is not valid then, and whether it is too early or too late.
    """
    verifier, wrong = Verifier([vector.root]), []
    collateral, _ = vector.verifiable()
    dates = periods(vector)
    second = timedelta(seconds=1)
    edges = {edge for first, last, _ in dates for edge in (first, last)}
    for at in sorted(edge + step for edge in edges for step in (-second, timedelta(), second)):
        early = {(step, "not-yet-valid") for first, _, step in dates if at < first}
        expected = early | {(step, "expired") for _, last, step in dates if at > last} or {("", "")}
        try:
            verifier.verify(vector.quote, collateral, at)
            said = ("", "")
        except Untrusted as refusal:
            said = (refusal.step, refusal.reason)
        if said not in expected:
            wrong.append(f"{vector.name} at {at:%Y-%m-%dT%H:%M:%SZ}: {said}, expected one of {sorted(expected)}")
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
    parser = argparse.ArgumentParser(prog="python -m tests.attestation.sweep", description="Sweep recorded quotes.")
    parser.add_argument("sweeps", nargs="*", metavar="SWEEP", help=f"of {', '.join(SWEEPS)}; default: all")
    parser.add_argument("--vector", default="", metavar="TEXT", help="only quotes with this in their name")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.sweeps) - set(SWEEPS)):
        parser.error(f"no such sweep: {', '.join(unknown)}")
    warnings.simplefilter("ignore")
    if vectors_directory() is None:
        print(f"no vectors: {EXPECTED_DCAP_VECTORS} recorded entries are not swept; set MARBLERUN_VECTORS")
        return 2
    found = [line for name in arguments.sweeps or SWEEPS for line in SWEEPS[name](arguments.vector)]
    for line in found:
        print(f"  WRONG {line}")
    print(f"{len(found)} findings" if found else "nothing was accepted that should not be, and nothing else came out")
    return bool(found)


def _every_byte(only: str) -> Iterator[str]:
    for name in (one for one in genuine() if only in one):
        recorded, start = load(name), time.perf_counter()
        vector = replace(recorded, quote=raw(recorded))
        verifier, size = Verifier([vector.root]), len(vector.quote)
        flips = sweep(vector, every_byte(vector.quote), verifier)
        # The header in front has nothing to spare.
        wrapped = add_oe_header(vector.quote)
        header = sweep(replace(vector, quote=wrapped), flipped(wrapped, range(16), ALL_MASKS), verifier)
        cuts = sweep(vector, truncated(vector.quote, range(size)), verifier)
        more = sweep(vector, extended(vector.quote), verifier)
        listed = Counter(uncovered(vector.quote).values())
        print(f"{name}: {size} bytes, {len(unsigned(vector.quote))} unsigned, {time.perf_counter() - start:.1f} s")
        for what, result in (("flipped", flips), ("header", header), ("truncated", cuts), ("extended", more)):
            print(f"  {what + ':':11}{dict(result.refused.most_common())}")
            yield from (f"{name}: {what}: {change}" for change in result.accepted)
        print(f"  uncovered: {dict(listed)}", flush=True)
        yield from (f"{name}: {line}" for line in stale(vector, verifier))
    for name in (one for one in others() if only in one):
        yield from only_ours(load(name), range(len(load(name).quote)))


def only_ours(vector: Vector, offsets: Iterable[int]) -> list[str]:
    """Changes to a quote that cannot be verified which verify under an Intel root all the same: there must be none."""
    verifier, found = Verifier([vector.root]), []
    for what, changed in flipped(vector.quote, offsets, masks=(0x01, 0xFF)):
        with suppress(Malformed, Untrusted):
            collateral_key(parse_quote(changed))
            if vector.collateral is not None and vector.at is not None:
                verifier.verify(changed, vector.collateral, vector.at)
                found.append(f"{vector.name}: {what}")
    return found


def _every_date(only: str) -> Iterator[str]:
    names = [name for name in every_genuine() if only in name]
    for name in names:
        yield from at_the_edges(load(name))
    print(f"dates: {len(names)} quotes", flush=True)


def _every_pair(only: str) -> Iterator[str]:
    pairs, names = 0, genuine()
    for one in (load(name) for name in names if only in name):
        verifier = Verifier([one.root])
        for other in map(load, names):
            if one.name != other.name:
                pairs += 1
                yield from swaps(one, other, verifier)
    print(f"swaps: {pairs} pairs", flush=True)


SWEEPS: dict[str, Callable[[str], Iterator[str]]] = {"bytes": _every_byte, "swaps": _every_pair, "dates": _every_date}


if __name__ == "__main__":
    sys.exit(main())
