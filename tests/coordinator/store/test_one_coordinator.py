"""Rows of the acceptance list about several Coordinators on one state, as far as they can hold for one with its store.

What they demand of a shared key, of ConfigMaps and of Secrets has no counterpart here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from tests.coordinator.manifests import encode, many
from tests.coordinator.parties import estate, manifest, share_of
from tests.coordinator.people import office, person
from tests.coordinator.running import World
from tests.coordinator.store.histories import History
from tests.coordinator.store.test_lineage import activate, entries_of, phase, run

from marblerun.coordinator.commands.activate import ActivationRefused
from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.seal.none import PlainSealer
from marblerun.coordinator.service import Coordinator
from marblerun.coordinator.state import Phase
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import Malformed, MarbleRunError
from marblerun.secrets.box import is_data_key, parse_sealed_data, replace_recovery_data
from marblerun.secrets.recovery import share_id


@dataclass
class Noting:
    """Leaves keys in the clear and remembers in which mode it was asked to seal."""

    name: str = "noting"
    modes: list[SealMode] = field(default_factory=list)

    def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
        self.modes.append(mode)
        return PlainSealer().seal(key, mode, additional)

    def unseal(self, sealed: bytes, additional: bytes) -> bytes:
        return PlainSealer().unseal(sealed, additional)


@pytest.mark.parametrize("mode", ["ProductKey", "UniqueKey"])
def test_k7_the_data_key_is_made_with_the_first_write_and_sealed_as_the_stored_manifest_says(mode: str) -> None:
    """K7, for one Coordinator and its store: also after a restart, which has nothing but the store."""
    store, sealer = History(), Noting()
    world = World(store=store, sealer=sealer)
    assert run(world, phase) is Phase.ACCEPTING_MANIFEST
    assert (store.load(), sealer.modes) == (None, [])
    run(world, lambda coordinator: coordinator.set_manifest(manifest(1, SealMode=mode)))
    run(world, activate)
    assert sealer.modes == [SealMode(mode)] * 3
    assert {sealed.keys[0] for sealed in store.all} == {store.all[0].keys[0]}


def test_k7_a_data_key_that_an_update_changes_seals_the_very_state_that_brings_it() -> None:
    """K7, the other half: whoever knows the old key cannot open what the update wrote."""
    store = History()
    document: dict[str, Any] = office({"alice": ("updater",)})
    document |= {"RecoveryKeys": json.loads(manifest(1))["RecoveryKeys"]}
    changed = document | {"RecoveryKeys": json.loads(manifest(2))["RecoveryKeys"]}

    async def scenario(coordinator: Coordinator) -> None:
        await coordinator.set_manifest(encode(document))
        await coordinator.update_manifest(person("alice").der, encode(changed))

    run(World(store=store), scenario)
    before, after = store.all[0], store.all[-1]
    assert before.keys != after.keys
    assert entries_of(after)["manifest"] == encode(changed)
    assert not is_data_key(before.keys[0], after.data)


def test_k8_without_its_key_a_state_waits_untouched_and_after_the_recovery_every_later_start_has_it() -> None:
    """K8, for one Coordinator and its store: the second instance is the next process on it."""
    store = History()
    secrets = run(World(store=store), lambda coordinator: coordinator.set_manifest(manifest(1)))
    run(World(store=store), activate)
    share, lost = share_of("party0", secrets["party0"]), Sealed(store.all[-1].data, ())
    world = World(store=MemoryStore(lost))

    async def wait_and_recover(coordinator: Coordinator) -> bytes:
        temporary = coordinator.state.authority.root_der
        assert coordinator.state.phase is Phase.RECOVERY
        assert (await coordinator.own_evidence(b"")).chain_pem
        with pytest.raises(ActivationRefused):
            await activate(coordinator)
        assert world.store.load() == lost
        assert (await coordinator.recover(share.secret, share.signature)).remaining == 0
        assert coordinator.state.authority.root_der != temporary
        return coordinator.state.authority.root_der

    root = run(world, wait_and_recover)

    async def look(coordinator: Coordinator) -> tuple[Phase, bytes, Mapping[str, int]]:
        return coordinator.state.phase, coordinator.state.authority.root_der, coordinator.state.activations

    assert run(world, look) == (Phase.ACCEPTING_MARBLES, root, {"m": 1})


def test_k9_500_changes_at_once_end_and_what_excludes_each_other_is_an_error() -> None:
    """K9, for one Coordinator: everything that was answered is durable, and of two manifests one is refused."""
    store = History()
    document = many(1000)

    async def scenario(coordinator: Coordinator) -> int:
        answers = await asyncio.gather(
            *(coordinator.set_manifest(encode(document)) for _ in range(2)), return_exceptions=True
        )
        assert sum(isinstance(answer, MarbleRunError) for answer in answers) == 1
        await asyncio.gather(*(activate(coordinator) for _ in range(500)))
        return coordinator.state.activations["m"]

    assert run(World(store=store), scenario) == 500

    async def count(coordinator: Coordinator) -> int:
        return coordinator.state.activations["m"]

    assert run(World(store=store), count) == 500


@pytest.mark.parametrize("count", [2, 3])
def test_k11_a_lost_list_of_secrets_is_written_anew_with_the_recovery_and_used_by_the_next_one(count: int) -> None:
    """K11, for one Coordinator: the list comes back with all secrets, the state in it is the same, the next recovery
    knows it, and there is nothing to write it into without a state."""
    found = estate(count)
    world = World(store=MemoryStore(Sealed(found.without_list, ())))

    async def recover(coordinator: Coordinator) -> None:
        for share in found.shares:
            await coordinator.recover(share.secret, share.signature)

    run(world, recover)
    stored = world.store.load()
    assert stored is not None
    assert set(json.loads(parse_sealed_data(stored.data).recovery_data)) == {share_id(s.secret) for s in found.shares}
    assert entries_of(stored)["manifest"] == manifest(count)
    world.store = MemoryStore(replace(stored, keys=()))

    async def refuse(coordinator: Coordinator) -> None:
        with pytest.raises(MarbleRunError, match=f"none of the {count} of this state"):
            await coordinator.recover(bytes(32), b"")
        assert [(await coordinator.recover(s.secret, s.signature)).remaining for s in found.shares][-1] == 0

    run(world, refuse)
    with pytest.raises(Malformed):
        replace_recovery_data(b"", b"null")
