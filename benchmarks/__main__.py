"""``python -m benchmarks``: every benchmark with its peer or floor, in one run on this machine.

Absolute times depend on the machine and its neighbours; the ratios of one run do not. Options: ``--json`` for one JSON
object on standard output, ``--only verification|activation``.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from benchmarks import activation, verification

SECONDS_A_NUMBER = 0.5


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Hot paths beside a peer or a floor.")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--only", choices=("verification", "activation"), help="run one of them")
    options = parser.parse_args()
    results: dict[str, object] = {}
    if options.only != "activation":
        rows = [verification.row(case, SECONDS_A_NUMBER) for case in verification.cases()]
        results["verification"] = [asdict(one) | {"ratio": one.ratio, "floor": one.floor} for one in rows]
        if not options.json:
            print(verification.show(rows), end="\n\n")
    if options.only != "verification":
        floor, measured = activation.floor_ms(), activation.run()
        results["activation"] = {"floor_ms": floor, "rows": [asdict(one) for one in measured]}
        if not options.json:
            print(activation.show(floor, measured))
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
