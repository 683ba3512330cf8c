"""Turns on a real event loop and real threads: in order, by turns, and nothing for those who have gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from marblerun.coordinator.server.overload import Limits, Refusal
from marblerun.coordinator.server.turns import (
    CALLER,
    CROWD,
    LOOKS_BETWEEN_TURNS,
    SLICE_SECONDS,
    Caller,
    Desk,
    Overload,
    SlowWork,
    Tally,
    Turns,
)
from marblerun.errors import Busy


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 120))


@contextmanager
def slow_work(threads: int = 1, limit: int = 100, patience: float = 100.0) -> Iterator[SlowWork]:
    work = SlowWork("slow", threads, limit, patience, Tally(), niceness=10)
    try:
        yield work
    finally:
        work.close()


async def settle(done: Callable[[], bool]) -> None:
    while not done():
        await asyncio.sleep(0.001)


# -- turns -------------------------------------------------------------------------------------------------------


def test_who_comes_when_nobody_waits_is_served_at_once() -> None:
    async def scene() -> None:
        lane = Turns(Tally()).lane("x", 10, 0.001)
        done: list[str] = []
        assert lane.run("a", lambda: done.append("a"), 1.0) is None
        assert done == ["a"]
        await asyncio.sleep(0.01)
        assert lane.run("a", lambda: done.append("a"), 1.0) is None

    run(scene())


def test_a_source_with_one_piece_of_work_is_served_before_the_second_of_a_crowd_whatever_the_lane() -> None:
    async def scene() -> None:
        turns = Turns(Tally())
        one, other = turns.lane("one", 1000, 0.001), turns.lane("other", 1000, 0.001)
        done: list[str] = []
        for _ in range(100):
            one.run("crowd", lambda: done.append("crowd"), 100.0)
        one.run("good", lambda: done.append("good"), 100.0)
        other.run("crowd", lambda: done.append("other lane"), 100.0)
        await settle(lambda: len(done) == 102)
        assert done[:4] == ["crowd", "crowd", "other lane", "good"]

    run(scene())


def test_work_that_breaks_does_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        lane = Turns(Tally()).lane("x", 10, 0.001)
        done: list[int] = []
        lane.run("a", lambda: None, 1.0)
        lane.run("a", lambda: bool(1 / 0), 1.0)
        lane.run("a", lambda: done.append(1), 1.0)
        await settle(lambda: done == [1])

    run(scene())
    assert "broke" in caplog.text


def test_between_two_decisions_the_loop_looks_at_the_network() -> None:
    """However many wait, each of them is one round of the loop; others who are ready come in between."""

    async def scene() -> None:
        lane = Turns(Tally()).lane("x", 1000, 0.001)
        order: list[str] = []

        async def decide() -> None:
            await lane.turn(Caller("a"), 100.0)
            order.append("decision")

        async def network() -> None:
            while order.count("decision") < 50:
                order.append("network")
                await asyncio.sleep(0)

        await asyncio.gather(*(decide() for _ in range(50)), network())
        assert order.count("network") >= 49

    run(scene())


@pytest.mark.parametrize(("waiting", "looks"), [(2, 1), (CROWD + 10, LOOKS_BETWEEN_TURNS)])
def test_a_crowd_leaves_newcomers_more_looks_between_its_turns(waiting: int, looks: int) -> None:
    async def scene() -> None:
        lane = Turns(Tally()).lane("x", 1000, 0.001)
        order: list[str] = []
        lane.run("a", lambda: None, 100.0)

        def turn() -> None:
            order.append("turn")
            time.sleep(2 * SLICE_SECONDS)

        for _ in range(waiting):
            lane.run("a", turn, 100.0)
        while order.count("turn") < 2:
            await asyncio.sleep(0)
            order.append("look")
        assert order[order.index("turn") : -1].count("look") == looks

    run(scene())


def test_who_gives_up_leaves_the_queue_and_is_not_served() -> None:
    async def scene() -> None:
        turns = Turns(Tally())
        desk = Desk("x", 100, 0.001, 100.0, turns)
        served: list[int] = []

        async def decide(number: int) -> None:
            caller = Caller("a")
            await desk.enter(caller)
            served.append(number)
            desk.leave(caller)

        tasks = [asyncio.create_task(decide(number)) for number in range(10)]
        await asyncio.sleep(0)
        for task in tasks[2:8]:
            task.cancel()
        await asyncio.sleep(0)
        assert turns.lanes[0].queue.waiting <= 3
        await asyncio.gather(*tasks, return_exceptions=True)
        assert served == [0, 1, 8, 9]
        assert desk.under_way.held == 0

    run(scene())


def test_nobody_is_queued_who_would_be_gone_before_his_turn() -> None:
    async def scene() -> None:
        turns = Turns(Tally())
        desk = Desk("x", 100, 1.0, 100.0, turns)
        now = asyncio.get_running_loop().time()
        first = [asyncio.create_task(desk.enter(Caller("a"))) for _ in range(6)]
        await asyncio.sleep(0)
        with pytest.raises(Busy) as busy:
            await desk.enter(Caller("a", now + 2.0))
        assert busy.value.retry_after >= 2.0
        await asyncio.gather(*first)
        assert turns.tally.refused == {("x", "wait"): 1}
        assert desk.under_way.held == 6

    run(scene())


# -- slow work ---------------------------------------------------------------------------------------------------


def test_never_more_threads_than_allowed_and_none_idle_while_somebody_waits() -> None:
    async def scene() -> None:
        with slow_work(threads=2) as slow:
            lock, running, most = threading.Lock(), [0], [0]
            gate = threading.Barrier(2, timeout=60)

            def work() -> int:
                with lock:
                    running[0] += 1
                    most[0] = max(most[0], running[0])
                gate.wait()  # passes only if two are at work
                with lock:
                    running[0] -= 1
                return threading.get_ident()

            threads = await asyncio.gather(*(slow(work) for _ in range(10)))
            assert most == [2]
            assert len(set(threads)) == 2
            await settle(lambda: slow.running == 0)

    run(scene())


def test_slow_work_goes_round_the_sources_and_results_and_errors_come_back() -> None:
    async def scene() -> None:
        with slow_work() as slow:
            order: list[str] = []
            release = threading.Event()

            async def ask(source: str) -> str:
                CALLER.set(Caller(source))
                await slow(order.append, source)
                return source

            CALLER.set(Caller("first"))
            first = asyncio.create_task(slow(release.wait, 60))
            await asyncio.sleep(0)
            asked = [asyncio.create_task(ask(source)) for source in ["crowd"] * 5 + ["good"]]
            await asyncio.sleep(0.01)
            release.set()
            assert await asyncio.gather(*asked) == ["crowd"] * 5 + ["good"]
            assert await first
            assert order.index("good") == 1
            with pytest.raises(ZeroDivisionError):
                await slow(lambda: 1 // 0)

    run(scene())


def test_slow_work_of_those_who_have_gone_is_never_begun_and_a_thread_at_work_counts_until_it_is_done() -> None:
    async def scene() -> None:
        with slow_work() as slow:
            begun: list[int] = []
            release = threading.Event()
            first = asyncio.create_task(slow(release.wait, 60))
            await asyncio.sleep(0)
            asked = [asyncio.create_task(slow(begun.append, number)) for number in range(5)]
            await asyncio.sleep(0.01)
            for task in [first, *asked[:4]]:
                task.cancel()
            await asyncio.sleep(0.01)
            assert (slow.running, slow.queue.waiting, begun) == (1, 1, [])
            release.set()
            await asked[4]
            assert begun == [4]
            await settle(lambda: slow.running == 0)

    run(scene())


def test_a_turn_that_was_given_in_the_moment_of_giving_up_goes_to_the_next() -> None:
    async def scene() -> None:
        with slow_work() as slow:
            release = threading.Event()
            first = asyncio.create_task(slow(release.wait, 60))
            await asyncio.sleep(0)
            second, third = (asyncio.create_task(slow(int, "7")) for _ in range(2))
            await asyncio.sleep(0.01)
            release.set()
            loop: Any = asyncio.get_running_loop()
            while not loop._ready:
                time.sleep(0.001)  # until the thread is done and has told the loop, which does not run meanwhile
            await asyncio.sleep(0)
            assert slow.queue.waiting == 1  # the second has its turn and does not know it yet
            second.cancel()
            assert await asyncio.wait_for(third, 60) == 7
            assert await first
            await settle(lambda: slow.running == 0)

    run(scene())


def test_slow_work_that_would_not_be_done_in_time_is_refused_at_once() -> None:
    async def scene() -> None:
        with slow_work(patience=1.0) as slow:
            release = threading.Event()
            tasks = [asyncio.create_task(slow(release.wait, 60))]
            await asyncio.sleep(0)
            tasks += [asyncio.create_task(slow(bool)) for _ in range(6)]
            await asyncio.sleep(0.01)
            with pytest.raises(Busy):
                await slow(bool)
            release.set()
            assert len(await asyncio.gather(*tasks)) == 7

    run(scene())


# -- the whole ---------------------------------------------------------------------------------------------------


def test_the_log_says_once_that_an_overload_begins_and_once_that_it_ended(caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        now = [0.0]
        tally = Tally(lambda: now[0])
        for _ in range(1000):
            tally.count("mesh-connections", "full")
        tally._look()  # nothing is over yet
        now[0] = 100.0
        tally._look()
        tally.count("mesh-connections", "full")

    run(scene())
    lines = [
        (record.getMessage(), getattr(record, "fields", {})) for record in caplog.records if "turns" in record.name
    ]
    assert lines == [
        ("overload begins: more is asked than can be done", {"what": "mesh-connections"}),
        ("overload ends", {"refused": {"mesh-connections (full)": 1000}}),
        ("overload begins: more is asked than can be done", {"what": "mesh-connections"}),
    ]


def test_a_door_counts_what_it_lets_in_and_shortens_its_patience_as_it_fills() -> None:
    async def scene() -> None:
        overload = Overload(Limits(connections=10, handshakes=9))
        door = overload.mesh
        assert [door.enter("a") for _ in range(9)] == [True] * 8 + [False]
        assert door.patience(15.0) == pytest.approx(15 / 9)
        for _ in range(8):
            door.handshakes.give("a")
        assert door.patience(15.0) == 15.0
        assert [door.enter("b"), door.enter("a"), door.enter("c")] == [True, False, True]
        assert (door.connections.held, door.handshakes.held) == (10, 2)
        assert overload.tally.refused == {("mesh-handshakes", "share"): 1, ("mesh-connections", "share"): 1}
        overload.close()

    run(scene())


def test_a_lane_says_what_became_of_a_piece_of_work() -> None:
    async def scene() -> None:
        lane = Turns(Tally()).lane("x", 2, 1.0)
        assert lane.run("a", lambda: None, 1.0) is None
        lane.run("a", lambda: None, 10.0)
        lane.run("a", lambda: None, 10.0)
        answer = lane.run("a", lambda: None, 10.0)
        assert isinstance(answer, Refusal)
        assert answer.reason == "full"

    run(scene())
