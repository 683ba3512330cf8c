"""An anchor in a TPM 2.0, with a software TPM (swtpm): nobody turns it back, and no crash needs a recovery."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from tests.coordinator.manifests import encode, many
from tests.coordinator.parties import manifest, share_of
from tests.coordinator.states import UUID_1, applicant
from tests.coordinator.store.histories import Anchored, History
from tests.forge.tpm import SoftTpm, needs_tpm, soft_tpm

from marblerun.coordinator.seal.tpm_device import Tpm
from marblerun.coordinator.service import Coordinator
from marblerun.coordinator.state import Phase
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.anchors import TlsFiles, open_anchor, parse_anchor
from marblerun.coordinator.store.anchors.tpm import MAX_AHEAD, TpmAnchor
from marblerun.coordinator.store.lineage import Anchor, Mark, StampingAnchor
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import MarbleRunError, Misconfigured, Unavailable, Untrusted
from marblerun.secrets.box import open_sealed_data

pytestmark = needs_tpm

INDEX = 0x01500100
T = TypeVar("T")


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[SoftTpm]:
    with soft_tpm(tmp_path / "tpm") as tpm:
        yield tpm


def anchor_on(tpm: SoftTpm, index: int = INDEX) -> TpmAnchor:
    """As a new process has it."""
    return TpmAnchor(tpm.tcti, index)


def mark(sequence: int) -> Mark:
    return Mark(sequence, bytes([sequence]) * 32)


def rewrite_record(tpm: SoftTpm, value: int, to: Mark) -> None:
    """What the host's root can do: say of a value of the counter that it belongs to this state."""
    from tpm2_pytss import TPM2_HANDLE

    content = struct.pack("<QQ32sQQ32s", value, to.sequence, to.head, value, to.sequence, to.head)
    with tpm.esapi() as esapi:
        esapi.nv_write(esapi.tr_from_tpmpublic(TPM2_HANDLE(INDEX + 1)), content)


def count_up(tpm: SoftTpm) -> int:
    """What the host's root can do as well; the counter's value afterwards."""
    from tpm2_pytss import TPM2_HANDLE

    with tpm.esapi() as esapi:
        handle = esapi.tr_from_tpmpublic(TPM2_HANDLE(INDEX))
        esapi.nv_increment(handle)
        return int.from_bytes(bytes(esapi.nv_read(handle, 8)), "big")


# -- the anchor by itself ------------------------------------------------------------------------------------------


def test_it_remembers_over_processes_and_reboots_and_nothing_before_the_first_time(tpm: SoftTpm) -> None:
    anchor = anchor_on(tpm)
    assert isinstance(anchor, StampingAnchor)
    assert anchor.load() is None
    for sequence in (1, 2, 3):
        anchor.stamp()
        anchor.advance(mark(sequence))
        assert anchor.load() == anchor_on(tpm).load() == mark(sequence)
    tpm.reboot()
    assert anchor_on(tpm).load() == mark(3)


def test_only_the_stamp_of_the_latest_state_and_of_those_not_counted_yet_is_believed(tpm: SoftTpm) -> None:
    anchor = anchor_on(tpm)
    stamps = []
    for sequence in (1, 2, 3):
        stamps.append(anchor.stamp())
        anchor.advance(mark(sequence))
    anchor_on(tpm).verify_stamp(stamps[-1])
    for old in stamps[:-1]:
        with pytest.raises(Untrusted, match="OLDER") as refused:
            anchor_on(tpm).verify_stamp(old)
        assert (refused.value.step, refused.value.reason) == ("anchor", "older")
    ahead = [anchor.stamp() for _ in range(MAX_AHEAD)][-1]
    anchor_on(tpm).verify_stamp(ahead)
    assert anchor.stamp() == ahead


def far_ahead(stamp: bytes) -> bytes:
    return stamp[:16] + (int.from_bytes(stamp[16:], "little") + MAX_AHEAD + 1).to_bytes(8, "little")


@pytest.mark.parametrize(
    "change", [lambda stamp: b"", lambda stamp: stamp[:-1], lambda stamp: b"x" * 16 + stamp[16:], far_ahead]
)
def test_no_other_stamp_is_believed_once_the_counter_is_in_use(tpm: SoftTpm, change: Callable[[bytes], bytes]) -> None:
    anchor = anchor_on(tpm)
    stamp = anchor.stamp()
    anchor.advance(mark(1))
    anchor_on(tpm).verify_stamp(stamp)
    with pytest.raises(Untrusted):
        anchor_on(tpm).verify_stamp(change(stamp))


def test_without_a_counter_only_a_state_that_never_had_one_is_believed(tpm: SoftTpm, tmp_path: Path) -> None:
    anchor_on(tpm).verify_stamp(b"")
    anchor = anchor_on(tpm)
    stamp = anchor.stamp()
    anchor.advance(mark(1))
    with soft_tpm(tmp_path / "other") as other, pytest.raises(Untrusted, match="not here"):
        anchor_on(other).verify_stamp(stamp)
    with pytest.raises(Untrusted, match="not here"):
        anchor_on(tpm, INDEX + 16).verify_stamp(stamp)
    tpm.clear()
    with pytest.raises(Untrusted, match="not here"):
        anchor_on(tpm).verify_stamp(stamp)


def test_a_counter_that_was_removed_and_made_again_begins_above_the_old_one(tpm: SoftTpm) -> None:
    """Also where the record is put back as it was."""
    anchor = anchor_on(tpm)
    stamp = b""
    for sequence in range(1, 5):
        stamp = anchor.stamp()
        anchor.advance(mark(sequence))
    tpm.undefine(INDEX)
    with pytest.raises(Untrusted, match="not here"):
        anchor_on(tpm).verify_stamp(stamp)
    anchor_on(tpm).stamp()  # makes it
    assert anchor_on(tpm).load() == mark(4)
    with pytest.raises(Untrusted, match="OLDER"):
        anchor_on(tpm).verify_stamp(stamp)


class Interrupted(TpmAnchor):
    """Ends before or after one of the writes of :meth:`advance`."""

    def __init__(self, tpm: SoftTpm, at: str) -> None:
        super().__init__(tpm.tcti, INDEX)
        self.at = at

    def _write_record(self, tpm: Tpm, *entries: Any) -> None:
        self._stop("before the record")
        super()._write_record(tpm, *entries)
        self._stop("after the record")

    def _count(self, tpm: Tpm) -> None:
        super()._count(tpm)
        self._stop("after counting")

    def _stop(self, where: str) -> None:
        if self.at == where:
            self.at = ""
            raise Unavailable(f"interrupted {where}")


POINTS = ("before the record", "after the record", "after counting")


@pytest.mark.parametrize("point", POINTS)
def test_a_crash_between_the_writes_leaves_the_state_before_or_the_new_one(tpm: SoftTpm, point: str) -> None:
    anchor = Interrupted(tpm, "")
    stamps = {1: anchor.stamp()}
    anchor.advance(mark(1))
    anchor.at = point
    stamps[2] = anchor.stamp()
    with pytest.raises(Unavailable):
        anchor.advance(mark(2))
    again = anchor_on(tpm)
    found = again.load()
    assert found == mark(2 if point == "after counting" else 1)
    again.verify_stamp(stamps[2])
    if found == mark(2):
        with pytest.raises(Untrusted):
            anchor_on(tpm).verify_stamp(stamps[1])
    again.stamp()
    again.advance(mark(3))
    assert anchor_on(tpm).load() == mark(3)
    for stamp in stamps.values():
        with pytest.raises(Untrusted):
            anchor_on(tpm).verify_stamp(stamp)


def test_a_crash_while_it_counts_over_a_value_that_was_given_up_leaves_the_new_state(tpm: SoftTpm) -> None:
    anchor = Interrupted(tpm, "")
    anchor.stamp()
    anchor.advance(mark(1))
    anchor.stamp()
    stamp = anchor.stamp()
    anchor.at = "after counting"
    with pytest.raises(Unavailable):
        anchor.advance(mark(2))
    again = anchor_on(tpm)
    assert again.load() == mark(2)
    again.verify_stamp(stamp)


def test_an_answer_that_was_lost_is_not_taken_for_somebody_else(tpm: SoftTpm) -> None:
    """It had counted, and did not hear of it."""
    anchor = Interrupted(tpm, "")
    anchor.stamp()
    anchor.advance(mark(1))
    anchor.at = "after counting"
    anchor.stamp()
    with pytest.raises(Unavailable):
        anchor.advance(mark(2))
    stamp = anchor.stamp()
    anchor.advance(mark(3))
    assert anchor_on(tpm).load() == mark(3)
    anchor_on(tpm).verify_stamp(stamp)


def test_a_tpm_that_is_put_in_the_place_of_this_one_is_told_also_where_it_has_counted_as_far(
    tpm: SoftTpm, tmp_path: Path
) -> None:
    with soft_tpm(tmp_path / "other") as other:
        there = anchor_on(other)
        there.stamp()
        there.advance(mark(1))
    anchor = anchor_on(tpm)
    anchor.stamp()
    anchor.advance(mark(1))
    tpm.power_off()
    tpm.memory = tmp_path / "other"
    tpm.power_on()
    anchor.stamp()
    with pytest.raises(Untrusted, match="not where"):
        anchor.advance(mark(2))


def test_two_states_that_were_not_answered_never_share_a_stamp(tpm: SoftTpm) -> None:
    """Else the one of the two that was replaced could be put back."""
    anchor = anchor_on(tpm)
    anchor.stamp()
    anchor.advance(mark(1))
    first, second = anchor.stamp(), anchor.stamp()
    anchor.advance(mark(2))
    anchor_on(tpm).verify_stamp(second)
    with pytest.raises(Untrusted, match="OLDER"):
        anchor_on(tpm).verify_stamp(first)


@pytest.mark.parametrize("what", ["counted", "removed", "cleared"])
def test_whoever_moves_the_counter_meanwhile_stops_the_coordinator(tpm: SoftTpm, what: str) -> None:
    anchor = anchor_on(tpm)
    anchor.stamp()
    anchor.advance(mark(1))
    {"counted": lambda: count_up(tpm), "removed": lambda: tpm.undefine(INDEX), "cleared": tpm.clear}[what]()
    for _ in range(3):
        anchor.stamp()
        with pytest.raises(Untrusted) as refused:
            anchor.advance(mark(2))
        assert (refused.value.step, refused.value.reason) == ("anchor", "overtaken")
    assert anchor_on(tpm).load() != mark(2)


def test_an_index_that_is_something_else_and_a_damaged_record_are_named(tpm: SoftTpm) -> None:
    anchor = anchor_on(tpm, INDEX - 1)  # its record is where the other one counts
    anchor.stamp()
    anchor_on(tpm).stamp()
    with pytest.raises(Misconfigured, match="0x01500100 of the TPM is used by something else"):
        anchor.advance(mark(1))
    third = anchor_on(tpm)
    third.stamp()
    third.advance(mark(1))
    rewrite_record(tpm, 1, Mark(10**18 + 1, bytes(32)))
    with pytest.raises(Misconfigured, match="damaged"):
        anchor_on(tpm).load()
    for index in (0x00FFFFFF, 0x01FFFFFF, 0x81000001):
        with pytest.raises(Misconfigured):
            TpmAnchor(None, index)


def test_without_a_tpm_it_says_so_and_goes_on_when_it_is_back(tpm: SoftTpm) -> None:
    anchor = anchor_on(tpm)
    anchor.stamp()
    anchor.advance(mark(1))
    tpm.power_off()
    for ask in (anchor_on(tpm).load, anchor_on(tpm).stamp, lambda: anchor.advance(mark(2))):
        with pytest.raises(Unavailable, match="does not answer"):
            ask()
    tpm.power_on()
    anchor.stamp()
    anchor.advance(mark(2))
    assert anchor_on(tpm).load() == mark(2)


def test_the_setting_leads_here(tpm: SoftTpm) -> None:
    anchor = open_anchor(parse_anchor(f"tpm:{INDEX:#x}?tcti={tpm.tcti}"), TlsFiles())
    assert (type(anchor), anchor.load()) == (TpmAnchor, None)


# -- a Coordinator with it -----------------------------------------------------------------------------------------


def run(anchor: Anchor | None, store: MemoryStore, scenario: Callable[[Coordinator], Coroutine[Any, Any, T]]) -> T:
    """One life of a Coordinator."""

    async def life() -> T:
        coordinator = Anchored(store=store, anchor=anchor).coordinator()
        await coordinator.start()
        try:
            return await asyncio.wait_for(scenario(coordinator), 120)
        finally:
            await coordinator.stop()

    return asyncio.run(life())


async def phase(coordinator: Coordinator) -> Phase:
    return coordinator.state.phase


async def status(coordinator: Coordinator) -> str:
    return coordinator.status().message


async def activate(coordinator: Coordinator) -> int:
    await coordinator.activate(applicant().request("m", UUID_1), applicant().certificate)
    return coordinator.state.activations["m"]


async def deploy(coordinator: Coordinator) -> int:
    await coordinator.set_manifest(encode(many(10)))
    await activate(coordinator)
    return await activate(coordinator)


def stored(sealed: Sealed) -> MemoryStore:
    store = MemoryStore()
    store.save(sealed.data, sealed.keys[0])
    return store


def mark_of(sealed: Sealed) -> Mark:
    import hashlib

    sequence = int(open_sealed_data(sealed.keys[0], sealed.data)["stateSequence"])
    return Mark(sequence, hashlib.sha256(sealed.data).digest())


def test_a_coordinator_goes_on_and_an_older_directory_means_recovery(tpm: SoftTpm) -> None:
    store = History()
    assert run(anchor_on(tpm), store, deploy) == 2
    tpm.reboot()
    assert run(anchor_on(tpm), store, activate) == 3
    for older in store.all[:-1]:
        assert "OLDER than the latest one" in run(anchor_on(tpm), stored(older), status)
    assert run(anchor_on(tpm), stored(store.all[-1]), phase) is Phase.ACCEPTING_MARBLES


def test_rewriting_the_record_does_not_make_an_older_state_the_latest(tpm: SoftTpm) -> None:
    store = History()
    run(anchor_on(tpm), store, deploy)
    value = count_up(tpm) - 1
    tpm.undefine(INDEX)
    # As it was, with a counter that was made anew: it has to begin above the old one.
    for older in store.all[:-1]:
        for where in (value, value + 1, value + 2):
            anchor_on(tpm).stamp()
            rewrite_record(tpm, where, mark_of(older))
            assert run(anchor_on(tpm), stored(older), phase) is Phase.RECOVERY


def test_rewriting_the_record_alone_does_not_either(tpm: SoftTpm) -> None:
    store = History()
    run(anchor_on(tpm), store, deploy)
    current = anchor_on(tpm)
    current.load()
    for older in store.all[:-1]:
        for value in range(1, 6):
            rewrite_record(tpm, value, mark_of(older))
            assert "OLDER than the latest one" in run(anchor_on(tpm), stored(older), status)


@pytest.mark.parametrize("what", ["counter", "both", "clear"])
def test_a_state_that_was_counted_is_not_believed_where_the_counter_is_gone(tpm: SoftTpm, what: str) -> None:
    store = History()
    run(anchor_on(tpm), store, deploy)
    if what == "clear":
        tpm.clear()
    else:
        tpm.undefine(INDEX)
    if what == "both":
        tpm.undefine(INDEX + 1)
    for sealed in store.all:
        assert "a counter that is not here" in run(anchor_on(tpm), stored(sealed), status)


def test_a_state_that_was_never_counted_is_believed_once(tpm: SoftTpm) -> None:
    """The anchor is configured for an existing deployment; from then on it counts."""
    store = History()
    run(None, store, deploy)
    before = store.all[-1]
    assert run(anchor_on(tpm), store, activate) == 3
    assert run(anchor_on(tpm), store, activate) == 4
    assert run(anchor_on(tpm), stored(before), phase) is Phase.RECOVERY


@pytest.mark.parametrize("point", POINTS)
def test_a_coordinator_that_crashes_between_the_writes_needs_nobody(tpm: SoftTpm, point: str) -> None:
    """What was stored and not answered is the state after the restart, and none before it opens any more."""
    store = History()
    anchor = Interrupted(tpm, "")

    async def fail_once(coordinator: Coordinator) -> None:
        await deploy(coordinator)
        anchor.at = point
        with pytest.raises(MarbleRunError, match="interrupted"):
            await activate(coordinator)

    run(anchor, store, fail_once)
    assert run(anchor_on(tpm), store, activate) == 4
    for older in store.all[:-1]:
        assert run(anchor_on(tpm), stored(older), phase) is Phase.RECOVERY


@pytest.mark.parametrize("point", [*POINTS, "full"])
def test_a_coordinator_goes_on_after_a_failure_and_what_it_replaced_does_not_open(tpm: SoftTpm, point: str) -> None:
    """Also a state that the disk refused, should it have kept it."""
    store = History()
    anchor = Interrupted(tpm, "")

    async def fail_twice(coordinator: Coordinator) -> int:
        await deploy(coordinator)
        for _ in range(2):
            anchor.at, store.is_full = point, point == "full"
            with pytest.raises(MarbleRunError, match=r"interrupted|full"):
                await activate(coordinator)
        anchor.at, store.is_full = "", False
        return await activate(coordinator)

    run(anchor, store, fail_twice)
    latest = store.all[-1]
    for older in store.all[:-1]:
        assert run(anchor_on(tpm), stored(older), phase) is Phase.RECOVERY
    assert run(anchor_on(tpm), stored(latest), phase) is Phase.ACCEPTING_MARBLES


def test_holders_may_agree_to_an_older_state_also_on_another_tpm(tpm: SoftTpm, tmp_path: Path) -> None:
    store = History()

    async def begin(coordinator: Coordinator) -> bytes:
        return (await coordinator.set_manifest(manifest(1)))["party0"]

    share = share_of("party0", run(anchor_on(tpm), store, begin))

    async def recover(coordinator: Coordinator) -> None:
        assert coordinator.state.phase is Phase.RECOVERY
        assert (await coordinator.recover(share.secret, share.signature)).remaining == 0

    run(anchor_on(tpm), store, activate)
    older = stored(store.all[0])
    run(anchor_on(tpm), older, recover)
    assert run(anchor_on(tpm), older, activate) == 1
    assert run(anchor_on(tpm), store, phase) is Phase.RECOVERY
    with soft_tpm(tmp_path / "other") as other:
        run(anchor_on(other), older, recover)
        assert run(anchor_on(other), older, activate) == 2


def test_a_coordinator_without_the_anchor_says_that_going_back_is_not_noticed(
    tpm: SoftTpm, caplog: pytest.LogCaptureFixture
) -> None:
    store = History()
    run(anchor_on(tpm), store, deploy)
    assert run(None, store, activate) == 3
    assert "a counter of a TPM, which is not configured" in caplog.text
    assert "stateStamp" not in open_sealed_data(store.all[-1].keys[0], store.all[-1].data)
    # And what it wrote is another history for the anchor.
    assert run(anchor_on(tpm), store, phase) is Phase.RECOVERY
