"""Several Coordinators on one state, with every interleaving that has to be right made to happen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.coordinator.manifests import encode, many
from tests.coordinator.parties import Share, manifest, share_of
from tests.coordinator.people import ask, office, person
from tests.coordinator.running import running
from tests.coordinator.states import UUID_1, applicant
from tests.coordinator.store.shared import Instance, KeyOf, Memory, Place, SharedAnchor, SharedMemory

from marblerun.attestation.model import Verdict
from marblerun.attestation.registry import Registry
from marblerun.coordinator.commands.activate import ActivationRefused
from marblerun.coordinator.commands.recover import give
from marblerun.coordinator.following import Barrier, Follower
from marblerun.coordinator.server.client_api import TABLE
from marblerun.coordinator.server.openapi import openapi_bytes
from marblerun.coordinator.service import Coordinator
from marblerun.coordinator.state import Phase
from marblerun.coordinator.store import Sealed
from marblerun.errors import Conflict, MarbleRunError, Unavailable, Untrusted, WrongPhase


async def activate(coordinator: Coordinator, marble: str = "m") -> None:
    await coordinator.activate(applicant().request(marble, UUID_1), applicant().certificate)


@dataclass
class Member:
    """A Coordinator with its own ways to store and anchor, on a loop of its own thread where another one acts."""

    shared: SharedMemory
    anchor: SharedAnchor
    coordinator: Coordinator


@dataclass
class Group:
    """Coordinators on one place, all in one loop."""

    members: Sequence[Member]
    place: Place
    memory: Memory
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def meanwhile(self, action: Callable[[], Coroutine[Any, Any, object]]) -> Callable[[], None]:
        """For a hook that is called in a storing thread: another member does something, and is waited for."""

        def act() -> None:
            asyncio.run_coroutine_threadsafe(_ignored(action()), self.loop).result(30)

        return act


async def _ignored(action: Coroutine[Any, Any, object]) -> None:
    await action


def group(count: int, scenario: Callable[[Group], Coroutine[Any, Any, None]], *, anchored: bool = True) -> None:
    async def main() -> None:
        place, memory = Place(), Memory()
        members = []
        for _ in range(count):
            shared, anchor = SharedMemory(place), SharedAnchor(memory)
            coordinator = Instance(shared=shared, anchor=anchor if anchored else None).coordinator()
            await coordinator.start()
            members.append(Member(shared, anchor, coordinator))
        try:
            await scenario(Group(members, place, memory))
        finally:
            for member in members:
                await member.coordinator.stop()

    asyncio.run(main())


# -- the barrier -------------------------------------------------------------------------------------------------


def test_a_barrier_lets_nobody_pass_on_a_look_that_began_before_they_came() -> None:
    """And nobody waits for a third one, however many they are."""
    begun = 0

    async def main() -> None:
        nonlocal begun
        gates = [asyncio.Event() for _ in range(3)]

        async def look() -> None:
            nonlocal begun
            begun += 1
            await gates[begun - 1].wait()

        barrier = Barrier(look)
        first = asyncio.ensure_future(barrier())
        while not begun:
            await asyncio.sleep(0)
        later = [asyncio.ensure_future(barrier()) for _ in range(100)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert begun == 1
        gates[0].set()
        await first
        assert not any(one.done() for one in later)
        gates[1].set()
        await asyncio.gather(*later)
        assert begun == 2

    asyncio.run(main())


def test_a_look_that_fails_fails_all_who_waited_for_it_and_the_next_one_is_another() -> None:
    outcomes = iter([Unavailable("away"), None])

    async def main() -> None:
        async def look() -> None:
            outcome = next(outcomes)
            if outcome is not None:
                raise outcome

        barrier = Barrier(look)
        answers = await asyncio.gather(*(barrier() for _ in range(5)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unavailable] * 5
        await barrier()

    asyncio.run(main())


def test_who_stops_waiting_does_not_stop_the_look_for_the_others() -> None:
    async def main() -> None:
        gate = asyncio.Event()
        barrier = Barrier(lambda: _ignored(gate.wait()))
        gone, stays = asyncio.ensure_future(barrier()), asyncio.ensure_future(barrier())
        await asyncio.sleep(0)
        gone.cancel()
        gate.set()
        await stays
        assert gone.cancelled()

    asyncio.run(main())


# -- writes that meet --------------------------------------------------------------------------------------------


def test_a_counted_change_that_meets_another_one_is_applied_to_what_that_left() -> None:
    async def scenario(them: Group) -> None:
        one, other = them.members
        await one.coordinator.set_manifest(encode(many(10)))
        deployment = one.coordinator.state.deployment
        one.shared.before_write = [them.meanwhile(lambda: activate(other.coordinator)) for _ in range(3)]
        await activate(one.coordinator)
        assert (one.coordinator.state.activations, one.shared.conflicts) == ({"m": 4}, 3)
        assert one.coordinator.state.deployment is deployment
        await asyncio.gather(*(activate(one.coordinator) for _ in range(4)))
        await activate(one.coordinator)
        await other.coordinator.catch_up()
        assert other.coordinator.state.activations == one.coordinator.state.activations == {"m": 9}

    group(2, scenario)


def test_the_last_start_that_is_allowed_is_given_to_one_of_two_who_meet() -> None:
    async def scenario(them: Group) -> None:
        one, other = them.members
        await one.coordinator.set_manifest(encode(many(1)))
        one.shared.before_write = [them.meanwhile(lambda: activate(other.coordinator))]
        with pytest.raises(ActivationRefused):
            await activate(one.coordinator)
        assert one.coordinator.state.activations == {"m": 1}

    group(2, scenario)


def test_a_manifest_that_meets_another_one_is_refused_with_the_fixed_text() -> None:
    async def scenario(them: Group) -> None:
        one, other = them.members
        one.shared.before_write = [them.meanwhile(lambda: other.coordinator.set_manifest(encode(many(2))))]
        with pytest.raises(WrongPhase, match="server is not in expected state"):
            await one.coordinator.set_manifest(encode(many(1)))
        assert one.coordinator.signed_manifest().manifest == encode(many(2))

    group(2, scenario)


def test_an_update_that_meets_starts_goes_through_and_loses_none_of_them() -> None:
    async def scenario(them: Group) -> None:
        one, other = them.members
        await one.coordinator.set_manifest(encode(office()))
        one.shared.before_write = [them.meanwhile(lambda: activate(other.coordinator, "back"))]
        changed = office()
        changed["Marbles"]["new"] = dict(changed["Marbles"]["back"])
        await one.coordinator.update_manifest(person("admin").der, encode(changed))
        await activate(other.coordinator, "new")
        assert one.shared.conflicts >= 1

    group(2, scenario)


def test_an_activation_whose_rules_changed_before_its_write_is_decided_by_the_new_ones() -> None:
    async def scenario(them: Group) -> None:
        one, other = them.members
        await one.coordinator.set_manifest(encode(office()))
        changed = office()
        del changed["Marbles"]["back"]

        async def update() -> None:
            await other.coordinator.catch_up()
            await other.coordinator.update_manifest(person("admin").der, encode(changed))

        one.shared.before_write = [them.meanwhile(update)]
        with pytest.raises(ActivationRefused):
            await activate(one.coordinator, "back")
        assert one.coordinator.signed_manifest().manifest == encode(changed)

    group(2, scenario)


class Verifying:
    """Registry and collateral at once, whose verification takes until something else has happened."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.meanwhile: Callable[[], Coroutine[Any, Any, object]] | None = None

    def collateral_key(self, _evidence: bytes) -> str:
        return "key"

    def verify(self, evidence: bytes, _collateral: object, at: datetime) -> Verdict:
        return self._registry.verify(evidence, None, at)

    async def fetch(self, _key: object) -> None:
        if self.meanwhile is not None:
            await self.meanwhile()


def test_rules_that_changed_while_evidence_was_verified_are_those_that_count() -> None:
    """Also where nothing is written, so that no comparison would notice."""

    async def main() -> None:
        place = Place()
        slow, other = Instance(shared=SharedMemory(place)), Instance(shared=SharedMemory(place)).coordinator()
        ports = slow.ports()
        verifying = Verifying(ports.registry)
        one = Coordinator(replace(ports, registry=verifying, collateral=verifying), slow.names)  # type: ignore[arg-type]
        for coordinator in (one, other):
            await coordinator.start()
        await one.set_manifest(encode(office()))
        changed = office()
        del changed["Marbles"]["plain"]

        async def update() -> None:
            await other.catch_up()
            await other.update_manifest(person("admin").der, encode(changed))

        verifying.meanwhile = update
        with pytest.raises(ActivationRefused, match="plain"):
            await activate(one, "plain")
        await one.stop()
        await other.stop()

    asyncio.run(main())


def test_what_others_do_is_followed_without_any_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handshakes show a new CA, and an instance that waits for its key leaves recovery when it can."""
    monkeypatch.setattr("marblerun.coordinator.following.FOLLOW_SECONDS", 0.01)

    async def scenario(them: Group) -> None:
        one, other = them.members
        told = asyncio.Event()
        other.coordinator.listeners.append(lambda _state: told.set())
        other.shared.is_away = True
        await one.coordinator.set_manifest(encode(many(2)))
        while "cannot be followed" not in other.coordinator.status().message:
            await asyncio.sleep(0.01)
        other.shared.is_away = False
        await asyncio.wait_for(told.wait(), 60)
        assert other.coordinator.signed_manifest().manifest == encode(many(2))

    group(2, scenario)


def test_a_mistake_of_ours_while_following_is_told_and_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marblerun.coordinator.following.FOLLOW_SECONDS", 0.0)
    outcomes = iter([RuntimeError("our mistake"), Unavailable("away"), None])
    told: list[object] = []

    async def main() -> None:
        is_over = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["exception"]))

        async def take_over(_anew: bool) -> None:
            outcome = next(outcomes, None)
            if outcome is not None:
                raise outcome

        def tell(trouble: str) -> None:
            told.append(trouble)
            if not trouble:
                is_over.set()

        follower = Follower(asyncio.Lock(), take_over, lambda: False, tell)
        follower.begin()
        await asyncio.wait_for(is_over.wait(), 60)
        await follower.end()

    asyncio.run(main())
    assert [str(one) for one in told] == ["our mistake", "away", ""]


def test_bytes_that_are_no_state_are_refused_as_damage_and_not_as_a_clients_mistake() -> None:
    async def scenario(them: Group) -> None:
        (one,) = them.members
        await one.coordinator.set_manifest(encode(many(2)))
        good = them.place.sealed
        for sealed in (Sealed(b"\x00" * 3, ()), Sealed(b"\xff" * 5, (b"key",))):
            them.place.sealed, them.place.number = sealed, them.place.number + 1
            with pytest.raises(Untrusted, match="damaged"):
                await one.coordinator.catch_up()
        them.place.sealed, them.place.number = good, them.place.number + 1
        await activate(one.coordinator)

    group(1, scenario)


# -- answers that get lost ---------------------------------------------------------------------------------------


def test_a_write_whose_answer_got_lost_is_found_by_the_next_request_and_not_done_twice() -> None:
    async def scenario(them: Group) -> None:
        one, other = them.members
        await one.coordinator.set_manifest(encode(many(10)))
        one.shared.answers_lost = 1
        with pytest.raises(ActivationRefused, match="got lost"):
            await activate(one.coordinator)
        assert one.coordinator.state.activations == {}
        await one.coordinator.catch_up()
        assert one.coordinator.state.activations == {"m": 1}
        await activate(other.coordinator)
        await activate(one.coordinator)
        assert one.coordinator.state.activations == {"m": 3}

    group(2, scenario)


def test_a_store_that_is_away_lets_nothing_be_decided() -> None:
    async def scenario(them: Group) -> None:
        one, _other = them.members
        await one.coordinator.set_manifest(encode(many(10)))
        one.shared.is_away = True
        with pytest.raises(ActivationRefused, match="the present state is not known"):
            await activate(one.coordinator)
        assert "cannot be followed" in one.coordinator.status().message
        one.shared.is_away = False
        await activate(one.coordinator)
        assert "cannot be followed" not in one.coordinator.status().message

    group(2, scenario)


# -- over the network --------------------------------------------------------------------------------------------


def test_every_request_is_answered_by_the_present_state_and_only_status_by_the_last_known_one() -> None:
    """All of both versions; a state that others wrote, and a store that is away and comes back."""
    place = Place()
    shared = SharedMemory(place)
    readable = [path for path in TABLE if "GET" in TABLE[path] and "pending" not in path]
    with running(Instance(shared=SharedMemory(place))) as one, running(Instance(shared=shared)) as other:
        assert ask(other.client, "POST", "/manifest", encode(office())).status == 200
        for path in ("/api/v2/manifest", "/manifest"):
            assert ask(one.client, "GET", path).body == ask(other.client, "GET", path).body
        assert ask(one.client, "POST", "/manifest", encode(office())).status == 400
        key = "/api/v2/secrets"
        upload = {"secrets": {"userPlain": {"Key": "eA=="}}}
        assert ask(one.client, "POST", key, upload, by=person("admin")).status == 200
        found = ask(other.client, "GET", f"{key}?s=userPlain", by=person("admin"))
        assert (found.status, b"eA==" in found.body) == (200, True)
        shared.is_away = True
        answers = {path: ask(other.client, "GET", path) for path in readable}
        assert answers.pop("/api/v2/openapi.json").body == openapi_bytes(TABLE)  # depends on no state
        assert {path for path, answer in answers.items() if answer.status == 200} == {"/status", "/api/v2/status"}
        assert all("the store is away" in answer.body.decode() for answer in answers.values())
        shared.is_away = False
        assert "the store is away" not in ask(other.client, "GET", "/api/v2/status").data["message"]
        assert ask(other.client, "GET", "/api/v2/manifest").status == 200


# -- the anchor --------------------------------------------------------------------------------------------------


def test_nothing_is_told_of_a_state_that_the_anchor_does_not_know() -> None:
    """Not by who wrote it, nor by the others, until the anchor answers; then it stands."""

    async def scenario(them: Group) -> None:
        one, other = them.members
        await one.coordinator.set_manifest(encode(many(10)))
        await other.coordinator.catch_up()
        one.anchor.is_away = other.anchor.is_away = True
        with pytest.raises(ActivationRefused, match="the anchor is away"):
            await activate(one.coordinator)
        for member in (one, other):
            with pytest.raises(Unavailable, match="the anchor is away"):
                await member.coordinator.catch_up()
            assert member.coordinator.state.activations == {}
        one.anchor.is_away = other.anchor.is_away = False
        for member in (other, one):
            await member.coordinator.catch_up()
            assert member.coordinator.state.activations == {"m": 1}
        assert them.memory.mark is not None

    group(2, scenario)


def test_who_is_overtaken_between_store_and_anchor_has_done_its_part() -> None:
    """Another one reads the state, moves the anchor for it, and goes on: the first one's request succeeds."""

    async def scenario(them: Group) -> None:
        one, other = them.members
        await one.coordinator.set_manifest(encode(many(10)))
        one.anchor.before_advance = [them.meanwhile(lambda: activate(other.coordinator))]
        await activate(one.coordinator)
        await activate(one.coordinator)
        assert one.coordinator.state.activations == {"m": 3}

    group(2, scenario)


def test_an_anchor_that_somebody_else_moved_is_not_taken_for_a_follower() -> None:
    """Its next state is not the one in the store: a copy of the state is used elsewhere."""

    async def scenario(them: Group) -> None:
        one, _other = them.members
        await one.coordinator.set_manifest(encode(many(10)))

        def move() -> None:
            assert them.memory.mark is not None
            them.memory.mark = type(them.memory.mark)(them.memory.mark.sequence + 5, b"x" * 32)

        one.anchor.before_advance = [move]
        with pytest.raises(ActivationRefused):
            await activate(one.coordinator)
        with pytest.raises(Untrusted):
            await one.coordinator.catch_up()

    group(2, scenario)


def test_a_state_between_two_looks_is_not_taken_for_an_old_one() -> None:
    """The store is read, another one writes and moves the anchor, the anchor is read: both are looked at again."""

    async def scenario(them: Group) -> None:
        one, other = them.members
        await one.coordinator.set_manifest(encode(many(10)))
        await activate(one.coordinator)
        inner, hooks = other.anchor.load, [them.meanwhile(lambda: activate(one.coordinator)) for _ in range(2)]

        def load() -> Any:
            if hooks:
                hooks.pop()()
            return inner()

        other.anchor.load = load  # type: ignore[method-assign]
        await other.coordinator.catch_up()
        assert other.coordinator.state.activations == {"m": 3}

    group(2, scenario)


# -- recovery ----------------------------------------------------------------------------------------------------


def test_who_is_in_recovery_when_another_one_recovers_follows_and_is_told_so() -> None:
    async def main() -> None:
        place = Place()
        first = Instance(shared=SharedMemory(place)).coordinator()
        await first.start()
        secrets = await first.set_manifest(manifest(2))
        await first.stop()
        assert place.sealed is not None
        place.sealed = type(place.sealed)(place.sealed.data, ())
        one, other = (Instance(shared=SharedMemory(place)).coordinator() for _ in range(2))
        for coordinator in (one, other):
            await coordinator.start()
        told: list[Phase] = []
        other.listeners.append(lambda state: told.append(state.phase))
        shares = [share_of(party, secrets[party]) for party in ("party0", "party1")]
        await other.recover(shares[0].secret, shares[0].signature)
        for share in shares:
            await one.recover(share.secret, share.signature)
        with pytest.raises(MarbleRunError):
            await other.recover(shares[1].secret, shares[1].signature)
        await other.catch_up()
        assert told == [Phase.ACCEPTING_MARBLES]
        with pytest.raises(WrongPhase):
            await other.recover(shares[1].secret, shares[1].signature)
        await one.stop()
        await other.stop()

    asyncio.run(main())


def waiting(
    scenario: Callable[[Coordinator, Coordinator, SharedMemory, Sequence[Share]], Coroutine[Any, Any, None]],
) -> None:
    """One Coordinator has the key and goes on; the other one waits for secrets, writing to the store given."""

    async def main() -> None:
        place = Place()
        shared = SharedMemory(place)
        one = Instance(shared=SharedMemory(place), sealer=KeyOf("one")).coordinator()
        await one.start()
        secrets = await one.set_manifest(manifest(2))
        other = Instance(shared=shared, sealer=KeyOf("other")).coordinator()
        await other.start()
        try:
            await scenario(one, other, shared, [share_of(party, secrets[party]) for party in ("party0", "party1")])
        finally:
            await one.stop()
            await other.stop()

    asyncio.run(main())


def test_a_recovery_does_not_put_an_older_state_over_what_others_wrote_meanwhile() -> None:
    """The secrets are asked for again, and then the newest state comes back."""

    async def scenario(one: Coordinator, other: Coordinator, shared: SharedMemory, shares: Sequence[Share]) -> None:
        loop = asyncio.get_running_loop()
        shared.before_write = [lambda: asyncio.run_coroutine_threadsafe(activate(one), loop).result(30)]
        await other.recover(shares[0].secret, shares[0].signature)
        with pytest.raises(Conflict, match="give the secrets again"):
            await other.recover(shares[1].secret, shares[1].signature)
        assert other.state.phase is Phase.RECOVERY
        await one.catch_up()
        assert one.state.activations == {"m": 1}
        for share in shares:
            await other.recover(share.secret, share.signature)
        assert other.state.activations == {"m": 1}

    waiting(scenario)


def test_a_secret_that_is_looked_at_while_the_state_changes_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those given before still count, for the newer state."""

    async def scenario(one: Coordinator, other: Coordinator, _shared: SharedMemory, shares: Sequence[Share]) -> None:
        await other.recover(shares[0].secret, shares[0].signature)
        loop = asyncio.get_running_loop()

        async def change() -> None:
            await activate(one)
            await other.catch_up()

        def slowly(*arguments: Any) -> Any:
            monkeypatch.undo()
            asyncio.run_coroutine_threadsafe(change(), loop).result(30)
            return give(*arguments)

        monkeypatch.setattr("marblerun.coordinator.recovering.give", slowly)
        with pytest.raises(Conflict, match="send the secret again"):
            await other.recover(shares[1].secret, shares[1].signature)
        assert (await other.recover(shares[1].secret, shares[1].signature)).remaining == 0
        assert other.state.activations == {"m": 1}

    waiting(scenario)


# -- all together ------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["start", "lose", "look", "away", "restart"])), max_size=12)
)
def test_in_any_order_of_starts_failures_and_restarts_no_start_that_was_answered_is_forgotten(
    steps: Sequence[tuple[int, str]],
) -> None:
    """The count is at least that of the answers, and at most that of the attempts; all agree on it in the end."""

    async def main() -> None:
        place, memory = Place(), Memory()

        async def begin() -> Member:
            shared, anchor = SharedMemory(place), SharedAnchor(memory)
            coordinator = Instance(shared=shared, anchor=anchor).coordinator()
            await coordinator.start()
            return Member(shared, anchor, coordinator)

        members = [await begin() for _ in range(3)]
        await members[0].coordinator.set_manifest(encode(many(1000)))
        answered = attempted = 0
        for who, what in steps:
            member = members[who]
            if what == "restart":
                await member.coordinator.stop()
                members[who] = await begin()
                continue
            member.shared.answers_lost = int(what == "lose")
            member.anchor.is_away = what == "away"
            if what != "look":
                attempted += 1
                try:
                    await activate(member.coordinator)
                    answered += 1
                except ActivationRefused:
                    pass
            member.shared.answers_lost, member.anchor.is_away = 0, False
            await member.coordinator.catch_up()
        for member in members:
            await member.coordinator.catch_up()
        counts = {member.coordinator.state.activations.get("m", 0) for member in members}
        assert len(counts) == 1
        assert answered <= counts.pop() <= attempted
        for member in members:
            await member.coordinator.stop()

    asyncio.run(main())
