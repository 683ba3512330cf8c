"""Where the CA comes from: the enclave records recoveries itself, and the record survives what comes after."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from tests.coordinator.manifests import many
from tests.coordinator.parties import NONCE, Share, estate, manifest, names, share_of
from tests.coordinator.people import ask, person, recovery_key, recovery_pem
from tests.coordinator.running import Running, World, running
from tests.coordinator.states import AT, INPUTS, deployed, fresh

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.client.recovery import sign_recovery_secret
from marblerun.coordinator.commands.set_manifest import set_manifest
from marblerun.coordinator.provenance import (
    BEGUN,
    MAX_GROUPS,
    PROVENANCE,
    UNRECORDED,
    Provenance,
    RecoveredBy,
    read_provenance,
    with_provenance,
)
from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.state import State
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.entries import decode_state, encode_state
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.secrets.box import build_sealed_data
from marblerun.secrets.shares import MAX_SHARES

ATTACKER = "mallory"


def key_hash(name: str) -> str:
    public = recovery_key(name).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(public).hexdigest()


def stated(up: Running) -> dict[str, Any]:
    """What the statement says, in the attested form."""
    nonce = base64.urlsafe_b64encode(b"n" * 32).decode()
    text = ask(up.client, "GET", f"/api/v2/statement?nonce={nonce}").data["statement"]
    found: dict[str, Any] = json.loads(text)["provenance"]
    return found


def victims_manifest() -> bytes:
    """Names recovery keys that the attacker does not have, and lets nobody but the attacker's user update further."""
    document = json.loads(manifest(1))
    document["Users"] = {"u": {"Certificate": person("u").pem, "Roles": ["updater"]}}
    document["Roles"] = {"updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]}}
    return json.dumps(document).encode()


def crafted(document: dict[str, Any], key: bytes = b"k" * 32, **changes: Any) -> tuple[bytes, Share]:
    """A state of the attacker's making, CA keys and record included, and what recovers it."""
    document = {**document, "RecoveryKeys": {ATTACKER: recovery_pem(ATTACKER)}}
    state = set_manifest(fresh(), json.dumps(document).encode(), INPUTS, {}).state
    state = replace(state, **changes)
    data = build_sealed_data(key, b"null", encode_state(state), NONCE)
    return data, Share(ATTACKER, key, sign_recovery_secret(recovery_key(ATTACKER), key))


def recover(up: Running, share: Share) -> None:
    progress = up.call(up.coordinator.recover(share.secret, share.signature))
    assert progress.remaining == 0


# -- whole Coordinators ------------------------------------------------------------------------------------------


def test_a_restart_is_no_recovery(platform: SimulatedPlatform) -> None:
    world = World(platform=platform)
    first = hashlib.sha256(manifest(1)).hexdigest()
    with running(world) as up:
        assert stated(up) == {"complete": True, "firstManifest": "", "recoveries": 0, "recoveredBy": []}
        up.set_manifest(manifest(1))
    for _ in range(2):
        with running(world) as up:
            assert stated(up) == {"complete": True, "firstManifest": first, "recoveries": 0, "recoveredBy": []}
            assert "state recovered" not in up.coordinator.update_log()


def test_a_crafted_state_that_claims_a_clean_past_is_recovered_and_says_so_for_ever(
    platform: SimulatedPlatform,
) -> None:
    """The attack of docs/adr/0007: recovered with the attacker's key, then updated to the victim's manifest."""
    document = json.loads(victims_manifest())
    data, share = crafted(document, provenance=replace(BEGUN, first_manifest="ab" * 32))
    world = World(platform=platform, store=MemoryStore(Sealed(data, ())))
    with running(world) as up:
        recover(up, share)
        assert (stated(up)["recoveries"], stated(up)["recoveredBy"][0]["recoveryKeys"]) == (1, [key_hash(ATTACKER)])
        user = person("u")
        body = {"manifest": base64.b64encode(victims_manifest()).decode()}
        assert ask(up.client, "POST", "/api/v2/update", body, by=user).status == 200
        assert stated(up)["recoveries"] == 1
    with running(world) as up:
        assert up.coordinator.signed_manifest().manifest == victims_manifest()
        found = stated(up)
        assert [group["recoveryKeys"] for group in found["recoveredBy"]] == [[key_hash(ATTACKER)]]
        assert '"update":"state recovered"' in up.coordinator.update_log()


@pytest.mark.parametrize("claims", [UNRECORDED, replace(BEGUN, first_manifest="x")])
def test_a_state_without_a_sound_record_is_never_complete_again(
    platform: SimulatedPlatform, claims: Provenance
) -> None:
    data, share = crafted(many(100), provenance=claims)
    world = World(platform=platform, store=MemoryStore(Sealed(data, ())))
    for _ in range(2):
        with running(world) as up:
            if up.coordinator.status().code == 1:
                recover(up, share)
            assert (stated(up)["complete"], stated(up)["recoveries"]) == (False, 1)


def test_recoveries_by_the_same_holders_are_counted_and_their_first_time_kept(platform: SimulatedPlatform) -> None:
    world = World(platform=platform)
    with running(world) as up:
        secrets = up.call(up.coordinator.set_manifest(manifest(3, 2)))
    shares = [share_of(name, secrets[name]) for name in names(3)]
    for times in (1, 2):
        sealed = world.store.load()
        assert sealed is not None
        world.store = MemoryStore(Sealed(sealed.data, ()))
        with running(world) as up:
            for share in shares[:2]:
                up.call(up.coordinator.recover(share.secret, share.signature))
            (group,) = stated(up)["recoveredBy"]
            assert group["recoveryKeys"] == sorted(map(key_hash, names(3)))
            assert (group["needed"], group["times"], stated(up)["complete"]) == (2, times, True)


def test_starting_over_in_recovery_mode_begins_a_new_record(platform: SimulatedPlatform) -> None:
    left = estate(1)
    with running(World(platform=platform, store=MemoryStore(Sealed(left.data, ())))) as up:
        assert up.coordinator.status().code == 1
        up.set_manifest(manifest(2))
        assert (stated(up)["complete"], stated(up)["recoveries"]) == (True, 0)


def test_a_state_whose_key_others_on_the_machine_could_have_sealed_is_not_complete(
    platform: SimulatedPlatform,
) -> None:
    """A TPM opens what the host has sealed with it: no recovery is needed to bring a CA in."""

    class AnybodysSealer:
        name = "anybody's"

        def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
            return key

        def unseal(self, sealed: bytes, additional: bytes) -> bytes:
            return sealed

    data, share = crafted(many(100))
    world = World(platform=platform, store=MemoryStore(Sealed(data, (share.secret,))), sealer=AnybodysSealer())
    with running(world) as up:
        assert (up.coordinator.status().code, stated(up)["complete"]) == (3, False)
    world = World(platform=platform, store=MemoryStore(Sealed(data, (share.secret,))))
    with running(world) as up:  # an enclave does not take such a key
        assert up.coordinator.status().code == 1


# -- the record --------------------------------------------------------------------------------------------------


def test_another_program_that_keeps_the_record_but_changes_the_state_is_noticed() -> None:
    """A forged record goes through the reference, or an older release, by an update there; here it no longer fits."""
    entries = encode_state(deployed())
    assert decode_state(entries).provenance.complete
    for name in ("updateLog", "manifestSignature"):
        assert not read_provenance({**entries, name: entries[name] + b" "}).complete
    assert not read_provenance({**entries, "futureEntry": b""}).complete
    assert not read_provenance({name: value for name, value in entries.items() if name != "rootSecret"}).complete
    # Number and head of the state change with every write.
    assert decode_state({**entries, "stateSequence": b"7", "statePrevious": bytes(32)}).provenance.complete


@given(st.dictionaries(st.text(max_size=3), st.binary(max_size=3), max_size=5), st.data())
def test_no_two_maps_of_entries_are_covered_by_the_same_record(entries: dict[str, bytes], data: st.DataObject) -> None:
    other = data.draw(st.dictionaries(st.text(max_size=3), st.binary(max_size=3), max_size=5))
    record = with_provenance(entries, replace(BEGUN, first_manifest="ab" * 32))[PROVENANCE]
    assert read_provenance({**other, PROVENANCE: record}).complete == (other == entries)


@pytest.mark.parametrize(
    "entry",
    [b"", b"{}", b"[]", b"null", b"x", b'{"record": {"complete": true}}', b'{"covers": "", "record": null}', b"[" * 99,
     b'{"record": {"complete": true, "firstManifest": "x"}}', b" " * (1 << 21)],
)  # fmt: skip
def test_a_damaged_record_is_no_error_but_says_nothing(entry: bytes) -> None:
    assert read_provenance({PROVENANCE: entry}) == UNRECORDED


def test_a_record_is_read_up_to_its_ceiling_and_not_above() -> None:
    found = replace(BEGUN, first_manifest="ab" * 32)
    entry = with_provenance({}, found)[PROVENANCE].ljust(1024 * 1024)
    assert read_provenance({PROVENANCE: entry}) == found
    assert read_provenance({PROVENANCE: entry + b" "}) == UNRECORDED


def test_only_a_state_without_a_manifest_is_complete_without_naming_its_first_one() -> None:
    assert read_provenance(with_provenance({}, BEGUN)) == BEGUN
    assert not read_provenance(with_provenance({"manifest": b"{}"}, BEGUN)).complete


GROUP = RecoveredBy(("ab" * 32,), 1, 1, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


@pytest.mark.parametrize(
    "groups",
    [
        (GROUP,) * (MAX_GROUPS + 1),
        (replace(GROUP, keys=("x",)),),
        (replace(GROUP, keys=("ab" * 33,)),),
        (replace(GROUP, keys=("ab" * 32,) * (MAX_SHARES + 1)),),
        (replace(GROUP, first="yesterday"),),
        (replace(GROUP, last="2026-01-02T00:00:00Z "),),
        (GROUP, replace(GROUP, times=0)),
    ],
)
def test_a_record_of_recoveries_as_nobody_writes_them_says_nothing(groups: tuple[RecoveredBy, ...]) -> None:
    assert read_provenance(with_provenance({}, replace(BEGUN, recovered_by=groups))) == UNRECORDED


def test_a_record_may_name_as_many_recoveries_and_keys_as_there_can_be() -> None:
    found = replace(BEGUN, recovered_by=(replace(GROUP, keys=("ab" * 32,) * MAX_SHARES),) * MAX_GROUPS)
    assert read_provenance(with_provenance({}, found)) == found


def test_more_sets_of_keys_than_are_kept_make_the_record_incomplete_and_keep_the_first() -> None:
    found = replace(BEGUN, first_manifest="ab" * 32)
    for number in range(MAX_GROUPS + 3):
        found = found.after_recovery([b"%d" % number], 1, AT + timedelta(days=number))
        assert found.complete == (number < MAX_GROUPS)
    assert len(found.recovered_by) == MAX_GROUPS
    assert found.recovered_by[0].keys == (hashlib.sha256(b"0").hexdigest(),)
    assert read_provenance(with_provenance({}, found)) == found


def test_a_crafted_state_cannot_count_below_one() -> None:
    for times in (0, -1, 1 << 40):
        state: State = replace(deployed(), provenance=BEGUN.after_recovery([b"a"], 1, AT))
        (group,) = state.provenance.recovered_by
        told = replace(state.provenance, first_manifest="ab" * 32, recovered_by=(replace(group, times=times),))
        read = decode_state(encode_state(replace(state, provenance=told))).provenance
        assert (read, read.after_recovery([b"a"], 1, AT).recoveries) == (UNRECORDED, 1)
