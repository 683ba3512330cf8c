"""The state as entries and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coordinator.states import deployed, fresh

from marblerun.coordinator.state import Deployment, State
from marblerun.coordinator.store.entries import decode_state, encode_state
from marblerun.errors import MarbleRunError


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


def test_a_state_without_a_manifest_is_never_stored() -> None:
    with pytest.raises(ValueError, match="manifest"):
        encode_state(fresh())


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
