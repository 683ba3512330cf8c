"""The state as entries and back."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coordinator.states import deployed, fresh

from marblerun.coordinator.provenance import BEGUN, PROVENANCE, with_provenance
from marblerun.coordinator.state import Deployment, State
from marblerun.coordinator.store.entries import decode_following, decode_state, encode_state
from marblerun.coordinator.store.lineage import PREVIOUS, SEQUENCE, STAMP
from marblerun.errors import Malformed, MarbleRunError


def full() -> State:
    return replace(
        deployed(),
        activations={"once": 1, "frontend": 0x2A},
        previous_root_secret=b"p" * 32,
        counters={"YQ==:AAAAAAAAAAAAAAAAAAAAAA==:": 2**64 - 1},
        other_entries={"fromTheFuture:x": b"\x01"},
    )


def same_deployment(left: Deployment | None, right: Deployment | None) -> bool:
    assert left is not None
    assert right is not None
    return left == right


def test_a_state_survives_the_round_trip_with_entries_it_does_not_know() -> None:
    """K3, K6: every kind of entry; what is not there is not made up."""
    state = full()
    entries = encode_state(state)
    again = decode_state(entries)
    assert same_deployment(again.deployment, state.deployment)
    assert encode_state(again) == entries
    assert (again.phase, again.root_secret, again.previous_root_secret) == (
        state.phase, state.root_secret, state.previous_root_secret,
    )  # fmt: skip
    assert (again.activations, again.counters, again.update_log, again.other_entries) == (
        state.activations, state.counters, state.update_log, state.other_entries,
    )  # fmt: skip
    assert again.authority.root_der == state.authority.root_der
    assert again.authority.root_key.private_numbers() == state.authority.root_key.private_numbers()


def test_the_entries_are_those_of_the_reference() -> None:
    """Protocol, section 11.1."""
    entries = encode_state(full())
    assert entries["state"] == b"3"
    assert entries["activations:frontend"] == b"2a"
    assert entries["certificate:coordinatorRootCert"][:1] == b"\x30"
    kinds = {name.split(":", maxsplit=1)[0] for name in entries}
    assert {"package", "marble", "TLS", "secret", "previousSecret", "privateKey", "manifest"} <= kinds


def test_a21_without_a_stored_root_secret_it_is_derived_from_the_root_key() -> None:
    """A21."""
    entries = encode_state(full())
    del entries["rootSecret"]
    first, second = decode_state(entries), decode_state(entries)
    assert first.root_secret == second.root_secret
    assert first.root_secret not in (b"", full().root_secret)


def test_a_state_without_a_manifest_comes_back_with_its_ca_and_a_record_that_is_complete() -> None:
    """Coordinators that share their state have one CA before there is a manifest."""
    state = fresh()
    back = decode_state(encode_state(state))
    assert (back.phase, back.deployment, back.root_secret) == (state.phase, None, state.root_secret)
    assert back.authority.root_der == state.authority.root_der
    assert (back.provenance.complete, back.provenance.first_manifest) == (True, "")


def test_a_record_without_a_first_manifest_is_not_complete_once_there_is_a_manifest() -> None:
    """The reference keeps the entry and adds a manifest."""
    without, entries = encode_state(fresh()), encode_state(full())
    entries |= {PROVENANCE: with_provenance(entries, BEGUN, SEQUENCE, PREVIOUS, STAMP)[PROVENANCE]}
    assert decode_state(without).provenance.complete
    assert not decode_state(entries).provenance.complete


def test_what_others_did_not_change_stays_the_same_object() -> None:
    present = full()
    before = encode_state(present)
    counted = encode_state(replace(present, counters={**present.counters, "another": 7}))
    following = decode_following(counted, before, present)
    assert following.counters == {**present.counters, "another": 7}
    assert all(
        getattr(following, f.name) is getattr(present, f.name)
        for f in fields(State)
        if f.name not in ("counters", "provenance")
    )
    logged = decode_following(encode_state(replace(present, update_log="x\n")), before, present)
    assert (logged.update_log, logged.deployment, logged.authority) == ("x\n", present.deployment, present.authority)
    assert present.deployment is not None
    changed = encode_state(replace(present, deployment=replace(present.deployment, signature=b"other")))
    assert decode_following(changed, before, present).deployment is not present.deployment
    assert decode_following(changed, before, present).authority is present.authority


def test_every_kind_of_entry_that_changes_is_seen() -> None:
    """Nothing of another Coordinator's change is ever taken for unchanged."""
    present = full()
    before = encode_state(present)
    for name in before.keys() - {PROVENANCE}:
        without = {key: value for key, value in before.items() if key != name}
        try:
            following = decode_following(without, before, present)
        except Malformed:
            continue
        assert {k: v for k, v in encode_state(following).items() if k != PROVENANCE} == {
            k: v for k, v in encode_state(decode_state(without)).items() if k != PROVENANCE
        }, name


@pytest.mark.parametrize("name", sorted(encode_state(full())))
def test_whatever_one_entry_becomes_only_our_errors_come_out(name: str) -> None:
    entries = encode_state(full())
    for value in (b"", b"\x00", entries[name][:-1], entries[name] + b"\x00", b"\xff" * 40, b"{}", b"null", b"[" * 999):
        try:
            assert decode_state({**entries, name: value}).authority is not None
        except MarbleRunError:
            continue


def test_a_required_entry_that_is_missing_is_named() -> None:
    entries = encode_state(full())
    for name in ("state", "manifestSignature", "certificate:marbleRootCert", "privateKey:coordinatorIntermediateKey"):
        with pytest.raises(MarbleRunError, match=name):
            decode_state({key: value for key, value in entries.items() if key != name})


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=20), st.binary(max_size=60), max_size=5))
def test_foreign_entries_never_crash_the_reader(extra: dict[str, bytes]) -> None:
    entries = encode_state(full())
    try:
        again = decode_state({**entries, **extra})
    except MarbleRunError:
        return
    assert again.authority.root_der == full().authority.root_der or extra
