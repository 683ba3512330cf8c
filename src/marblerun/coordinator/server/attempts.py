"""How often an address may fail to show who it is: a token bucket for each, and a bounded number of them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from marblerun.coordinator.server.overload import network_of

# A person with wrong secrets or evidence stays far below; a program that tries on fills neither the log nor our time.
MAX_FAILURES_PER_MINUTE: Final = 60
# A certificate cannot be guessed, and to look one up costs no more than to say that there is no such path. Whoever is
# above this does nothing else; what compares us with another Coordinator, request by request, stays below.
MAX_STRANGERS_PER_MINUTE: Final = 6000
# Addresses remembered at a time; the one that has been quiet for longest is forgotten first.
MAX_ADDRESSES: Final = 4096


class FailedAttempts:
    """Failures to authenticate, by address.

    Only failures are counted and refused: a certificate cannot be guessed, and whoever shares an address with an
    attacker must not be locked out.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, per_minute: int = MAX_FAILURES_PER_MINUTE) -> None:
        self._clock = clock
        self._most = float(per_minute)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # attempts left, and at what time
        self.total = 0
        """Failures since the start."""

    def record(self, address: str) -> int:
        """Count a failure: 0 while the address is within the limit, else the seconds after which it is again."""
        self.total += 1
        key, now = network_of(address), self._clock()
        left, since = self._buckets.pop(key, (self._most, now))
        left = min(self._most, left + (now - since) * self._most / 60)
        wait = 0 if left >= 1 else max(1, ceil((1 - left) * 60 / self._most))
        self._buckets[key] = (left if wait else left - 1, now)
        if len(self._buckets) > MAX_ADDRESSES:
            self._buckets.popitem(last=False)
        return wait


@dataclass(frozen=True, slots=True)
class ClientAttempts:
    """What the client API counts, each on its own."""

    rehearsals: FailedAttempts = field(default_factory=FailedAttempts)
    """Recovery secrets that do not count."""
    strangers: FailedAttempts = field(default_factory=lambda: FailedAttempts(per_minute=MAX_STRANGERS_PER_MINUTE))
    """Certificates that nobody knows; whoever shows none tries nothing."""
    logged: FailedAttempts = field(default_factory=FailedAttempts)
    """Strangers of both kinds, for the log."""
