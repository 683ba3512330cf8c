"""Row: verification of a quote, warm as in almost all activations, beside dcap-qvl in the same process."""

from __future__ import annotations

import statistics
from dataclasses import asdict

from benchmarks import verification
from benchmarks.effort import Effort
from benchmarks.table import Check, Row, median_check

# At least four times faster.
WARM_GOAL = 0.25


def verification_row(effort: Effort) -> Row:
    """The medians over recorded quotes, or over minted ones where there are no recordings."""
    rows = [verification.row(case, effort.seconds_a_number) for case in verification.cases()]
    checks = [
        median_check("CPU a quote, warm", [one.warm for one in rows], "us"),
        median_check("CPU a quote, cold", [one.cold for one in rows], "us"),
    ]
    theirs = [one.dcap_qvl for one in rows if one.dcap_qvl is not None]
    if theirs:
        checks.append(median_check("dcap-qvl", theirs, "us"))
        warm = [one.warm / one.dcap_qvl for one in rows if one.dcap_qvl]
        checks.append(Check("warm, of dcap-qvl", statistics.median(warm), "x", WARM_GOAL, min(warm), max(warm)))
        cold = [one.cold / one.dcap_qvl for one in rows if one.dcap_qvl]
        checks.append(Check("cold, of dcap-qvl", statistics.median(cold), "x", None, min(cold), max(cold)))
    notes = () if theirs else ("dcap-qvl is not installed",)
    return Row("verification", "verification of a quote", tuple(checks), notes, {one.name: asdict(one) for one in rows})
