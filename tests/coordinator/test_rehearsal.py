"""Rehearsing a recovery in the running state: what it tells, whom it believes, and that nothing changes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.coordinator.parties import OAEP, Share, estate, manifest
from tests.coordinator.peers import wait_until
from tests.coordinator.people import Answer, ask, recovery_key
from tests.coordinator.running import Running, running
from tests.coordinator.states import fresh
from tests.coordinator.test_recovery import Place, b64, give, lose_key, set_up

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.client.recovery import sign_recovery_secret
from marblerun.coordinator.commands.rehearse import Rehearsal, RehearsalRefused, Rehearsed, rehearse
from marblerun.coordinator.state import DataKey, State
from marblerun.coordinator.store.file import FileStore
from marblerun.errors import NotFound, WrongPhase
from marblerun.secrets.recovery import NO_RECOVERY_DATA


def signed(party: str, secret: bytes) -> Share:
    return Share(party, secret, sign_recovery_secret(recovery_key(party), secret))


def play(state: State, shares: Sequence[Share], rehearsal: Rehearsal | None = None) -> Rehearsed:
    """All of them, one after the other; where it stands then."""
    done: Rehearsed | None = None
    for share in shares:
        done = rehearse(state, rehearsal, share.secret, share.signature)
        rehearsal = done.rehearsal
    assert done is not None
    return done


@pytest.mark.parametrize(("count", "threshold"), [(1, 0), (2, 0), (3, 0), (2, 2), (3, 2), (4, 3), (4, 2)])
def test_any_choice_of_as_many_as_are_needed_would_recover_and_no_smaller_one_says_so(
    count: int, threshold: int
) -> None:
    found = estate(count, threshold)
    needed = threshold or count
    for size in range(1, needed + 1):
        for chosen in combinations(found.shares, size):
            done = play(found.state, chosen)
            assert (done.given, done.needed, done.holder) == (size, needed, chosen[-1].party)
            assert done.recoverable is (True if size == needed else None)
            assert (done.rehearsal is None) is (size == needed)


def test_the_state_before_is_the_state_after() -> None:
    found = estate(3, 2)
    before = found.state
    play(before, found.shares[:2])
    assert before == found.state


def test_every_wrong_secret_is_named_by_its_holder_and_counts_for_nothing() -> None:
    found = estate(3, 2)
    one, two, _ = found.shares
    begun = play(found.state, [one])
    for share, told in (
        (one, "the secret of party0 was given before, and still counts"),
        (signed("party0", bytes(33)), "party0 has given a secret before, which still counts; this is another one"),
        (signed("party1", bytes(33)), "the secret of party1 is none of this deployment"),
        (signed("party1", bytes(16)), "the secret of party1 is none of this deployment"),
        (signed("party1", one.secret), "party1 has sent the same secret as party0"),
        (signed("stranger", two.secret), "the signature is by none of the recovery keys"),
        (replace(two, signature=b""), "the signature is by none of the recovery keys"),
        (replace(two, signature=one.signature), "the signature is by none of the recovery keys"),
        (replace(two, secret=two.secret[:-1]), "the signature is by none of the recovery keys"),
        (replace(two, secret=b"x" * 40), "has 16, 32 or 33 bytes"),
        (replace(two, signature=b"x" * 3000), "no more than 2048"),
    ):
        with pytest.raises(RehearsalRefused, match=told) as refused:
            rehearse(found.state, begun.rehearsal, share.secret, share.signature)
        assert not any(secret.hex() in str(refused.value) for secret in (one.secret, two.secret, share.secret))
    assert play(found.state, [two], begun.rehearsal).recoverable is True


def test_a_wrong_single_secret_is_refused() -> None:
    found = estate(1)
    wrong = signed("party0", bytes(32))
    with pytest.raises(RehearsalRefused, match="secret of party0 is none of this deployment"):
        rehearse(found.state, None, wrong.secret, wrong.signature)


@pytest.mark.parametrize("recovery_data", [NO_RECOVERY_DATA, b"", b"damaged"])
def test_without_the_list_of_secrets_the_end_tells(recovery_data: bytes) -> None:
    """Nobody then knows which one is wrong; that something is, is found before it is needed."""
    found = estate(3, 2)
    assert found.state.data_key is not None
    state = replace(found.state, data_key=DataKey(found.state.data_key.key, recovery_data))
    one, two, _ = found.shares
    assert play(state, [one, two]).recoverable is True
    changed = signed("party1", bytes([two.secret[0] ^ 1]) + two.secret[1:])
    ended = play(state, [one, changed])
    assert (ended.recoverable, ended.rehearsal) == (False, None)
    assert play(state, [one, signed("party1", bytes(32))]).recoverable is False


def test_a_rehearsal_begins_anew_when_the_recovery_keys_changed() -> None:
    old, new = estate(3, 2), estate(3, 0)
    begun = play(old.state, old.shares[:1])
    done = play(new.state, new.shares[:1], begun.rehearsal)
    assert (done.given, done.needed) == (1, 3)


def test_there_is_nothing_to_rehearse_without_a_manifest_or_without_recovery_keys() -> None:
    with pytest.raises(WrongPhase):
        rehearse(fresh(), None, bytes(32), b"")
    with pytest.raises(NotFound):
        rehearse(estate(0).state, None, bytes(32), b"")


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=64), st.binary(max_size=300))
def test_bytes_that_no_holder_sent_are_refused(secret: bytes, signature: bytes) -> None:
    with pytest.raises(RehearsalRefused):
        rehearse(estate(2).state, None, secret, signature)


# -- over the API ------------------------------------------------------------------------------------------------


@pytest.fixture
def place(platform: SimulatedPlatform) -> Place:
    return Place(platform=platform)


def send(up: Running, share: Share) -> Answer:
    body = {"recoverySecret": b64(share.secret), "recoverySecretSignature": b64(share.signature)}
    return ask(up.client, "POST", "/api/v2/recover/rehearse", body)


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_rehearsals_over_the_api_leave_every_byte_as_it_was(tmp_path: Path, place: Place) -> None:
    """Sealed files, sequence, head and update log; plain and encrypted, refused and accepted, to the end and not."""
    place.store = store = FileStore(tmp_path / "state")
    shares = set_up(place, manifest(3, 2))
    with running(place) as up:
        before, statement = files(tmp_path / "state"), ask(up.client, "GET", "/api/v2/statement").data
        log = up.coordinator.update_log()
        first = send(up, shares[0])
        assert (first.status, first.data["recoverable"], first.data["given"], first.data["needed"]) == (200, None, 1, 2)
        assert send(up, signed("stranger", bytes(33))).status == 403
        assert send(up, shares[0]).status == 403
        key = load_der_public_key(
            base64.b64decode(ask(up.client, "GET", "/api/v2/recover/rehearse/public-key").data["ephemeralPublicKey"])
        )
        assert isinstance(key, rsa.RSAPublicKey)
        last = send(up, replace(shares[2], secret=key.encrypt(shares[2].secret, OAEP)))
        assert (last.status, last.data["recoverable"], last.data["holder"]) == (200, True, "party2")
        assert send(up, shares[1]).data["given"] == 1
        assert files(tmp_path / "state") == before
        assert ask(up.client, "GET", "/api/v2/statement").data == statement
        assert up.coordinator.update_log() == log
        assert ask(up.client, "GET", "/api/v2/status").data["code"] == 3
    store.close()


def test_what_was_rehearsed_recovers_when_it_is_needed(place: Place) -> None:
    shares = set_up(place, manifest(3, 2))
    with running(place) as up:
        assert [send(up, share).data["recoverable"] for share in shares[:2]] == [None, True]
    lose_key(place)
    with running(place) as up:
        assert send(up, shares[0]).status == 500  # in the recovery phase there is nothing to rehearse
        assert ask(up.client, "GET", "/api/v2/recover/rehearse/public-key").status == 500
        assert give(up, *shares[:2]) == [2, 0]


def test_without_recovery_keys_the_answer_says_that_nobody_can_recover(place: Place) -> None:
    set_up(place, manifest(0))
    with running(place) as up:
        answer = send(up, signed("party0", bytes(32)))
        assert (answer.status, "nobody can recover" in answer.message) == (404, True)


def test_secrets_of_other_lengths_need_the_ephemeral_key(place: Place) -> None:
    (share,) = set_up(place, manifest(1))
    with running(place) as up:
        assert send(up, replace(share, secret=bytes(512))).status == 400


def test_whoever_keeps_sending_what_does_not_count_has_to_wait_and_holders_do_not(place: Place) -> None:
    (share,) = set_up(place, manifest(1))
    wrong = signed("stranger", bytes(32))
    with running(place) as up:
        statuses = [send(up, wrong).status for _ in range(70)]
        assert (set(statuses), statuses[0], statuses[-1]) == ({403, 429}, 403, 429)
        assert send(up, share).data["recoverable"] is True


def test_an_unfinished_rehearsal_is_forgotten_after_its_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("marblerun.coordinator.recovering.REHEARSAL_SECONDS", 0.05)
    shares = set_up(place, manifest(3, 2))
    with running(place) as up:
        assert send(up, shares[0]).data["given"] == 1
        wait_until(lambda: up.coordinator._rehearsing._rehearsal is None)
        assert send(up, shares[1]).data["given"] == 1


def test_secrets_of_rehearsals_do_not_reach_the_log(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    shares = set_up(place, manifest(2))
    with caplog.at_level(0), running(place) as up:
        for share in (shares[0], shares[0], signed("party1", bytes(32)), shares[1]):
            send(up, share)
    told = "".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    for secret in (share.secret for share in shares):
        for form in (secret.hex(), b64(secret), repr(secret)):
            assert form not in told
    assert "party1" in told


def test_a_right_secret_that_no_holder_signed_is_compared_with_nothing() -> None:
    """Also as the first one: right and wrong secrets get the same answer, so nobody but a holder learns anything."""
    found = estate(3, 2)
    told = set()
    for secret in (found.shares[0].secret, bytes(33)):
        for signature in (b"", found.shares[1].signature, signed("stranger", secret).signature):
            with pytest.raises(RehearsalRefused) as refused:
                rehearse(found.state, None, secret, signature)
            told.add(str(refused.value))
    assert told == {"the signature is by none of the recovery keys in the manifest in force"}
