"""The key server: who gets the KEK, who is refused with which code, and a stock gRPC client against it."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tests.coordinator.peers import tls
from tests.coordinator.server.sharing.instances import (
    LIMIT,
    Loop,
    Serving,
    Stock,
    always,
    attestor,
    event_loop,
    knowing,
    now,
    serving,
    shown_by,
)
from tests.coordinator.states import ENTROPY

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.collect import CachedSource, DirectorySource
from marblerun.attestation.issue import NoEvidenceIssuer
from marblerun.attestation.issue.simulated import SimulatedIssuer
from marblerun.attestation.registry import NoEvidence, Registry
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.coordinator.commands import Inputs
from marblerun.coordinator.commands.start import start_state
from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.seal.kek import KekSealer
from marblerun.coordinator.seal.none import PlainSealer
from marblerun.coordinator.server.attempts import MAX_FAILURES_PER_MINUTE, FailedAttempts
from marblerun.coordinator.server.exchange import Peer
from marblerun.coordinator.server.sharing.attestor import Attestor
from marblerun.coordinator.server.sharing.checks import evidence_in
from marblerun.coordinator.server.sharing.key_client import KeyClient
from marblerun.coordinator.server.sharing.key_server import RENEW_AFTER, KeyServer, NoCertificate, key_problem
from marblerun.errors import Denied, Malformed, Unavailable
from marblerun.pki.extensions import OE_EVIDENCE
from marblerun.pki.parsed import parse_certificate
from marblerun.pki.profiles import SubjectNames
from marblerun.policy.sharing import IdentityUnknown
from marblerun.wire.rpc import GrpcStatus

OTHER_UNIQUE = EnclaveIdentity(unique_id=b"u" * 32)


@pytest.fixture(scope="module")
def by_product(platform: SimulatedPlatform) -> Iterator[Serving]:
    """One whose state is sealed to the product, of security version 2."""
    with serving(attestor(platform, EnclaveIdentity(security_version=2)), SealMode.PRODUCT_KEY) as up:
        yield up


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with event_loop() as made:
        yield made


def started(own: Attestor, mode: SealMode, loop: Loop, sealer: KekSealer | None = None) -> KeyServer:
    """A key server that does not listen."""
    server = KeyServer(own, sealer or knowing(), always(mode), ENTROPY)
    loop.call(server.renew())
    return server


def code_of(asking: Stock, up: Serving, quote: bytes) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as refused:
        asking.ask(up, quote)
    return refused.value.code(), refused.value.details()


# -- a stock peer ------------------------------------------------------------------------------------------------


def test_d4_a_stock_client_gets_the_key_also_with_another_unique_id(
    by_product: Serving, platform: SimulatedPlatform
) -> None:
    for unique in (EnclaveIdentity().unique_id, b"u" * 32):
        asking = Stock()
        quote = asking.quote(platform, EnclaveIdentity(unique_id=unique, security_version=2))
        assert asking.ask(by_product, quote) == by_product.sealer.kek


@pytest.mark.parametrize("mode", [SealMode.UNIQUE_KEY, SealMode.DISABLED])
def test_d4_where_the_unique_key_counts_only_the_same_enclave_gets_it(
    platform: SimulatedPlatform, mode: SealMode
) -> None:
    """Disabled is also the mode until a manifest is set."""
    with serving(attestor(platform), mode) as up:
        same = Stock()
        assert same.ask(up, same.quote(platform)) == up.sealer.kek
        other = Stock()
        code, reason = code_of(other, up, other.quote(platform, OTHER_UNIQUE))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "UniqueID" in reason


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (EnclaveIdentity(signer_id=b"s" * 32, security_version=2), "SignerID"),
        (EnclaveIdentity(product_id=9, security_version=2), "ProductID"),
        (EnclaveIdentity(security_version=1), "SecurityVersion"),
        (EnclaveIdentity(security_version=2, debug=True), "Debug"),
    ],
)
def test_d4_a_peer_with_wrong_properties_is_denied_with_the_reason(
    by_product: Serving, platform: SimulatedPlatform, identity: EnclaveIdentity, reason: str
) -> None:
    asking = Stock()
    code, details = code_of(asking, by_product, asking.quote(platform, identity))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert reason in details


def test_a_coordinators_public_evidence_and_its_root_key_are_not_enough_to_ask(
    platform: SimulatedPlatform, loop: Loop
) -> None:
    """Anybody gets evidence about the root certificate; whoever ever recovered a state has the key to it."""
    server = started(attestor(platform), SealMode.PRODUCT_KEY, loop)
    root = start_state(SubjectNames(), Inputs(now(), ENTROPY)).authority.root_der
    with pytest.raises(Denied, match="a CA's certificate"):
        loop.call(server.give(Stock().quote(platform, about=root), root))


def test_a_mode_that_is_not_known_gives_the_key_to_nobody(platform: SimulatedPlatform, loop: Loop) -> None:
    async def unknown() -> SealMode:
        raise Unavailable("the present state is not known")

    server, asking = KeyServer(attestor(platform), knowing(), unknown, ENTROPY), Stock()
    loop.call(server.renew())
    with pytest.raises(Unavailable) as refused:
        loop.call(server.give(asking.quote(platform), asking.certificate))
    assert key_problem(refused.value)[0] is GrpcStatus.UNAVAILABLE


def test_d4_wrong_quotes_are_denied(by_product: Serving, platform: SimulatedPlatform) -> None:
    """None, garbage, a damaged one, one over another certificate, one over another hash of the right one."""
    asking, other = Stock(), Stock()
    good = asking.quote(platform, EnclaveIdentity(security_version=2))
    damaged = good[:600] + bytes([good[600] ^ 1]) + good[601:]
    foreign = other.quote(platform, EnclaveIdentity(security_version=2))
    for quote in (b"", b"no quote", good[:-1], damaged, foreign):
        code, _ = code_of(asking, by_product, quote)
        assert code is grpc.StatusCode.PERMISSION_DENIED
    assert asking.ask(by_product, good) == by_product.sealer.kek


def test_a_peer_of_another_root_of_trust_is_denied(
    by_product: Serving, tmp_path_factory: pytest.TempPathFactory
) -> None:
    stranger = SimulatedPlatform.create(tmp_path_factory.mktemp("stranger") / "platform", at=now())
    asking = Stock()
    code, _ = code_of(asking, by_product, asking.quote(stranger, EnclaveIdentity(security_version=2)))
    assert code is grpc.StatusCode.PERMISSION_DENIED


def test_other_methods_are_unimplemented(by_product: Serving, platform: SimulatedPlatform) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        Stock().ask(by_product, b"", path="/keypb.API/Other")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_message_larger_than_any_quote_is_refused_unread(by_product: Serving) -> None:
    code, _ = code_of(Stock(), by_product, bytes(64 * 1024))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_tls_demands_a_certificate(by_product: Serving) -> None:
    """D4: no certificate. The handshake itself ends without one."""

    def talk() -> bytes:
        with tls(("127.0.0.1", by_product.port), alpn="h2", seconds=LIMIT) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            return connection.recv(4096)

    with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required|handshake"):
        talk()


def test_whoever_is_refused_again_and_again_has_to_wait(platform: SimulatedPlatform) -> None:
    attempts = FailedAttempts(clock=lambda: 0.0)
    for _ in range(MAX_FAILURES_PER_MINUTE):
        assert attempts.record("127.0.0.1") == 0
    with serving(attestor(platform), attempts=attempts) as up:
        asking = Stock()
        code, _ = code_of(asking, up, b"no quote")
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert asking.ask(up, asking.quote(platform)) == up.sealer.kek


# -- the decision, in order --------------------------------------------------------------------------------------


def test_d4_the_first_check_is_for_a_certificate(platform: SimulatedPlatform, loop: Loop) -> None:
    server = started(attestor(platform, EnclaveIdentity(signer_id=bytes(32))), SealMode.PRODUCT_KEY, loop)
    for leaf in (None, b""):
        with pytest.raises(NoCertificate) as refused:
            loop.call(server.give(b"no quote", leaf))
        assert key_problem(refused.value)[0] is GrpcStatus.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("identity", "mode", "missing"),
    [
        (EnclaveIdentity(signer_id=bytes(32)), SealMode.PRODUCT_KEY, "SignerID"),
        (EnclaveIdentity(unique_id=bytes(32)), SealMode.UNIQUE_KEY, "UniqueID"),
        (EnclaveIdentity(unique_id=bytes(32)), SealMode.DISABLED, "UniqueID"),
    ],
)
def test_d4_the_second_check_is_for_what_we_know_about_ourselves(
    platform: SimulatedPlatform, loop: Loop, identity: EnclaveIdentity, mode: SealMode, missing: str
) -> None:
    """ProductID and SecurityVersion are in every report; that they may be missing is tested with the policy."""
    server = started(attestor(platform, identity), mode, loop)
    with pytest.raises(IdentityUnknown, match=missing) as refused:
        loop.call(server.give(b"no quote", Stock().certificate))
    assert key_problem(refused.value)[0] is GrpcStatus.INTERNAL


def test_the_third_check_is_for_the_quote_and_only_then_the_key_is_looked_at(
    platform: SimulatedPlatform, loop: Loop
) -> None:
    asking = Stock()
    nothing = KekSealer(PlainSealer(), _Empty(), ENTROPY)
    server = started(attestor(platform), SealMode.PRODUCT_KEY, loop, nothing)
    with pytest.raises(Denied):
        loop.call(server.give(b"no quote", asking.certificate))
    with pytest.raises(Unavailable) as refused:
        loop.call(server.give(asking.quote(platform), asking.certificate))
    assert key_problem(refused.value)[0] is GrpcStatus.UNAVAILABLE


class _Empty:
    def load(self, entry: str) -> bytes | None:
        return None

    def save(self, entry: str, value: bytes) -> None: ...


def test_evidence_of_yesterday_is_judged_by_todays_time(platform: SimulatedPlatform, loop: Loop) -> None:
    """Both identities are looked at with the time of the request; here all collateral is of long ago."""
    clock = _Clock()
    source = CachedSource(DirectorySource(platform.directory, now), now)
    server = started(attestor(platform, clock=clock, collateral=source), SealMode.PRODUCT_KEY, loop)
    asking = Stock()
    quote = asking.quote(platform)
    assert loop.call(server.give(quote, asking.certificate)) is not None
    clock.ahead = timedelta(days=365 * 30)
    with pytest.raises(IdentityUnknown, match="own evidence") as refused:
        loop.call(server.give(quote, asking.certificate))
    assert key_problem(refused.value)[0] is GrpcStatus.INTERNAL


class _Clock:
    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> Any:
        return now() + self.ahead


def test_without_evidence_no_key_server_starts(loop: Loop, platform: SimulatedPlatform) -> None:
    own = replace(attestor(platform), issuer=NoEvidenceIssuer(), registry=Registry([NoEvidence()]))
    with pytest.raises(IdentityUnknown):
        loop.call(KeyServer(own, knowing(), always(SealMode.PRODUCT_KEY), ENTROPY).renew())


def test_the_key_is_in_no_line_of_the_log(platform: SimulatedPlatform, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(attestor(platform)) as up:
        asking = Stock()
        assert asking.ask(up, asking.quote(platform)) == up.sealer.kek
        code_of(asking, up, b"no quote")
        up.ask(KeyClient(attestor(platform), ENTROPY))
        kek = up.sealer.kek
    assert kek is not None
    text = "\n".join(f"{record.getMessage()} {getattr(record, 'fields', '')}" for record in caplog.records)
    assert "the key was given" in text
    assert kek.hex() not in text
    assert repr(kek)[2:-1] not in text


# -- the certificate ---------------------------------------------------------------------------------------------


def test_the_certificate_is_one_of_ego_with_an_open_enclave_report_about_its_key(
    by_product: Serving, platform: SimulatedPlatform, loop: Loop
) -> None:
    """P-256, CN EGo, a year, and the report data starts with SHA-256 of the PKIX key (protocol, section 11.4)."""
    leaf = shown_by(by_product.port)
    certificate, quote = evidence_in(leaf, now())
    assert parse_certificate(leaf).extensions[OE_EVIDENCE].value == quote
    assert quote[:8] == bytes.fromhex("0100000002000000")
    claims = loop.call(attestor(platform).claims(quote, now()))
    assert claims.report_data == report_data_for(certificate.public_key)
    assert timedelta(days=364) < certificate.not_after - now() <= timedelta(days=365)
    read = x509.load_der_x509_certificate(leaf)
    assert read.subject.rfc4514_string() == "CN=EGo" == read.issuer.rfc4514_string()
    key = read.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    read.verify_directly_issued_by(read)


def test_it_is_renewed_long_before_its_year_is_over_and_serves_on_if_that_fails(platform: SimulatedPlatform) -> None:
    """Protocol, section 12.2, no. 28: the reference makes it once per process."""
    clock = _Clock()
    issuer = _Failing(SimulatedIssuer(lambda data: platform.quote_as(EnclaveIdentity(), data)))
    source = CachedSource(DirectorySource(platform.directory, clock), clock)
    with serving(attestor(platform, issuer=issuer, clock=clock, collateral=source)) as up:
        first = shown_by(up.port)
        up.loop.call(up.server.renew_if_due())
        assert shown_by(up.port) == first
        clock.ahead = RENEW_AFTER
        issuer.fails = True
        up.loop.call(up.server.renew_if_due())
        assert shown_by(up.port) == first
        issuer.fails = False
        up.loop.call(up.server.renew_if_due())
        assert shown_by(up.port) != first
    assert timedelta(days=365) / 2 > RENEW_AFTER


class _Failing:
    name = "failing"

    def __init__(self, inner: SimulatedIssuer) -> None:
        self._inner = inner
        self.origin = inner.origin
        self.fails = False

    def issue(self, report_data: bytes) -> bytes:
        if self.fails:
            raise Unavailable("no quote now")
        return self._inner.issue(report_data)


# -- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [b"\x0a\xff", b"\xff\xff\xff", b"\x0a\x05ab"])
def test_broken_messages_are_refused_as_malformed(by_product: Serving, body: bytes) -> None:
    with pytest.raises(Malformed):
        by_product.loop.call(by_product.server.answer(body, Peer("127.0.0.1", Stock().certificate)))


def test_errors_that_are_none_of_ours_are_answered_without_their_text() -> None:
    assert key_problem(RuntimeError("secret"))[0] is GrpcStatus.INTERNAL
    assert "secret" not in key_problem(RuntimeError("secret"))[1]
    assert key_problem(Malformed("quote"))[0] is GrpcStatus.PERMISSION_DENIED
