"""The key encryption key: made once, bound to its state, kept for each machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.coordinator.states import ENTROPY
from tests.forge.machines import another_machine

from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.coordinator.seal import MachineSealer, SealMode, SharedKeySealer, is_vouching
from marblerun.coordinator.seal.gramine import GramineKeys
from marblerun.coordinator.seal.kek import RETRY_SECONDS, KekSealer
from marblerun.coordinator.seal.none import AbsentSealer, PlainSealer
from marblerun.coordinator.seal.platform import EnclaveSealer, KeyRequest, SimulatedKeys
from marblerun.errors import Malformed, Unavailable, Untrusted
from marblerun.secrets.box import open_key, seal_key

KEY = bytes(range(32))
AAD = b"a" * 32
ZERO = "00" * 16
MODES = [SealMode.PRODUCT_KEY, SealMode.UNIQUE_KEY, SealMode.DISABLED]


@dataclass
class Entries:
    """A map of sealed KEKs; nothing can be written while ``broken``."""

    kept: dict[str, bytes] = field(default_factory=dict)
    broken: bool = False
    writes: int = 0

    def load(self, entry: str) -> bytes | None:
        return self.kept.get(entry)

    def save(self, entry: str, value: bytes) -> None:
        if self.broken:
            raise Unavailable("the map is broken")
        self.writes += 1
        self.kept[entry] = value


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def enclave(platform: SimulatedPlatform, identity: EnclaveIdentity | None = None) -> EnclaveSealer:
    return EnclaveSealer("test", SimulatedKeys(platform, identity or EnclaveIdentity()), ENTROPY)


def sealer(inner: MachineSealer, entries: Entries, clock: Clock | None = None) -> KekSealer:
    return KekSealer(inner, entries, ENTROPY, clock or Clock())


def begun(inner: MachineSealer, entries: Entries, mode: SealMode = SealMode.PRODUCT_KEY) -> tuple[KekSealer, bytes]:
    """One that has stored a state, and its sealed key."""
    own = sealer(inner, entries)
    sealed = own.seal(KEY, mode, AAD)
    own.settled(mode)
    return own, sealed


def is_known(own: KekSealer) -> bool:
    return own.kek is not None


# -- data keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_k13_the_first_seal_makes_a_kek_and_the_state_it_belongs_to_is_bound(mode: SealMode) -> None:
    own, sealed = begun(PlainSealer(), Entries(), mode)
    assert own.unseal(sealed, AAD) == KEY
    with pytest.raises(Untrusted):
        own.unseal(sealed, b"b" * 32)


def test_k13_a_given_kek_is_used_in_the_form_of_the_reference() -> None:
    """Nonce, AES-256-GCM under the KEK with the additional data, tag: the vector of protocol, section 15."""
    additional = bytes.fromhex("1c05bf2a90ac90cca4fc0eafd8020b811d053559efb7ab83e4932bbf605faad6")
    vector = bytes.fromhex(
        "000102030405060708090a0b4809e3fbd0488d452a8941179fbf64fa523fc1cd121b95d87b716e8e91101394bc79fb9e3aae96973938"
        "cbe8cf88b1ac"
    )
    own = sealer(PlainSealer(), Entries({ZERO: b"\x02" * 32}))
    assert own.unseal(vector, additional) == b"\x01" * 32
    assert own.kek == b"\x02" * 32
    again = own.seal(KEY, SealMode.PRODUCT_KEY, AAD)
    assert open_key(b"\x02" * 32, again, AAD) == KEY


def test_nothing_is_sealed_twice_alike_and_the_kek_stays() -> None:
    own, sealed = begun(PlainSealer(), Entries())
    assert own.seal(KEY, SealMode.PRODUCT_KEY, AAD) != sealed
    kek = own.kek
    assert own.unseal(own.seal(KEY, SealMode.UNIQUE_KEY, AAD), AAD) == KEY
    assert own.kek == kek


@given(st.data())
def test_every_changed_byte_of_a_sealed_key_is_refused(data: st.DataObject) -> None:
    own, sealed = begun(PlainSealer(), Entries())
    at = data.draw(st.integers(0, len(sealed) - 1))
    changed = sealed[:at] + bytes([sealed[at] ^ data.draw(st.integers(1, 255))]) + sealed[at + 1 :]
    with pytest.raises(Untrusted):
        own.unseal(changed, AAD)


def test_every_truncation_of_a_sealed_key_is_refused() -> None:
    own, sealed = begun(PlainSealer(), Entries())
    for size in range(len(sealed)):
        with pytest.raises((Malformed, Untrusted)):
            own.unseal(sealed[:size], AAD)


def test_the_kek_is_in_no_text() -> None:
    own, _ = begun(PlainSealer(), Entries())
    assert own.kek is not None
    for text in (repr(own), own.name, str(vars(type(own)))):
        assert own.kek.hex() not in text
        assert repr(own.kek) not in text


def test_it_is_a_shared_sealer_and_vouches_as_the_sealing_key_of_the_machine_does(platform: SimulatedPlatform) -> None:
    assert isinstance(sealer(PlainSealer(), Entries()), SharedKeySealer)
    assert is_vouching(sealer(enclave(platform), Entries()))
    assert not is_vouching(sealer(AbsentSealer(), Entries()))


# -- kept for this machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_k12_a_restart_on_the_same_machine_opens_what_was_kept(platform: SimulatedPlatform, mode: SealMode) -> None:
    entries = Entries()
    own, sealed = begun(enclave(platform), entries, mode)
    assert list(entries.kept) == [enclave(platform).machine_id().hex()]
    assert own.is_kept_as(mode)
    restarted = sealer(enclave(platform), entries)
    assert restarted.unseal(sealed, AAD) == KEY
    assert restarted.kek == own.kek
    assert own.kek is not None
    assert own.kek not in next(iter(entries.kept.values()))


@pytest.mark.parametrize(
    ("mode", "opens"), [(SealMode.PRODUCT_KEY, True), (SealMode.UNIQUE_KEY, False), (SealMode.DISABLED, False)]
)
def test_k12_who_opens_what_was_kept_depends_on_the_mode_and_disabled_means_the_unique_key(
    platform: SimulatedPlatform, mode: SealMode, opens: bool
) -> None:
    entries = Entries()
    _, sealed = begun(enclave(platform), entries, mode)
    other = sealer(enclave(platform, EnclaveIdentity(unique_id=b"u" * 32)), entries)
    if opens:
        assert other.unseal(sealed, AAD) == KEY
    else:
        with pytest.raises(Untrusted):
            other.unseal(sealed, AAD)


def test_k12_another_seal_mode_seals_the_kek_again_and_the_same_one_does_not(platform: SimulatedPlatform) -> None:
    entries = Entries()
    own, _ = begun(enclave(platform), entries, SealMode.DISABLED)
    first = dict(entries.kept)
    own.settled(SealMode.UNIQUE_KEY)
    assert entries.kept == first
    own.settled(SealMode.PRODUCT_KEY)
    assert entries.kept.keys() == first.keys()
    assert entries.kept != first
    assert entries.writes == 2
    newer = sealer(enclave(platform, EnclaveIdentity(unique_id=b"u" * 32)), entries)
    assert newer.kept() == own.kek


def test_k12_what_an_older_release_kept_under_one_platform_key_opens(platform: SimulatedPlatform) -> None:
    """One key information and AES-128-GCM, without additional data (protocol, section 10.2)."""
    keys = SimulatedKeys(platform, EnclaveIdentity())
    request = KeyRequest(SealMode.PRODUCT_KEY, 1, ENTROPY.token(32))
    kek = ENTROPY.token(32)
    old = (512).to_bytes(4, "little") + request.encode() + seal_key(keys.derive(request), kek, b"", ENTROPY.token(12))
    own = sealer(enclave(platform), Entries({keys.machine_id().hex(): old}))
    assert own.kept() == kek
    assert own.unseal(seal_key(kek, KEY, AAD, bytes(12)), AAD) == KEY


@pytest.mark.parametrize(
    ("kept", "error"),
    [
        ({}, Unavailable),
        ({ZERO: b""}, Untrusted),
        ({ZERO: b"k" * 16}, Malformed),
        ({ZERO: b"k" * 31}, Untrusted),
        ({ZERO: b"k" * 32}, Untrusted),
    ],
)
def test_k12_a_missing_broken_or_foreign_entry_is_reported(kept: dict[str, bytes], error: type[Exception]) -> None:
    _, sealed = begun(PlainSealer(), Entries())
    own = sealer(PlainSealer(), Entries(kept))
    with pytest.raises(error):
        own.unseal(sealed, AAD)
    assert own.kek is None


def test_k12_without_a_kek_nothing_can_be_exported() -> None:
    with pytest.raises(ValueError, match="no key encryption key"):
        sealer(PlainSealer(), Entries()).export(SealMode.PRODUCT_KEY)


def test_k12_a_map_that_cannot_be_written_is_reported_and_not_asked_at_every_write(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """D2: failing to store the KEK is not fatal."""
    entries, clock = Entries(broken=True), Clock()
    own = sealer(PlainSealer(), entries, clock)
    sealed = own.seal(KEY, SealMode.PRODUCT_KEY, AAD)
    for _ in range(3):
        own.settled(SealMode.PRODUCT_KEY)
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [
        "the key encryption key could not be kept for this machine"
    ]
    assert own.unseal(sealed, AAD) == KEY
    entries.broken = False
    own.settled(SealMode.PRODUCT_KEY)
    assert entries.writes == 0
    clock.now += RETRY_SECONDS
    own.settled(SealMode.PRODUCT_KEY)
    assert entries.kept == {ZERO: own.kek}


# -- machines ----------------------------------------------------------------------------------------------------


def test_a_machine_has_one_entry_for_all_versions_of_a_product(platform: SimulatedPlatform, tmp_path: Path) -> None:
    """The id depends on machine, ProductID and debug flag, and on nothing else (protocol, section 11.3)."""
    own = enclave(platform).machine_id()
    assert len(own) == 16
    for same in (EnclaveIdentity(unique_id=b"u" * 32), EnclaveIdentity(security_version=7)):
        assert enclave(platform, same).machine_id() == own
    for other in (EnclaveIdentity(product_id=9), EnclaveIdentity(debug=True)):
        assert enclave(platform, other).machine_id() != own
    assert enclave(another_machine(platform, tmp_path / "other")).machine_id() != own


def test_in_simulation_all_machines_are_one_and_without_a_sealing_key_there_is_none() -> None:
    assert PlainSealer().machine_id() == bytes(16)
    with pytest.raises(Unavailable):
        AbsentSealer().machine_id()


def test_gramines_machine_follows_its_product_key_and_is_not_the_key(tmp_path: Path) -> None:
    (tmp_path / "_sgx_mrsigner").write_bytes(b"p" * 16)
    first = GramineKeys(tmp_path).machine_id()
    assert len(first) == 16
    assert first not in (b"p" * 16, GramineKeys(tmp_path).derive(KeyRequest(SealMode.PRODUCT_KEY, 0, b"")))
    (tmp_path / "_sgx_mrsigner").write_bytes(b"q" * 16)
    assert GramineKeys(tmp_path).machine_id() != first


# -- whose KEK it is ---------------------------------------------------------------------------------------------


def test_a_kek_counts_once_a_state_is_stored_under_it() -> None:
    entries = Entries()
    own = sealer(PlainSealer(), entries)
    own.settled(SealMode.PRODUCT_KEY)
    own.seal(KEY, SealMode.PRODUCT_KEY, AAD)
    assert (own.kek, entries.kept) == (None, {})
    own.settled(SealMode.PRODUCT_KEY)
    assert entries.kept == {ZERO: own.kek}


def test_whoever_loses_the_race_for_the_first_state_takes_the_winners_kek() -> None:
    entries = Entries()
    loser = sealer(PlainSealer(), entries)
    loser.seal(KEY, SealMode.DISABLED, AAD)
    winner, sealed = begun(PlainSealer(), entries)
    assert loser.unseal(sealed, AAD) == KEY
    assert loser.kek == winner.kek


def test_a_state_that_opens_and_is_not_believed_does_not_take_our_kek_away(
    platform: SimulatedPlatform, tmp_path: Path
) -> None:
    """Whoever writes Secret and ConfigMap can put there what this machine kept for another deployment."""
    entries, elsewhere = Entries(), Entries()
    own, sealed = begun(enclave(platform), entries)
    foreign, foreign_sealed = begun(enclave(platform), elsewhere)
    mine = own.kek
    entries.kept = elsewhere.kept
    assert own.unseal(foreign_sealed, AAD) == KEY
    own.keep(SealMode.UNIQUE_KEY)
    assert own.kek == mine != foreign.kek
    assert own.unseal(own.seal(KEY, SealMode.PRODUCT_KEY, AAD), AAD) == KEY
    own.settled(SealMode.PRODUCT_KEY)
    assert own.kek == mine
    assert own.unseal(sealed, AAD) == KEY


def test_a_state_that_was_opened_without_the_kek_leaves_it_outdated_until_we_write() -> None:
    """A running Coordinator has the data key in memory; for its next start it needs the KEK of the stored state."""
    own, _ = begun(PlainSealer(), Entries())
    mine = own.kek
    _, foreign_sealed = begun(PlainSealer(), Entries())
    with pytest.raises(Untrusted):
        own.unseal(foreign_sealed, AAD)
    own.settled(SealMode.PRODUCT_KEY)
    assert (own.outdated, own.kek) == (True, mine)
    own.seal(KEY, SealMode.PRODUCT_KEY, AAD)
    own.settled(SealMode.PRODUCT_KEY)
    assert (own.outdated, own.kek) == (False, mine)


def test_an_offered_kek_is_taken_if_it_opens_the_state_and_else_not(
    platform: SimulatedPlatform, tmp_path: Path
) -> None:
    entries = Entries()
    first, sealed = begun(enclave(platform), entries)
    assert first.kek is not None
    own = sealer(enclave(another_machine(platform, tmp_path / "other")), entries)
    own.offer(b"f" * 32)
    with pytest.raises(Unavailable):
        own.unseal(sealed, AAD)
    assert not is_known(own)
    own.offer(first.kek)
    assert own.unseal(sealed, AAD) == KEY
    own.settled(SealMode.PRODUCT_KEY)
    assert own.kek == first.kek
    assert len(entries.kept) == 2


@pytest.mark.parametrize("kek", [b"", b"k" * 16, b"k" * 31, b"k" * 33])
def test_what_is_no_kek_cannot_be_offered(kek: bytes) -> None:
    with pytest.raises(Malformed):
        sealer(PlainSealer(), Entries()).offer(kek)


def test_a_state_under_anothers_kek_shows_and_its_kek_replaces_ours() -> None:
    """As after a recovery on another machine while this one was cut off."""
    entries = Entries()
    own, first = begun(PlainSealer(), entries)
    other, second = begun(PlainSealer(), Entries())
    assert other.kek is not None
    mine = own.kek
    with pytest.raises(Untrusted):
        own.unseal(second, AAD)
    assert (own.outdated, own.kek) == (True, mine)
    own.offer(other.kek)
    assert own.unseal(second, AAD) == KEY
    assert (own.outdated, own.kek) == (False, mine)
    entries.broken = True
    own.settled(SealMode.PRODUCT_KEY)
    assert (own.outdated, own.kek) == (False, other.kek)
    assert not own.is_kept_as(SealMode.PRODUCT_KEY)
    with pytest.raises(Untrusted):
        own.unseal(first, b"")
