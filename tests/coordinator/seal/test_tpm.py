"""Sealing to a TPM 2.0, with a software TPM (swtpm)."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.coordinator.manifests import encode, many
from tests.coordinator.parties import manifest, share_of
from tests.coordinator.running import World
from tests.coordinator.states import ENTROPY, UUID_1, applicant
from tests.coordinator.test_process import process
from tests.forge.tpm import SoftTpm, bus_of, needs_tpm, soft_tpm

from marblerun.attestation.issue import GramineIssuer, NoEvidenceIssuer
from marblerun.coordinator.entropy import SystemEntropy
from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.seal.detect import detect_sealer
from marblerun.coordinator.seal.kek import KekSealer
from marblerun.coordinator.seal.none import PlainSealer
from marblerun.coordinator.seal.tpm import TpmSealer
from marblerun.coordinator.seal.tpm_device import open_tpm
from marblerun.coordinator.seal.tpm_key import DEFAULT_PCRS, PcrSelection, parse_tpm_key
from marblerun.coordinator.service import Coordinator
from marblerun.coordinator.state import Phase
from marblerun.coordinator.store.file import FileStore
from marblerun.errors import Malformed, Misconfigured, Unavailable, Untrusted

pytestmark = needs_tpm

KEY = bytes(range(32))
AAD = b"a" * 32
T = TypeVar("T")


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[SoftTpm]:
    with soft_tpm(tmp_path / "tpm") as tpm:
        yield tpm


def sealer(tpm: SoftTpm, selection: PcrSelection = DEFAULT_PCRS) -> TpmSealer:
    """As a new process has it."""
    return TpmSealer(tpm.tcti, selection, ENTROPY)


@pytest.mark.parametrize("mode", [SealMode.PRODUCT_KEY, SealMode.UNIQUE_KEY])
@pytest.mark.parametrize("size", [16, 32])
def test_another_process_opens_it_also_after_a_reboot(tpm: SoftTpm, mode: SealMode, size: int) -> None:
    sealed = sealer(tpm).seal(KEY[:size], mode, AAD)
    assert sealer(tpm).unseal(sealed, AAD) == KEY[:size]
    tpm.reboot()
    assert sealer(tpm).unseal(sealed, AAD) == KEY[:size]
    assert KEY[:size] not in sealed


def test_a_tpm_is_asked_once_per_process_and_mode_and_nothing_is_sealed_twice_alike(tpm: SoftTpm) -> None:
    """Every durable change seals; the TPM would be too slow for it."""
    own = sealer(tpm)
    first = [own.seal(KEY, mode, AAD) for mode in (SealMode.PRODUCT_KEY, SealMode.UNIQUE_KEY)]
    tpm.power_off()
    again = [own.seal(KEY, mode, b"b") for mode in (SealMode.PRODUCT_KEY, SealMode.UNIQUE_KEY)]
    tpm.power_on()
    assert len({*first, *again}) == 4
    assert [parse_tpm_key(a).object for a in first] == [parse_tpm_key(a).object for a in again]
    assert [sealer(tpm).unseal(sealed, b"b") for sealed in again] == [KEY, KEY]
    other = sealer(tpm).seal(KEY, SealMode.PRODUCT_KEY, AAD)
    assert parse_tpm_key(other).object != parse_tpm_key(first[0]).object


@pytest.mark.parametrize(
    ("mode", "pcr", "opens"),
    [
        *((SealMode.PRODUCT_KEY, pcr, pcr not in (0, 2, 4, 7)) for pcr in (0, 1, 2, 4, 7, 8, 9, 10, 12)),
        *((SealMode.UNIQUE_KEY, pcr, False) for pcr in (4, 8, 9, 12)),
        (SealMode.UNIQUE_KEY, 10, True),
    ],
)
def test_a_changed_pcr_that_the_mode_binds_to_keeps_it_shut(
    tpm: SoftTpm, mode: SealMode, pcr: int, opens: bool
) -> None:
    sealed = sealer(tpm).seal(KEY, mode, AAD)
    tpm.extend(pcr)
    if opens:
        assert sealer(tpm).unseal(sealed, AAD) == KEY
        return
    with pytest.raises(Untrusted, match="PCRs") as refused:
        sealer(tpm).unseal(sealed, AAD)
    assert (refused.value.step, refused.value.reason) == ("sealed-key", "pcrs")
    tpm.reboot()
    assert sealer(tpm).unseal(sealed, AAD) == KEY


def test_what_the_setting_names_counts_and_the_key_itself_says_what_it_was(tpm: SoftTpm) -> None:
    """A setting that changed since does not keep an older key shut."""
    sealed = sealer(tpm, PcrSelection("sha384", (1, 15))).seal(KEY, SealMode.PRODUCT_KEY, AAD)
    tpm.extend(7)
    assert sealer(tpm).unseal(sealed, AAD) == KEY
    tpm.extend(15)
    with pytest.raises(Untrusted, match="sha384:1,15"):
        sealer(tpm).unseal(sealed, AAD)


class Remembered(SystemEntropy):
    """Real randomness that the test knows afterwards."""

    def __init__(self) -> None:
        self.given: list[bytes] = []

    def token(self, size: int) -> bytes:
        self.given.append(super().token(size))
        return self.given[-1]


def test_whoever_listens_on_the_bus_does_not_see_the_keys(tpm: SoftTpm) -> None:
    """But sees that something was sealed there."""
    entropy = Remembered()
    with bus_of(tpm) as bus:
        own = TpmSealer(bus.tcti, DEFAULT_PCRS, entropy)
        sealed = own.seal(KEY, SealMode.PRODUCT_KEY, AAD)
        assert own.unseal(sealed, AAD) == KEY
        seen = bytes(bus.seen)
    kek, _nonce = entropy.given
    assert parse_tpm_key(sealed).object.public in seen
    assert (kek in seen, KEY in seen) == (False, False)


def test_nothing_but_the_policy_opens_the_object(tpm: SoftTpm) -> None:
    """No password does, which would be the empty one."""
    from tpm2_pytss import TPM2B_PRIVATE, TPM2B_PUBLIC, TPMT_PUBLIC, TSS2_Exception

    found = parse_tpm_key(sealer(tpm).seal(KEY, SealMode.PRODUCT_KEY, AAD)).object
    public, private = TPM2B_PUBLIC(TPMT_PUBLIC.unmarshal(found.public)[0]), TPM2B_PRIVATE(found.private)
    with open_tpm(tpm.tcti) as opened:
        handle = opened.esapi.load(opened.root_key, private, public)
        with opened.flushed(handle), pytest.raises(TSS2_Exception, match="auth"):
            opened.esapi.unseal(handle)


def test_another_tpm_and_a_cleared_one_do_not_open_it(tpm: SoftTpm, tmp_path: Path) -> None:
    sealed = sealer(tpm).seal(KEY, SealMode.PRODUCT_KEY, AAD)
    with soft_tpm(tmp_path / "other") as other, pytest.raises(Untrusted, match="another TPM") as refused:
        sealer(other).unseal(sealed, AAD)
    assert (refused.value.step, refused.value.reason) == ("sealed-key", "other-tpm")
    tpm.clear()
    with pytest.raises(Untrusted, match="another TPM"):
        sealer(tpm).unseal(sealed, AAD)


def test_another_tpm_does_not_open_it_either_where_the_name_was_put_right(tpm: SoftTpm, tmp_path: Path) -> None:
    """The name is only there to tell the reason; the TPM decides."""
    found = parse_tpm_key(sealer(tpm).seal(KEY, SealMode.PRODUCT_KEY, AAD))
    with soft_tpm(tmp_path / "other") as other:
        name = parse_tpm_key(sealer(other).seal(KEY, SealMode.PRODUCT_KEY, AAD)).object.root_name
        old = found.object.encode()
        with pytest.raises(Untrusted) as refused:
            sealer(other).unseal(old.replace(found.object.root_name, name) + found.box, AAD)
    assert refused.value.reason == "bad-seal"


def test_it_opens_only_with_its_own_state(tpm: SoftTpm) -> None:
    own = sealer(tpm)
    with pytest.raises(Untrusted):
        own.unseal(own.seal(KEY, SealMode.PRODUCT_KEY, AAD), b"b" * 32)


def test_changed_bytes_of_every_part_are_refused(tpm: SoftTpm) -> None:
    """Each part's length, its first and last byte and some in between."""
    own = sealer(tpm)
    sealed = own.seal(KEY, SealMode.UNIQUE_KEY, AAD)
    for position in sorted(
        {*range(20), *range(40, 60), *range(60, len(sealed), 9), *range(len(sealed) - 64, len(sealed))}
    ):
        for change in (0x01, 0x80):
            broken = bytearray(sealed)
            broken[position] ^= change
            with pytest.raises((Untrusted, Malformed)):
                own.unseal(bytes(broken), AAD)
    assert own.unseal(sealed, AAD) == KEY


def test_no_more_pcrs_than_it_was_sealed_to_are_believed_to_matter(tpm: SoftTpm) -> None:
    """A selection that was made smaller is another policy, and one that was made larger too."""
    own = sealer(tpm)
    sealed = own.seal(KEY, SealMode.PRODUCT_KEY, AAD)
    for bitmap in (b"\x01\0\0", b"\x95\x01\0"):
        with pytest.raises(Untrusted) as refused:
            own.unseal(sealed[:12] + bitmap + sealed[15:], AAD)
        assert refused.value.reason == "pcrs"


def test_without_a_tpm_nothing_is_sealed_or_opened_and_with_it_again_it_goes_on(tpm: SoftTpm) -> None:
    sealed = sealer(tpm).seal(KEY, SealMode.PRODUCT_KEY, AAD)
    own = sealer(tpm)
    tpm.power_off()
    with pytest.raises(Unavailable, match="does not answer"):
        own.seal(KEY, SealMode.PRODUCT_KEY, AAD)
    with pytest.raises(Unavailable, match="does not answer"):
        own.unseal(sealed, AAD)
    tpm.power_on()
    assert own.unseal(sealed, AAD) == KEY
    assert own.unseal(own.seal(KEY, SealMode.PRODUCT_KEY, AAD), AAD) == KEY


def test_a_bank_that_the_tpm_does_not_keep_is_refused_instead_of_binding_nothing(tpm: SoftTpm) -> None:
    from tpm2_pytss import TPM2_ALG, TPML_PCR_SELECTION, TPMS_PCR_SELECTION

    none = TPMS_PCR_SELECTION(hash=TPM2_ALG.SHA384, sizeofSelect=3, pcrSelect=bytes(3))
    with tpm.esapi() as esapi:
        esapi.pcr_allocate(TPML_PCR_SELECTION([none]))
    tpm.reboot()
    with pytest.raises(Misconfigured, match="does not keep"):
        sealer(tpm, PcrSelection("sha384", (7,))).seal(KEY, SealMode.PRODUCT_KEY, AAD)


def test_pcrs_that_nothing_has_measured_into_are_told(tpm: SoftTpm, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        sealer(tpm).seal(KEY, SealMode.PRODUCT_KEY, AAD)
        assert "all PCRs" in caplog.text
        caplog.clear()
        tpm.extend(7)
        sealer(tpm).seal(KEY, SealMode.PRODUCT_KEY, AAD)
        assert caplog.text == ""


def test_a_burst_of_measurements_does_not_keep_it_shut(tpm: SoftTpm) -> None:
    """As IMA's comes: the TPM wants the policy again after each."""
    own = sealer(tpm)
    sealed = own.seal(KEY, SealMode.PRODUCT_KEY, AAD)
    done = threading.Event()

    def measure() -> None:
        for _ in range(500):
            if done.wait(0.002):
                break
            tpm.extend(10)

    measuring = threading.Thread(target=measure)
    measuring.start()
    try:
        assert [own.unseal(sealed, AAD) for _ in range(10)] == [KEY] * 10
    finally:
        done.set()
        measuring.join()


def test_nothing_is_left_behind_in_the_tpm(tpm: SoftTpm) -> None:
    """It has room for three objects and three sessions."""
    own = sealer(tpm)
    sealed = own.seal(KEY, SealMode.PRODUCT_KEY, AAD)
    for _ in range(5):
        assert own.unseal(sealed, AAD) == KEY
        with pytest.raises(Untrusted):
            own.unseal(sealed[:12] + b"\x01" + sealed[13:], AAD)


# -- a Coordinator on it -------------------------------------------------------------------------------------------


def run(tpm: SoftTpm, directory: Path, scenario: Callable[[Coordinator], Coroutine[Any, Any, T]]) -> T:
    """One life of a Coordinator, from the start of the process to its end."""
    store = FileStore(directory)

    async def life() -> T:
        coordinator = World(store=store, sealer=sealer(tpm)).coordinator()
        await coordinator.start()
        try:
            return await asyncio.wait_for(scenario(coordinator), 120)
        finally:
            await coordinator.stop()

    try:
        return asyncio.run(life())
    finally:
        store.close()


async def phase(coordinator: Coordinator) -> Phase:
    return coordinator.state.phase


async def activate(coordinator: Coordinator) -> int:
    await coordinator.activate(applicant().request("m", UUID_1), applicant().certificate)
    return coordinator.state.activations["m"]


async def deploy(coordinator: Coordinator) -> int:
    await coordinator.set_manifest(encode(many(10)))
    return await activate(coordinator)


def test_a_coordinator_goes_on_after_restarts_and_reboots(tpm: SoftTpm, tmp_path: Path) -> None:
    assert run(tpm, tmp_path / "state", deploy) == 1
    assert run(tpm, tmp_path / "state", activate) == 2
    tpm.reboot()
    assert run(tpm, tmp_path / "state", activate) == 3


def test_other_software_another_tpm_and_no_tpm_mean_recovery_with_the_reason_in_the_log(
    tpm: SoftTpm, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And nothing is lost by it: back on the machine as it was, the state opens."""
    directory = tmp_path / "state"
    run(tpm, directory, deploy)

    def reason_on(machine: SoftTpm) -> str:
        caplog.clear()
        assert run(machine, directory, phase) is Phase.RECOVERY
        record = next(r for r in caplog.records if "cannot be opened on this machine" in r.message)
        return str(record.__dict__["fields"]["reason"])

    tpm.extend(4)
    assert "not all PCRs" in reason_on(tpm)
    with soft_tpm(tmp_path / "other") as other:
        assert "another TPM" in reason_on(other)
    tpm.power_off()
    assert "does not answer" in reason_on(tpm)
    tpm.power_on()
    assert run(tpm, directory, activate) == 2


def test_a_recovery_seals_for_the_machine_as_it_is_now(tpm: SoftTpm, tmp_path: Path) -> None:
    directory = tmp_path / "state"
    secrets = run(tpm, directory, lambda coordinator: coordinator.set_manifest(manifest(1)))
    share = share_of("party0", secrets["party0"])

    async def recover(coordinator: Coordinator) -> None:
        assert (await coordinator.recover(share.secret, share.signature)).remaining == 0

    tpm.reboot()
    tpm.extend(0, b"new firmware")
    run(tpm, directory, recover)
    assert run(tpm, directory, activate) == 1
    tpm.reboot()
    assert run(tpm, directory, phase) is Phase.RECOVERY


# -- when it is used -----------------------------------------------------------------------------------------------


def test_only_the_setting_brings_it_in_and_then_before_all_others(tpm: SoftTpm, tmp_path: Path) -> None:
    asked = {"EDG_COORDINATOR_TPM": tpm.tcti, "OE_SIMULATION": "1"}
    found = detect_sealer(asked, NoEvidenceIssuer(), None, ENTROPY, tmp_path)
    assert found.name == f"TPM 2.0 ({tpm.tcti}, PCRs sha256:0,2,4,7)"
    assert found.unseal(found.seal(KEY, SealMode.PRODUCT_KEY, AAD), AAD) == KEY
    more = detect_sealer({**asked, "EDG_COORDINATOR_TPM_PCRS": "sha384:7"}, NoEvidenceIssuer(), None, ENTROPY, tmp_path)
    assert "sha384:7" in more.name
    not_asked = {"OE_SIMULATION": "1", "EDG_COORDINATOR_TPM": ""}
    assert isinstance(detect_sealer(not_asked, NoEvidenceIssuer(), None, ENTROPY, tmp_path), PlainSealer)


@pytest.mark.parametrize(
    "environment",
    [
        {"EDG_COORDINATOR_TPM_PCRS": "sha256:7"},
        {"EDG_COORDINATOR_TPM": "cmd:sh"},
        {"EDG_COORDINATOR_TPM": "1", "EDG_COORDINATOR_TPM_PCRS": "7"},
    ],
)
def test_settings_that_would_do_something_else_stop_the_start(environment: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(Misconfigured):
        detect_sealer(environment, NoEvidenceIssuer(), None, ENTROPY, tmp_path)


def test_a_tpm_that_is_not_there_ends_the_start_where_nothing_was_stored_yet(tmp_path: Path) -> None:
    """With the first manifest it would be too late: the operator has gone."""
    missing = f"device:{tmp_path}/none"
    with (
        pytest.raises(AssertionError, match=r"nothing could be sealed on this machine \(TPM 2.0 .*does not answer"),
        process(tmp_path, OE_SIMULATION="1", EDG_COORDINATOR_TPM=missing),
    ):
        pass


def test_a_state_that_waits_for_recovery_does_not_wait_for_a_tpm(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "state")
    asyncio.run(_first_manifest(store))
    store.close()
    (tmp_path / "state" / "sealed_key").write_bytes(b"")
    with process(tmp_path, OE_SIMULATION="1", EDG_COORDINATOR_TPM=f"device:{tmp_path}/none") as up:
        assert [line["state"] for line in up.lines() if line["msg"] == "the Coordinator is listening"] == [1]


async def _first_manifest(store: FileStore) -> None:
    coordinator = World(store=store).coordinator()
    await coordinator.start()
    await coordinator.set_manifest(manifest(1))
    await coordinator.stop()


def test_an_enclave_never_gives_its_key_to_the_hosts_tpm(tpm: SoftTpm, tmp_path: Path) -> None:
    """The host chooses the variable as well as the TPM."""
    (tmp_path / "dev/attestation").mkdir(parents=True)
    with pytest.raises(Misconfigured, match="inside an enclave"):
        detect_sealer({"EDG_COORDINATOR_TPM": tpm.tcti}, GramineIssuer(tmp_path), None, ENTROPY, tmp_path)


class Kept:
    """A map of sealed KEKs."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}

    def load(self, entry: str) -> bytes | None:
        return self.entries.get(entry)

    def save(self, entry: str, value: bytes) -> None:
        self.entries[entry] = value


def test_a_machine_is_its_tpm_and_keeps_the_common_key_of_several_coordinators(tpm: SoftTpm, tmp_path: Path) -> None:
    """K12: the KEK under a TPM, also after a reboot; another TPM is another machine."""
    own = sealer(tpm).machine_id()
    assert len(own) == 16
    kept = Kept()
    first = KekSealer(sealer(tpm), kept, ENTROPY)
    sealed = first.seal(KEY, SealMode.PRODUCT_KEY, AAD)
    first.settled(SealMode.PRODUCT_KEY)
    assert list(kept.entries) == [own.hex()]
    tpm.reboot()
    assert KekSealer(sealer(tpm), kept, ENTROPY).unseal(sealed, AAD) == KEY
    with soft_tpm(tmp_path / "other") as other:
        assert sealer(other).machine_id() != own
        with pytest.raises(Unavailable):
            KekSealer(sealer(other), kept, ENTROPY).unseal(sealed, AAD)
    tpm.extend(7)
    with pytest.raises(Untrusted, match="PCRs"):
        KekSealer(sealer(tpm), kept, ENTROPY).unseal(sealed, AAD)
