"""Two and three Coordinators on one Secret of a real API server: what one does, the others know."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.coordinator.kubernetes.instances import NAME, Shared, started, store_in, together
from tests.coordinator.manifests import encode, many
from tests.coordinator.parties import estate, manifest, share_of
from tests.coordinator.people import office, person
from tests.coordinator.states import UUID_1, applicant
from tests.coordinator.store.etcd import etcd
from tests.coordinator.store.shared import KeyOf
from tests.forge.kubernetes import Kube, Pod, needs_kube

from marblerun.coordinator.commands.activate import ActivationRefused
from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.service import MAX_LOST_WRITES, Coordinator
from marblerun.coordinator.state import Phase, State
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.anchors import EtcdPlace, TlsFiles
from marblerun.coordinator.store.anchors.etcd import EtcdAnchor
from marblerun.coordinator.store.kubernetes import SecretStore
from marblerun.errors import Busy, Conflict, MarbleRunError, Misconfigured, NotFound, Unavailable, Untrusted, WrongPhase
from marblerun.secrets.box import is_data_key, parse_sealed_data, replace_recovery_data
from marblerun.secrets.recovery import share_id

pytestmark = needs_kube
FIXED = "server is not in expected state"


async def activate(coordinator: Coordinator, marble: str = "m") -> Mapping[str, bytes]:
    reply = await coordinator.activate(applicant().request(marble, UUID_1), applicant().certificate)
    return reply.env


async def phase_of(coordinator: Coordinator) -> Phase:
    await coordinator.catch_up()
    return coordinator.state.phase


def stored_in(pod: Pod) -> Sealed:
    sealed = store_in(pod).load()
    assert sealed is not None
    return sealed


def put(pod: Pod, sealed: Sealed) -> None:
    """Somebody with access to the Secret writes into it."""
    api = pod.admin()
    found = api.secret(NAME)
    assert found is not None
    api.update_secret(found, {"sealed_data": sealed.data, "sealed_key": sealed.keys[0] if sealed.keys else b""})


# -- before and with the manifest --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_e1_what_one_sets_all_have_at_once_and_nobody_sets_again(pod: Pod, count: int) -> None:
    """E1: 1 and 3 replicas."""

    async def scenario(*coordinators: Coordinator) -> None:
        first, last = coordinators[0], coordinators[-1]
        assert len({c.state.authority.root_der for c in coordinators}) == 1
        assert [await phase_of(c) for c in coordinators] == [Phase.ACCEPTING_MANIFEST] * count
        await first.set_manifest(encode(many(3)))
        assert [await phase_of(c) for c in coordinators] == [Phase.ACCEPTING_MARBLES] * count
        assert last.signed_manifest() == first.signed_manifest()
        for coordinator in coordinators:
            with pytest.raises(WrongPhase, match=FIXED):
                await coordinator.set_manifest(encode(many(3)))
            await activate(coordinator)
        assert {c.state.activations["m"] for c in coordinators if await phase_of(c)} == {count}

    together(pod, count, scenario)


def test_e2_of_manifests_that_are_set_on_all_at_once_exactly_one_is_taken(pod: Pod) -> None:
    """E2."""

    async def scenario(*coordinators: Coordinator) -> None:
        documents = [encode(many(number)) for number in (1, 2, 3)]
        answers = await asyncio.gather(
            *(c.set_manifest(document) for c, document in zip(coordinators, documents, strict=True)),
            return_exceptions=True,
        )
        refused = [answer for answer in answers if isinstance(answer, WrongPhase) and FIXED in str(answer)]
        assert len(refused) == 2
        winner = next(document for document, answer in zip(documents, answers, strict=True) if answer not in refused)
        for coordinator in coordinators:
            await coordinator.catch_up()
            assert coordinator.signed_manifest().manifest == winner

    together(pod, 3, scenario)


def test_those_who_start_at_the_same_moment_agree_on_one_ca(pod: Pod) -> None:
    async def main() -> int:
        coordinators = [Shared(pod=pod).coordinator() for _ in range(3)]
        await asyncio.gather(*(c.start() for c in coordinators))
        roots = {c.state.authority.root_der for c in coordinators}
        await asyncio.gather(*(c.stop() for c in coordinators))
        return len(roots)

    assert asyncio.run(main()) == 1


def test_a_state_is_kept_from_the_first_start_on_and_a_disabled_one_too(pod: Pod) -> None:
    """11.3: also before there is a manifest; Disabled still persists and restarts by itself."""

    async def root(coordinator: Coordinator) -> bytes:
        return coordinator.state.authority.root_der

    first = together(pod, 1, root)
    assert parse_sealed_data(stored_in(pod).data).recovery_data == b"null"
    assert together(pod, 1, root) == first

    async def deploy(coordinator: Coordinator) -> None:
        await coordinator.set_manifest(manifest(0, SealMode="Disabled"))
        await activate(coordinator)
        assert coordinator.state.provenance.complete

    together(pod, 1, deploy)

    async def look(coordinator: Coordinator) -> tuple[Phase, int, bool]:
        assert coordinator.state.authority.root_der == first
        return coordinator.state.phase, coordinator.state.activations["m"], coordinator.state.provenance.complete

    assert together(pod, 1, look) == (Phase.ACCEPTING_MARBLES, 1, True)


def test_nobody_who_brings_the_first_state_back_gets_secrets_of_the_deployment(pod: Pod) -> None:
    """Of a state from before the manifest nothing is used with it but the root key, by which clients know it."""
    states: list[State] = []

    async def deploy(coordinator: Coordinator) -> None:
        states.append(coordinator.state)
        await coordinator.set_manifest(encode(many(1)))
        states.append(coordinator.state)

    together(pod, 1, deploy)
    before, after = states
    assert after.root_secret != before.root_secret
    assert after.authority.root_der == before.authority.root_der
    assert after.authority.marble_root_der != before.authority.marble_root_der


# -- following ---------------------------------------------------------------------------------------------------


def test_an_update_on_one_decides_the_activation_on_the_other(pod: Pod) -> None:
    """The value of a secret, too; whoever is asked next knows it."""

    async def scenario(one: Coordinator, other: Coordinator) -> None:
        await one.set_manifest(encode(office()))
        before = await activate(other, "front")
        changed = office()
        changed["Marbles"]["front"]["Parameters"]["Env"]["NEW"] = "value"
        await one.update_manifest(person("admin").der, encode(changed))
        after = await activate(other, "front")
        assert ("NEW" in before, after["NEW"]) == (False, b"value")
        assert other.state.authority.intermediate_der == one.state.authority.intermediate_der
        del changed["Marbles"]["front"]
        await other.update_manifest(person("admin").der, encode(changed))
        with pytest.raises(ActivationRefused):
            await activate(one, "front")

    together(pod, 2, scenario)


def test_k9_500_changes_over_two_instances_are_all_counted(pod: Pod) -> None:
    """K9, distributed: nothing stands still and nothing is lost, where the reference's would be refused."""

    async def scenario(*coordinators: Coordinator) -> int:
        await coordinators[0].set_manifest(encode(many(1000)))
        await asyncio.wait_for(asyncio.gather(*(activate(coordinators[number % 2]) for number in range(500))), 120)
        for coordinator in coordinators:
            await coordinator.catch_up()
        assert coordinators[0].state.activations == coordinators[1].state.activations
        return coordinators[0].state.activations["m"]

    assert together(pod, 2, scenario) == 500


def test_k9_a_limit_holds_over_all_instances(pod: Pod) -> None:
    """K9: however many ask at once, no more are admitted than the manifest allows."""

    async def scenario(*coordinators: Coordinator) -> int:
        await coordinators[0].set_manifest(encode(many(5)))
        answers = await asyncio.gather(
            *(activate(coordinators[number % 2]) for number in range(20)), return_exceptions=True
        )
        assert all(isinstance(answer, ActivationRefused | dict) for answer in answers)
        return sum(isinstance(answer, dict) for answer in answers)

    assert together(pod, 2, scenario) == 5


def test_requests_that_come_together_share_their_looks(pod: Pod) -> None:
    """However many ask, few reads are made; each began after its request came."""
    store = CountingStore(store_in(pod))

    async def scenario(coordinator: Coordinator) -> None:
        before = store.looks
        await asyncio.gather(*(coordinator.catch_up() for _ in range(200)))
        assert 1 <= store.looks - before <= 2
        reads = store.reads
        await coordinator.catch_up()
        assert store.reads == reads

    together(pod, 1, scenario, shared=store)


class CountingStore:
    """Counts what it passes on."""

    def __init__(self, inner: SecretStore) -> None:
        self.inner, self.looks, self.reads = inner, 0, 0

    def version(self) -> str:
        self.looks += 1
        return self.inner.version()

    def read(self) -> Any:
        self.reads += 1
        return self.inner.read()

    def replace(self, version: str, data: bytes, key: bytes) -> str:
        return self.inner.replace(version, data, key)

    def set_aside(self) -> None:
        self.inner.set_aside()


def test_who_always_loses_says_so_in_the_end(pod: Pod) -> None:
    """K9: conflicts without end are an error, and nothing is half done."""

    class Losing(CountingStore):
        attempts = 0

        def replace(self, version: str, data: bytes, key: bytes) -> str:
            self.attempts += 1
            if self.attempts > 1:
                raise Conflict("somebody else was faster")
            return super().replace(version, data, key)

    store = Losing(store_in(pod))

    async def scenario(coordinator: Coordinator) -> None:
        with pytest.raises(Busy, match="repeat the operation"):
            await coordinator.set_manifest(encode(many(1)))
        assert coordinator.state.phase is Phase.ACCEPTING_MANIFEST

    together(pod, 1, scenario, shared=store)
    assert store.attempts == 1 + MAX_LOST_WRITES


def test_an_api_server_that_is_away_fails_requests_and_nothing_else(kube: Kube) -> None:
    """Nothing is decided on a state that may be old; status says why; it goes on by itself."""
    pod = kube.namespace()

    async def scenario(one: Coordinator, other: Coordinator) -> None:
        await one.set_manifest(encode(many(10)))
        await activate(other)
        await asyncio.to_thread(kube.stop)
        for coordinator in (one, other):
            with pytest.raises(ActivationRefused, match="cannot be reached"):
                await activate(coordinator)
            with pytest.raises(Unavailable, match="cannot be reached"):
                await coordinator.catch_up()
            status = coordinator.status()
            assert (status.code, "cannot be followed" in status.message) == (3, True)
        with pytest.raises(MarbleRunError):
            await one.write_secrets(None, {})
        await asyncio.to_thread(kube.start)
        await activate(one)
        await activate(other)
        await one.catch_up()
        assert (one.state.activations["m"], one.status().message.count("\n")) == (3, 0)

    together(pod, 2, scenario)


# -- keys, recovery ----------------------------------------------------------------------------------------------


def test_k7_the_data_key_is_there_from_the_first_commit_and_one_that_a_transaction_brings_is_used(pod: Pod) -> None:
    """K7, distributed: made with the first state, another one with the manifest, another with an update of keys."""
    keys: list[bytes] = []

    async def scenario(one: Coordinator, other: Coordinator) -> None:
        keys.append(stored_in(pod).keys[0])
        await one.set_manifest(encode(office() | {"RecoveryKeys": json.loads(manifest(1))["RecoveryKeys"]}))
        keys.append(stored_in(pod).keys[0])
        changed = office() | {"RecoveryKeys": json.loads(manifest(2))["RecoveryKeys"]}
        await other.catch_up()
        await other.update_manifest(person("admin").der, encode(changed))
        keys.append(stored_in(pod).keys[0])
        await one.catch_up()
        assert one.state.data_key == other.state.data_key

    together(pod, 2, scenario)
    assert len(set(keys)) == 3
    assert is_data_key(keys[2], stored_in(pod).data)


@pytest.mark.parametrize("mode", list(SealMode))
def test_k7_every_instance_seals_as_the_stored_manifest_says(pod: Pod, mode: SealMode) -> None:
    """K7, distributed: also who has only read it, and after a restart; before it nothing but Disabled."""

    async def set_and_start(one: Coordinator, other: Coordinator) -> None:
        await one.set_manifest(manifest(0, SealMode=mode.value))
        await activate(other)

    sealer, again = KeyOf("key"), KeyOf("key")
    together(pod, 2, set_and_start, sealer=sealer)
    together(pod, 1, activate, sealer=again)
    assert (sealer.modes, again.modes) == ([SealMode.DISABLED, mode, mode], [mode])


def test_e18_a_secret_that_is_copied_to_another_namespace_can_be_recovered_there(kube: Kube, pod: Pod) -> None:
    """E18: on machines that have none of the keys."""
    secrets: dict[str, bytes] = {}

    async def deploy(coordinator: Coordinator) -> None:
        secrets.update(await coordinator.set_manifest(manifest(2)))
        await activate(coordinator)

    together(pod, 1, deploy, sealer=KeyOf("here"))
    found, elsewhere = pod.admin().secret(NAME), kube.namespace()
    assert found is not None
    assert found.data is not None
    elsewhere.admin().create_secret(NAME, found.data)

    async def recover(coordinator: Coordinator) -> Mapping[str, int]:
        assert coordinator.state.phase is Phase.RECOVERY
        for party, encrypted in secrets.items():
            share = share_of(party, encrypted)
            await coordinator.recover(share.secret, share.signature)
        return coordinator.state.activations

    assert together(elsewhere, 1, recover, sealer=KeyOf("there")) == {"m": 1}
    assert together(elsewhere, 1, phase_of, sealer=KeyOf("there")) is Phase.ACCEPTING_MARBLES


def test_k8_a_lost_key_means_recovery_and_after_it_the_others_come_back_by_themselves(pod: Pod) -> None:
    """K8, distributed: the temporary state can be used and is not stored; then a second instance loads the old one."""
    secrets: dict[str, bytes] = {}

    async def deploy(coordinator: Coordinator) -> bytes:
        secrets.update(await coordinator.set_manifest(manifest(2)))
        await activate(coordinator)
        return coordinator.state.authority.root_der

    root = together(pod, 1, deploy, sealer=KeyOf("old"))
    lost = stored_in(pod)

    async def recover(one: Coordinator, other: Coordinator) -> None:
        for coordinator in (one, other):
            assert await phase_of(coordinator) is Phase.RECOVERY
            assert coordinator.state.authority.root_der != root
            assert (await coordinator.own_evidence(b"")).chain_pem
            with pytest.raises(NotFound):
                coordinator.signed_manifest()
        assert stored_in(pod) == lost
        remaining = []
        for party in ("party0", "party1"):
            share = share_of(party, secrets[party])
            remaining.append((await one.recover(share.secret, share.signature)).remaining)
        assert remaining == [1, 0]
        assert await phase_of(other) is Phase.ACCEPTING_MARBLES
        assert other.state.authority.root_der == root == one.state.authority.root_der
        await activate(other)
        await one.catch_up()
        assert one.state.activations == {"m": 2}

    together(pod, 2, recover, sealer=KeyOf("new"))


def test_who_cannot_open_the_recovered_state_waits_until_its_key_comes(pod: Pod) -> None:
    """Then a reload is all it takes; nothing has to be given again."""
    other_key = KeyOf("another machine")

    async def main() -> None:
        async with started(Shared(pod=pod, sealer=KeyOf("one"))) as one:
            await one.set_manifest(manifest(1))
            async with started(Shared(pod=pod, sealer=other_key)) as other:
                assert await phase_of(other) is Phase.RECOVERY
                await activate(one)
                assert await phase_of(other) is Phase.RECOVERY
                other_key.name = "one"
                await other.reload()
                assert await phase_of(other) is Phase.ACCEPTING_MARBLES
                assert other.state.activations == {"m": 1}

    asyncio.run(main())


def test_secrets_that_were_given_still_count_after_others_wrote_and_recover_the_newest_state(pod: Pod) -> None:
    """An instance without the key gathers secrets while one that has it goes on."""

    async def main() -> None:
        async with started(Shared(pod=pod, sealer=KeyOf("one"))) as one:
            secrets = await one.set_manifest(manifest(2))
            async with started(Shared(pod=pod, sealer=KeyOf("other"))) as other:
                shares = [share_of(party, secrets[party]) for party in ("party0", "party1")]
                await other.catch_up()
                assert (await other.recover(shares[0].secret, shares[0].signature)).remaining == 1
                await activate(one)
                await other.catch_up()
                assert (await other.recover(shares[1].secret, shares[1].signature)).remaining == 0
                assert other.state.activations == {"m": 1}

    asyncio.run(main())


def test_e17_a_manifest_that_is_set_in_the_recovery_phase_ends_it_for_all_and_the_lost_state_is_kept(pod: Pod) -> None:
    """E17; what could still be recovered lies in a Secret of its own."""
    together(pod, 1, lambda c: c.set_manifest(manifest(1)), sealer=KeyOf("old"))
    lost = stored_in(pod)

    async def start_over(one: Coordinator, other: Coordinator) -> None:
        await one.set_manifest(encode(many(7)))
        assert await phase_of(other) is Phase.ACCEPTING_MARBLES
        assert other.signed_manifest().manifest == encode(many(7))

    together(pod, 2, start_over, sealer=KeyOf("new"))
    listed = pod.kube.ask("GET", f"/api/v1/namespaces/{pod.namespace}/secrets")["items"]
    aside = [item["metadata"]["name"] for item in listed if "-aside-" in item["metadata"]["name"]]
    assert len(aside) == 1
    kept = SecretStore(pod.admin(), aside[0]).load()
    assert kept == lost


@pytest.mark.parametrize("count", [2, 3])
def test_k11_a_lost_list_is_written_anew_by_the_recovery_and_picked_up_by_the_next_transaction(
    pod: Pod, count: int
) -> None:
    """K11, distributed: by another instance, too; the state is intact."""
    found = estate(count)
    SecretStore(pod.api(), NAME).replace("", found.without_list, b"")

    async def scenario(one: Coordinator, other: Coordinator) -> None:
        for share in found.shares:
            await one.recover(share.secret, share.signature)
        await activate(other)
        listed = json.loads(parse_sealed_data(stored_in(pod).data).recovery_data)
        assert set(listed) == {share_id(share.secret) for share in found.shares}
        assert other.signed_manifest().manifest == manifest(count)

    together(pod, 2, scenario)


def test_e14_an_old_sealed_key_beside_a_new_state_leads_to_recovery(pod: Pod) -> None:
    """E14, in the Secret."""
    sealed: list[Sealed] = []

    async def deploy(coordinator: Coordinator) -> None:
        await coordinator.set_manifest(manifest(1))
        sealed.append(stored_in(pod))
        await activate(coordinator)
        sealed.append(stored_in(pod))

    together(pod, 1, deploy, sealer=KeyOf("key"))
    put(pod, Sealed(sealed[1].data, sealed[0].keys))
    assert together(pod, 1, phase_of, sealer=KeyOf("key")) is Phase.RECOVERY


@pytest.mark.parametrize(("before", "after"), [(1, 2), (0, 1), (2, 1), (2, 0), (3, 2)])
def test_e15_after_an_update_of_recovery_keys_who_did_not_apply_it_keeps_their_list_right(
    pod: Pod, before: int, after: int
) -> None:
    """E15, E16: it writes the next state, and that is recovered with the new secrets, on a machine without the key."""

    def document(count: int) -> bytes:
        return encode(office() | {"RecoveryKeys": json.loads(manifest(count)).get("RecoveryKeys", {})})

    secrets: dict[str, bytes] = {}

    async def update(one: Coordinator, other: Coordinator) -> None:
        await one.set_manifest(document(before))
        reply = await one.update_manifest(person("admin").der, document(after))
        secrets.update(reply.recovery_secrets or {})
        await activate(other, "back")

    together(pod, 2, update, sealer=KeyOf("key"))
    listed = parse_sealed_data(stored_in(pod).data).recovery_data
    assert len(listed) > 0
    assert len(secrets) == after

    async def recover(coordinator: Coordinator) -> Mapping[str, int]:
        for party, encrypted in secrets.items():
            share = share_of(party, encrypted)
            await coordinator.recover(share.secret, share.signature)
        return coordinator.state.activations

    if after:
        assert together(pod, 1, recover, sealer=KeyOf("new")) == {"back": 1}


def test_a_list_of_secrets_that_somebody_changed_is_not_taken_over(pod: Pod) -> None:
    """It is covered by the sealed key alone, also for who has the data key in memory."""

    async def scenario(one: Coordinator, other: Coordinator) -> None:
        await one.set_manifest(manifest(2))
        await other.catch_up()
        await activate(one)
        sealed = stored_in(pod)
        put(pod, Sealed(replace_recovery_data(sealed.data, b"null"), sealed.keys))
        for coordinator in (one, other):  # for the second one it is a state that comes after its own
            with pytest.raises(Untrusted, match="not the one of this Coordinator any more"):
                await coordinator.catch_up()

    together(pod, 2, scenario, sealer=KeyOf("key"))


# -- no way back -------------------------------------------------------------------------------------------------


def test_a_running_instance_does_not_go_back_with_the_secret(pod: Pod) -> None:
    """All requests fail until the latest state is back; nothing is written over it meanwhile."""

    async def scenario(one: Coordinator, other: Coordinator) -> None:
        await one.set_manifest(encode(many(10)))
        old = stored_in(pod)
        await activate(one)
        latest = stored_in(pod)
        await other.catch_up()
        put(pod, old)
        for coordinator in (one, other):
            with pytest.raises(Untrusted, match="OLDER"):
                await coordinator.catch_up()
            with pytest.raises(ActivationRefused, match="OLDER"):
                await activate(coordinator)
            with pytest.raises(MarbleRunError):
                await coordinator.set_manifest(encode(many(1)))
            assert "OLDER" in coordinator.status().message
        assert stored_in(pod) == old
        put(pod, latest)
        await activate(one)
        await activate(other)
        assert other.state.activations == {"m": 3}

    together(pod, 2, scenario)


def test_a_secret_that_is_removed_under_running_instances_is_not_made_anew(pod: Pod) -> None:
    async def scenario(coordinator: Coordinator) -> None:
        await coordinator.set_manifest(encode(many(10)))
        sealed = stored_in(pod)
        pod.kube.ask("DELETE", f"/api/v1/namespaces/{pod.namespace}/secrets/{NAME}")
        for _ in range(2):
            with pytest.raises(Untrusted, match="removed"):
                await coordinator.catch_up()
            with pytest.raises(ActivationRefused, match="removed"):
                await activate(coordinator)
        assert store_in(pod).load() is None
        SecretStore(pod.admin(), NAME).replace("", sealed.data, sealed.keys[0])
        await activate(coordinator)
        assert coordinator.state.activations == {"m": 1}

    together(pod, 1, scenario)


def test_an_anchor_in_etcd_is_moved_by_all_and_an_old_secret_is_noticed_at_the_start(pod: Pod, tmp_path: Path) -> None:
    """Instances take turns at writing; after the old one was brought back, the holders have to agree to it."""
    with etcd(tmp_path) as storage:
        place = EtcdPlace((storage.url,), "marblerun/latest")
        secrets: dict[str, bytes] = {}
        old: list[Sealed] = []

        def world(pod: Pod) -> Shared:
            return Shared(pod=pod, anchor=EtcdAnchor(place, TlsFiles()))

        async def deploy() -> None:
            async with started(world(pod)) as one, started(world(pod)) as other:
                secrets.update(await one.set_manifest(manifest(1)))
                await activate(other)
                old.append(stored_in(pod))
                await asyncio.gather(*(activate(c) for c in (one, other) * 5))
                await one.catch_up()
                assert one.state.activations == {"m": 11}
                put(pod, old[0])
                with pytest.raises(ActivationRefused, match="OLDER"):
                    await activate(one)

        async def agree() -> None:
            async with started(world(pod)) as one, started(world(pod)) as other:
                assert {await phase_of(one), await phase_of(other)} == {Phase.RECOVERY}
                assert "OLDER" in other.status().message
                share = share_of("party0", secrets["party0"])
                await one.recover(share.secret, share.signature)
                assert await phase_of(other) is Phase.ACCEPTING_MARBLES
                await activate(other)
                assert other.state.activations == {"m": 2}

        asyncio.run(deploy())
        asyncio.run(agree())


# -- K15: the Secret itself ---------------------------------------------------------------------------------------


def test_k15_a_secret_is_used_or_made_and_other_values_in_it_stay(pod: Pod) -> None:
    """K15: there or not."""
    store = store_in(pod)
    assert (store.version(), store.read().sealed, store.load()) == ("", None, None)
    version = store.replace("", b"data", b"key")
    assert (store.version(), store.load()) == (version, Sealed(b"data", (b"key",)))
    api = pod.admin()
    found = api.secret(NAME)
    assert found is not None
    api.update_secret(found, {**(found.data or {}), "note": b"by an operator"})
    again = store.read()
    store.replace(again.version, b"more", b"")
    found = api.secret(NAME)
    assert found is not None
    assert found.data == {"sealed_data": b"more", "sealed_key": b"", "note": b"by an operator"}
    assert store.load() == Sealed(b"more", ())


def test_k15_an_empty_secret_that_somebody_made_is_filled(pod: Pod) -> None:
    """K15: as the reference leaves it before its first commit."""
    pod.admin().create_secret(NAME, {})
    assert together(pod, 1, phase_of) is Phase.ACCEPTING_MANIFEST
    assert stored_in(pod).data


def test_k15_a_write_on_another_version_than_the_present_one_is_a_conflict(pod: Pod) -> None:
    """K15."""
    one, other = store_in(pod), store_in(pod)
    version = one.replace("", b"1", b"k")
    with pytest.raises(Conflict):
        other.replace("", b"2", b"k")
    assert other.read().version == version
    newer = one.replace(version, b"3", b"k")
    for stale in (version, "nonsense"):
        with pytest.raises(Conflict):
            other.replace(stale, b"4", b"k")
    assert other.read().version == newer
    with pytest.raises(Conflict):  # it has read the newer one, but what it writes does not build on that
        other.replace(version, b"5", b"k")
    assert (one.version(), one.load()) == (newer, Sealed(b"3", (b"k",)))


def test_k15_a_secret_of_another_type_is_somebody_elses(pod: Pod) -> None:
    """K15: a wrong reference."""
    body = {"metadata": {"name": NAME}, "type": "kubernetes.io/basic-auth", "stringData": {"username": "u"}}
    pod.kube.ask("POST", f"/api/v1/namespaces/{pod.namespace}/secrets", body)
    with pytest.raises(Misconfigured, match="EDG_K8S_STATE_NAME"):
        store_in(pod).read()
    with pytest.raises(Misconfigured):
        together(pod, 1, phase_of)


def test_k15_what_the_api_server_refuses_fails_the_request_and_changes_nothing(kube: Kube) -> None:
    """K15: errors; here the right to update is missing."""
    pod = kube.namespace([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "create"]}])

    async def scenario(coordinator: Coordinator) -> None:
        before = stored_in(pod)
        with pytest.raises(Unavailable, match="may not update secrets"):
            await coordinator.set_manifest(encode(many(1)))
        assert (coordinator.state.phase, stored_in(pod)) == (Phase.ACCEPTING_MANIFEST, before)

    together(pod, 1, scenario)


def test_k15_a_state_that_is_too_large_for_a_secret_is_refused_and_the_old_one_stands(pod: Pod) -> None:
    """K15: errors, before anything is sent."""

    async def scenario(coordinator: Coordinator) -> None:
        document = many(1) | {"Secrets": {"s": {"Type": "plain", "UserDefined": True}}}
        document["Marbles"]["m"]["Parameters"] = {"Files": {"/f": "x" * 1_100_000}}
        with pytest.raises(Unavailable, match="1048576 at most"):
            await coordinator.set_manifest(encode(document))
        assert coordinator.state.phase is Phase.ACCEPTING_MANIFEST
        await coordinator.set_manifest(encode(many(1)))

    together(pod, 1, scenario)
