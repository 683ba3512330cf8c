"""Quotes verified per second: ours, cold and warm, beside dcap-qvl on the same quotes in the same process.

Run ``python -m benchmarks.verification [--json] [--seconds S]`` from the project's root. Cold means a new verifier for
every quote: collateral parsed, all signatures checked. Warm means the caches of a running Coordinator: same collateral,
same machine, dates and revocation judged and the quote's signature checked every time. dcap-qvl has no caches; its
collateral object is made once outside the measurement. "new PCK" is warm collateral and a machine never seen before.
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
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral, TrustRoot

RECORDED = (
    "sgx/automata-00606a-platform",
    "sgx/phala-00a06711-processor",
    "tdx/near-b0c06f-2026",
    "tdx/gotdx-v5-90c06f",
)
ROUNDS = 5


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
    new_machine: float
    warm: float
    parse: float
    dcap_qvl: float | None

    @property
    def ratio(self) -> float | None:
        return None if self.dcap_qvl is None else self.dcap_qvl / self.warm


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

    actions: dict[str, Callable[[], object]] = {
        "cold": lambda: Verifier([case.root]).verify(quote, collateral, at),
        "new_machine": new_machine,
        "warm": lambda: warm.verify(quote, collateral, at),
        "parse": lambda: parse_quote(quote),
    }
    if (other := theirs(case)) is not None:
        actions["dcap_qvl"] = other
    measured = measure(actions, seconds)
    return Row(
        name=case.name,
        cold=measured["cold"],
        new_machine=measured["new_machine"],
        warm=measured["warm"],
        parse=measured["parse"],
        dcap_qvl=measured.get("dcap_qvl"),
    )


def show(rows: list[Row]) -> str:
    lines = [
        f"cryptography {cryptography.__version__}, Python {platform.python_version()}; microseconds of CPU a quote",
        "",
        f"{'quote':32} {'cold':>7} {'new PCK':>8} {'warm':>7} {'parse':>6} {'dcap-qvl':>9} {'ratio':>7} {'warm/s':>8}",
    ]
    for one in rows:
        other = "-" if one.dcap_qvl is None else f"{one.dcap_qvl:.0f}"
        ratio = "-" if one.ratio is None else f"{one.ratio:.1f}x"
        lines.append(
            f"{one.name:32} {one.cold:7.0f} {one.new_machine:8.0f} {one.warm:7.0f} {one.parse:6.1f}"
            f" {other:>9} {ratio:>7} {1e6 / one.warm:8.0f}"
        )
    ratios = [one.ratio for one in rows if one.ratio is not None]
    if ratios:
        lines += ["", f"warm, against dcap-qvl: {min(ratios):.1f}x to {max(ratios):.1f}x as fast"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Quotes verified per second, beside dcap-qvl.")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each number (default %(default)s)")
    options = parser.parse_args()
    rows = [row(case, options.seconds) for case in cases()]
    if options.json:
        print(json.dumps([asdict(one) | {"ratio": one.ratio} for one in rows], indent=2))
    else:
        print(show(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
