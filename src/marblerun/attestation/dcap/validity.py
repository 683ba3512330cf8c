"""Periods of validity: what was authentic once is asked again for its dates on every verification."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from marblerun.errors import Untrusted


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when something holds, both ends included, and the step that refuses it outside."""

    step: str
    what: str
    not_before: datetime
    not_after: datetime


def verify_validity(periods: Iterable[Validity], at: datetime) -> None:
    """Untrusted with the step of the first period that ``at`` lies outside of (``not-yet-valid`` or ``expired``).

    Rules 3.1.8 (certificates), 4.1.2 (TCB Info), 4.2.3 (QE identity), 6.1.2 and 6.2.3 (revocation lists).
    """
    for period in periods:
        if at < period.not_before:
            raise Untrusted(
                f"{period.what} is valid from {_show(period.not_before)}, the time is {_show(at)}",
                step=period.step,
                reason="not-yet-valid",
            )
        if at > period.not_after:
            raise Untrusted(
                f"{period.what} was valid until {_show(period.not_after)}, the time is {_show(at)}",
                step=period.step,
                reason="expired",
            )


def _show(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")
