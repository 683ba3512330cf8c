"""What a row found, and the table of all rows: as text, as Markdown for the documentation, as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

LABEL, WHAT = 44, 34


@dataclass(frozen=True, slots=True)
class Check:
    """One number beside its goal."""

    what: str
    value: float
    unit: str
    """``x`` for a ratio."""
    limit: float | None = None
    """The most it may be; None: no goal, for information."""
    low: float | None = None
    high: float | None = None
    """The middle half of the single measurements, or their range; what it is says ``spread`` of the row."""

    @property
    def is_met(self) -> bool:
        """Whether the goal is reached; a number without a goal always is."""
        return self.limit is None or self.value <= self.limit

    @property
    def verdict(self) -> str:
        """``met``, by how much it is missed, or nothing."""
        if self.limit is None:
            return ""
        if self.is_met:
            return "met"
        if self.limit == 0:
            return f"missed: {self.value:g}"
        return f"missed by {math.ceil((self.value / self.limit - 1) * 100)} %"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the issue's table and everything that was measured for it."""

    key: str
    """What ``--only`` calls it."""
    label: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    """Whatever else was seen, for JSON."""

    def as_json(self) -> dict[str, Any]:
        """As values of JSON."""
        checks = [
            {
                "what": check.what,
                "value": check.value,
                "unit": check.unit,
                "goal": check.limit,
                "of_goal": None if not check.limit else check.value / check.limit,
                "met": check.is_met,
                "spread": None if check.low is None else [check.low, check.high],
            }
            for check in self.checks
        ]
        return {
            "row": self.key,
            "label": self.label,
            "checks": checks,
            "notes": list(self.notes),
            "details": self.details,
        }


def median_check(what: str, values: Sequence[float], unit: str, limit: float | None = None) -> Check:
    """The median of paired or repeated measurements, with the middle half of them as spread."""
    low, high = quartiles(values)
    return Check(what, statistics.median(values), unit, limit, low, high)


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of the middle half; the range if there are fewer than four."""
    if len(values) < 4:
        return min(values), max(values)
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of the values that ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, min(len(ordered) - 1, -(-int(len(ordered) * share * 1000) // 1000) - 1))]


def _number(value: float, unit: str) -> str:
    digits = 2 if abs(value) < 100 else 0
    return f"{value:.{digits}f}" + ("x" if unit == "x" else f" {unit}" if unit else "")


def _cells(row: Row, check: Check) -> tuple[str, str, str, str, str]:
    spread = "" if check.low is None or check.high is None else f"{check.low:.2f} to {check.high:.2f}"
    goal = "" if check.limit is None else f"<= {check.limit:g}" + ("x" if check.unit == "x" else f" {check.unit}")
    return check.what, goal.rstrip(), _number(check.value, check.unit), spread, check.verdict


def as_text(rows: Iterable[Row]) -> str:
    """For a terminal."""
    lines = []
    for row in rows:
        label = row.label
        for check in row.checks:
            what, goal, value, spread, verdict = _cells(row, check)
            lines.append(f"{label:{LABEL}.{LABEL}} {what:{WHAT}.{WHAT}} {value:>12} {goal:>12} {spread:>18}  {verdict}")
            label = ""
        lines += [f"    {note}" for note in row.notes]
    return "\n".join(lines)


def text_header() -> str:
    """What stands over :func:`as_text`."""
    title = f"{'work':{LABEL}} {'number':{WHAT}} {'value':>12} {'goal':>12} {'spread':>18}  verdict"
    return f"{title}\n{'-' * len(title)}"


def as_markdown(rows: Iterable[Row]) -> str:
    """For docs/performance.md."""
    lines = ["| work | number | goal | value | spread | verdict |", "|---|---|---|---|---|---|"]
    notes = []
    for row in rows:
        label = row.label
        for check in row.checks:
            what, goal, value, spread, verdict = _cells(row, check)
            lines.append(f"| {label} | {what} | {goal} | {value} | {spread} | {verdict} |")
            label = ""
        notes += [f"* {row.label}: {note}" for note in row.notes]
    return "\n".join([*lines, *([""] if notes else []), *notes])
