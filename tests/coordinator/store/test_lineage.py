"""No way back: numbers and heads of durable states, the anchor, and the statement that clients remember."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.coordinator.manifests import encode, many
from tests.coordinator.parties import manifest, share_of
from tests.coordinator.people import ask
from tests.coordinator.running import World, running
from tests.coordinator.states import UUID_1, applicant
from tests.coordinator.store.histories import Anchored, History

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.model import Origin
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.client.statement import SequenceMemory, Statement, parse_statement
from marblerun.coordinator.service import Coordinator
from marblerun.coordinator.state import Phase
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.anchors.file import FileAnchor
from marblerun.coordinator.store.lineage import Link, Mark, following, link_of, stamped, verify_latest
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import Malformed, MarbleRunError, Misconfigured, Unavailable, Untrusted, WrongPhase
from marblerun.secrets.box import build_sealed_data, open_sealed_data

T = TypeVar("T")


def run(world: World, scenario: Callable[[Coordinator], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        coordinator = world.coordinator()
        await coordinator.start()
        try:
            return await asyncio.wait_for(scenario(coordinator), 120)
        finally:
            await coordinator.stop()

    return asyncio.run(main())


async def activate(coordinator: Coordinator) -> None:
    await coordinator.activate(applicant().request("m", UUID_1), applicant().certificate)


async def phase(coordinator: Coordinator) -> Phase:
    return coordinator.state.phase


async def deploy(coordinator: Coordinator) -> None:
    await coordinator.set_manifest(encode(many(10)))
    await activate(coordinator)
    await activate(coordinator)


def entries_of(sealed: Sealed) -> dict[str, bytes]:
    return open_sealed_data(sealed.keys[0], sealed.data)


def test_every_durable_state_has_the_next_number_and_names_the_one_before() -> None:
    """Also over restarts, which write a state of their own."""
    store = History()
    world = World(store=store)
    run(world, deploy)
    run(world, activate)
    assert len(store.all) == 5
    previous = b""
    for number, sealed in enumerate(store.all, start=1):
        entries = entries_of(sealed)
        assert (entries["stateSequence"], entries["statePrevious"]) == (b"%d" % number, previous)
        assert "activations:m" in entries or number == 1
        previous = hashlib.sha256(sealed.data).digest()


def test_a_state_that_the_reference_wrote_begins_the_history() -> None:
    """It has neither entry; 10.1: what it does not know it keeps."""
    store = History()
    run(World(store=store), deploy)
    sealed = store.all[-1]
    entries = {name: value for name, value in entries_of(sealed).items() if not name.startswith("stateS")}
    del entries["statePrevious"]
    data = build_sealed_data(sealed.keys[0], b"null", entries, bytes(12))
    again = History()
    again.save(data, sealed.keys[0])
    run(World(store=again), activate)
    entries = entries_of(again.all[1])
    assert (entries["stateSequence"], entries["statePrevious"]) == (b"1", hashlib.sha256(data).digest())


def test_an_older_state_means_recovery_and_says_so_and_the_latest_one_does_not(tmp_path: Path) -> None:
    store = History()
    world = Anchored(store=store, anchor=FileAnchor(tmp_path / "anchor"))
    run(world, deploy)
    assert run(world, phase) is Phase.ACCEPTING_MARBLES
    latest = store.all[-1]
    for older in store.all[:-1]:
        turned_back = Anchored(store=MemoryStore(older), anchor=world.anchor)
        status = run(turned_back, _status)
        assert status.startswith("Coordinator is in recovery mode")
        assert "OLDER than the latest one" in status
        assert turned_back.store.load() == older
        statement = run(turned_back, _statement)
        assert statement.sequence > 0, "the number that the anchor knows, not that of what runs"
        with pytest.raises(WrongPhase, match="does not run its latest state"):
            SequenceMemory(tmp_path / "memory").check(b"root", statement, accept_older=True)
    assert not (tmp_path / "memory").exists()
    assert run(Anchored(store=MemoryStore(latest), anchor=world.anchor), phase) is Phase.ACCEPTING_MARBLES


async def _status(coordinator: Coordinator) -> str:
    return coordinator.status().message


async def _statement(coordinator: Coordinator) -> Statement:
    return parse_statement((await coordinator.statement(b"")).text.decode())


@pytest.mark.parametrize(
    ("state", "sequence", "runs"), [(1, 0, False), (1, 3, False), (2, 3, False), (2, 0, True), (3, 3, True)]
)
def test_a_client_believes_a_number_only_of_the_state_that_runs(
    tmp_path: Path, state: int, sequence: int, runs: bool
) -> None:
    memory = SequenceMemory(tmp_path / "memory")
    told = parse_statement(json.dumps({"statement": 1, "state": state, "sequence": sequence, "head": ""}))
    if runs:
        memory.check(b"root", told)
    else:
        with pytest.raises(WrongPhase):
            memory.check(b"root", told)
    assert (tmp_path / "memory").exists() is runs


def test_a_copy_that_went_on_elsewhere_is_another_history(tmp_path: Path) -> None:
    store = History()
    world = Anchored(store=store, anchor=FileAnchor(tmp_path / "anchor"))
    run(world, deploy)
    fork = World(store=MemoryStore(store.all[0]))
    run(fork, activate)
    run(fork, activate)
    run(fork, activate)
    assert "not of the history" in run(Anchored(store=fork.store, anchor=world.anchor), _status)


def test_a_crash_between_state_and_anchor_needs_nobody() -> None:
    class Late(MemoryAnchor):
        failing = False

        def advance(self, mark: Mark) -> None:
            if self.failing:
                raise Unavailable("the anchor's volume is gone")
            super().advance(mark)

    store, anchor = History(), Late()
    world = Anchored(store=store, anchor=anchor)
    run(world, deploy)

    async def two_fail(coordinator: Coordinator) -> Mark | None:
        started_at = anchor.mark
        anchor.failing = True
        for _ in range(2):
            with pytest.raises(MarbleRunError, match="anchor's volume"):
                await activate(coordinator)
        assert coordinator.state.activations["m"] == 2
        return started_at

    async def count(coordinator: Coordinator) -> int:
        return coordinator.state.activations["m"]

    assert run(world, two_fail) == anchor.mark
    anchor.failing = False
    # The state that was written and not answered is the next one after the anchor; nobody has to recover.
    assert run(world, count) == 3


class MemoryAnchor:
    """Remembers as long as the test runs."""

    mark: Mark | None = None

    def load(self) -> Mark | None:
        return self.mark

    def advance(self, mark: Mark) -> None:
        self.mark = mark


def test_the_holders_may_agree_to_an_older_state_and_the_history_goes_on_above_it(tmp_path: Path) -> None:
    store = History()
    world = Anchored(store=store, anchor=FileAnchor(tmp_path / "anchor"))
    secrets = run(world, lambda coordinator: coordinator.set_manifest(manifest(1)))
    run(world, activate)
    share = share_of("party0", secrets["party0"])
    reached = world.anchor.load() if world.anchor else None
    older = store.all[0]
    world.store = History()
    world.store.save(older.data, older.keys[0])

    async def agree(coordinator: Coordinator) -> None:
        assert coordinator.state.phase is Phase.RECOVERY
        assert (await coordinator.recover(share.secret, share.signature)).remaining == 0

    run(world, agree)
    assert run(world, phase) is Phase.ACCEPTING_MARBLES
    assert reached is not None
    assert isinstance(world.store, History)
    assert int(entries_of(world.store.all[1])["stateSequence"]) == reached.sequence + 1
    assert "OLDER" in run(Anchored(store=MemoryStore(store.all[-1]), anchor=world.anchor), _status)


@dataclass
class Refusing:
    """A platform that gives no quotes."""

    name: str = "refusing"
    origin: Origin = Origin.NONE

    def issue(self, report_data: bytes) -> bytes:
        raise Unavailable("the platform gives no quote")


class FullStore(History):
    def save(self, data: bytes, key: bytes) -> None:
        raise Unavailable("the disk is full")


@pytest.mark.parametrize("failing", ["quote", "disk"])
def test_a_recovery_that_fails_at_its_end_leaves_the_history_as_it_was(tmp_path: Path, failing: str) -> None:
    """What was not made durable is not what the next state comes after, nor what the statement tells."""
    store = History()
    world = Anchored(store=store, anchor=FileAnchor(tmp_path / "anchor"))
    secrets = run(world, lambda coordinator: coordinator.set_manifest(manifest(1)))
    run(world, activate)
    share = share_of("party0", secrets["party0"])
    reached = world.anchor.load() if world.anchor else None
    assert reached is not None
    if failing == "quote":
        world.issuer = Refusing()
    world.store = History() if failing == "quote" else FullStore()
    MemoryStore.save(world.store, store.all[0].data, store.all[0].keys[0])

    async def fail(coordinator: Coordinator) -> None:
        with pytest.raises(Unavailable):
            await coordinator.recover(share.secret, share.signature)
        told = parse_statement((await coordinator.statement(b"")).text.decode())
        assert (told.sequence, told.head) == (reached.sequence, reached.head.hex())

    run(world, fail)


def test_starting_over_goes_on_above_the_anchor(tmp_path: Path) -> None:
    store = History()
    world = Anchored(store=store, anchor=FileAnchor(tmp_path / "anchor"))
    run(world, deploy)
    older = store.all[0]
    world.store = MemoryStore(older)
    run(world, deploy)
    assert run(world, phase) is Phase.ACCEPTING_MARBLES
    assert isinstance(world.store, MemoryStore)
    assert world.store.aside == [older]
    world.store = MemoryStore()  # even the directory is gone
    assert "there is no state, but the anchor remembers one" in run(world, _status)
    assert run(world, phase) is Phase.ACCEPTING_MANIFEST
    run(world, deploy)
    assert "\n" not in run(world, _status)
    assert run(world, phase) is Phase.ACCEPTING_MARBLES
    assert "OLDER" in run(Anchored(store=MemoryStore(store.all[-1]), anchor=world.anchor), _status)


@pytest.mark.parametrize("content", [b"", b"x", b"1 ab\n", b"1 " + b"0" * 64, b"-1 " + b"0" * 64 + b"\n", b"1" * 4000])
def test_a_damaged_anchor_stops_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "anchor").write_bytes(content)
    world = Anchored(anchor=FileAnchor(tmp_path / "anchor"))
    with pytest.raises(Misconfigured, match="damaged"):
        run(world, phase)


def test_an_anchor_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="could not be written"):
        FileAnchor(tmp_path / "missing" / "anchor").advance(Mark(1, bytes(32)))
    anchor = FileAnchor(tmp_path / "anchor")
    assert anchor.load() is None
    anchor.advance(Mark(7, b"h" * 32))
    assert anchor.load() == Mark(7, b"h" * 32)
    (tmp_path / "anchor").unlink()
    (tmp_path / "anchor").mkdir()
    with pytest.raises(Unavailable, match="cannot be read"):
        anchor.load()


@given(st.integers(0, 5), st.integers(0, 5), st.binary(min_size=32, max_size=32), st.booleans())
def test_only_the_anchored_state_and_the_next_one_are_the_latest(at: int, to: int, head: bytes, linked: bool) -> None:
    anchored = Mark(at, b"a" * 32)
    link = Link(Mark(to, head), anchored.head if linked else b"x" * 32)
    allowed = (to == at and head == anchored.head) or (to == at + 1 and linked)
    if allowed:
        verify_latest(link, anchored)
        return
    with pytest.raises(Untrusted) as refused:
        verify_latest(link, anchored)
    assert (refused.value.step, refused.value.reason) == ("anchor", "older" if to < at else "branched")


def test_marks_follow_each_other_and_bad_entries_are_named() -> None:
    last = Mark(3, b"h" * 32)
    entries = stamped({"state": b"3"}, last)
    assert link_of(entries, b"data") == Link(following(last, b"data"), last.head)
    for bad in ({"stateSequence": b"x"}, {"stateSequence": b""}, {"stateSequence": b"9" * 30}, {"statePrevious": b"x"}):
        with pytest.raises(Malformed):
            link_of(bad, b"data")


# -- the statement -----------------------------------------------------------------------------------------------


def test_the_statement_tells_deployment_and_history_under_a_quote_on_request(platform: SimulatedPlatform) -> None:
    with running(World(platform=platform)) as up:
        empty = parse_statement(ask(up.client, "GET", "/api/v2/statement").data["statement"])
        assert (empty.sequence, empty.head, empty.manifest_fingerprint, empty.update_log_hash) == (0, "", "", "")
        up.set_manifest(manifest(1))
        sealed = up.world.store.load()
        assert sealed is not None
        nonce = base64.urlsafe_b64encode(b"nonce" * 4).decode()
        answer = ask(up.client, "GET", f"/api/v2/statement?nonce={nonce}")
        text = answer.data["statement"]
        found = parse_statement(text)
        assert (found.sequence, found.head) == (1, hashlib.sha256(sealed.data).hexdigest())
        assert found.manifest_fingerprint == hashlib.sha256(manifest(1)).hexdigest()
        assert found.update_log_hash == hashlib.sha256(up.coordinator.update_log().encode()).hexdigest()
        assert found.root_certificate == up.coordinator.state.authority.root_pem.decode()
        assert (base64.b64decode(found.nonce), found.evidence) == (b"nonce" * 4, "simulated")
        quote = base64.b64decode(answer.data["quote"])
        assert report_data_for(text.encode()) == parse_quote(quote).report.report_data
        assert ask(up.client, "GET", "/api/v2/statement").data["quote"] is None
        assert ask(up.client, "GET", "/api/v2/statement?nonce=!").status == 400
    with running(World(platform=platform, store=up.world.store)) as up:
        again = parse_statement(ask(up.client, "GET", "/api/v2/statement").data["statement"])
        assert again.sequence == 2


def statement(sequence: int, head: str = "ab" * 32) -> str:
    return json.dumps({"statement": 1, "sequence": sequence, "head": head})


def test_a_client_remembers_and_refuses_to_go_back_unless_told_to(tmp_path: Path) -> None:
    memory = SequenceMemory(tmp_path / "deep" / "sequences.json")
    for sequence in (3, 3, 7):
        memory.check(b"root", parse_statement(statement(sequence)))
    memory.check(b"another root", parse_statement(statement(1)))
    with pytest.raises(Untrusted, match="gone BACK"):
        memory.check(b"root", parse_statement(statement(6)))
    with pytest.raises(Untrusted, match="forked"):
        memory.check(b"root", parse_statement(statement(7, "cd" * 32)))
    memory.check(b"root", parse_statement(statement(2)), accept_older=True)
    memory.check(b"root", parse_statement(statement(3)))
    with pytest.raises(Untrusted):
        memory.check(b"root", parse_statement(statement(2)))


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{}", "null", "[" * 9999, '{"statement": 2}', '{"statement": 1, "sequence": -1}'),
        *('{"statement": 1, "head": "xx"}', '{"statement": 1, "sequence": "1"}'),
    ],
)
def test_a_statement_that_is_none_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        parse_statement(text)


def test_a_damaged_memory_is_an_error_and_not_a_fresh_beginning(tmp_path: Path) -> None:
    path = tmp_path / "sequences.json"
    for content in ("", "{", "[]", '{"x": 1'):
        path.write_text(content)
        with pytest.raises(Malformed):
            SequenceMemory(path).check(b"root", parse_statement(statement(1)))
        assert path.read_text() == content


@pytest.mark.parametrize("stamp", [b"", b"s", b"s" * 64])
def test_a_state_keeps_the_stamp_that_it_was_sealed_with(stamp: bytes) -> None:
    assert link_of(stamped({}, Mark(), stamp), b"sealed").stamp == stamp


def test_a_stamp_that_no_anchor_made_is_malformed() -> None:
    with pytest.raises(Malformed):
        link_of(stamped({}, Mark(), b"s" * 65), b"sealed")
