"""Quotes verified per second: ours, cold and warm, beside dcap-qvl on the same quotes in the same process.

Run ``python -m benchmarks.verification [--json] [--seconds S]`` from the project's root. Four situations:

* cold: a new verifier for every quote; all is read, all signatures are checked. Once in a Coordinator's life.
* new family: a platform family (FMSPC) never seen before; the vendor's CAs, CRLs and QE identity are known.
* new machine: a machine never seen before of a known family. Once a machine and QE start.
* warm: the same machine again; dates and revocation are judged and the quote's signature is checked. Every activation.

dcap-qvl has no caches; its collateral object is made once outside the measurement. ``floor`` is what the ECDSA
verifications of a cold run cost by themselves, and so what no verifier on this library can go below.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime

import cryptography
from tests.forge.dcap import NOW, Dcap, new_keys
from tests.vectors import load, vectors_directory

from marblerun.attestation.dcap.collateral import collateral_to_json
from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.dcap.signatures import read_raw_key, verify_raw_signature
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral, TrustRoot

RECORDED = (
    "sgx/automata-00606a-platform",
    "sgx/phala-00a06711-processor",
    "tdx/near-b0c06f-2026",
    "tdx/gotdx-v5-90c06f",
)
ROUNDS = 5
COLD_SIGNATURES = 10
"""Root, TCB signer, TCB Info, QE identity, root CRL, PCK CA, PCK CRL, PCK, QE report, quote."""
SITUATIONS = ("cold", "new_family", "new_machine", "warm")


@dataclass(frozen=True)
class Case:
    name: str
    quote: bytes
    collateral: Collateral
    at: datetime
    root: TrustRoot
    root_der: bytes | None


@dataclass(frozen=True)
class Row:
    """Microseconds of CPU for one verification."""

    name: str
    cold: float
    new_family: float
    new_machine: float
    warm: float
    parse: float
    ecdsa: float
    """One signature checked with a key in hand."""
    dcap_qvl: float | None

    @property
    def ratio(self) -> float | None:
        return self.ratio_of(self.warm)

    @property
    def floor(self) -> float:
        return COLD_SIGNATURES * self.ecdsa

    def ratio_of(self, ours: float) -> float | None:
        """How many times as fast as dcap-qvl."""
        return None if self.dcap_qvl is None else self.dcap_qvl / ours


def cases() -> list[Case]:
    """Recorded quotes that both verifiers accept; forged ones where there are no vectors."""
    found: list[Case] = []
    if vectors_directory() is not None:
        for name in RECORDED:
            vector = load(name)
            collateral, at = vector.verifiable()
            found.append(Case(name, vector.quote, collateral, at, vector.root, vector.root_certificate))
        return found
    for name, dcap in (("forged/sgx", Dcap()), ("forged/tdx-v5", Dcap(tdx=True, version=5))):
        minted = dcap.with_(keys=new_keys()).mint()
        found.append(Case(name, minted.quote, minted.collateral, NOW, minted.root, minted.root_der))
    return found


def measure(actions: dict[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Microseconds of CPU for one call of each action: the best of several rounds that take turns.

    CPU time and turns, so that a neighbour on the same machine slows all of them or none.
    """
    counts = {name: _calls(action, seconds / ROUNDS) for name, action in actions.items()}
    best = dict.fromkeys(actions, float("inf"))
    for _ in range(ROUNDS):
        for name, action in actions.items():
            best[name] = min(best[name], _cpu(action, counts[name]))
    return best


def _calls(action: Callable[[], object], seconds: float) -> int:
    action()
    return max(1, int(seconds * 1e6 / max(_cpu(action, 3), 0.1)))


def _cpu(action: Callable[[], object], calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        action()
    return (time.process_time() - start) / calls * 1e6


def theirs(case: Case) -> Callable[[], object] | None:
    """dcap-qvl on this case, or ``None`` if it is not installed."""
    try:
        import dcap_qvl
    except ImportError:
        return None
    collateral = dcap_qvl.QuoteCollateralV3.from_json(collateral_to_json(case.collateral))
    seconds = int(case.at.timestamp())
    if case.root_der is None:
        return lambda: dcap_qvl.verify(case.quote, collateral, seconds)
    root = case.root_der
    return lambda: dcap_qvl.verify_with_root_ca(case.quote, collateral, root, seconds)


def row(case: Case, seconds: float) -> Row:
    warm = Verifier([case.root])
    quote, collateral, at = case.quote, case.collateral, case.at

    def new_machine() -> None:
        warm.forget_evidence()
        warm.verify(quote, collateral, at)

    def new_family() -> None:
        warm.forget_platforms()
        warm.verify(quote, collateral, at)

    parsed = parse_quote(quote)
    key = read_raw_key(parsed.attestation_key, step="")
    actions: dict[str, Callable[[], object]] = {
        "cold": lambda: Verifier([case.root]).verify(quote, collateral, at),
        "new_family": new_family,
        "new_machine": new_machine,
        "warm": lambda: warm.verify(quote, collateral, at),
        "parse": lambda: parse_quote(quote),
        "ecdsa": lambda: verify_raw_signature(key, parsed.signature, parsed.signed, step="", what=""),
    }
    if (other := theirs(case)) is not None:
        actions["dcap_qvl"] = other
    return Row(name=case.name, **({"dcap_qvl": None} | measure(actions, seconds)))  # type: ignore[arg-type]


def show(rows: list[Row]) -> str:
    lines = [
        f"cryptography {cryptography.__version__}, Python {platform.python_version()}; microseconds of CPU a quote,"
        " in brackets how many times as fast as dcap-qvl",
        "",
        f"{'quote':30} {'dcap-qvl':>8} {'cold':>14} {'new family':>14} {'new machine':>14} {'warm':>14}"
        f" {'floor':>6} {'parse':>6}",
    ]
    for one in rows:
        other = "-" if one.dcap_qvl is None else f"{one.dcap_qvl:.0f}"
        cells = " ".join(f"{_cell(one, getattr(one, situation)):>14}" for situation in SITUATIONS)
        lines.append(f"{one.name:30} {other:>8} {cells} {one.floor:6.0f} {one.parse:6.1f}")
    lines += ["", f"{'quotes a second, warm':30} {'dcap-qvl':>8} {'ours':>8}"]
    for one in rows:
        other = "-" if one.dcap_qvl is None else f"{1e6 / one.dcap_qvl:.0f}"
        lines.append(f"{one.name:30} {other:>8} {1e6 / one.warm:8.0f}")
    ratios = [one.ratio for one in rows if one.ratio is not None]
    if ratios:
        lines += ["", f"warm, against dcap-qvl: {min(ratios):.1f}x to {max(ratios):.1f}x as fast"]
    return "\n".join(lines)


def _cell(row: Row, ours: float) -> str:
    ratio = row.ratio_of(ours)
    return f"{ours:.0f}" if ratio is None else f"{ours:.0f} ({ratio:.1f}x)"


def main() -> int:
    parser = argparse.ArgumentParser(description="Quotes verified per second, beside dcap-qvl.")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each number (default %(default)s)")
    options = parser.parse_args()
    rows = [row(case, options.seconds) for case in cases()]
    if options.json:
        print(json.dumps([asdict(one) | {"ratio": one.ratio, "floor": one.floor} for one in rows], indent=2))
    else:
        print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
