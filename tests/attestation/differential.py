"""Changed evidence and collateral before us and before dcap-qvl; each difference has a class, or is a failure.

About a minute; run ``python -m tests.attestation.differential``. A short form is in ``test_differential``.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import dcap_qvl
from cryptography import x509
from tests.attestation.sweep import genuine, parts
from tests.vectors import EXPECTED_DCAP_VECTORS, Vector, load, vectors_directory

from marblerun.attestation.dcap.collateral import collateral_to_json
from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral
from marblerun.errors import Malformed, Untrusted

Verdict = tuple[str, tuple[str, ...]] | str
"""Status and advisories, or the text of the refusal."""

CLASSES = {
    "root certificate": "dcap-qvl takes the root from its own package and does not look at the one in a chain; we "
    "check the chain's own root up to its signature",
    "PCK CRL issuer chain": "dcap-qvl does not look at it: it checks the CRL with the CA in the quote; we check both",
    "outer certification type": "dcap-qvl does not look at it (it must be 6 from version 4 on); neither is it signed",
    "bytes left over": "dcap-qvl ignores bytes behind what a shorter length leaves; we refuse them",
    "PEM armour": "dcap-qvl reads PEM leniently (labels, characters, text between blocks); we read one form",
}
"""Where dcap-qvl accepts what we refuse. There is no class the other way round."""

GENUINE_BUT_REFUSED = {
    "Debug mode is enabled": "a debug enclave or TD is authentic; a package may allow it",
    "SEPT_VE_DISABLE is not enabled": "authentic; a package may demand the bit",
    "Invalid MR service TD": "authentic; refused by the policy unless the package names the service TD",
}
"""Where dcap-qvl refuses what we call authentic, by its text: it judges attributes, which is the policy's work here."""

STRIDE = 5
"""Of the long run; prime."""


@dataclass(frozen=True)
class Change:
    """One byte of a quote (``field`` empty) or of a field of the collateral is another."""

    field: str
    offset: int
    mask: int

    def apply(self, vector: Vector, collateral: Collateral) -> tuple[bytes, Collateral]:
        if not self.field:
            return self._flip(vector.quote), collateral
        value: str | bytes = getattr(collateral, self.field)
        changed: str | bytes
        changed = (
            self._flip(value) if isinstance(value, bytes) else self._flip(value.encode()).decode("ascii", "replace")
        )
        replaced: dict[str, Any] = {self.field: changed}
        return vector.quote, replace(collateral, **replaced)

    def _flip(self, data: bytes) -> bytes:
        return data[: self.offset] + bytes([data[self.offset] ^ self.mask]) + data[self.offset + 1 :]


@dataclass
class Outcome:
    """How often both agreed, how often each class of difference was seen, and what has no class."""

    agreed: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Count what ``other`` has counted as well."""
        self.agreed += other.agreed
        self.classes += other.classes
        self.unexplained += other.unexplained


def theirs(quote: bytes, collateral: Collateral, seconds: int, root: bytes | None) -> Verdict:
    """What dcap-qvl says."""
    try:
        native = dcap_qvl.QuoteCollateralV3.from_json(collateral_to_json(collateral))
        if root is None:
            report = dcap_qvl.verify(quote, native, seconds)
        else:
            report = dcap_qvl.verify_with_root_ca(quote, native, root, seconds)
    except ValueError as error:
        return str(error)
    return report.status, tuple(report.advisory_ids)


def changes(vector: Vector, stride: int, start: int = 0) -> Iterator[Change]:
    """A change every ``stride`` bytes of the quote and of each field of the collateral."""
    collateral, _ = vector.verifiable()
    yield from (Change("", offset, 1 << offset % 8) for offset in range(start, len(vector.quote), stride))
    for name in Collateral.__dataclass_fields__:
        # Text stays ASCII.
        bits = 8 if isinstance(getattr(collateral, name), bytes) else 6
        length = len(getattr(collateral, name))
        yield from (Change(name, offset, 1 << offset % bits) for offset in range(start, length, stride))


def run(vector: Vector, wanted: Iterable[Change]) -> Outcome:
    """Both verifiers on every change."""
    collateral, at = vector.verifiable()
    verifier, outcome = Verifier([vector.root]), Outcome()
    for change in wanted:
        quote, changed = change.apply(vector, collateral)
        try:
            claims = verifier.verify(quote, changed, at)
            mine: Verdict = (claims.tcb_status.value, claims.advisories)
        except (Malformed, Untrusted) as error:
            mine = str(error)
        other = theirs(quote, changed, int(at.timestamp()), vector.root_certificate)
        if isinstance(mine, str) and isinstance(other, str):
            outcome.agreed["refused"] += 1
        elif mine == other:
            outcome.agreed["accepted"] += 1
        elif isinstance(mine, str) and (kind := classify(vector, change)):
            outcome.classes[kind] += 1
        else:
            outcome.unexplained.append(f"{vector.name}: {change}: ours {mine!r}, dcap-qvl {other!r}")
    return outcome


def classify(vector: Vector, change: Change) -> str | None:
    """Why dcap-qvl may accept what we refuse, by what was changed and not by what anybody said about it."""
    collateral, _ = vector.verifiable()
    if change.field == "pck_crl_issuer_chain":
        return "PCK CRL issuer chain"
    if change.field.endswith("_chain"):
        text, offset = getattr(collateral, change.field).encode(), change.offset
    elif not change.field:
        text = parse_quote(vector.quote).certification.data
        offset = change.offset - vector.quote.index(text)
        if not 0 <= offset < len(text):
            return _classify_frame(vector.quote, change)
    else:
        return None
    return _classify_pem(text, offset, change)


def _classify_frame(quote: bytes, change: Change) -> str | None:
    """Types and lengths around the parts; no signature covers them."""
    found = parts(quote)
    signature, report, chain = found["signature"][0], found["QE report"][0], found["chain"][0]
    outer = report - 6 if int.from_bytes(quote[:2], "little") >= 4 else None
    if outer is not None and outer <= change.offset < outer + 2:
        return "outer certification type"
    lengths = [signature - 4, chain + 2, *([] if outer is None else [outer + 2])]
    shorter = bool(quote[change.offset] & change.mask)
    if shorter and any(start <= change.offset < start + 4 for start in lengths):
        return "bytes left over"
    return None


_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)


def _classify_pem(text: bytes, offset: int, change: Change) -> str | None:
    for match in _BLOCK.finditer(text):
        if match.start() <= offset < match.end():
            certificate = x509.load_der_x509_certificate(base64.b64decode(match[1]))
            if certificate.subject == certificate.issuer:
                return "root certificate"
            if not match.start(1) <= offset < match.end(1):
                return "PEM armour"
            flipped = bytearray(match[1])
            flipped[offset - match.start(1)] ^= change.mask
            return "PEM armour" if _decoded(bytes(flipped)) == _decoded(match[1]) else None
    return "PEM armour"


def _decoded(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text)
    except ValueError:
        return None


def main() -> int:
    """All genuine quotes; 1 if a difference has no class, 2 without vectors."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.attestation.differential",
        description="Recorded quotes and collateral, one byte changed at a time, before us and before dcap-qvl.",
        epilog="Ends with 1 if a difference has no class.",
    )
    parser.add_argument("--vector", default="", metavar="TEXT", help="only quotes with this in their name")
    parser.add_argument("--stride", type=int, default=STRIDE, metavar="N", help="every Nth byte; default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=1800, metavar="S", help="begin no further quote after S; default: %(default)s"
    )
    arguments = parser.parse_args()
    if arguments.stride < 1:
        parser.error("--stride must be 1 or more")
    warnings.simplefilter("ignore")
    if vectors_directory() is None:
        print(f"no vectors: {EXPECTED_DCAP_VECTORS} recorded entries are not compared; set MARBLERUN_VECTORS")
        return 2
    return _compare([name for name in genuine() if arguments.vector in name], arguments.stride, arguments.seconds)


def _compare(names: Sequence[str], stride: int, seconds: float) -> int:
    began, total, whole, done = time.monotonic(), Outcome(), Counter[str](), 0
    for index, name in enumerate(names):
        if time.monotonic() - began > seconds:
            break
        done += 1
        vector = load(name)
        verdict = theirs(vector.quote, *_rest(vector))
        print(f"[{done}/{len(names)}] {name}: ", end="", flush=True)
        if isinstance(verdict, str):
            reason = next((text for text in GENUINE_BUT_REFUSED if text in verdict), None)
            whole[reason or verdict] += 1
            total.unexplained += [] if reason else [f"{name}: dcap-qvl refuses the genuine quote: {verdict}"]
            print(f"not changed, dcap-qvl refuses it as it is: {reason or verdict}")
            continue
        start = time.monotonic()
        outcome = run(vector, changes(vector, stride, index % stride))
        total.add(outcome)
        print(f"{dict(outcome.agreed)}, {dict(outcome.classes)}, {time.monotonic() - start:.1f} s")
    return _summary(total, whole, done, len(names))


def _summary(total: Outcome, whole: Counter[str], done: int, wanted: int) -> int:
    for what, count in total.agreed.most_common():
        print(f"{count:7} both {what}")
    for kind, count in total.classes.most_common():
        print(f"{count:7} only dcap-qvl accepts: {kind}: {CLASSES[kind]}")
    for text, count in whole.most_common():
        print(f"{count:7} genuine quotes that only we accept: {text}: {GENUINE_BUT_REFUSED.get(text, 'NO CLASS')}")
    if done < wanted:
        print(f"stopped for time after {done} of {wanted} quotes; --seconds gives more")
    for line in total.unexplained:
        print(f"  UNEXPLAINED {line}")
    bad = len(total.unexplained)
    print(f"{bad} differences have no class" if bad else "every difference has its class")
    return 1 if bad else 0


def _rest(vector: Vector) -> tuple[Collateral, int, bytes | None]:
    collateral, at = vector.verifiable()
    return collateral, int(at.timestamp()), vector.root_certificate


if __name__ == "__main__":
    sys.exit(main())
