"""When an instance asks for the KEK, keeps it, loads the state and serves: the order of what it does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from marblerun.coordinator.server.sharing.distributor import Distributor, Steps
from marblerun.errors import Malformed, Misconfigured, Unavailable

LIMIT = 60.0


@dataclass
class Instance:
    """What a distributor did, in order; it is known when the KEK is."""

    known: bool = False
    answers: list[bool] = field(default_factory=list)
    """Of the rounds of asking; none are left: asking never ends."""
    fail: dict[str, Exception] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    at: dict[str, asyncio.Event] = field(default_factory=dict)
    asking_ended: bool = False

    def reached(self, step: str) -> asyncio.Event:
        return self.at.setdefault(step, asyncio.Event())

    def _step(self, name: str) -> Callable[[], Awaitable[None]]:
        async def step() -> None:
            self.done.append(name)
            self.reached(name).set()
            if name in self.fail:
                raise self.fail[name]

        return step

    async def ask(self) -> bool:
        await self._step("ask")()
        if self.answers:
            self.known = self.answers.pop(0) or self.known
            return self.known
        try:
            await asyncio.Event().wait()
        finally:
            self.asking_ended = True
        return False

    def distributor(self, pause: float = LIMIT) -> Distributor:
        steps = Steps(
            is_known=lambda: self.known,
            ask=self.ask,
            keep=self._step("keep"),
            load=self._step("load"),
            serve=self._step("serve"),
            look_after=self._step("look after"),
        )
        return Distributor(steps, pause)


async def until(instance: Instance, step: str, distributor: Distributor) -> list[str]:
    """What is done until ``step`` is."""
    task = asyncio.create_task(distributor.run())
    async with asyncio.timeout(LIMIT):
        waiting = asyncio.create_task(instance.reached(step).wait())
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    assert waiting.done(), task
    task.cancel()
    await asyncio.wait((task,))
    return instance.done[: instance.done.index(step) + 1]


def test_d1_a_known_kek_is_kept_and_served_at_once_and_nothing_is_loaded() -> None:
    async def run() -> list[str]:
        instance = Instance(known=True)
        return await until(instance, "serve", instance.distributor())

    assert asyncio.run(run()) == ["keep", "serve"]


def test_d1_a_kek_from_another_instance_is_kept_then_the_state_is_loaded_and_it_is_served() -> None:
    async def run() -> list[str]:
        instance = Instance(answers=[True])
        return await until(instance, "serve", instance.distributor())

    assert asyncio.run(run()) == ["ask", "keep", "load", "serve"]


def test_d1_after_a_local_event_the_kek_is_not_kept_again_but_the_state_is_loaded() -> None:
    """Also in the middle of asking, which then ends."""

    async def run() -> Instance:
        instance = Instance()
        distributor = instance.distributor()

        async def recover() -> None:
            await instance.reached("ask").wait()
            instance.known = True
            distributor.changed.set()

        recovery = asyncio.create_task(recover())
        assert await until(instance, "serve", distributor) == ["ask", "load", "serve"]
        await recovery
        assert instance.asking_ended
        return instance

    asyncio.run(run())


def test_d3_the_others_are_asked_until_one_gives_its_kek() -> None:
    async def run() -> list[str]:
        instance = Instance(answers=[False, False, True])
        return await until(instance, "serve", instance.distributor(pause=0.001))

    assert asyncio.run(run()) == ["ask", "ask", "ask", "keep", "load", "serve"]


def test_d3_asking_ends_when_it_is_cancelled() -> None:
    async def run() -> Instance:
        instance = Instance()
        await until(instance, "ask", instance.distributor())
        assert instance.asking_ended
        return instance

    assert asyncio.run(run()).done == ["ask"]


def test_an_event_between_two_rounds_is_not_missed() -> None:
    async def run() -> list[str]:
        instance = Instance(answers=[False])
        distributor = instance.distributor()

        async def change() -> None:
            await instance.reached("ask").wait()
            instance.known = True
            distributor.changed.set()

        recovery = asyncio.create_task(change())
        done = await until(instance, "serve", distributor)
        await recovery
        return done

    assert asyncio.run(run()) == ["ask", "load", "serve"]


@pytest.mark.parametrize(
    ("instance", "step"),
    [
        (Instance(known=True, fail={"serve": Misconfigured("port")}), "serve"),
        (Instance(answers=[True], fail={"load": Unavailable("store")}), "load"),
        (Instance(fail={"ask": Malformed("state")}), "ask"),
    ],
    ids=["server", "load", "damaged"],
)
def test_d2_a_server_or_a_load_that_fails_ends_it(instance: Instance, step: str) -> None:
    async def run() -> None:
        async with asyncio.timeout(LIMIT):
            await instance.distributor().run()

    with pytest.raises(type(instance.fail[step])):
        asyncio.run(run())


def test_what_falls_due_is_looked_after_again_and_again_and_at_once_after_a_change() -> None:
    async def run() -> int:
        instance = Instance(known=True)
        distributor = instance.distributor()
        task = asyncio.create_task(distributor.run())
        async with asyncio.timeout(LIMIT):
            for _ in range(3):
                instance.reached("look after").clear()
                distributor.changed.set()
                await instance.reached("look after").wait()
        task.cancel()
        return instance.done.count("look after")

    assert asyncio.run(run()) >= 3


async def settled() -> None:
    """As many turns of the loop as anything here needs that waits for nothing outside."""
    for _ in range(100):
        await asyncio.sleep(0)


def test_after_a_round_in_vain_nobody_is_asked_again_before_the_pause_ends_or_something_changes() -> None:
    async def run() -> None:
        instance = Instance(answers=[False, False, False])
        distributor = instance.distributor(pause=3600)
        task = asyncio.create_task(distributor.run())
        await settled()
        assert instance.done == ["ask"]
        distributor.changed.set()
        await settled()
        assert instance.done == ["ask", "ask"]
        task.cancel()
        await asyncio.wait((task,))

    asyncio.run(run())


def test_a_kek_that_became_known_during_a_round_in_vain_is_served_without_a_pause() -> None:
    @dataclass
    class Recovered(Instance):
        async def ask(self) -> bool:
            self.done.append("ask")
            self.known = True
            return False

    async def run() -> None:
        instance = Recovered()
        task = asyncio.create_task(instance.distributor(pause=3600).run())
        await settled()
        assert instance.done == ["ask", "load", "serve"]
        task.cancel()
        await asyncio.wait((task,))

    asyncio.run(run())
