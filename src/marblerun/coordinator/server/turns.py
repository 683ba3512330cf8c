"""Turns on the event loop, threads for slow work, and doors of listeners: the rules of ``overload`` put into effect.

All cryptography of handshakes and activations runs on the one event loop. If everything ran when its bytes arrive, a
thousand connections of one address would be served before the one of another. So it runs by turns: for a millisecond
or so, then the loop looks at the network again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from marblerun.coordinator.server.exchange import BufferBudget
from marblerun.coordinator.server.overload import Episode, FairQueue, Limits, Refusal, Slots, Ticket, spread_retry
from marblerun.errors import Busy

_log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")

# How long those whose turn it is may keep the loop from the network, if there are several.
SLICE_SECONDS: Final = 0.0003
# How often the loop looks at the network between two turns while a crowd waits. To be accepted, to be read and to be
# woken takes a look each; with a costly turn of somebody else in between every one of them, a newcomer would wait for
# ten of them. Without a crowd that is not long, and one look after each turn is enough.
LOOKS_BETWEEN_TURNS: Final = 3
CROWD: Final = 12
# Until something has been measured: a step of a handshake, a decision, a request, an RSA activation.
_HANDSHAKE_SECONDS: Final = 0.0007
_ACTIVATION_SECONDS: Final = 0.003
_REQUEST_SECONDS: Final = 0.001
_SLOW_SECONDS: Final = 0.2
# Changes of the state go through one writer in the end, so more threads would only fight for the interpreter.
_CHANGE_THREADS: Final = 2
# The kernel gives the making of keys what the event loop leaves. It runs without the interpreter's lock, so that a
# thread that has to wait keeps nobody waiting: measured, this halves the longest waits of others.
_KEY_NICENESS: Final = 10
# Of all handshakes of a listener that wait for their turn.
_EARLY_BYTES: Final = 64 * 1024 * 1024
# A client's patience with handshakes shrinks with the room that is left, to this part of it.
_LEAST_PATIENCE: Final = 0.1
_TOO_MUCH: Final = "the Coordinator is asked for more than it can do at once; try again"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom the present task works for, and until when (of the loop's clock) anybody waits for the answer."""

    source: str = ""
    deadline: float = float("inf")


CALLER: Final[ContextVar[Caller]] = ContextVar("caller", default=Caller())  # noqa: B039  (immutable)


class Tally:
    """What was refused, for metrics, and a line in the log when refusing begins and when it ends."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.refused: Counter[tuple[str, str]] = Counter()
        """By what there was no room for, and why."""
        self._clock = clock
        self._episode = Episode()

    def count(self, what: str, reason: str) -> None:
        """Somebody was sent away."""
        self.refused[what, reason] += 1
        if self._episode.refused(f"{what} ({reason})", self._clock()):
            _log.warning("overload begins: more is asked than can be done", extra={"fields": {"what": what}})
            asyncio.get_running_loop().call_later(self._episode.calm_in(self._clock()), self._look)

    def _look(self) -> None:
        wait = self._episode.calm_in(self._clock())
        if wait > 0:
            asyncio.get_running_loop().call_later(wait, self._look)
            return
        _log.warning("overload ends", extra={"fields": {"refused": dict(self._episode.end())}})


Work = Callable[[], bool | None]
"""A piece of work; true if it has given the turn away, to a task that goes on when the loop comes to it."""


class Lane:
    """One kind of work on the event loop, with a fair queue of its own."""

    def __init__(self, turns: Turns, name: str, limit: int, seconds_each: float) -> None:
        self.name = name
        self.queue: FairQueue[Work] = FairQueue(limit, seconds_each)
        self._turns = turns

    def run(self, source: str, work: Work, patience: float) -> Ticket | Refusal | None:
        """Do ``work`` now if nobody waits (``None``), else when it is its turn, or not at all."""
        if self._turns.is_free():
            work()
            return None
        answer = self.queue.offer(source, work, patience)
        if isinstance(answer, Refusal):
            self._turns.tally.count(self.name, answer.reason)
        return answer

    async def turn(self, caller: Caller, patience: float) -> None:
        """Wait for one's turn; raises Busy if it is not expected to come in time.

        The caller goes on at once and is expected to be done, or to wait for something else, within milliseconds. One
        who is cancelled leaves the queue.
        """
        if self._turns.is_free():
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        answer = self.queue.offer(caller.source, lambda: _wake(future), min(patience, caller.deadline - loop.time()))
        if isinstance(answer, Refusal):
            self._turns.tally.count(self.name, answer.reason)
            raise Busy(_TOO_MUCH, retry_after=answer.retry_after)
        try:
            await future
        except asyncio.CancelledError:
            self.queue.drop(answer)
            raise


def _wake(future: asyncio.Future[None]) -> bool:
    if future.done():
        return False
    future.set_result(None)
    return True


class Turns:
    """The event loop's time, given to one lane after the other, and within a lane to one source after the other."""

    def __init__(self, tally: Tally, clock: Callable[[], float] = time.monotonic) -> None:
        self.tally = tally
        self._clock = clock
        self.lanes: list[Lane] = []
        self._next = 0
        self._looks = 0
        self._scheduled: asyncio.Handle | None = None

    def lane(self, name: str, limit: int, seconds_each: float) -> Lane:
        """A new lane."""
        lane = Lane(self, name, limit, seconds_each)
        self.lanes.append(lane)
        return lane

    def is_free(self) -> bool:
        """Whether it is nobody's turn; if so it is the caller's, until the loop has looked at the network again."""
        if self._scheduled is not None:
            return False
        self._schedule()
        return True

    def _schedule(self) -> None:
        self._scheduled = asyncio.get_running_loop().call_soon(self._go_round)

    def _go_round(self) -> None:
        """Serve those who wait until the slice is used up; then the network comes first again."""
        self._scheduled = None
        waiting = 0
        for lane in self.lanes:
            waiting += lane.queue.waiting
        if not waiting:
            return
        self._looks += 1
        if waiting >= CROWD and self._looks < LOOKS_BETWEEN_TURNS:
            self._schedule()
            return
        self._looks = 0
        now = self._clock()
        end = now + SLICE_SECONDS
        given = False
        while now < end and not given:
            work = self._take(now)
            if work is None:
                return
            try:
                given = bool(work())
            except Exception:  # one connection's trouble is not that of those behind it
                _log.exception("work that had waited for its turn broke")
            now = self._clock()
        if self._scheduled is None:
            self._schedule()

    def _take(self, now: float) -> Work | None:
        lanes = self.lanes
        for _ in lanes:
            lane = lanes[self._next]
            self._next = (self._next + 1) % len(lanes)
            work = lane.queue.take(now)
            if work is not None:
                return work
        return None


class SlowWork:
    """A few threads for what takes long. Who waits for one waits in a fair queue; who gives up leaves it."""

    def __init__(
        self, name: str, threads: int, limit: int, patience: float, tally: Tally, *, niceness: int = 0
    ) -> None:
        self.name = name
        self.queue: FairQueue[asyncio.Future[None]] = FairQueue(limit, _SLOW_SECONDS / threads)
        self.running = 0
        self._threads = threads
        self._patience = patience
        self._tally = tally
        self._executor = ThreadPoolExecutor(threads, name, initializer=lambda: _give_way(niceness))

    async def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """``function``'s result, from a thread; raises Busy if none is expected to be free in time."""
        await self._turn(CALLER.get())
        loop = asyncio.get_running_loop()

        def done(_future: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(self._pass_on)

        try:
            future = self._executor.submit(copy_context().run, lambda: function(*args, **kwargs))
        except BaseException:
            self._pass_on()
            raise
        future.add_done_callback(done)  # and not when the caller is gone: the thread still works
        return await asyncio.wrap_future(future)

    async def _turn(self, caller: Caller) -> None:
        if self.running < self._threads:
            self.running += 1
            return
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        answer = self.queue.offer(caller.source, future, min(self._patience, caller.deadline - loop.time()))
        if isinstance(answer, Refusal):
            self._tally.count(self.name, answer.reason)
            raise Busy(_TOO_MUCH, retry_after=answer.retry_after)
        try:
            await future
        except asyncio.CancelledError:
            if not self.queue.drop(answer) and future.done() and not future.cancelled():
                self._pass_on()  # it was given to us in the very moment
            raise

    def _pass_on(self) -> None:
        """A thread is free: it is the next one's."""
        while (future := self.queue.take(time.monotonic())) is not None:
            if not future.done():
                future.set_result(None)
                return
        self.running -= 1

    def close(self) -> None:
        """Let the threads end when they are done."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def _give_way(niceness: int) -> None:
    if niceness:
        with contextlib.suppress(OSError, AttributeError):  # not on every system, and not in every enclave
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


class Door:
    """What one listener lets in: connections, handshakes among them, and turns for their steps."""

    def __init__(self, name: str, limits: Limits, turns: Turns) -> None:
        self.name = name
        self.connections = Slots(limits.connections)
        self.handshakes = Slots(limits.handshakes)
        self._lane = turns.lane(f"{name}-handshakes", limits.handshakes, _HANDSHAKE_SECONDS)
        self._tally = turns.tally
        self._patience = limits.wait_seconds
        self._early = BufferBudget(_EARLY_BYTES)

    def hold(self, size: int) -> bool:
        """Whether there is room for so many bytes of a handshake that waits for its turn."""
        if self._early.take(size):
            return True
        self._tally.count(f"{self.name}-handshakes", "bytes")
        return False

    def release(self, size: int) -> None:
        """So many bytes have been looked at, or dropped."""
        self._early.give(size)

    def enter(self, source: str) -> bool:
        """Whether a new connection may stay; if so it holds a place, and one among the handshakes."""
        if not self.handshakes.take(source):
            self._tally.count(f"{self.name}-handshakes", _why(self.handshakes))
            return False
        if not self.connections.take(source):
            self.handshakes.give(source)
            self._tally.count(f"{self.name}-connections", _why(self.connections))
            return False
        return True

    def patience(self, seconds: float) -> float:
        """How long a new connection may take for its handshake: less, the more others take theirs."""
        return seconds * max(_LEAST_PATIENCE, self.handshakes.free)

    def step(self, source: str, work: Work, *, first: bool) -> Ticket | Refusal | None:
        """Do a step of a handshake when it is its turn; only the first one can be refused."""
        return self._lane.run(source, work, self._patience if first else float("inf"))

    def give_up(self, ticket: Ticket) -> None:
        """The connection is gone."""
        self._lane.queue.drop(ticket)


class Desk:
    """Requests of one listener: how many are under way, and turns for them."""

    def __init__(self, name: str, limit: int, seconds_each: float, patience: float, turns: Turns) -> None:
        self.name = name
        self.under_way = Slots(limit)
        self._lane = turns.lane(name, limit, seconds_each)
        self._tally = turns.tally
        self._patience = patience
        self._refused = 0

    async def enter(self, caller: Caller) -> None:
        """Wait for the turn of a request, which is under way from now on until :meth:`leave`.

        Raises Busy, and nothing is under way, if there is no room or the turn is not expected to come in time.
        """
        CALLER.set(caller)
        if not self.under_way.take(caller.source):
            self._tally.count(self.name, _why(self.under_way))
            self._refused += 1
            raise Busy(
                _TOO_MUCH, retry_after=spread_retry(self._lane.queue.expected_wait(caller.source), self._refused)
            )
        try:
            await self._lane.turn(caller, self._patience)
        except BaseException:
            self.under_way.give(caller.source)
            raise

    def leave(self, caller: Caller) -> None:
        """The request is answered, or nobody waits for the answer any more."""
        self.under_way.give(caller.source)


def _why(slots: Slots) -> str:
    return "full" if slots.held >= slots.limit else "share"


class Overload:
    """Everything that keeps one Coordinator from taking on more than it can do."""

    def __init__(self, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.tally = Tally()
        turns = Turns(self.tally)
        self.mesh, self.client = Door("mesh", limits, turns), Door("client", limits, turns)
        wait = limits.wait_seconds
        self.activations = Desk("activations", limits.activations, _ACTIVATION_SECONDS, wait, turns)
        self.requests = Desk("requests", limits.requests, _REQUEST_SECONDS, wait, turns)
        slow, most = limits.slow_wait_seconds, limits.activations
        threads = limits.key_threads or max(1, (os.cpu_count() or 1) - 1)
        self.keys = SlowWork("keys", threads, most, slow, self.tally, niceness=_KEY_NICENESS)
        self.changes = SlowWork("changes", _CHANGE_THREADS, limits.requests, slow, self.tally)
        self._turns = turns

    def listener(self, name: str, limits: Limits, seconds_each: float) -> tuple[Door, Desk]:
        """Door and desk of one more listener, in the same turns; ``limits.requests`` is for its desk."""
        desk = Desk(f"{name}-requests", limits.requests, seconds_each, limits.wait_seconds, self._turns)
        return Door(name, limits, self._turns), desk

    def waiting(self) -> Mapping[str, int]:
        """How many wait in each queue."""
        queues = {lane.name: lane.queue.waiting for lane in self._turns.lanes}
        return queues | {work.name: work.queue.waiting for work in (self.keys, self.changes)}

    def under_way(self) -> Mapping[str, int]:
        """How many of each kind are held, those that wait included."""
        held = {f"{door.name}-handshakes": door.handshakes.held for door in (self.mesh, self.client)}
        held |= {desk.name: desk.under_way.held for desk in (self.activations, self.requests)}
        return held | {work.name: work.running + work.queue.waiting for work in (self.keys, self.changes)}

    def close(self) -> None:
        """Let the threads end."""
        self.keys.close()
        self.changes.close()
