"""The rules under overload: bounded, fair between sources, wasteful to nobody."""

from __future__ import annotations

from collections import deque
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from marblerun.coordinator.server.overload import (
    CALM_SECONDS,
    MAX_RETRY_SECONDS,
    MIN_RETRY_SECONDS,
    Episode,
    FairQueue,
    Limits,
    Refusal,
    Slots,
    Ticket,
    network_of,
    spread_retry,
    within_descriptors,
)

SOURCES = st.sampled_from(["a", "b", "c", "d", "e"])
FOREVER = float("inf")


def queued(queue: FairQueue[str], source: str, item: str = "") -> Ticket:
    answer = queue.offer(source, item or source, FOREVER)
    assert isinstance(answer, Ticket)
    return answer


def drained(queue: FairQueue[str]) -> list[str]:
    taken = []
    while (item := queue.take(0.0)) is not None:
        taken.append(item)
    return taken


# -- sources -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
        ("2001:db8:1:3::", "2001:db8:1:3::"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("unknown", "unknown"),
        ("not:an:address", "not:an:address"),
    ],
)
def test_a_source_is_an_ipv4_address_or_an_ipv6_network(address: str, network: str) -> None:
    assert network_of(address) == network


@pytest.mark.parametrize(("descriptors", "connections"), [(16384, 6000), (4096, 1948), (1024, 412), (10, 1)])
def test_there_are_never_more_connections_than_descriptors(descriptors: int, connections: int) -> None:
    assert within_descriptors(Limits(), descriptors) == Limits(connections=connections)


# -- slots -------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5000))
def test_a_source_alone_gets_all_but_a_ninth(limit: int) -> None:
    slots = Slots(limit)
    held = 0
    while slots.take("alone"):
        held += 1
    assert held == ceil(limit * 8 / 9)
    assert slots.take("next") == (held < limit)


@given(st.integers(20, 2000), st.integers(2, 20))
def test_many_greedy_sources_end_with_about_the_same_and_leave_room(limit: int, number: int) -> None:
    slots, names = Slots(limit), [str(n) for n in range(number)]
    while sum(map(slots.take, names)):
        pass
    held = [slots.held_by(name) for name in names]
    assert max(held) - min(held) <= 1
    assert slots.held <= limit


class SlotsMachine(RuleBasedStateMachine):
    """Any order of taking and giving back."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = Slots(12)
        self.held: dict[str, int] = {}

    @rule(source=SOURCES)
    def take(self, source: str) -> None:
        before = sum(self.held.values())
        taken = self.slots.take(source)
        if taken:
            self.held[source] = self.held.get(source, 0) + 1
        if not self.held.get(source) and before < self.slots.limit:
            raise AssertionError("a source with nothing was refused although something was free")
        if before >= self.slots.limit:
            assert not taken

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        source = data.draw(st.sampled_from(sorted(name for name, count in self.held.items() if count)))
        self.held[source] -= 1
        self.slots.give(source)

    @invariant()
    def counts(self) -> None:
        assert self.slots.held == sum(self.held.values()) <= self.slots.limit
        assert {name: self.slots.held_by(name) for name in self.held} == self.held
        assert 0 <= self.slots.free <= 1


TestSlots = SlotsMachine.TestCase


def test_a_limit_of_nothing_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="limit"):
        Slots(0)
    with pytest.raises(ValueError, match="limit"):
        FairQueue[str](0, 1.0)


# -- queue -------------------------------------------------------------------------------------------------------


class QueueMachine(RuleBasedStateMachine):
    """Any order of coming, being served and giving up, beside lists."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: FairQueue[int] = FairQueue(12, 0.1)
        self.now = 0.0
        self.number = 0
        self.lines: dict[str, deque[int]] = {}
        self.rotation: list[str] = []
        self.tickets: dict[int, Ticket] = {}
        self.turns: dict[int, int] = {}
        """Turns that others of those waiting before may still have before an item."""

    @rule(source=SOURCES, patience=st.sampled_from([0.0, 0.3, FOREVER]))
    def offer(self, source: str, patience: float) -> None:
        self.number += 1
        waiting, mine = self.queue.waiting, len(self.lines.get(source, ()))
        ahead, expected = self.queue.ahead(source), self.queue.expected_wait(source)
        answer = self.queue.offer(source, self.number, patience)
        if isinstance(answer, Refusal):
            assert answer.retry_after >= MIN_RETRY_SECONDS
            assert {"full": waiting == 12, "share": mine > 0 and waiting < 12, "wait": expected > patience}[
                answer.reason
            ]
            return
        assert expected <= patience
        if source not in self.lines:
            self.lines[source] = deque()
            self.rotation.append(source)
        self.lines[source].append(self.number)
        self.tickets[self.number] = answer
        self.turns[self.number] = ahead

    @rule(seconds=st.floats(0, 2))
    def take(self, seconds: float) -> None:
        self.now += seconds
        taken = self.queue.take(self.now)
        if not self.rotation:
            assert taken is None
            return
        source = self.rotation.pop(0)
        assert taken == self.lines[source].popleft()
        self._forget(source, taken)
        if source in self.lines:
            self.rotation.append(source)

    @precondition(lambda self: self.tickets)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.tickets)))
        ticket = self.tickets[number]
        assert self.queue.drop(ticket)
        assert not self.queue.drop(ticket)
        self.lines[ticket.source].remove(number)
        self._forget(ticket.source, number)
        if ticket.source not in self.lines:
            self.rotation.remove(ticket.source)

    def _forget(self, source: str, number: int) -> None:
        del self.tickets[number]
        if not self.lines[source]:
            del self.lines[source]

    @invariant()
    def counts(self) -> None:
        assert self.queue.waiting == sum(map(len, self.lines.values())) <= self.queue.limit


TestQueue = QueueMachine.TestCase


def test_within_a_source_the_first_comes_first() -> None:
    queue: FairQueue[str] = FairQueue(10, 1.0)
    for item in "123":
        queued(queue, "a", item)
    assert drained(queue) == ["1", "2", "3"]


def test_behind_a_crowd_from_another_address_the_first_request_is_second() -> None:
    queue: FairQueue[str] = FairQueue(1000, 1.0)
    for _ in range(500):
        queued(queue, "crowd")
    assert (queue.ahead("crowd"), queue.ahead("good")) == (500, 1)
    queued(queue, "good")
    assert drained(queue)[:3] == ["crowd", "good", "crowd"]


@given(st.lists(SOURCES, min_size=1, max_size=60))
def test_nobody_is_served_twice_while_another_waits(sources: list[str]) -> None:
    """Round robin, so nobody starves."""
    queue: FairQueue[str] = FairQueue(1000, 1.0)
    for source in sources:
        queued(queue, source)
    left = {source: sources.count(source) for source in sources}
    taken = drained(queue)
    assert sorted(taken) == sorted(sources)
    while taken:
        round_of = taken[: len(left)]
        assert sorted(round_of) == sorted(left)
        del taken[: len(left)]
        left = {source: count - 1 for source, count in left.items() if count > 1}


@given(st.lists(SOURCES, max_size=40), SOURCES, st.lists(SOURCES, max_size=40))
def test_a_promise_holds_against_whoever_waits_already(before: list[str], source: str, after: list[str]) -> None:
    """``ahead`` is a ceiling on turns of those waiting; those who come later have one turn for each of ours at most."""
    queue: FairQueue[str] = FairQueue(1000, 1.0)
    for other in before:
        queued(queue, other)
    promised, mine = queue.ahead(source), before.count(source)
    queued(queue, source, "ours")
    for other in after:
        queued(queue, other)
    newcomers = len(set(after) - set(before) - {source})
    late = sum(min(after.count(other), mine + 1) for other in set(after) & set(before) - {source})
    assert drained(queue).index("ours") <= promised + newcomers * mine + late


def test_who_would_wait_too_long_is_refused_with_the_time_it_takes() -> None:
    queue: FairQueue[str] = FairQueue(1000, 0.1)
    for _ in range(50):
        queued(queue, "a")
    refused = queue.offer("a", "x", 4.0)
    assert isinstance(refused, Refusal)
    assert refused.reason == "wait"
    assert 1.0 <= refused.retry_after <= 1.5
    assert isinstance(queue.offer("b", "x", 4.0), Ticket)


def test_a_full_queue_has_no_room_for_anybody_and_a_greedy_source_is_stopped_before() -> None:
    queue: FairQueue[str] = FairQueue(18, 1.0)
    while isinstance(answer := queue.offer("greedy", "x", FOREVER), Ticket):
        pass
    assert (answer.reason, queue.waiting) == ("share", 16)
    queued(queue, "b")
    queued(queue, "c")
    last = queue.offer("d", "x", FOREVER)
    assert isinstance(last, Refusal)
    assert last.reason == "full"


def test_the_expected_wait_follows_what_turns_really_take() -> None:
    queue: FairQueue[str] = FairQueue(1000, 0.001)
    for _ in range(200):
        queued(queue, "a")
    for turn in range(100):
        queue.take(turn * 0.5)
    assert queue.expected_wait("a") == pytest.approx(50, rel=0.01)


def test_idle_time_is_no_waiting_time() -> None:
    queue: FairQueue[str] = FairQueue(1000, 0.001)
    for now in (0.0, 1000.0, 2000.0):
        queued(queue, "a")
        queue.take(now)
    ticket = queued(queue, "a")
    queued(queue, "a")
    queue.take(3000.0)
    queued(queue, "b")
    assert queue.expected_wait("b") < 0.01
    assert not queue.drop(ticket)


def test_a_bad_moment_is_forgotten_without_a_crowd() -> None:
    queue: FairQueue[str] = FairQueue(1000, 0.001)
    queued(queue, "a")
    queued(queue, "a")
    queue.take(0.0)
    queue.take(1000.0)
    queued(queue, "b")
    assert isinstance(queue.offer("b", "x", 8.0), Refusal)
    for turn in range(60):
        queue.take(2000.0 + turn)
        queued(queue, "b")
    assert isinstance(queue.offer("b", "x", 8.0), Ticket)


# -- hints and episodes ------------------------------------------------------------------------------------------


@given(st.floats(0, 1e9), st.integers(0, 10**6))
def test_hints_are_bounded_and_spread(seconds: float, number: int) -> None:
    hint = spread_retry(seconds, number)
    assert MIN_RETRY_SECONDS <= hint <= MAX_RETRY_SECONDS * 1.5
    assert hint >= min(seconds, MAX_RETRY_SECONDS)
    assert len({spread_retry(seconds, number + n) for n in range(16)}) == 16


def test_an_overload_begins_once_and_ends_when_it_has_been_calm_for_a_while() -> None:
    episode = Episode()
    assert [episode.refused("mesh", 10.0), episode.refused("mesh", 12.0), episode.refused("client", 13.0)] == [
        True, False, False,
    ]  # fmt: skip
    assert episode.calm_in(13.0) == CALM_SECONDS
    assert episode.calm_in(13.0 + CALM_SECONDS) == 0
    assert episode.end() == {"mesh": 2, "client": 1}
    assert episode.refused("mesh", 30.0)
    assert episode.end() == {"mesh": 1}
