"""The Coordinator without its listeners: state, storage, concurrency."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.coordinator.manifests import INTEGRATION, encode, integration, many
from tests.coordinator.running import World
from tests.coordinator.states import UUID_1, UUID_2, applicant

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.issue.simulated import SimulatedIssuer
from marblerun.attestation.model import Origin
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.coordinator.commands.activate import Activated, ActivationRefused, Stage
from marblerun.coordinator.service import Coordinator
from marblerun.coordinator.state import Phase, State
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.entries import encode_state
from marblerun.coordinator.store.file import FileStore
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import Malformed, MarbleRunError, NotFound, Unavailable, Untrusted, WrongPhase
from marblerun.secrets import box

T = TypeVar("T")


@dataclass
class WatchedStore:
    """Counts saves, can be slow, and can fail: a store as bad as real ones."""

    inner: MemoryStore = field(default_factory=MemoryStore)
    saves: int = 0
    failing: bool = False
    gate: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    """Set when a write has begun."""

    def load(self) -> Sealed | None:
        return self.inner.load()

    def save(self, data: bytes, key: bytes) -> None:
        self.entered.set()
        if self.gate is not None:
            assert self.gate.wait(60)
        if self.failing:
            raise Unavailable("the disk is full")
        self.saves += 1
        self.inner.save(data, key)

    def set_aside(self) -> None:
        self.inner.set_aside()


def run(world: World, scenario: Callable[[Coordinator], Coroutine[Any, Any, T]]) -> T:
    """A scenario on a started Coordinator."""

    async def main() -> T:
        coordinator = world.coordinator()
        await coordinator.start()
        try:
            return await asyncio.wait_for(scenario(coordinator), 120)
        finally:
            await coordinator.stop()

    return asyncio.run(main())


async def until(done: Callable[[], bool]) -> None:
    """Until ``done()``; a scenario that never comes to that is ended by ``run``."""
    while not done():
        await asyncio.sleep(0.001)


async def activate(coordinator: Coordinator, marble: str, uuid: str = UUID_1) -> Activated:
    return await coordinator.activate(applicant().request(marble, uuid), applicant().certificate)


async def stage_of(coordinator: Coordinator, marble: str) -> Stage:
    with pytest.raises(ActivationRefused) as refused:
        await activate(coordinator, marble)
    return refused.value.stage


# -- start, restart ----------------------------------------------------------------------------------------------


def test_c2_c3_a_restart_keeps_state_certificates_secrets_and_signature_and_refuses_a_manifest() -> None:
    """C2, C3."""
    world = World()

    async def first(coordinator: Coordinator) -> tuple[dict[str, bytes], Activated]:
        await coordinator.set_manifest(INTEGRATION)
        return encode_state(coordinator.state), await activate(coordinator, "frontend")

    async def second(coordinator: Coordinator) -> tuple[dict[str, bytes], Activated]:
        assert coordinator.status().code == 3
        with pytest.raises(WrongPhase, match="server is not in expected state"):
            await coordinator.set_manifest(INTEGRATION)
        return encode_state(coordinator.state), await activate(coordinator, "frontend")

    (before, old), (after, new) = run(world, first), run(world, second)
    assert before == after
    for name in ("PRIVATE", "SHARED", "SHARED_CERT", "MARBLE_PREDEFINED_ROOT_CA"):
        assert old.env[name] == new.env[name]


def test_c4_without_a_manifest_nothing_is_kept() -> None:
    """C4."""
    world = World()

    async def look(coordinator: Coordinator) -> bytes:
        assert coordinator.status().code == 2
        return coordinator.state.authority.root_der

    assert run(world, look) != run(world, look)
    assert world.store.load() is None


@pytest.mark.parametrize("spoil", ["key", "no key", "data"])
def test_c6_a_state_that_does_not_open_here_means_recovery_and_is_left_as_it_is(
    platform: SimulatedPlatform, spoil: str
) -> None:
    """C6, the part without the recover call."""
    world = World(platform=platform)
    run(world, lambda coordinator: coordinator.set_manifest(INTEGRATION))
    sealed = world.store.load()
    assert sealed is not None
    spoilt = {
        "key": replace(sealed, keys=(sealed.keys[0][:-1] + bytes([sealed.keys[0][-1] ^ 1]),)),
        "no key": replace(sealed, keys=()),
        "data": replace(sealed, data=sealed.data[:-1] + bytes([sealed.data[-1] ^ 1])),
    }[spoil]
    world = World(platform=platform, store=MemoryStore(spoilt))

    async def look(coordinator: Coordinator) -> None:
        assert coordinator.status().code == 1
        assert coordinator.status().message.startswith("Coordinator is in recovery mode")
        assert await stage_of(coordinator, "frontend") is Stage.PHASE
        assert (await coordinator.own_evidence(b"")).quote

    run(world, look)
    assert world.store.load() == spoilt


def test_another_enclave_or_platform_cannot_open_the_state(platform: SimulatedPlatform) -> None:
    world = World(platform=platform)
    run(world, lambda coordinator: coordinator.set_manifest(INTEGRATION))
    thief = World(platform=platform, store=world.store, identity=EnclaveIdentity(signer_id=b"t" * 32))

    async def code(coordinator: Coordinator) -> int:
        return coordinator.status().code

    assert run(thief, code) == 1
    assert run(World(platform=platform, store=world.store), code) == 3


def test_a_newer_version_of_the_same_product_opens_the_state_and_an_older_one_does_not(
    platform: SimulatedPlatform,
) -> None:
    async def code(coordinator: Coordinator) -> int:
        return coordinator.status().code

    store = MemoryStore()
    world = World(platform=platform, store=store)
    run(world, lambda coordinator: coordinator.set_manifest(INTEGRATION))
    newer = EnclaveIdentity(security_version=5, unique_id=b"n" * 32)
    assert run(World(platform=platform, store=store, identity=newer), code) == 3
    assert run(world, code) == 1  # the newer one has sealed it again


@pytest.mark.parametrize("size", [0, 3, 4, 20])
def test_a_truncated_state_is_an_error_at_start_and_no_fresh_beginning(size: int) -> None:
    store = MemoryStore()
    run(World(store=store), lambda coordinator: coordinator.set_manifest(INTEGRATION))
    sealed = store.load()
    assert sealed is not None
    with pytest.raises((Malformed, Untrusted)):
        run(World(store=MemoryStore(replace(sealed, data=sealed.data[:size]))), lambda coordinator: coordinator.stop())


def test_every_start_seals_anew_so_that_no_nonce_is_used_twice() -> None:
    """Protocol, section 1.3, step 4f."""
    store = MemoryStore()
    run(World(store=store), lambda coordinator: coordinator.set_manifest(INTEGRATION))
    boxes = set()
    for _ in range(4):
        sealed = store.load()
        assert sealed is not None
        boxes.add(sealed.data)
        run(World(store=store), lambda coordinator: coordinator.stop())
    assert len(boxes) == 4


def test_with_sealing_disabled_nothing_is_written() -> None:
    """K5."""
    document = integration()
    document["Config"] = {"SealMode": "Disabled"}
    world = World()
    run(world, lambda coordinator: coordinator.set_manifest(encode(document)))
    assert world.store.load() is None


# -- manifest ----------------------------------------------------------------------------------------------------


def test_sm1_after_failed_tries_a_good_manifest_is_accepted_and_a_second_one_is_not() -> None:
    """SM1."""

    async def scenario(coordinator: Coordinator) -> None:
        for bad in (b"", b"{", b'{"Marbles":{"a":{"Package":"none"}}}'):
            with pytest.raises(MarbleRunError):
                await coordinator.set_manifest(bad)
            assert coordinator.status().code == 2
        await coordinator.set_manifest(INTEGRATION)
        with pytest.raises(WrongPhase):
            await coordinator.set_manifest(encode(many(1)))
        assert coordinator.signed_manifest().manifest == INTEGRATION

    run(World(), scenario)


def test_sm2_a_failing_store_leaves_everything_as_it_was_and_the_next_try_succeeds() -> None:
    """SM2."""
    store = WatchedStore(failing=True)

    async def scenario(coordinator: Coordinator) -> None:
        before = coordinator.state
        with pytest.raises(Unavailable, match="disk is full"):
            await coordinator.set_manifest(INTEGRATION)
        assert coordinator.state is before
        store.failing = False
        await coordinator.set_manifest(INTEGRATION)
        assert coordinator.status().code == 3

    run(World(store=store), scenario)


def test_sm3_fingerprint_and_signature_cover_the_exact_bytes() -> None:
    """SM3."""
    raw = b"\n" + INTEGRATION + b"  "

    async def scenario(coordinator: Coordinator) -> None:
        await coordinator.set_manifest(raw)
        signed = coordinator.signed_manifest()
        assert (signed.manifest, signed.fingerprint) == (raw, hashlib.sha256(raw).hexdigest())
        key = coordinator.state.authority.root_key.public_key()
        key.verify(signed.signature, raw, ec.ECDSA(hashes.SHA256()))

    run(World(), scenario)


def test_sm6_of_many_concurrent_tries_exactly_one_wins_and_readers_see_nothing_or_all() -> None:
    """SM6."""

    async def scenario(coordinator: Coordinator) -> None:
        manifests = [encode(many(n)) for n in range(1, 9)]

        async def read() -> None:
            for _ in range(50):
                signed = coordinator.signed_manifest_or_none()
                assert signed is None or signed.fingerprint == hashlib.sha256(signed.manifest).hexdigest()
                await asyncio.sleep(0.001)

        reading = asyncio.create_task(read())
        results = await asyncio.gather(*map(coordinator.set_manifest, manifests), return_exceptions=True)
        await reading
        winners = [manifest for manifest, result in zip(manifests, results, strict=True) if isinstance(result, dict)]
        assert winners == [coordinator.signed_manifest().manifest]
        assert sum(isinstance(result, WrongPhase) for result in results) == 7

    run(World(), scenario)


# -- quote, status -----------------------------------------------------------------------------------------------


def test_q1_q2_evidence_is_there_before_and_after_the_manifest_and_the_chain_is_intermediate_then_root() -> None:
    """Q1, Q2."""

    async def scenario(coordinator: Coordinator) -> None:
        for _ in range(2):
            own = await coordinator.own_evidence(b"")
            authority = coordinator.state.authority
            assert own.chain_pem.encode() == authority.intermediate_pem + authority.root_pem
            if coordinator.status().code == 2:
                await coordinator.set_manifest(INTEGRATION)

    run(World(), scenario)
    with pytest.raises(WrongPhase):
        asyncio.run(World().coordinator().own_evidence(b""))


@dataclass
class CountingIssuer:
    """A platform that tells how often it was asked, and what for."""

    asked: list[bytes] = field(default_factory=list)
    failing: bool = False
    gate: threading.Event | None = None
    name: str = "counting"
    origin: Origin = Origin.SIMULATED

    def issue(self, report_data: bytes) -> bytes:
        if self.gate is not None:
            assert self.gate.wait(60)
        self.asked.append(report_data)
        if self.failing:
            raise Unavailable("the quoting enclave is away")
        return b"quote over " + report_data


def test_c7_q3_the_cached_quote_is_used_without_a_nonce_and_a_new_one_with_one() -> None:
    """C7, Q3."""
    issuer = CountingIssuer()

    async def scenario(coordinator: Coordinator) -> None:
        root = coordinator.state.authority.root_der
        first, second = await coordinator.own_evidence(b""), await coordinator.own_evidence(b"")
        assert first.quote == second.quote == b"quote over " + report_data_for(root)
        fresh = await coordinator.own_evidence(b"nonce")
        assert fresh.quote == b"quote over " + report_data_for(root + b"nonce")
        assert len(issuer.asked) == 2

    run(World(issuer=issuer), scenario)


def test_requests_for_the_same_quote_share_one_generation() -> None:
    """Issue 5, point 6, the part that is here already."""
    issuer = CountingIssuer(gate=threading.Event())

    async def scenario(coordinator: Coordinator) -> None:
        asking = [asyncio.create_task(coordinator.own_evidence(b"same")) for _ in range(20)]
        await until(lambda: len(coordinator._quotes_under_way) == 1)
        asking[0].cancel()
        assert issuer.gate is not None
        issuer.gate.set()
        results = await asyncio.gather(*asking, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert len({result.quote for result in results[1:] if not isinstance(result, BaseException)}) == 1
        assert len(issuer.asked) == 1

    run(World(issuer=issuer), scenario)


def test_a_flood_of_nonces_does_not_pile_up_work() -> None:
    """Callers that have gone away leave a bounded queue behind."""
    issuer = CountingIssuer(gate=threading.Event())

    async def scenario(coordinator: Coordinator) -> None:
        asking = [asyncio.create_task(coordinator.own_evidence(b"%d" % n)) for n in range(2000)]
        await asyncio.sleep(0)
        assert coordinator._quotes_under_way
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
        assert issuer.gate is not None
        issuer.gate.set()
        await until(lambda: not coordinator._quotes_under_way)
        assert (await coordinator.own_evidence(b"honest")).quote
        assert len(issuer.asked) <= 300

    run(World(issuer=issuer), scenario)


def test_a_platform_that_hangs_does_not_hold_up_storage() -> None:
    issuer = CountingIssuer(gate=threading.Event())

    async def scenario(coordinator: Coordinator) -> None:
        asking = [asyncio.create_task(coordinator.own_evidence(b"%d" % n)) for n in range(50)]
        await until(lambda: len(coordinator._quotes_under_way) == 50)
        try:
            await asyncio.wait_for(coordinator.set_manifest(encode(many(1))), 60)
            await asyncio.wait_for(activate(coordinator, "m"), 60)
        finally:
            assert issuer.gate is not None
            issuer.gate.set()
        assert all(evidence.quote for evidence in await asyncio.gather(*asking))

    run(World(issuer=issuer), scenario)


def test_c8_a_failing_platform_is_an_error_and_not_a_missing_quote() -> None:
    """C8."""
    issuer = CountingIssuer(failing=True)

    async def scenario(coordinator: Coordinator) -> None:
        for nonce in (b"", b"nonce"):
            with pytest.raises(Unavailable):
                await coordinator.own_evidence(nonce)
        issuer.failing = False
        assert (await coordinator.own_evidence(b"")).quote

    run(World(issuer=issuer), scenario)


def test_q4_without_a_manifest_there_is_no_signature() -> None:
    """Q4."""

    async def scenario(coordinator: Coordinator) -> None:
        assert coordinator.signed_manifest_or_none() is None
        with pytest.raises(NotFound):
            coordinator.signed_manifest()

    run(World(), scenario)


def test_q5_status_has_a_number_and_a_text() -> None:
    """Q5."""

    async def scenario(coordinator: Coordinator) -> None:
        assert coordinator.status().code == 2
        assert coordinator.status().message.startswith("Coordinator is ready to accept a manifest")
        await coordinator.set_manifest(INTEGRATION)
        assert coordinator.status().code == 3
        assert coordinator.status().message.startswith("Coordinator is running correctly and ready to accept marbles")

    run(World(), scenario)


# -- activations -------------------------------------------------------------------------------------------------


def test_a2_the_budget_is_exact_under_parallel_requests_and_survives_a_restart() -> None:
    """A2: 50 at once, 7 allowed."""
    store = WatchedStore()

    async def scenario(coordinator: Coordinator) -> int:
        if coordinator.state.phase is Phase.ACCEPTING_MANIFEST:
            await coordinator.set_manifest(encode(many(7)))
        results = await asyncio.gather(*(activate(coordinator, "m") for _ in range(50)), return_exceptions=True)
        for result in results:
            assert isinstance(result, Activated) or (
                isinstance(result, ActivationRefused) and result.stage is Stage.BUDGET
            )
        assert coordinator.state.activations == {"m": 7}
        return sum(isinstance(result, Activated) for result in results)

    assert run(World(store=store), scenario) == 7
    assert run(World(store=store), scenario) == 0


def test_a3_parallel_activations_of_an_unlimited_marble_all_succeed_without_a_write() -> None:
    """A3."""
    store = WatchedStore()

    async def scenario(coordinator: Coordinator) -> None:
        await coordinator.set_manifest(INTEGRATION)
        before = store.saves
        results = await asyncio.gather(*(activate(coordinator, "frontend", UUID_2) for _ in range(10)))
        assert len({result.env["MARBLE_PREDEFINED_PRIVATE_KEY"] for result in results}) == 10
        assert len({result.env["PRIVATE"] for result in results}) == 1
        assert store.saves == before

    run(World(store=store), scenario)


def test_changes_that_wait_for_the_disk_are_written_together() -> None:
    """Group commit: many activations, few writes, and nobody is answered before the write."""
    store = WatchedStore()

    async def scenario(coordinator: Coordinator) -> None:
        await coordinator.set_manifest(encode(many(100)))
        before = store.saves
        store.gate = threading.Event()
        store.entered.clear()
        waiting = [asyncio.create_task(activate(coordinator, "m")) for _ in range(40)]
        await until(store.entered.is_set)
        await until(lambda: coordinator._latest_batch + len(coordinator._queue) == 40)
        assert not any(task.done() for task in waiting)
        assert coordinator.state.activations == {}
        store.gate.set()
        await asyncio.gather(*waiting)
        assert coordinator.state.activations == {"m": 40}
        assert store.saves - before <= 3

    run(World(store=store), scenario)


def test_when_the_store_fails_the_activation_fails_and_memory_does_not_move_ahead() -> None:
    store = WatchedStore()

    async def scenario(coordinator: Coordinator) -> None:
        await coordinator.set_manifest(encode(many(2)))
        store.failing = True
        for _ in range(5):
            assert await stage_of(coordinator, "m") is Stage.COMMIT
        assert coordinator.state.activations == {}
        store.failing = False
        await activate(coordinator, "m")
        assert coordinator.state.activations == {"m": 1}

    run(World(store=store), scenario)


def test_a_caller_that_goes_away_while_queueing_is_not_counted() -> None:
    store = WatchedStore()

    async def scenario(coordinator: Coordinator) -> None:
        await coordinator.set_manifest(encode(many(3)))
        store.gate = threading.Event()
        store.entered.clear()
        first = asyncio.create_task(activate(coordinator, "m"))
        await until(store.entered.is_set)
        gone = [asyncio.create_task(activate(coordinator, "m")) for _ in range(5)]
        await until(lambda: len(coordinator._queue) == 5)
        for task in gone:
            task.cancel()
        store.gate.set()
        await first
        assert coordinator.state.activations == {"m": 1}
        await activate(coordinator, "m")
        await activate(coordinator, "m")
        assert await stage_of(coordinator, "m") is Stage.BUDGET

    run(World(store=store), scenario)


def test_listeners_hear_of_every_published_state_and_only_of_stored_ones() -> None:
    store = WatchedStore()

    async def scenario(coordinator: Coordinator) -> None:
        heard: list[dict[str, int]] = []
        await coordinator.set_manifest(encode(many(5)))
        coordinator.listeners.append(lambda state: heard.append(dict(state.activations)))
        await activate(coordinator, "m")
        store.failing = True
        await stage_of(coordinator, "m")
        assert heard == [{"m": 1}]

    run(World(store=store), scenario)


def test_a_listener_that_breaks_holds_nobody_up() -> None:
    async def scenario(coordinator: Coordinator) -> None:
        heard: list[Phase] = []

        def broken(state: State) -> None:
            raise ValueError(state.phase)

        coordinator.listeners += [broken, lambda state: heard.append(state.phase)]
        await coordinator.set_manifest(encode(many(5)))
        await activate(coordinator, "m")
        assert heard == [Phase.ACCEPTING_MARBLES] * 2

    run(World(), scenario)


def test_a_state_too_large_to_be_read_again_is_refused_and_the_one_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a user who may write a few large secrets could keep the Coordinator from ever starting again."""
    monkeypatch.setattr(box, "MAX_SEALED_STATE_BYTES", 64 * 1024)
    store = FileStore(tmp_path / "state")
    large = many(5)
    large["Marbles"]["m"]["Parameters"] = {"Files": {"/large": "x" * 64 * 1024}}

    async def scenario(coordinator: Coordinator) -> None:
        with pytest.raises(Malformed):
            await coordinator.set_manifest(encode(large))
        assert coordinator.state.phase is Phase.ACCEPTING_MANIFEST
        await coordinator.set_manifest(encode(many(5)))

    async def again(coordinator: Coordinator) -> Phase:
        return coordinator.state.phase

    run(World(store=store), scenario)
    assert run(World(store=store), again) is Phase.ACCEPTING_MARBLES


def test_a22_evidence_of_a_too_old_version_is_refused_also_after_a_restart(platform: SimulatedPlatform) -> None:
    """A22, with the version in the manifest; the update call comes with the client API."""
    document = integration()
    document["Packages"]["shop"]["SecurityVersion"] = 3
    world = World(platform=platform)

    async def tries(coordinator: Coordinator) -> list[bool]:
        if coordinator.state.phase is Phase.ACCEPTING_MANIFEST:
            await coordinator.set_manifest(encode(document))
        return [await admitted(coordinator, platform, version) for version in (1, 2, 3, 4)]

    assert run(world, tries) == [False, False, True, True]
    assert run(world, tries) == [False, False, True, True]


def test_the_operator_is_told_every_mismatch_and_the_marble_nothing_about_machines(
    platform: SimulatedPlatform, caplog: pytest.LogCaptureFixture
) -> None:
    document = integration()
    document["Packages"]["shop"]["ProductID"] = 9
    document["Infrastructures"] = {"ours": {"PPIDs": ["ab" * 16]}}
    ppid = platform.platform.ppid.hex()

    async def refused(coordinator: Coordinator) -> str:
        await coordinator.set_manifest(encode(document))
        quote = SimulatedIssuer(lambda data: platform.quote_as(EnclaveIdentity(), data)).issue
        request = applicant().request("bare", quote=quote(report_data_for(applicant().certificate)))
        with pytest.raises(ActivationRefused) as refusal:
            await coordinator.activate(request, applicant().certificate)
        return str(refusal.value)

    told = run(World(platform=platform), refused)
    assert ("Packages.shop.ProductID: expected 9" in told, "Infrastructures.ours.PPIDs" in told) == (True, True)
    assert ("ab" * 16 in told, ppid in told) == (False, False)
    (record,) = [record for record in caplog.records if record.message == "marble activation refused"]
    mismatches = record.__dict__["fields"]["mismatches"]
    assert [mismatch.split(":")[0] for mismatch in mismatches] == ["product-id", "ppid"]
    assert ("ab" * 16 in mismatches[1], ppid in mismatches[1]) == (True, True)


async def admitted(coordinator: Coordinator, platform: SimulatedPlatform, version: int) -> bool:
    identity = EnclaveIdentity(security_version=version)
    issuer = SimulatedIssuer(lambda data: platform.quote_as(identity, data))
    request = applicant().request("bare", quote=issuer.issue(report_data_for(applicant().certificate)))
    if version >= 3:
        return bool((await coordinator.activate(request, applicant().certificate)).env)
    with pytest.raises(ActivationRefused, match=f"at least 3, evidence says {version}") as refused:
        await coordinator.activate(request, applicant().certificate)
    return refused.value.stage is not Stage.EVIDENCE


def test_with_a_file_store_a_kill_between_two_activations_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """The store is read while the Coordinator still runs, as after a kill."""
    directory = tmp_path_factory.mktemp("kill")

    async def scenario(coordinator: Coordinator) -> None:
        await coordinator.set_manifest(encode(many(3)))
        for count in (1, 2):
            await activate(coordinator, "m")
            left = Sealed((directory / "sealed_data").read_bytes(), ((directory / "sealed_key").read_bytes(),))
            after_kill = World(store=MemoryStore(left)).coordinator()
            await after_kill.start()
            assert after_kill.state.activations == {"m": count}

    run(World(store=FileStore(directory)), scenario)


def test_the_manifest_is_returned_as_base64_safe_bytes_of_any_kind() -> None:
    """Bytes that are no valid UTF-8 inside strings survive storage."""
    raw = b'{"Packages":{"p":{"Debug":true}},"Marbles":{"m":{"Package":"p","Parameters":{"Argv":["\xff"]}}}}'
    world = World()

    async def scenario(coordinator: Coordinator) -> bytes:
        if coordinator.state.phase is Phase.ACCEPTING_MANIFEST:
            await coordinator.set_manifest(raw)
        return base64.b64encode(coordinator.signed_manifest().manifest)

    assert run(world, scenario) == run(world, scenario) == base64.b64encode(raw)
