"""The collateral client against services that work, and against those that lie, dawdle, flood or fall over."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests import vectors
from tests.forge.evidence import FMSPC, OTHER_FMSPC, forge

from marblerun.attestation.collect import CollateralSettings, PccsSource
from marblerun.attestation.dcap.pck import collateral_key
from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral, CollateralKey, TcbStatus, Tee
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.attestation.simulated.pccs import (
    Answer,
    CollateralServer,
    PlatformPublisher,
    Publisher,
    RecordedPublisher,
    answer,
)
from marblerun.errors import Malformed, MarbleRunError, Misconfigured, Unavailable

AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
QUICK = CollateralSettings(timeout=30.0, attempts=2, first_pause=0.01)
KEY = CollateralKey(Tee.SGX, FMSPC, "platform")

Respond = Callable[[str, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Forged:
    """A publisher with one piece of collateral for whatever is asked."""

    collateral: Collateral = field(default_factory=lambda: forge().collateral)

    def find(self, *, tee: Tee | None = None, fmspc: bytes | None = None, ca: str | None = None) -> Collateral | None:
        return self.collateral


def encode(reply: Answer, **extra: str) -> bytes:
    headers = {"Content-Length": str(len(reply.body)), "Connection": "close", **reply.headers, **extra}
    lines = [f"HTTP/1.1 {reply.status} x", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + reply.body


async def good(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(encode(answer(Forged(), target)))


@asynccontextmanager
async def service(respond: Respond) -> Any:
    """A service of our own making on a real socket; yields its URL and the list of what was asked."""
    asked: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            target = request.split(b" ")[1].decode()
            asked.append(target)
            await respond(target, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        server.close()


def fetch_from(respond: Respond, key: CollateralKey = KEY, settings: CollateralSettings = QUICK) -> Collateral:
    async def run() -> Collateral:
        async with service(respond) as (url, _):
            source = PccsSource(replace(settings, url=url))
            try:
                return await source.fetch(key)
            finally:
                await source.aclose()

    return asyncio.run(run())


def fetch(settings: CollateralSettings, key: CollateralKey) -> Collateral:
    async def run() -> Collateral:
        source = PccsSource(settings)
        try:
            return await source.fetch(key)
        finally:
            await source.aclose()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    return SimulatedPlatform.create(tmp_path_factory.mktemp("collect") / "machine", at=AT)


@pytest.mark.parametrize("tee", [Tee.SGX, Tee.TDX])
def test_what_is_fetched_is_what_was_signed(platform: SimulatedPlatform, tee: Tee) -> None:
    key = CollateralKey(tee, platform.fmspc, "platform")
    with CollateralServer(PlatformPublisher(platform, clock=lambda: AT)) as server:
        fetched = fetch(replace(QUICK, url=server.url), key)
    assert fetched == platform.collateral(AT, tee)


def test_a_quote_verifies_with_what_was_fetched_for_it(platform: SimulatedPlatform) -> None:
    quote = platform.quote(b"evidence")
    with CollateralServer(PlatformPublisher(platform, clock=lambda: AT)) as server:
        collateral = fetch(
            replace(QUICK, url=f"{server.url}/sgx/certification/v4/"), collateral_key(parse_quote(quote))
        )
    claims = Verifier([platform.trust_root()]).verify(quote, collateral, AT)
    assert claims.tcb_status == TcbStatus.UP_TO_DATE


@pytest.mark.parametrize("name", vectors.parameters("sgx", "tdx"))
def test_recorded_vendor_collateral_survives_the_way_over_the_network(name: str, tmp_path: Path) -> None:
    vector = vectors.load(name)
    if not vector.ok or vector.collateral_json is None or vector.at is None:
        return
    (tmp_path / "recorded.json").write_text(vector.collateral_json)
    at = vector.at
    with CollateralServer(RecordedPublisher.load(tmp_path, clock=lambda: at)) as server:
        fetched = fetch(replace(QUICK, url=server.url), collateral_key(parse_quote(vector.quote)))
    assert fetched == vector.collateral


def test_an_unknown_platform_is_unavailable_and_named() -> None:
    async def respond(target: str, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(Answer(404)) if "/tcb" in target else encode(answer(Forged(), target)))

    with pytest.raises(Unavailable, match="TCB Info: status 404: the service does not know this platform"):
        fetch_from(respond)


def test_a_refusal_is_not_repeated_but_an_outage_is() -> None:
    async def count(status: int) -> int:
        async def respond(target: str, writer: asyncio.StreamWriter) -> None:
            writer.write(encode(Answer(status)) if "/pckcrl" in target else encode(answer(Forged(), target)))

        async with service(respond) as (url, asked):
            source = PccsSource(replace(QUICK, url=url, attempts=3))
            with pytest.raises(Unavailable, match=f"PCK CRL: status {status}"):
                await source.fetch(KEY)
            await source.aclose()
            return sum("/pckcrl" in target for target in asked)

    attempts = {status: asyncio.run(count(status)) for status in (400, 401, 404, 410, 461, 429, 500, 502, 503)}
    assert attempts == {400: 1, 401: 1, 404: 1, 410: 1, 461: 1, 429: 3, 500: 3, 502: 3, 503: 3}


def test_a_service_that_comes_back_is_believed() -> None:
    failed: set[str] = set()

    async def respond(target: str, writer: asyncio.StreamWriter) -> None:
        path = urlsplit(target).path
        if path not in failed:
            failed.add(path)
            writer.write(encode(Answer(503), **{"Retry-After": "0"}))
            return
        writer.write(encode(answer(Forged(), target)))

    assert fetch_from(respond).tcb_info == Forged().collateral.tcb_info


async def _dropped_at_once(target: str, writer: asyncio.StreamWriter) -> None:
    pass


async def _dropped_in_the_headers(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Le")


async def _dropped_in_the_body(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")


async def _dropped_between_chunks(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")


async def _banner_only(target: str, writer: asyncio.StreamWriter) -> None:
    """Not HTTP, but without a blank line it looks like headers that were cut off."""
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")


_DROPS = [_banner_only, _dropped_at_once, _dropped_in_the_headers, _dropped_in_the_body, _dropped_between_chunks]


@pytest.mark.parametrize("drop", _DROPS)
def test_a_dropped_connection_is_an_outage(drop: Respond) -> None:
    with pytest.raises(Unavailable, match=r"the connection was dropped: .* \(after 2 attempts\)"):
        fetch_from(drop)


@pytest.mark.parametrize("drop", _DROPS)
def test_a_dropped_connection_is_tried_again(drop: Respond) -> None:
    dropped: set[str] = set()

    async def respond(target: str, writer: asyncio.StreamWriter) -> None:
        path = urlsplit(target).path
        respond_now = good if path in dropped else drop
        dropped.add(path)
        await respond_now(target, writer)

    assert fetch_from(respond).tcb_info == Forged().collateral.tcb_info


def test_nobody_listening_is_unavailable_and_every_part_is_named() -> None:
    with pytest.raises(Unavailable) as refusal:
        fetch(replace(QUICK, url="http://127.0.0.1:9"), KEY)
    assert [part in str(refusal.value) for part in ("PCK CRL", "root CRL", "TCB Info", "QE identity")] == [True] * 4
    assert "after 2 attempts" in str(refusal.value)


async def _silent(target: str, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def _dripping(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(300):
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.1)


async def _dripping_headers(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for n in range(300):
        writer.write(f"X-{n}: y\r\n".encode())
        await writer.drain()
        await asyncio.sleep(0.1)


@pytest.mark.parametrize("respond", [_silent, _dripping, _dripping_headers])
def test_a_slow_service_costs_no_more_than_the_time_outs(respond: Respond) -> None:
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"no complete answer within 0\.3 s"):
        fetch_from(respond, settings=replace(QUICK, timeout=0.3))
    assert time.monotonic() - started < 25


async def _endless(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    for _ in range(16 * 1024):
        writer.write(chunk)
        await writer.drain()


async def _announced(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n")
    for _ in range(16 * 1024):
        writer.write(b"x" * 0x10000)
        await writer.drain()


@pytest.mark.parametrize("respond", [_endless, _announced])
def test_a_service_that_sends_gigabytes_is_cut_off_at_the_limit(respond: Respond) -> None:
    with pytest.raises(Malformed, match="larger than 1048576 bytes"):
        fetch_from(respond, settings=QUICK)


async def _endless_headers(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    for n in range(100_000):
        writer.write(f"X-{n}: {'y' * 1000}\r\n".encode())
        await writer.drain()


async def _no_http(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")


async def _noise(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(b"\xff" * 20_000 + b"\r\n\r\n")


def test_noise_in_place_of_an_answer_is_not_repeated_in_the_error() -> None:
    with pytest.raises(Malformed, match="not HTTP") as refused:
        fetch_from(_noise)
    assert len(str(refused.value)) < 1500


async def _compressed(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(encode(Answer(200, b"\x1f\x8b" + b"\0" * 64), **{"Content-Encoding": "gzip"}))


async def _html(target: str, writer: asyncio.StreamWriter) -> None:
    writer.write(encode(Answer(200, b"<html>Sign in to this network</html>")))


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (_endless_headers, "not HTTP"),
        (_no_http, "not HTTP"),
        (_compressed, "compressed"),
        (_html, "PCK CRL is not a certificate revocation list"),
    ],
)
def test_an_answer_that_is_not_what_it_should_be_is_malformed(respond: Respond, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        fetch_from(respond)


def test_a_redirection_is_not_followed() -> None:
    async def respond(target: str, writer: asyncio.StreamWriter) -> None:
        writer.write(encode(Answer(302), Location="http://169.254.169.254/latest/meta-data"))

    with pytest.raises(Unavailable, match="status 302"):
        fetch_from(respond)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (CollateralKey(Tee.SGX, OTHER_FMSPC, "platform"), "was asked for sgx platform FMSPC 0051ab000001"),
        (CollateralKey(Tee.SGX, FMSPC, "processor"), r"processor CA\) and answered for .*platform CA"),
        (CollateralKey(Tee.TDX, FMSPC, "platform"), "was asked for tdx .* and answered for sgx"),
    ],
)
def test_an_answer_for_another_platform_is_found_out(key: CollateralKey, message: str) -> None:
    with pytest.raises(Malformed, match=message):
        fetch_from(good, key)


@pytest.mark.parametrize(
    "name", ["SGX-PCK-CRL-Issuer-Chain", "TCB-Info-Issuer-Chain", "SGX-Enclave-Identity-Issuer-Chain"]
)
def test_a_missing_issuer_chain_is_named(name: str) -> None:
    async def respond(target: str, writer: asyncio.StreamWriter) -> None:
        reply = answer(Forged(), target)
        headers = {key: value for key, value in reply.headers.items() if key != name}
        writer.write(encode(replace(reply, headers=headers)))

    with pytest.raises(Malformed, match=name):
        fetch_from(respond)


def test_the_early_channel_is_asked_for_only_when_configured() -> None:
    async def queries(settings: CollateralSettings) -> list[str]:
        async with service(good) as (url, asked):
            source = PccsSource(replace(settings, url=url))
            await source.fetch(KEY)
            await source.aclose()
            return sorted(asked)

    paths = [
        "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "/sgx/certification/v4/qe/identity",
        "/sgx/certification/v4/rootcacrl",
        "/sgx/certification/v4/tcb?fmspc=0051ab000000",
    ]
    assert asyncio.run(queries(QUICK)) == paths
    early = [paths[0], paths[1] + "?update=early", paths[2], paths[3] + "&update=early"]
    assert asyncio.run(queries(replace(QUICK, update="early"))) == early


# --- TLS ---


@dataclass(frozen=True)
class Tls:
    ca_file: Path
    context: ssl.SSLContext


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A service certificate for localhost, signed by itself."""
    directory = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "cert.pem", directory / "key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_file, key_file)
    return Tls(certificate_file, context)


@pytest.fixture(scope="module")
def forged() -> Publisher:
    return Forged()


def test_a_service_that_the_ca_file_vouches_for_is_used(tls: Tls, forged: Publisher) -> None:
    with CollateralServer(forged, ("localhost", 0), tls=tls.context) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        assert fetch(replace(QUICK, url=url, ca_file=tls.ca_file), KEY).tcb_info == forge().collateral.tcb_info


def test_a_service_that_nobody_vouches_for_is_not(tls: Tls, forged: Publisher) -> None:
    with CollateralServer(forged, ("localhost", 0), tls=tls.context) as server:
        url = server.url.replace("127.0.0.1", "localhost")
        with pytest.raises(Unavailable, match=r"CERTIFICATE_VERIFY_FAILED|certificate verify failed"):
            fetch(replace(QUICK, url=url), KEY)


def test_a_certificate_for_another_name_is_refused(tls: Tls, forged: Publisher) -> None:
    with (
        CollateralServer(forged, ("127.0.0.1", 0), tls=tls.context) as server,
        pytest.raises(Unavailable, match=r"certificate verify failed"),
    ):
        fetch(replace(QUICK, url=server.url, ca_file=tls.ca_file), KEY)


def test_verification_can_be_switched_off_by_name(tls: Tls, forged: Publisher) -> None:
    with CollateralServer(forged, ("127.0.0.1", 0), tls=tls.context) as server:
        fetched = fetch(replace(QUICK, url=server.url, use_secure_cert=False), KEY)
    assert fetched.tcb_info == forge().collateral.tcb_info


def test_a_ca_file_that_cannot_be_used_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(Misconfigured, match=name):
            PccsSource(CollateralSettings(ca_file=tmp_path / name))


def test_errors_are_ours_whatever_bytes_the_service_sends() -> None:
    """Every prefix of a good answer, and the answer with one byte exchanged, is collateral or an error of our tree."""
    body = answer(Forged(), "/sgx/certification/v4/tcb?fmspc=0051ab000000")
    outcomes: set[str] = set()

    async def run() -> None:
        for cut in range(0, len(body.body), 997):
            changed = body.body[:cut] + b"\x00" + body.body[cut + 1 :]
            for damaged in (body.body[:cut], changed):

                async def respond(target: str, writer: asyncio.StreamWriter, damaged: bytes = damaged) -> None:
                    reply = replace(body, body=damaged) if "/tcb" in target else answer(Forged(), target)
                    writer.write(encode(reply))

                async with service(respond) as (url, _):
                    source = PccsSource(replace(QUICK, url=url))
                    try:
                        await source.fetch(KEY)
                    except MarbleRunError as error:
                        outcomes.add(error.code)
                    finally:
                        await source.aclose()

    asyncio.run(run())
    assert outcomes == {"malformed"}
