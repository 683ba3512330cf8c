"""What the collateral cache serves, when it asks, and what it never keeps."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import stat
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.forge.evidence import AT, FMSPC, ISSUED, OTHER_FMSPC, forge, hierarchy, td_report, trust_root

from marblerun.attestation.collect import CachedSource, CacheLimits, DirectorySource, DiskShelf
from marblerun.attestation.collect.disk import MAX_FILES
from marblerun.attestation.dcap.collateral import collateral_to_json, verify_collateral
from marblerun.attestation.model import Collateral, CollateralKey, Tee
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.errors import Malformed, MarbleRunError, Unavailable

KEY = CollateralKey(Tee.SGX, FMSPC, "platform")
LIMITS = CacheLimits(max_age=timedelta(hours=24), margin=timedelta(days=2), pause=timedelta(seconds=30))
EXPIRES = ISSUED + timedelta(days=30)


@dataclass
class Clock:
    """A clock that is set by hand."""

    now: datetime = AT

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Fake:
    """A source that answers, waits or fails as told, and remembers what it was asked."""

    answer: Collateral | MarbleRunError = field(default_factory=lambda: forge().collateral)
    asked: list[CollateralKey] = field(default_factory=list)
    gate: asyncio.Event | None = None
    running: int = 0
    most: int = 0
    closed: bool = False

    async def aclose(self) -> None:
        self.closed = True

    async def fetch(self, key: CollateralKey) -> Collateral:
        self.asked.append(key)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await (self.gate.wait() if self.gate else asyncio.sleep(0))
        finally:
            self.running -= 1
        if isinstance(self.answer, MarbleRunError):
            raise self.answer
        return self.answer


def run(scenario: Callable[[Fake, CachedSource, Clock], Awaitable[None]], **options: object) -> None:
    async def main() -> None:
        clock, source = Clock(), Fake()
        cache = CachedSource(source, clock, **{"limits": LIMITS, **options})  # type: ignore[arg-type]  # test code
        try:
            await scenario(source, cache, clock)
        finally:
            await cache.aclose()

    asyncio.run(main())


async def settle() -> None:
    """Let background tasks run; saving to disk goes through a thread."""
    for _ in range(20):
        await asyncio.sleep(0.001)


def test_a_platform_is_asked_for_once() -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        assert [await cache.fetch(KEY) for _ in range(3)] == [source.answer] * 3
        assert (source.asked, cache.statistics.hits, cache.statistics.misses) == ([KEY], 2, 1)

    run(scenario)


def test_many_who_ask_at_once_share_one_fetch() -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        source.gate = asyncio.Event()
        asking = [asyncio.create_task(cache.fetch(KEY)) for _ in range(50)]
        await settle()
        source.gate.set()
        assert await asyncio.gather(*asking) == [source.answer] * 50
        assert source.asked == [KEY]

    run(scenario)


def test_one_who_goes_away_does_not_end_the_fetch_of_the_others() -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        source.gate = asyncio.Event()
        first, second = (asyncio.create_task(cache.fetch(KEY)) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        source.gate.set()
        assert await second == source.answer
        assert source.asked == [KEY]

    run(scenario)


def test_a_failure_is_everybodys_and_is_remembered_for_a_moment() -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        good, source.answer = source.answer, Unavailable("the service is away")
        outcomes = await asyncio.gather(*(cache.fetch(KEY) for _ in range(5)), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["the service is away"] * 5
        clock.now += timedelta(seconds=29)
        with pytest.raises(Unavailable, match=r"away \(not asked again before 12:00:30 UTC\)"):
            await cache.fetch(KEY)
        assert source.asked == [KEY]
        source.answer = good
        clock.now += timedelta(seconds=1)
        assert await cache.fetch(KEY) == good
        assert (len(source.asked), cache.statistics.refused) == (2, 1)

    run(scenario)


def test_old_collateral_is_served_at_once_and_renewed_behind_the_scenes() -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        old = await cache.fetch(KEY)
        clock.now += timedelta(hours=25)
        source.answer = new = forge(issued=ISSUED + timedelta(days=1)).collateral
        source.gate = asyncio.Event()
        assert await asyncio.wait_for(cache.fetch(KEY), 60) == old
        source.gate.set()
        await settle()
        assert await cache.fetch(KEY) == new
        assert len(source.asked) == 2

    run(scenario)


def test_valid_collateral_goes_on_being_used_while_the_service_is_down_and_not_a_second_longer() -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        good = await cache.fetch(KEY)
        source.answer = Unavailable("down")
        clock.now = EXPIRES - timedelta(seconds=1)
        for _ in range(3):
            assert await cache.fetch(KEY) == good
            await settle()
        assert len(source.asked) == 2  # a failed renewal is not repeated at once
        clock.now = EXPIRES
        with pytest.raises(Unavailable, match="down"):
            await cache.fetch(KEY)

    run(scenario)


def test_entries_are_renewed_before_they_expire_without_anybody_asking() -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        await cache.fetch(KEY)
        await cache.refresh()
        assert len(source.asked) == 1
        clock.now = EXPIRES - timedelta(days=1)
        source.answer = new = forge(issued=ISSUED + timedelta(days=20)).collateral
        await cache.refresh()
        assert await cache.fetch(KEY) == new
        assert len(source.asked) == 2

    run(scenario)


def test_a_service_that_has_nothing_newer_is_not_asked_for_every_piece_of_evidence() -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        clock.now = EXPIRES - timedelta(days=1)
        for _ in range(20):
            assert await cache.fetch(KEY) == source.answer
            await settle()
        assert len(source.asked) == 1
        clock.now += timedelta(hours=1)
        for _ in range(3):
            assert await cache.fetch(KEY) == source.answer
            await settle()
        assert len(source.asked) == 2
        clock.now = EXPIRES - timedelta(seconds=1)
        for _ in range(20):
            assert await cache.fetch(KEY) == source.answer
            await settle()
        assert len(source.asked) == 3

    run(scenario)


def test_a_failure_keeps_nothing_alive_of_what_was_sent(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "marblerun.collateral")  # what pytest records of the log is kept, too

    class Sent:
        """Stands for megabytes."""

    sent: list[weakref.ref[Sent]] = []

    class Lying(Fake):
        async def fetch(self, key: CollateralKey) -> Collateral:
            body = Sent()
            sent.append(weakref.ref(body))
            raise Malformed("not what it should be")

    async def scenario() -> None:
        cache = CachedSource(Lying(), Clock(), limits=LIMITS)
        with suppress(Malformed):
            await cache.fetch(KEY)
        await settle()
        gc.collect()
        assert [one() for one in sent] == [None]
        with pytest.raises(Unavailable, match="not what it should be"):
            await cache.fetch(KEY)

    asyncio.run(scenario())


def test_keep_fresh_goes_on_until_it_is_cancelled() -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        await cache.fetch(KEY)
        task = asyncio.create_task(cache.keep_fresh(every=0.001))
        clock.now += timedelta(hours=25)
        source.answer = Unavailable("down")
        await settle()
        source.answer = new = forge(issued=ISSUED + timedelta(days=1)).collateral
        clock.now += timedelta(seconds=31)
        await settle()
        task.cancel()
        assert await cache.fetch(KEY) == new
        assert len(source.asked) == 3

    run(scenario)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: forge(issued=AT - timedelta(days=40)).collateral, "expired at"),
        (lambda: forge(issued=AT + timedelta(days=5)).collateral, "are the clocks right"),
        (lambda: forge(td_report()).collateral, "asked for sgx .*, got collateral for tdx"),
        (lambda: forge(of=hierarchy("processor")).collateral, r"asked for .*platform CA\), got .*processor CA"),
        (lambda: replace(forge().collateral, tcb_info="{"), "TCB Info cannot be read"),
        (lambda: forge(of=hierarchy(name="impostor")).collateral, "not trustworthy: tcb-signer"),
        (lambda: replace(forge().collateral, tcb_info_signature=bytes(64)), "not trustworthy: tcb-info"),
    ],
)
def test_a_service_that_lies_cannot_displace_good_collateral(bad: Callable[[], Collateral], message: str) -> None:
    roots = [trust_root(hierarchy())]

    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        good = await cache.fetch(KEY)
        clock.now += timedelta(hours=25)
        source.answer = bad()
        await cache.refresh()
        assert (await cache.fetch(KEY), cache.statistics.failures) == (good, 1)

    async def from_the_start(source: Fake, cache: CachedSource, clock: Clock) -> None:
        source.answer = bad()
        with pytest.raises((Unavailable, Malformed), match=message):
            await cache.fetch(KEY)
        with pytest.raises((Unavailable, Malformed), match="not asked again"):
            await cache.fetch(KEY)
        assert source.asked == [KEY]

    run(scenario, check=lambda collateral: verify_collateral(collateral, roots))
    run(from_the_start, check=lambda collateral: verify_collateral(collateral, roots))


def test_what_the_vendor_said_earlier_cannot_displace_what_came_later_while_that_is_valid() -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        newer = source.answer = forge(issued=ISSUED + timedelta(days=1)).collateral
        assert isinstance(newer, Collateral)
        clock.now += timedelta(days=2)
        assert await cache.fetch(KEY) == newer
        older = forge(issued=ISSUED).collateral
        for replayed in (older, replace(newer, tcb_info=older.tcb_info), replace(newer, root_ca_crl=older.root_ca_crl)):
            clock.now += timedelta(hours=25)
            source.answer = replayed
            await cache.refresh()
            assert await cache.fetch(KEY) == newer
        assert cache.statistics.failures == 3
        source.answer = newest = forge(issued=ISSUED + timedelta(days=2)).collateral
        clock.now += timedelta(hours=25)
        await cache.refresh()
        assert await cache.fetch(KEY) == newest

    run(scenario)


def test_the_cache_is_bounded_and_drops_what_was_used_least_lately() -> None:
    fmspcs = [bytes([n]) + FMSPC[1:] for n in range(4)]
    made = {fmspc: forge(tcb_info=lambda info, f=fmspc: replace(info, fmspc=f)).collateral for fmspc in fmspcs}  # type: ignore[misc]  # bound early
    keys = [CollateralKey(Tee.SGX, fmspc, "platform") for fmspc in fmspcs]

    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        for key in (*keys[:3], keys[0], keys[3], keys[0], keys[1]):
            source.answer = made[key.fmspc]
            assert await cache.fetch(key) == made[key.fmspc]
        assert source.asked == [*keys[:3], keys[3], keys[1]]

    run(scenario, limits=replace(LIMITS, max_entries=3))
    size = max(len(collateral_to_json(collateral)) for collateral in made.values())
    run(scenario, limits=replace(LIMITS, max_bytes=3 * size))


def test_made_up_platforms_do_not_become_a_flood_at_the_service() -> None:
    keys = [CollateralKey(Tee.SGX, n.to_bytes(6, "big"), "platform") for n in range(3000)]

    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        source.answer = Unavailable("no such platform")
        refused = await asyncio.gather(*(cache.fetch(key) for key in keys), return_exceptions=True)
        assert all(isinstance(error, Unavailable) for error in refused)
        assert (len(source.asked), source.most <= LIMITS.max_fetches) == (LIMITS.max_waiting, True)
        for key in keys:
            with pytest.raises(Unavailable):
                await cache.fetch(key)
        assert len(source.asked) == 3000
        assert len(cache._failures) <= 1024

    logging.getLogger("marblerun.collateral").setLevel(logging.ERROR)
    try:
        run(scenario)
    finally:
        logging.getLogger("marblerun.collateral").setLevel(logging.NOTSET)


def test_closing_ends_what_is_being_fetched() -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        source.gate = asyncio.Event()
        waiting = asyncio.create_task(cache.fetch(KEY))
        await settle()
        await cache.aclose()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert (source.running, source.closed) == (0, True)

    run(scenario)


# --- disk ---


def test_a_restart_needs_no_service(tmp_path: Path) -> None:
    async def first(source: Fake, cache: CachedSource, clock: Clock) -> None:
        await cache.fetch(KEY)

    async def second(source: Fake, cache: CachedSource, clock: Clock) -> None:
        source.answer = Unavailable("down")
        assert (
            collateral_to_json(await cache.fetch(KEY))
            == (tmp_path / "c" / "sgx-0051ab000000-platform.json").read_text()
        )
        async with asyncio.timeout(60):
            while not source.asked:  # what lies on the disk is read in a thread
                await asyncio.sleep(0.001)
        await settle()
        assert len(source.asked) == 1  # it is due to be renewed, since nobody knows how old it is

    run(first, shelf=DiskShelf(tmp_path / "c"))
    run(second, shelf=DiskShelf(tmp_path / "c"))


def test_files_are_private_and_nothing_else_is_left(tmp_path: Path) -> None:
    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        await cache.fetch(KEY)

    run(scenario, shelf=DiskShelf(tmp_path / "c"))
    assert stat.S_IMODE((tmp_path / "c").stat().st_mode) == 0o700
    assert [(f.name, stat.S_IMODE(f.stat().st_mode)) for f in (tmp_path / "c").iterdir()] == [
        ("sgx-0051ab000000-platform.json", 0o600)
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        collateral_to_json(forge(of=hierarchy("processor")).collateral).encode(),
        collateral_to_json(forge(issued=AT - timedelta(days=40)).collateral).encode(),
        collateral_to_json(forge(of=hierarchy(name="impostor")).collateral).encode(),
    ],
)
def test_a_file_that_cannot_be_used_counts_as_none(tmp_path: Path, content: bytes) -> None:
    roots = [trust_root(hierarchy())]
    path = tmp_path / "sgx-0051ab000000-platform.json"
    path.write_bytes(content)

    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        assert await cache.fetch(KEY) == source.answer
        assert source.asked == [KEY]

    run(scenario, shelf=DiskShelf(tmp_path), check=lambda collateral: verify_collateral(collateral, roots))
    assert json.loads(path.read_bytes())["tcb_info"] == forge().collateral.tcb_info


def test_a_disk_that_cannot_be_written_does_not_stop_anything(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        assert await cache.fetch(KEY) == source.answer

    run(scenario, shelf=DiskShelf(tmp_path / "file" / "cache"))


def test_files_of_others_in_the_directory_are_left_alone_and_do_not_hide_ours(tmp_path: Path) -> None:
    for number in range(MAX_FILES + 1):
        (tmp_path / f"{number:03}.json").write_text("somebody's")

    async def scenario(source: Fake, cache: CachedSource, clock: Clock) -> None:
        await cache.fetch(KEY)

    shelf = DiskShelf(tmp_path)
    run(scenario, shelf=shelf)
    assert shelf.keys() == (KEY,)
    assert len(list(tmp_path.iterdir())) == MAX_FILES + 2


# --- directory ---


def test_a_directory_of_recordings_is_a_source(tmp_path: Path) -> None:
    sgx, tdx = forge().collateral, forge(td_report()).collateral
    (tmp_path / "1.json").write_text(collateral_to_json(sgx))
    (tmp_path / "2.json").write_text(collateral_to_json(tdx))
    source = DirectorySource(tmp_path, Clock())
    assert asyncio.run(source.fetch(KEY)) == sgx
    assert asyncio.run(source.fetch(replace(KEY, tee=Tee.TDX))) == tdx
    with pytest.raises(Unavailable, match="0051ab000001"):
        asyncio.run(source.fetch(replace(KEY, fmspc=OTHER_FMSPC)))


def test_a_simulated_platforms_directory_is_a_source_of_fresh_collateral(tmp_path: Path) -> None:
    platform = SimulatedPlatform.create(tmp_path / "p", at=AT)
    clock = Clock()
    source = DirectorySource(platform.directory, clock)
    key = CollateralKey(Tee.SGX, platform.fmspc, "platform")
    assert asyncio.run(source.fetch(key)).tcb_info == platform.collateral(AT).tcb_info
    clock.now += timedelta(days=100)
    assert asyncio.run(source.fetch(key)).tcb_info == platform.collateral(clock.now).tcb_info
    for other in (replace(key, ca="processor"), replace(key, fmspc=OTHER_FMSPC)):
        with pytest.raises(Unavailable, match="is a simulated platform and not"):
            asyncio.run(source.fetch(other))


def minted(fmspc: bytes = FMSPC) -> Collateral:
    return forge(of=hierarchy(fmspc=fmspc)).collateral


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sgx-0051ab000001-platform.json", "{"),
        ("sgx-0051ab000001-platform.json", ""),
        ("any.json", collateral_to_json(replace(minted(fmspc=OTHER_FMSPC), qe_identity="{"))),
        ("any.json", collateral_to_json(replace(minted(fmspc=OTHER_FMSPC), root_ca_crl=b"x"))),
    ],
)
def test_a_broken_file_stops_the_platform_that_it_is_about_and_no_other(
    tmp_path: Path, name: str, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It may have been the newest of its platform, with what the others do not know yet."""
    good, other = minted(), minted(fmspc=OTHER_FMSPC)
    (tmp_path / "1.json").write_text(collateral_to_json(good))
    (tmp_path / "2.json").write_text(collateral_to_json(other))
    (tmp_path / name).write_text(content)
    source = DirectorySource(tmp_path, Clock())
    for _ in range(2):
        assert asyncio.run(source.fetch(KEY)) == good
    assert [record.levelname for record in caplog.records if name in record.getMessage()] == ["WARNING"]
    with pytest.raises(Malformed, match=name.replace(".", r"\.")):
        asyncio.run(source.fetch(replace(KEY, fmspc=OTHER_FMSPC)))


def test_a_broken_file_of_which_nobody_knows_what_it_is_about_stops_only_who_has_no_other(tmp_path: Path) -> None:
    good = minted()
    (tmp_path / "1.json").write_text(collateral_to_json(good))
    (tmp_path / "broken.json").write_text("{")
    source = DirectorySource(tmp_path, Clock())
    assert asyncio.run(source.fetch(KEY)) == good
    with pytest.raises(Malformed, match=r"broken\.json"):
        asyncio.run(source.fetch(replace(KEY, fmspc=OTHER_FMSPC)))


def test_a_broken_recording_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(Malformed, match=r"broken\.json"):
        asyncio.run(DirectorySource(tmp_path, Clock()).fetch(KEY))
