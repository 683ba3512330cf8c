"""Gathering recovery secrets, and judging what they open (protocol, sections 10.7 to 10.9)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.coordinator.parties import NONCE, Estate, Share, estate, manifest, sealed
from tests.coordinator.people import recovery_key
from tests.coordinator.states import INPUTS, fresh

from marblerun.client.recovery import sign_recovery_secret
from marblerun.coordinator.commands.recover import (
    MAX_COMBINED,
    Gathering,
    Progress,
    SecretRefused,
    begin,
    give,
    recovered_state,
)
from marblerun.coordinator.commands.set_manifest import set_manifest
from marblerun.coordinator.commands.start import new_authority
from marblerun.coordinator.state import DataKey, Phase
from marblerun.coordinator.store.entries import encode_state
from marblerun.errors import Malformed, MarbleRunError, Untrusted
from marblerun.pki.profiles import SubjectNames
from marblerun.secrets.box import build_sealed_data, is_data_key, replace_recovery_data
from marblerun.secrets.recovery import NO_RECOVERY_DATA, build_recovery_data
from marblerun.secrets.shares import MAX_SHARES, combine_shamir, xor

CASES = [(count, threshold) for count in range(1, 7) for threshold in range(count + 1) if threshold != 1]


def given_all(data: bytes, shares: Sequence[Share]) -> list[Progress]:
    """Every answer, from the first secret on."""
    gathering = begin(data)
    answers = []
    for share in shares:
        answers.append(give(gathering, share.secret, share.signature))
        gathering = answers[-1].gathering
    return answers


def recovers(left: Estate, data: bytes, shares: Sequence[Share]) -> bool:
    """Whether these parties get the state back, and get exactly it."""
    answers = given_all(data, shares)
    found = answers[-1].found
    if found is None:
        return False
    state = recovered_state(answers[-1].gathering, found)
    assert encode_state(state) == encode_state(left.state)
    assert state.data_key is not None
    assert left.state.data_key is not None
    assert state.data_key.key == left.state.data_key.key
    return True


@pytest.mark.parametrize(("count", "threshold"), CASES)
def test_every_choice_of_k_parties_recovers_and_none_of_fewer(count: int, threshold: int) -> None:
    """R1, R3: any k of n in any order, for every n up to 6; k is n where there is no lower threshold."""
    left, needed = estate(count, threshold), threshold or count
    for chosen in combinations(left.shares, needed):
        assert recovers(left, left.data, chosen)
        assert recovers(left, left.data, chosen[::-1])
    for fewer in combinations(left.shares, needed - 1):
        assert not fewer or not recovers(left, left.data, fewer)


@pytest.mark.parametrize(("count", "threshold"), [case for case in CASES if case[0] < 6])
def test_the_same_holds_when_the_list_of_secrets_is_lost(count: int, threshold: int) -> None:
    """R5, E7, and beyond the reference (protocol, 12.1 no. 7): also for Shamir shares."""
    left, needed = estate(count, threshold), threshold or count
    for data in (left.without_list, replace_recovery_data(left.data, b"null"), replace_recovery_data(left.data, b"[")):
        for chosen in combinations(left.shares, needed):
            assert recovers(left, data, chosen)
            assert [answer.remaining for answer in given_all(data, chosen)] == [1] * (needed - 1) + [0]
        for fewer in combinations(left.shares, needed - 1):
            assert not fewer or not recovers(left, data, fewer)


def test_r1_the_xor_of_all_secrets_is_the_key_and_the_count_goes_down() -> None:
    """R1."""
    left = estate(3)
    answers = given_all(left.data, left.shares)
    assert [answer.remaining for answer in answers] == [2, 1, 0]
    found = answers[-1].found
    assert found is not None
    assert found.key == xor([share.secret for share in left.shares])
    assert given_all(left.data, estate(3).shares[::-1])[-1].found is not None


def test_r2_a_foreign_secret_and_one_of_a_wrong_size_are_refused_and_change_nothing() -> None:
    """R2."""
    left = estate(3)
    gathering = give(begin(left.data), left.shares[0].secret, b"").gathering
    for foreign in (bytes(32), estate(2).shares[0].secret, bytes(33), bytes(16), bytes(12), b"", bytes(34)):
        with pytest.raises(SecretRefused):
            give(gathering, foreign, b"")
    assert give(gathering, left.shares[1].secret, b"").remaining == 1


def test_r3_shamir_three_of_ten_counts_from_the_most_that_may_be_needed() -> None:
    """R3: 9, 8, 0, and again after a finished recovery."""
    left = estate(10, 3)
    for chosen in list(combinations(left.shares, 3))[:12]:
        answers = given_all(left.data, chosen)
        assert [answer.remaining for answer in answers] == [9, 8, 0]
        found = answers[-1].found
        assert found is not None
        assert found.key == combine_shamir([share.secret for share in chosen])


def test_r4_a_share_counts_once_and_an_unknown_one_not_at_all() -> None:
    """R4."""
    left = estate(4, 3)
    first, second, third, _ = left.shares
    gathering = give(begin(left.data), first.secret, first.signature).gathering
    with pytest.raises(SecretRefused, match="given before"):
        give(gathering, first.secret, first.signature)
    with pytest.raises(SecretRefused, match="none of the 4"):
        give(gathering, bytes(33), b"")
    progress = give(gathering, second.secret, second.signature)
    assert progress.remaining == 2
    assert give(progress.gathering, third.secret, third.signature).remaining == 0


def test_refusals_name_a_secret_by_its_hash_and_never_show_it() -> None:
    left = estate(2)
    secret = bytes(range(32))
    with pytest.raises(SecretRefused) as refused:
        give(begin(left.data), secret, b"")
    assert hashlib.sha256(secret).hexdigest()[:16] in str(refused.value)
    assert secret.hex()[:12] not in str(refused.value)
    progress = give(begin(left.data), left.shares[0].secret, b"signature")
    for thing in (progress, progress.gathering, progress.gathering.given[0]):
        assert "secret" not in repr(thing).lower() or "object at" in repr(thing)


def test_r6_garbage_and_repetition_do_not_stand_in_the_way_when_the_list_is_lost() -> None:
    """R6, better: the secrets that were not used are not looked at in the end, so the first round succeeds."""
    left = estate(2)
    gathering = begin(left.without_list)
    garbage = [bytes([number]) * 32 for number in range(1, 6)]
    first, second = left.shares
    for secret in (garbage[0], first.secret, first.secret, garbage[1], bytes(16), bytes(33), *garbage[2:]):
        progress = give(gathering, secret, first.signature if secret == first.secret else b"")
        assert (progress.remaining, progress.found) == (1, None)
        gathering = progress.gathering
    progress = give(gathering, second.secret, second.signature)
    assert progress.found is not None
    state = recovered_state(progress.gathering, progress.found)
    assert encode_state(state) == encode_state(left.state)
    assert state.data_key is not None
    assert state.data_key.recovery_data == build_recovery_data((first.secret, second.secret))


def test_a_wrong_secret_of_a_single_holder_is_told_and_the_right_one_then_succeeds_at_once() -> None:
    """Protocol, 12.1 no. 6 and section 10.8: in the reference the right one has to be sent twice."""
    left = estate(1)
    progress = give(begin(left.data), bytes(range(32)), b"x")
    assert progress.remaining == 1
    assert "does not open the state" in progress.message
    right = left.shares[0]
    progress = give(progress.gathering, right.secret, right.signature)
    assert progress.found is not None
    assert recovered_state(progress.gathering, progress.found).phase is Phase.ACCEPTING_MARBLES


@pytest.mark.parametrize("case", [(1, 0), (2, 0), (3, 2)])
def test_secrets_that_cancel_out_do_not_count_as_those_of_holders(case: tuple[int, int]) -> None:
    """Zeros, and three that cancel each other out, change no key; the recovery must not ask for their signatures."""
    left = estate(*case)
    one, two = bytes(range(32)), bytes(range(1, 33))
    gathering = begin(left.without_list)
    for garbage in (bytes(32), one, two, xor([one, two])):
        gathering = give(gathering, garbage, b"").gathering
    progress = None
    for share in left.shares[: case[1] or case[0]]:
        progress = give(gathering, share.secret, share.signature)
        gathering = progress.gathering
    assert progress is not None
    assert progress.found is not None
    assert recovered_state(gathering, progress.found).deployment is not None


def test_what_a_flood_of_garbage_can_hold_and_cost_is_bounded() -> None:
    """Protocol, 12.1 no. 4: the reference remembers everything and tries every subset."""
    left = estate(2)
    gathering = begin(left.without_list)
    for number in range(MAX_SHARES + 40):
        gathering = give(gathering, number.to_bytes(32), b"").gathering
    assert len(gathering.given) == MAX_SHARES
    assert (MAX_SHARES + 39).to_bytes(32) == gathering.given[-1].secret
    with pytest.raises(SecretRefused, match="signature"):
        give(gathering, bytes(32), bytes(2049))


def test_beyond_the_combined_number_all_and_all_but_one_are_tried() -> None:
    """Honest parties alone always succeed, however many they are; one piece of garbage does not stop them."""
    secrets = [bytes([number]) * 32 for number in range(1, MAX_COMBINED + 5)]
    key = xor(secrets)
    data = build_sealed_data(key, b"null", {"state": b"3"}, NONCE)
    for sent in (secrets, [bytes(31) + b"\x77", *secrets]):
        gathering = begin(data)
        progress = None
        for secret in sent:
            progress = give(gathering, secret, b"")
            gathering = progress.gathering
        assert progress is not None
        assert progress.found is not None
        assert {given.secret for given in progress.found.used} == set(secrets)


# -- what the recovered state says -------------------------------------------------------------------------------


def judged(left: Estate, shares: Sequence[Share], data: bytes | None = None) -> None:
    answers = given_all(data or left.data, shares)
    found = answers[-1].found
    assert found is not None
    recovered_state(answers[-1].gathering, found)


def test_r9_each_secret_has_to_be_signed_by_another_recovery_key() -> None:
    """R9: wrong, missing and swapped signatures; one party cannot stand in for another."""
    left = estate(2)
    first, second = left.shares
    nobody = replace(second, signature=b"")
    swapped = (replace(first, signature=second.signature), replace(second, signature=first.signature))
    twice = replace(second, signature=sign_recovery_secret(recovery_key("party0"), second.secret))
    stranger = replace(second, signature=sign_recovery_secret(recovery_key("stranger"), second.secret))
    judged(left, (first, second))
    for shares in ((first, nobody), swapped, (first, twice), (first, stranger)):
        with pytest.raises(Untrusted, match="recovery-signature"):
            judged(left, shares)


def test_r9_a_manifest_with_more_keys_than_secrets_given_is_refused() -> None:
    """R9: whoever knows the data key itself is still only one of two parties."""
    left = estate(2)
    assert left.state.data_key is not None
    key = left.state.data_key.key
    single = replace_recovery_data(left.data, b"null")
    share = Share("party0", key, sign_recovery_secret(recovery_key("party0"), key))
    with pytest.raises(Untrusted, match="recovery-secrets"):
        judged(left, (share,), single)


def test_a_state_that_an_attacker_made_around_our_manifest_is_refused() -> None:
    """GHSA-w7wm-2425-7p2h: own CA key, our manifest; nobody can sign for its holders."""
    attacker = replace(fresh(), authority=new_authority(SubjectNames(("localhost",)), INPUTS))
    crafted = replace(set_manifest(attacker, manifest(1), INPUTS, {}).state, data_key=DataKey(b"k" * 32, b"null"))
    theirs = sign_recovery_secret(recovery_key("attacker"), b"k" * 32)
    old = estate(1).shares[0]
    for signature in (theirs, old.signature, b""):
        share = Share("attacker", b"k" * 32, signature)
        with pytest.raises(Untrusted, match="recovery-signature"):
            judged(estate(1), (share,), sealed(crafted))


def test_a_state_without_recovery_keys_is_never_recovered() -> None:
    """With n = 0 this always fails (protocol, section 10.9): the attacker's own manifest has no keys."""
    left = set_manifest(fresh(), manifest(0), INPUTS, {}).state
    assert left.data_key is not None
    with pytest.raises(Untrusted, match="recovery-keys"):
        judged(estate(1), (Share("", left.data_key.key, b""),), sealed(left))


@pytest.mark.parametrize(
    "entries",
    [
        {"certificate:coordinatorRootCert": None},
        {"manifest": None},
        {"manifest": b"{"},
        {"state": b"2"},
        {"state": b"1"},
        {"state": b"9"},
        {"privateKey:coordinatorRootKey": None},
        {"user:admin": b"["},
    ],
)
def test_r9_an_incomplete_or_broken_state_is_refused(entries: dict[str, bytes | None]) -> None:
    """R9: a missing root certificate, and everything of that kind."""
    left = estate(1)
    changed = {**encode_state(left.state), **{name: value for name, value in entries.items() if value is not None}}
    for name, value in entries.items():
        if value is None:
            del changed[name]
    assert left.state.data_key is not None
    data = build_sealed_data(left.state.data_key.key, b"null", changed, NONCE)
    with pytest.raises(Untrusted, match="recovered"):
        judged(left, left.shares, data)


def test_a_ca_whose_keys_are_not_those_of_its_certificates_is_refused() -> None:
    left = estate(1)
    other = encode_state(replace(left.state, authority=new_authority(SubjectNames(), INPUTS)))
    assert left.state.data_key is not None
    for name in ("certificate:coordinatorRootCert", "certificate:coordinatorIntermediateCert",
                 "certificate:marbleRootCert"):  # fmt: skip
        entries = {**encode_state(left.state), name: other[name]}
        with pytest.raises(Untrusted, match="recovered-authority"):
            judged(left, left.shares, build_sealed_data(left.state.data_key.key, b"null", entries, NONCE))


def test_states_of_old_releases_are_recovered() -> None:
    """Protocol, sections 6.2, 10.1 and 11.1: a 16-byte key, no root secret, no update log, entries we do not know."""
    left = estate(1)
    entries = {
        name: value for name, value in encode_state(left.state).items() if name not in ("rootSecret", "updateLog")
    }
    entries["futureEntry:x"] = b"\x03" + bytes(7)
    key = b"0123456789abcdef"
    data = build_sealed_data(key, b"null", entries, NONCE)
    answers = given_all(data, (Share("party0", key, sign_recovery_secret(recovery_key("party0"), key)),))
    assert answers[0].found is not None
    state = recovered_state(answers[0].gathering, answers[0].found)
    assert (state.update_log, len(state.root_secret)) == ("", 48)
    assert state.other_entries == {"futureEntry:x": b"\x03" + bytes(7)}
    assert state.data_key is not None
    assert (state.data_key.key, state.data_key.recovery_data) == (key, b"null")


@pytest.mark.parametrize(("count", "threshold"), [(1, 0), (2, 0), (3, 2)])
@pytest.mark.parametrize("lost", [False, True])
def test_e16_the_recovery_data_after_a_recovery_is_never_empty(count: int, threshold: int, lost: bool) -> None:
    """E16; of Shamir shares a lost list stays lost, because the shares that were not used are not known."""
    left = estate(count, threshold)
    answers = given_all(left.without_list if lost else left.data, left.shares[: threshold or count])
    assert answers[-1].found is not None
    state = recovered_state(answers[-1].gathering, answers[-1].found)
    assert state.data_key is not None
    assert left.state.data_key is not None
    if lost and threshold:
        assert state.data_key.recovery_data == NO_RECOVERY_DATA
    else:
        assert json.loads(state.data_key.recovery_data) == json.loads(left.state.data_key.recovery_data)


def test_if_all_secrets_together_do_not_open_the_state_that_is_an_error() -> None:
    left, other = estate(2), estate(3)
    assert other.state.data_key is not None
    mixed = build_sealed_data(other.state.data_key.key, b"", encode_state(left.state), NONCE)
    data = replace_recovery_data(mixed, build_recovery_data(tuple(share.secret for share in left.shares)))
    with pytest.raises(Untrusted, match="recovery-key"):
        given_all(data, left.shares)


def test_every_truncation_and_every_changed_byte_of_the_state_is_refused() -> None:
    """Sampled; the whole sweep is ``python -m tests.coordinator.sweep``."""
    left = estate(2)
    data = left.data
    start = 4 + int.from_bytes(data[:4], "little")
    for size in (*range(30), *range(start - 2, start + 30), *range(start, len(data), 997)):
        assert not is_recovered(left, data[:size])
    for at in (*range(start, start + 30), *range(start, len(data), 499), *range(len(data) - 16, len(data))):
        assert not is_recovered(left, changed(data, at))
    # R and its length are not covered by the tag: a change there may cost a recovery, but never leads anywhere else.
    for at in range(start):
        is_recovered(left, changed(data, at))


def changed(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :]


def is_recovered(left: Estate, data: bytes) -> bool:
    """As ``recovers``, which checks that the state is the old one; an error of ours means no."""
    try:
        return recovers(left, data, left.shares)
    except MarbleRunError:
        return False


def test_k10_a_key_is_known_to_open_the_state_or_not() -> None:
    """K10."""
    left = estate(1)
    assert left.state.data_key is not None
    key = left.state.data_key.key
    assert is_data_key(key, left.data)
    for wrong in (bytes(32), key[:16], key[:-1] + bytes([key[-1] ^ 1]), b"", bytes(12)):
        assert not is_data_key(wrong, left.data)
    for damaged in (left.data[:-1] + bytes([left.data[-1] ^ 1]), left.data[:40], left.data[:-1]):
        assert not is_data_key(key, damaged)
    with pytest.raises(Malformed):
        is_data_key(key, b"\0\0")


# -- any sequence of offers --------------------------------------------------------------------------------------


class Parties(RuleBasedStateMachine):
    """Holders, strangers and attackers in any order, against a model that only counts."""

    left: Estate
    gathering: Gathering

    @initialize(case=st.sampled_from([(1, 0), (2, 0), (3, 0), (3, 2), (4, 3)]), lost=st.booleans())
    def prepare(self, case: tuple[int, int], lost: bool) -> None:
        self.left, self.needed, self.lost = estate(*case), case[1] or case[0], lost
        self.gathering = begin(self.left.without_list if lost else self.left.data)
        self.has_list = self.gathering.expected is not None
        self.given: set[int] = set()

    @rule(number=st.integers(0, 3), bad=st.sampled_from([False, False, True]))
    def holder(self, number: int, bad: bool) -> None:
        number %= len(self.left.shares)
        share = self.left.shares[number]
        signature = b"bad" if bad else share.signature
        if self.has_list and number in self.given:
            with pytest.raises(SecretRefused):
                give(self.gathering, share.secret, signature)
            return
        progress = give(self.gathering, share.secret, signature)
        self.given.add(number)
        done = len(self.given) >= self.needed
        assert (progress.found is not None) == done
        assert (progress.remaining == 0) == done
        if not done:
            assert progress.remaining == (len(self.left.shares) - len(self.given) if self.has_list else 1)
        self.gathering = progress.gathering
        if progress.found is not None:
            self.judge(progress)

    def judge(self, progress: Progress) -> None:
        assert progress.found is not None
        if any(used.signature == b"bad" for used in progress.found.used):
            with pytest.raises(Untrusted, match="recovery-signature"):
                recovered_state(progress.gathering, progress.found)
        else:
            state = recovered_state(progress.gathering, progress.found)
            assert encode_state(state) == encode_state(self.left.state)
        self.gathering, self.given = progress.gathering.forgotten(), set()

    @rule(secret=st.binary(max_size=40) | st.sampled_from([bytes(32), bytes(33), bytes(16)]), signature=st.binary())
    def stranger(self, secret: bytes, signature: bytes) -> None:
        before = self.gathering
        try:
            progress = give(self.gathering, secret, signature)
        except SecretRefused:
            assert self.gathering is before
            return
        assert not self.has_list
        assert progress.found is None
        self.gathering = progress.gathering

    @rule()
    def restart(self) -> None:
        self.gathering, self.given = self.gathering.forgotten(), set()

    @invariant()
    def memory_is_bounded(self) -> None:
        if hasattr(self, "gathering"):
            assert len(self.gathering.given) <= (len(self.left.shares) if self.has_list else MAX_SHARES)


Parties.TestCase.settings = settings(
    max_examples=40, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
)
TestParties = Parties.TestCase


def test_orders_do_not_matter() -> None:
    left = estate(3)
    for order in permutations(left.shares):
        assert recovers(left, left.data, order)
