"""PCK certificates of single machines: from a PCCS, from a directory, kept, bounded, and never believed."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import httpx
import pytest
from tests.attestation.collect.test_pccs import encode, service
from tests.forge.evidence import AT, forge, hierarchy, trust_root

from marblerun.attestation.collect import CachedSource, CacheLimits, CollateralSettings, DirectorySource, PccsSource
from marblerun.attestation.collect.configured import collateral_source
from marblerun.attestation.collect.directory import pck_file
from marblerun.attestation.collect.fallback import FallbackSource
from marblerun.attestation.collect.pck import MAX_FETCHES, MAX_WAITING, family_key
from marblerun.attestation.collect.settings import INTEL_PCS
from marblerun.attestation.dcap.collateral import collateral_to_json
from marblerun.attestation.dcap.pck import platform_of_chain
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, Collateral, CollateralKey, PckQuery, Platform, Tee
from marblerun.attestation.registry import DcapEvidence, Registry
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.attestation.simulated.pccs import Answer, CollateralServer, PlatformPublisher, answer
from marblerun.errors import Malformed, Misconfigured, Unavailable, Untrusted

OF: Final = hierarchy()
QUERY: Final = PckQuery(bytes(16), b"\x0f" * 16, 13, bytes(2), b"\xaa" * 384)
FAMILY: Final = CollateralKey(Tee.SGX, OF.platform.fmspc, "platform")
KEY: Final = CollateralKey(Tee.SGX, b"", "", QUERY)
API_KEY: Final = "0123456789abcdef-not-for-logs"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    return SimulatedPlatform.create(tmp_path_factory.mktemp("pck") / "machine", at=datetime.now(UTC))


def nameless(machine: SimulatedPlatform, kind: int, ppid: bytes) -> bytes:
    """A genuine quote of ``machine`` that names its platform and does not carry its certificate."""
    platform = machine.platform
    embedded = machine.pck_chain.encode() + b"\x00"
    quote = machine.quote(b"\x01" * 64)
    stated = ppid + bytes(16) + platform.pce_svn.to_bytes(2, "little") + platform.pce_id
    start = quote.index(embedded) - 6
    head = bytearray(quote[:start])
    head[432:436] = (len(quote) - 436 - len(embedded) + len(stated)).to_bytes(4, "little")
    return bytes(head) + kind.to_bytes(2, "little") + len(stated).to_bytes(4, "little") + stated


@pytest.mark.parametrize(("kind", "size"), [(1, 16), (2, 256), (3, 384)])
def test_a_quote_that_only_names_its_platform_is_verified_with_a_pccs(
    machine: SimulatedPlatform, kind: int, size: int
) -> None:
    """The whole way: what to ask for, the certificate, the collateral of its family, the verdict."""
    ppid = machine.platform.ppid if kind == 1 else b"\xaa" * size
    evidence = nameless(machine, kind, ppid)
    registry = Registry([DcapEvidence(Verifier([machine.trust_root()]))])

    async def run(url: str) -> tuple[Collateral, int]:
        source = collateral_source(url=url, roots=[machine.trust_root()])
        key = registry.collateral_key(evidence)
        assert key is not None
        try:
            await source.fetch(key)
            return await source.fetch(key), source.statistics.pck_fetches
        finally:
            await source.aclose()

    with CollateralServer(PlatformPublisher(machine, lambda: datetime.now(UTC))) as server:
        collateral, fetches = asyncio.run(run(server.url))
    claims = registry.verify(evidence, collateral, datetime.now(UTC))
    assert isinstance(claims, Claims)
    assert (claims.platform, claims.report_data, fetches) == (machine.platform, b"\x01" * 64, 1)


def test_a_service_gives_no_certificate_of_a_machine_that_it_does_not_know(machine: SimulatedPlatform) -> None:
    with CollateralServer(PlatformPublisher(machine, lambda: AT)) as server:
        source = PccsSource(CollateralSettings(url=server.url, attempts=1))
        with pytest.raises(Unavailable, match="461: the service does not know this platform"):
            asyncio.run(source.fetch_pck(QUERY))


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 200),
        ({"encrypted_ppid": "ab" * 384}, 200),
        ({"encrypted_ppid": "ab" * 256}, 400),
        ({"qeid": "zz" * 16}, 400),
        ({"qeid": "00" * 16}, 461),
        ({"pceid": "0100"}, 461),
        ({"pcesvn": ""}, 400),
        ({"cpusvn": "00"}, 400),
    ],
)
def test_the_stand_in_answers_pckcert_like_a_pccs(
    machine: SimulatedPlatform, change: dict[str, str], status: int
) -> None:
    query = {"qeid": machine.qe_id.hex(), "cpusvn": "00" * 16, "pcesvn": "0d00", "pceid": "0000"} | change
    target = "/sgx/certification/v4/pckcert?" + "&".join(f"{name}={value}" for name, value in query.items())
    reply = answer(PlatformPublisher(machine, lambda: AT), target)
    assert reply.status == status
    if status == 200:
        assert reply.headers["SGX-FMSPC"] == machine.fmspc.hex().upper()
        assert reply.headers["SGX-PCK-Certificate-CA-Type"] == machine.platform.ca


@dataclass
class Fake:
    """A source that counts, and answers with what it was given."""

    chain: str | Exception = OF.pck_chain
    collateral: Collateral = field(default_factory=lambda: forge().collateral)
    asked: list[PckQuery] = field(default_factory=list)
    running: int = 0
    most: int = 0
    wait: float = 0.0

    async def fetch(self, key: CollateralKey) -> Collateral:
        assert key == FAMILY
        return self.collateral

    async def fetch_pck(self, query: PckQuery) -> str:
        self.asked.append(query)
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self.wait)
        self.running -= 1
        if isinstance(self.chain, Exception):
            raise self.chain
        return self.chain


def cached(
    source: object, clock: Callable[[], datetime] = lambda: AT, limits: CacheLimits | None = None
) -> CachedSource:
    return CachedSource(
        source,  # type: ignore[arg-type]  # some of them are no PckSource, on purpose
        clock,
        limits=limits,
        check_pck=lambda chain: platform_of_chain(chain, [trust_root(OF)]),
    )


async def settled() -> None:
    """Everything that was begun in the background is over."""
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(others)


def test_a_certificate_is_asked_for_once_however_many_wait_and_again_after_a_day() -> None:
    source, now = Fake(wait=0.01), [AT]
    cache = cached(source, lambda: now[0])

    async def run() -> list[str]:
        found = [one.pck_certificate_chain for one in await asyncio.gather(*(cache.fetch(KEY) for _ in range(10)))]
        now[0] += timedelta(hours=25)
        found.append((await cache.fetch(KEY)).pck_certificate_chain)
        await settled()
        found.append((await cache.fetch(KEY)).pck_certificate_chain)
        await settled()
        return found

    assert asyncio.run(run()) == [OF.pck_chain] * 12
    assert len(source.asked) == 2


def test_an_old_certificate_goes_on_being_used_while_the_service_is_down() -> None:
    source, now = Fake(), [AT]
    cache = cached(source, lambda: now[0])

    async def run() -> list[str]:
        found = [(await cache.fetch(KEY)).pck_certificate_chain]
        source.chain = Unavailable("down")
        now[0] += timedelta(hours=25)
        for _ in range(3):
            found.append((await cache.fetch(KEY)).pck_certificate_chain)
            await settled()
        return found

    assert asyncio.run(run()) == [OF.pck_chain] * 4
    assert (len(source.asked), cache.statistics.pck_failures) == (2, 1)  # a failure is not repeated at once


@pytest.mark.parametrize("chain", [hierarchy(name="impostor").pck_chain, "nonsense", OF.pck.pem])
def test_a_certificate_without_a_trusted_root_is_not_kept(chain: str) -> None:
    source = Fake(chain)
    cache = cached(source)
    with pytest.raises(Untrusted):
        asyncio.run(cache.fetch(KEY))
    assert cache.statistics.pck_failures == 1


def test_a_failure_is_remembered_for_a_moment() -> None:
    source, now = Fake(Unavailable("gone")), [AT]
    cache = cached(source, lambda: now[0])

    async def run() -> None:
        for message in ("gone", "not asked again before"):
            with pytest.raises(Unavailable, match=message):
                await cache.fetch(KEY)
        now[0] += timedelta(seconds=31)
        with pytest.raises(Unavailable, match="gone"):
            await cache.fetch(KEY)

    asyncio.run(run())
    assert len(source.asked) == 2


def test_a_flood_of_made_up_platforms_is_bounded_and_leaves_others_alone() -> None:
    source = Fake(wait=0.05)
    cache = cached(source)
    made_up = [replace(KEY, pck=replace(QUERY, qe_id=n.to_bytes(16, "big"))) for n in range(200)]

    async def run() -> tuple[list[Collateral | BaseException], Collateral]:
        flood = asyncio.gather(*(cache.fetch(key) for key in made_up), return_exceptions=True)
        await asyncio.sleep(0)
        mine = await asyncio.wait_for(cache.fetch(FAMILY), 60)
        results = await flood
        await cache.aclose()
        return results, mine

    results, mine = asyncio.run(run())
    refused = [one for one in results if isinstance(one, Unavailable) and "too many platforms" in str(one)]
    assert (len(refused), len(source.asked), source.most) == (200 - MAX_WAITING, MAX_WAITING, MAX_FETCHES)
    assert mine == source.collateral


def test_a_source_without_certificates_says_so() -> None:
    class Plain:
        async def fetch(self, key: CollateralKey) -> Collateral:
            raise AssertionError(key)

    with pytest.raises(Unavailable, match="name a PCCS"):
        asyncio.run(cached(Plain()).fetch(KEY))


def test_the_next_service_is_asked_if_one_has_none_or_a_wrong_one() -> None:
    sources = [Fake(Unavailable("first")), Fake(hierarchy(name="impostor").pck_chain), Fake()]
    source = FallbackSource(sources, lambda key, collateral: None, lambda c: platform_of_chain(c, [trust_root(OF)]))
    assert asyncio.run(source.fetch_pck(QUERY)) == OF.pck_chain
    with pytest.raises(Unavailable, match=r"first; .*not trusted"):
        asyncio.run(FallbackSource(sources[:2], lambda k, c: None, source._accept_pck).fetch_pck(QUERY))


def test_a_directory_has_certificates_in_files_named_by_the_query(tmp_path: Path) -> None:
    (tmp_path / "sgx.json").write_text(collateral_to_json(forge().collateral))
    (tmp_path / pck_file(QUERY)).write_text(OF.pck_chain)
    source = DirectorySource(tmp_path, lambda: AT)
    assert asyncio.run(source.fetch(KEY)).pck_certificate_chain == OF.pck_chain
    with pytest.raises(Unavailable, match="holds no PCK certificate"):
        asyncio.run(source.fetch(replace(KEY, pck=replace(QUERY, pce_svn=12))))


def test_a_simulated_platform_knows_itself_only(machine: SimulatedPlatform, tmp_path: Path) -> None:
    copy = tmp_path / "machine"
    shutil.copytree(machine.directory, copy)
    source = DirectorySource(copy, lambda: datetime.now(UTC))
    assert asyncio.run(source.fetch_pck(replace(QUERY, qe_id=machine.qe_id))) == machine.pck_chain
    with pytest.raises(Unavailable, match="simulated platform and not"):
        asyncio.run(source.fetch_pck(QUERY))


def asked_of_intel(
    monkeypatch: pytest.MonkeyPatch, respond: Callable[[httpx.Request], httpx.Response], query: PckQuery, key: str
) -> list[httpx.Request]:
    """What Intel's service would be asked, by a transport in place of the network."""
    requests: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return respond(request)

    original = httpx.AsyncClient
    monkeypatch.setattr(
        httpx, "AsyncClient", lambda **options: original(**{**options, "transport": httpx.MockTransport(handle)})
    )

    async def run() -> None:
        source = PccsSource(CollateralSettings(url=INTEL_PCS, api_key=key, attempts=1))
        actions: list[Awaitable[object]] = [source.fetch_pck(query), source.fetch(FAMILY)]
        await asyncio.gather(*actions, return_exceptions=True)
        await source.aclose()

    asyncio.run(run())
    return requests


def test_intels_service_gets_the_key_with_this_request_only_and_nobody_logs_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    requests = asked_of_intel(monkeypatch, lambda _: httpx.Response(401), QUERY, API_KEY)
    with_key = [request for request in requests if API_KEY in request.headers.values()]
    assert [request.url.path for request in with_key] == ["/sgx/certification/v4/pckcert"]
    assert sorted(with_key[0].url.params) == ["cpusvn", "encrypted_ppid", "pceid", "pcesvn"]
    assert with_key[0].url.params["pcesvn"] == "0d00"
    assert len(requests) == 5
    assert API_KEY not in caplog.text + repr(CollateralSettings(api_key=API_KEY))


@pytest.mark.parametrize(("query", "key"), [(QUERY, ""), (replace(QUERY, encrypted_ppid=b""), API_KEY)])
def test_intels_service_is_not_asked_what_it_cannot_answer(
    monkeypatch: pytest.MonkeyPatch, query: PckQuery, key: str
) -> None:
    requests = asked_of_intel(monkeypatch, lambda _: httpx.Response(404), query, key)
    assert not [request for request in requests if request.url.path.endswith("pckcert")]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"", {"SGX-PCK-Certificate-Issuer-Chain": "x"}),
        (OF.pck.pem.encode(), {}),
        (OF.pck.pem.encode(), {"SGX-PCK-Certificate-Issuer-Chain": "not%20a%20chain"}),
        (OF.pck_chain.encode(), {"SGX-PCK-Certificate-Issuer-Chain": "x"}),
        (b"\xff" * 100, {}),
    ],
)
def test_an_answer_that_is_no_certificate_with_issuers_is_malformed(body: bytes, headers: dict[str, str]) -> None:
    async def respond(_: str, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(Answer(200, body, headers=headers)))

    async def run() -> None:
        async with service(respond) as (url, _):
            source = PccsSource(CollateralSettings(url=url, attempts=1))
            try:
                await source.fetch_pck(QUERY)
            finally:
                await source.aclose()

    with pytest.raises(Malformed, match="PCK certificate"):
        asyncio.run(run())


def test_a_key_is_never_sent_in_the_clear_and_its_file_must_hold_one(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="https only"):
        CollateralSettings(url="http://localhost:8081", api_key=API_KEY)
    with pytest.raises(Misconfigured, match="characters"):
        CollateralSettings(api_key="a\r\nb")
    for content in (b"", b"\xff", b"x" * 300):
        (tmp_path / "key").write_bytes(content)
        with pytest.raises(Misconfigured, match="holds no subscription key"):
            collateral_source(api_key_file=tmp_path / "key")
    with pytest.raises(Misconfigured, match="cannot be read"):
        collateral_source(api_key_file=tmp_path / "none")


def test_the_family_of_a_machine_is_what_its_certificate_says() -> None:
    assert family_key(Tee.SGX, OF.pck_chain) == FAMILY
    platform: Platform = hierarchy("processor").platform
    assert family_key(Tee.TDX, hierarchy("processor").pck_chain) == CollateralKey(Tee.TDX, platform.fmspc, "processor")
