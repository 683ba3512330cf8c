"""Which collateral source the settings give: named before found, and one that fails is not the end."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.forge.evidence import AT, FMSPC, forge

from marblerun.attestation.collect import CachedSource, DiskShelf, Upkeep, configured
from marblerun.attestation.collect.cache import require_usable
from marblerun.attestation.collect.configured import collateral_source, service_urls
from marblerun.attestation.collect.fallback import FallbackSource
from marblerun.attestation.dcap.collateral import collateral_to_json, verify_collateral
from marblerun.attestation.model import Collateral, CollateralKey, Tee
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.attestation.simulated.pccs import CollateralServer, PlatformPublisher
from marblerun.errors import Malformed, MarbleRunError, Misconfigured, Unavailable

KEY = CollateralKey(Tee.SGX, FMSPC, "platform")
FORGED = forge()
GOOD = FORGED.collateral


@dataclass
class Fake:
    """A source that answers or fails as told, and counts."""

    answer: Collateral | MarbleRunError
    asked: int = 0
    closed: bool = False
    times: list[datetime] = field(default_factory=list)

    async def fetch(self, key: CollateralKey) -> Collateral:
        self.asked += 1
        if isinstance(self.answer, MarbleRunError):
            raise self.answer
        return self.answer

    async def aclose(self) -> None:
        self.closed = True


def accept(key: CollateralKey, collateral: Collateral) -> object:
    return require_usable(key, collateral, AT, lambda one: verify_collateral(one, [FORGED.root]))


@pytest.mark.parametrize(
    "bad",
    [
        Unavailable("away"),
        Malformed("nonsense"),
        replace(GOOD, tcb_info_signature=bytes(64)),  # a liar
        replace(GOOD, tcb_info="{}"),
    ],
)
def test_a_source_that_is_away_or_lies_is_passed_over(bad: Collateral | MarbleRunError) -> None:
    first, second, third = Fake(bad), Fake(GOOD), Fake(GOOD)
    source = FallbackSource([first, second, third], accept)
    assert asyncio.run(source.fetch(KEY)) == GOOD
    assert [one.asked for one in (first, second, third)] == [1, 1, 0]


def test_if_none_has_it_everyones_words_are_told() -> None:
    source = FallbackSource([Fake(Unavailable("one is away")), Fake(Malformed("two talks nonsense"))], accept)
    with pytest.raises(Unavailable, match="one is away; two talks nonsense"):
        asyncio.run(source.fetch(KEY))
    with pytest.raises(Unavailable):
        asyncio.run(FallbackSource([], accept).fetch(KEY))


def test_all_sources_are_closed() -> None:
    sources = [Fake(GOOD), Fake(GOOD)]
    asyncio.run(FallbackSource(sources, accept).aclose())
    assert [one.closed for one in sources] == [True, True]


def test_services_are_separated_by_commas_or_spaces_and_bounded() -> None:
    assert service_urls("https://a, https://b  https://c,") == ("https://a", "https://b", "https://c")
    assert service_urls("") == ()
    with pytest.raises(Misconfigured):
        service_urls(",".join(["https://a"] * 9))


# -- the order ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    return SimulatedPlatform.create(tmp_path_factory.mktemp("configured") / "machine", at=datetime.now(UTC))


@pytest.fixture
def recorded(platform: SimulatedPlatform, tmp_path: Path) -> Path:
    (tmp_path / "collateral").mkdir()
    text = collateral_to_json(platform.collateral(datetime.now(UTC)))
    (tmp_path / "collateral" / "one.json").write_text(text)
    return tmp_path / "collateral"


def fetch(platform: SimulatedPlatform, **settings: object) -> Collateral:
    async def main() -> Collateral:
        source = collateral_source(roots=[platform.trust_root()], timeout_seconds=30.0, **settings)  # type: ignore[arg-type]
        try:
            return await source.fetch(CollateralKey(Tee.SGX, platform.fmspc, platform.platform.ca))
        finally:
            await source.aclose()

    return asyncio.run(main())


def is_of(platform: SimulatedPlatform, collateral: Collateral) -> bool:
    return verify_collateral(collateral, [platform.trust_root()]).trusted == platform.trust_root()


def test_a_directory_alone_needs_no_network(platform: SimulatedPlatform, recorded: Path) -> None:
    assert is_of(platform, fetch(platform, directory=recorded))
    (recorded / "one.json").unlink()
    for simulated in (None, platform.directory):
        with pytest.raises(Unavailable, match="holds no collateral"):
            fetch(platform, directory=recorded, simulated_platform=simulated)


def test_a_directory_stands_in_for_services_that_are_away(platform: SimulatedPlatform, recorded: Path) -> None:
    assert is_of(platform, fetch(platform, url="http://127.0.0.1:1,http://127.0.0.1:2", directory=recorded))


def test_the_second_service_answers_if_the_first_is_away(platform: SimulatedPlatform) -> None:
    with CollateralServer(PlatformPublisher(platform, lambda: datetime.now(UTC))) as server:
        assert is_of(platform, fetch(platform, url=f"http://127.0.0.1:1, {server.url}"))


def test_a_directory_that_is_not_there_is_told_at_once(platform: SimulatedPlatform, tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="no directory"):
        fetch(platform, directory=tmp_path / "missing")


@pytest.mark.parametrize(
    "form", ['{{"pccs_url": "{url}/sgx/certification/v4/"}}', "PCCS_URL={url}/sgx/certification/v4/"]
)
def test_the_quote_providers_file_names_the_service(platform: SimulatedPlatform, tmp_path: Path, form: str) -> None:
    with CollateralServer(PlatformPublisher(platform, lambda: datetime.now(UTC))) as server:
        (tmp_path / "qcnl.conf").write_text(form.format(url=server.url))
        assert is_of(platform, fetch(platform, qcnl=tmp_path / "qcnl.conf"))


def test_the_quote_providers_file_counts_only_where_nothing_else_is_named(
    platform: SimulatedPlatform, recorded: Path, tmp_path: Path
) -> None:
    (tmp_path / "qcnl.conf").write_text('{"pccs_url": "http://127.0.0.1:1"}')
    assert is_of(platform, fetch(platform, qcnl=tmp_path / "qcnl.conf", directory=recorded))
    assert is_of(platform, fetch(platform, qcnl=tmp_path / "qcnl.conf", simulated_platform=platform.directory))


@pytest.mark.parametrize(
    "content", [None, b"\xff", b"{", b'{"pccs_url": 1}', b'{"pccs_url": "https://p/sgx/certification/v3/"}']
)
def test_a_broken_file_is_refused_if_named_and_passed_over_if_it_just_lies_there(
    platform: SimulatedPlatform,
    tmp_path: Path,
    content: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = tmp_path / "qcnl.conf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Misconfigured):
        collateral_source(qcnl=path)
    monkeypatch.setattr(configured, "DEFAULT_PATH", path)
    with caplog.at_level(logging.WARNING):
        assert isinstance(collateral_source(), CachedSource)
    assert ("is not used" in caplog.text) == (content is not None)


def test_of_the_usual_file_only_the_service_that_is_asked_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cloud's quote provider has certificates from an older service and collateral from a newer one."""
    path = tmp_path / "sgx_default_qcnl.conf"
    old, new = (
        "http://169.254.169.254/metadata/THIM/sgx/certification/v3/",
        "https://cache.example/sgx/certification/v4/",
    )
    path.write_text(json.dumps({"pccs_url": old, "collateral_service": new}))
    monkeypatch.setattr(configured, "DEFAULT_PATH", path)
    with caplog.at_level(logging.INFO):
        assert isinstance(collateral_source(), CachedSource)
    assert f"collateral comes from {new}" in caplog.text
    assert "is not used" not in caplog.text


# -- upkeep ------------------------------------------------------------------------------------------------------


def test_upkeep_renews_before_expiry_until_it_is_closed() -> None:
    async def scenario() -> tuple[int, bool, bool]:
        fake = Fake(GOOD)
        now = [AT]
        cache = CachedSource(fake, lambda: now[0])
        upkeep = Upkeep(cache, every=0.001)
        await cache.fetch(KEY)
        now[0] = AT.replace(day=AT.day + 2)  # past its age, still valid
        async with asyncio.timeout(60):
            while fake.asked < 2:
                await asyncio.sleep(0.001)
        await upkeep.aclose()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        return fake.asked, fake.closed, bool(rest)

    assert asyncio.run(scenario()) == (2, True, False)


def test_upkeep_begins_with_what_earlier_starts_left_and_renews_it(tmp_path: Path) -> None:
    """Nobody has asked for anything yet."""
    shelf = DiskShelf(tmp_path)
    shelf.save(KEY, GOOD)
    (tmp_path / "notes.json").write_text("not collateral")

    async def scenario() -> tuple[int, int, int]:
        fake = Fake(GOOD)
        cache = CachedSource(fake, lambda: AT, shelf=shelf)
        upkeep = Upkeep(cache, every=60)
        async with asyncio.timeout(60):
            while not fake.asked:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        await cache.fetch(KEY)
        await upkeep.aclose()
        return fake.asked, cache.statistics.hits, cache.statistics.stale_served

    assert shelf.keys() == (KEY,)
    assert asyncio.run(scenario()) == (1, 1, 0)


def test_what_is_known_at_the_start_is_fetched_before_anybody_asks_and_a_failure_is_held_against_nobody() -> None:
    async def scenario(failing: bool) -> tuple[int, int]:
        fake = Fake(GOOD)
        cache = CachedSource(fake, lambda: AT)
        upkeep = Upkeep(cache)
        if failing:
            fake.answer = Unavailable("not yet")
        upkeep.prefetch(KEY)
        async with asyncio.timeout(60):
            while not fake.asked:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        fake.answer = GOOD
        await cache.fetch(KEY)
        await upkeep.aclose()
        Upkeep(None).prefetch(KEY)
        return fake.asked, cache.statistics.refused

    assert asyncio.run(scenario(failing=False)) == (1, 0)
    assert asyncio.run(scenario(failing=True)) == (2, 0)


def test_upkeep_of_nothing_is_nothing() -> None:
    async def scenario() -> None:
        await Upkeep(None).aclose()
        await Upkeep(Fake(GOOD)).aclose()

    assert asyncio.run(scenario()) is None
