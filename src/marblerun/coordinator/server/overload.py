"""What happens when more is asked than can be done: who waits, whose turn it is, who is sent away and for how long.

Rules only: no clock, no task, no socket; times are given, in seconds of any monotonic clock. ``turns`` applies them to
the event loop and to threads, ``edge`` to connections.

Two things are bounded: how many things of a kind are held (:class:`Slots`), and how many wait, for how long
(:class:`FairQueue`). Both share among sources. A source is an IPv4 address or a /64 network of IPv6. A source alone may
use all there is but a ninth, which is kept free for whoever comes next; nothing is kept back from the work itself.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final, Generic, TypeVar

T = TypeVar("T")

# Whoever has one IPv6 address usually has the whole network of it.
_IPV6_NETWORK_BITS: Final = 64
# A source may hold so many times what is free: alone it gets 8/9 of everything, two of them 8/17 each.
_TIMES_WHAT_IS_FREE: Final = 8
# How much a new measurement counts in the mean.
_WEIGHT: Final = 0.1
MIN_RETRY_SECONDS: Final = 0.5
MAX_RETRY_SECONDS: Final = 30.0
# Those who were sent away together must not come back together.
_SPREAD: Final = 16
# For files, the store, the collateral service and the metrics listener.
_OWN_DESCRIPTORS: Final = 200
# Without a refusal for so long an overload is over.
CALM_SECONDS: Final = 5.0


def network_of(address: str) -> str:
    """The source that an address belongs to: an IPv4 address itself, of IPv6 the /64 network."""
    return _ipv6_network(address) if ":" in address else address


@lru_cache(maxsize=4096)
def _ipv6_network(address: str) -> str:
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    shift = 128 - _IPV6_NETWORK_BITS
    return str(IPv6Address(int(parsed) >> shift << shift))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a Coordinator takes on at a time."""

    connections: int = 6000
    """Open connections of one listener."""
    handshakes: int = 4000
    """Connections of one listener whose handshake is not done."""
    activations: int = 4000
    """Activations that wait or are under way."""
    requests: int = 1000
    """Requests of the client API that wait or are under way."""
    key_threads: int = 0
    """Threads for activations that need RSA keys; 0: one for each processor but one, at least one."""
    wait_seconds: float = 20.0
    """Longest expected wait for a turn. gRPC's clients, and ours, give up a connection attempt after 20 seconds."""
    slow_wait_seconds: float = 30.0
    """Longest expected wait for a thread."""


def within_descriptors(limits: Limits, descriptors: int) -> Limits:
    """``limits`` with no more connections than two listeners have descriptors for.

    A listener that runs out of them cannot even refuse any more.
    """
    most = max(1, (descriptors - _OWN_DESCRIPTORS) // 2)
    return replace(limits, connections=min(limits.connections, most))


@dataclass(frozen=True, slots=True)
class Refusal:
    """There is no room: why, and after how many seconds it makes sense to ask again."""

    reason: str
    """``full``: nothing is free at all. ``share``: the source has its share. ``wait``: it would take too long."""
    retry_after: float


class Slots:
    """Things that are held at a time, counted by source."""

    __slots__ = ("_by_source", "held", "limit")

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError("a limit below 1 would serve nobody")
        self.limit = limit
        self.held = 0
        self._by_source: dict[str, int] = {}

    def take(self, source: str) -> bool:
        """Whether ``source`` may hold one more; if so it counts from now on."""
        mine = self._by_source.get(source, 0)
        if not _has_room(mine, self.held, self.limit):
            return False
        self._by_source[source] = mine + 1
        self.held += 1
        return True

    def give(self, source: str) -> None:
        """One that ``source`` held is free again."""
        left = self._by_source[source] - 1
        if left:
            self._by_source[source] = left
        else:
            del self._by_source[source]
        self.held -= 1

    def held_by(self, source: str) -> int:
        """How many ``source`` holds."""
        return self._by_source.get(source, 0)

    @property
    def free(self) -> float:
        """The part of the limit that nobody holds, 0 to 1."""
        return 1 - self.held / self.limit


def _has_room(mine: int, held: int, limit: int) -> bool:
    """A source may grow as long as it has less than a multiple of what is free; so something is left for the next."""
    return mine < _TIMES_WHAT_IS_FREE * (limit - held)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A place in a queue."""

    source: str
    number: int


class FairQueue(Generic[T]):
    """Things that wait for their turn: in order within a source, the sources by turns.

    Admission is by expected time, not only by number: what is not going to be reached in time is refused at once, while
    it has cost nothing yet. The expectation is that of the source: behind a crowd from another address one's own first
    request is second, not last.
    """

    __slots__ = ("_lines", "_mean", "_number", "_refused", "_taken_at", "_usual", "limit", "waiting")

    def __init__(self, limit: int, seconds_each: float) -> None:
        """``seconds_each`` is what is expected between two turns until something has been measured."""
        if limit < 1:
            raise ValueError("a limit below 1 would serve nobody")
        self.limit = limit
        self.waiting = 0
        self._mean = self._usual = seconds_each
        self._taken_at: float | None = None  # last turn, if somebody has been waiting ever since
        self._number = 0
        self._refused = 0
        self._lines: OrderedDict[str, OrderedDict[int, T]] = OrderedDict()

    def offer(self, source: str, item: T, patience: float) -> Ticket | Refusal:
        """Queue ``item``, unless there is no room or it is expected to wait for more than ``patience`` seconds."""
        line = self._lines.get(source)
        mine = len(line) if line is not None else 0
        if not _has_room(mine, self.waiting, self.limit):
            return self._refuse("share" if self.waiting < self.limit else "full", self.expected_wait(source))
        expected = self.expected_wait(source)
        if expected > patience:
            return self._refuse("wait", expected - patience)
        if line is None:
            line = self._lines[source] = OrderedDict()
        self._number += 1
        line[self._number] = item
        self.waiting += 1
        return Ticket(source, self._number)

    def take(self, now: float) -> T | None:
        """The next one; ``None`` if nobody waits."""
        if not self._lines:
            return None
        # What a bad moment has left in the mean must not refuse people for ever: without a crowd it fades.
        sample = self._usual if self._taken_at is None else now - self._taken_at
        self._mean += _WEIGHT * (sample - self._mean)
        source, line = next(iter(self._lines.items()))
        _, item = line.popitem(last=False)
        if line:
            self._lines.move_to_end(source)
        else:
            del self._lines[source]
        self.waiting -= 1
        self._taken_at = now if self.waiting else None
        return item

    def drop(self, ticket: Ticket) -> bool:
        """Give up a place; whether it was still there."""
        line = self._lines.get(ticket.source)
        if line is None or line.pop(ticket.number, None) is None:
            return False
        if not line:
            del self._lines[ticket.source]
        self.waiting -= 1
        if not self.waiting:
            self._taken_at = None
        return True

    def expected_wait(self, source: str) -> float:
        """Seconds until the turn of the next thing that ``source`` might queue."""
        return self.ahead(source) * self._mean

    def ahead(self, source: str) -> int:
        """How many turns at most others have, of those waiting now, before the next thing that ``source`` queues."""
        line = self._lines.get(source)
        mine = len(line) if line is not None else 0
        others = len(self._lines) - (line is not None)
        return min(self.waiting, mine + others * (mine + 1))

    def _refuse(self, reason: str, seconds: float) -> Refusal:
        self._refused += 1
        return Refusal(reason, spread_retry(seconds, self._refused))


def spread_retry(seconds: float, number: int) -> float:
    """A hint when to ask again: within bounds, and up to half as much more, different from one caller to the next."""
    bounded = min(max(seconds, MIN_RETRY_SECONDS), MAX_RETRY_SECONDS)
    return bounded * (1 + (number % _SPREAD) / (2 * _SPREAD))


@dataclass(slots=True)
class Episode:
    """One overload, from the first refusal until it has been calm for a while."""

    began: float | None = None
    _last: float = 0.0
    _refused: Counter[str] = field(default_factory=Counter)

    def refused(self, what: str, now: float) -> bool:
        """Count a refusal; whether it is the first one of an overload."""
        begins = self.began is None
        if begins:
            self.began = now
            self._refused.clear()
        self._refused[what] += 1
        self._last = now
        return begins

    def calm_in(self, now: float) -> float:
        """Seconds until the overload is over if nobody is refused any more; 0 if it is."""
        return max(0.0, self._last + CALM_SECONDS - now)

    def end(self) -> Mapping[str, int]:
        """The overload is over: what was refused in it, by kind."""
        self.began = None
        return dict(self._refused)
