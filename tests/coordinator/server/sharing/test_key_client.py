"""The asking side: every check on a key server, alone, and that nothing is said to one that fails."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from tests.coordinator.server.sharing.instances import LIMIT, Loop, attestor, event_loop, knowing, now, serving
from tests.coordinator.states import ENTROPY
from tests.policy.claims import sgx

from marblerun.attestation.binding import report_data_for, verify_key_binding
from marblerun.attestation.issue import NoEvidenceIssuer
from marblerun.attestation.issue.simulated import SimulatedIssuer
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.server.edge import EdgeConfig, ServerIdentity, server_context
from marblerun.coordinator.server.exchange import Request, Response, Service
from marblerun.coordinator.server.listening import bind, bound, only_http2
from marblerun.coordinator.server.sharing import key_client
from marblerun.coordinator.server.sharing.checks import evidence_in, verify_client, verify_server
from marblerun.coordinator.server.sharing.key_client import KeyClient
from marblerun.coordinator.server.sharing.tls import client_context
from marblerun.errors import Denied, Malformed, MarbleRunError, Unavailable, Untrusted
from marblerun.pki.encodings import public_key_info
from marblerun.pki.issue import issue_key_client, issue_key_server
from marblerun.pki.parsed import parse_certificate
from marblerun.policy.sharing import IdentityUnknown, identity_of
from marblerun.wire.pem import encode_pem
from marblerun.wire.rpc import KeyResponse, encode_message

KEK = bytes(range(32))
Issue = Callable[[ec.EllipticCurvePrivateKey, bytes, datetime], bytes]


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    with event_loop() as made:
        yield made


@dataclass
class Impostor:
    """A key server made for the test; ``asked`` counts the requests that reached it."""

    platform: SimulatedPlatform
    identity: EnclaveIdentity
    asked: int = 0
    port: int = 0
    status: bytes = b"0"
    body: bytes = encode_message(KeyResponse(key=KEK).SerializeToString())

    def quote(self, report_data: bytes) -> bytes:
        return SimulatedIssuer(lambda data: self.platform.quote_as(self.identity, data)).issue(report_data)

    async def handle(self, _request: Request) -> Response:
        self.asked += 1
        headers = ((b"content-type", b"application/grpc"),)
        if self.status != b"0":
            return Response(200, (*headers, (b"grpc-status", self.status), (b"grpc-message", b"no%0a")))
        return Response(200, headers, self.body, ((b"grpc-status", b"0"),))


@asynccontextmanager
async def listening(impostor: Impostor, certificate: bytes, key: ec.EllipticCurvePrivateKey) -> AsyncIterator[None]:
    identity = ServerIdentity(x509.load_der_x509_certificate(certificate), key)
    context = server_context(identity, (b"h2",), demand_certificate=True)

    def broken() -> Response:
        return Response(500)

    service = Service(impostor.handle, 1 << 20, broken, broken, broken)
    server = await bind(EdgeConfig(lambda: context, only_http2(service), lambda *_: None), "127.0.0.1:0", "X")
    impostor.port = int(bound(server).rpartition(":")[2])
    try:
        yield
    finally:
        server.close()


def good(impostor: Impostor) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ENTROPY.ec_key(ec.SECP256R1())
    quote = impostor.quote(report_data_for(public_key_info(key.public_key())))
    return issue_key_server(key, quote, now(), ENTROPY), key


def ask(
    loop: Loop, impostor: Impostor, shown: tuple[bytes, ec.EllipticCurvePrivateKey], own: EnclaveIdentity | None = None
) -> bytes:
    client = KeyClient(attestor(impostor.platform, own), ENTROPY)

    async def run() -> bytes:
        async with listening(impostor, *shown):
            return await client.ask("127.0.0.1", impostor.port)

    return loop.call(run())


# -- whom it accepts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unique", [EnclaveIdentity().unique_id, b"u" * 32])
def test_a_server_like_us_gives_its_key_and_unique_ids_are_not_compared(
    platform: SimulatedPlatform, loop: Loop, unique: bytes
) -> None:
    impostor = Impostor(platform, EnclaveIdentity(unique_id=unique))
    assert ask(loop, impostor, good(impostor)) == KEK
    assert impostor.asked == 1


def test_a_newer_server_is_accepted_and_an_older_one_is_not(platform: SimulatedPlatform, loop: Loop) -> None:
    impostor = Impostor(platform, EnclaveIdentity(security_version=3))
    assert ask(loop, impostor, good(impostor), EnclaveIdentity(security_version=2)) == KEK
    with pytest.raises(Denied, match="SecurityVersion"):
        ask(loop, impostor, good(impostor), EnclaveIdentity(security_version=4))


@pytest.mark.parametrize(
    ("identity", "reason"),
    [
        (EnclaveIdentity(signer_id=b"s" * 32), "SignerID"),
        (EnclaveIdentity(product_id=9), "ProductID"),
        (EnclaveIdentity(security_version=0), "SecurityVersion"),
        (EnclaveIdentity(debug=True), "Debug"),
    ],
)
def test_a_server_of_another_kind_is_asked_nothing(
    platform: SimulatedPlatform, loop: Loop, identity: EnclaveIdentity, reason: str
) -> None:
    impostor = Impostor(platform, identity)
    with pytest.raises(Denied, match=reason):
        ask(loop, impostor, good(impostor))
    assert impostor.asked == 0


def _other_key(impostor: Impostor) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """Evidence that vouches for somebody else's key: a relay."""
    key, other = ENTROPY.ec_key(ec.SECP256R1()), ENTROPY.ec_key(ec.SECP256R1())
    quote = impostor.quote(report_data_for(public_key_info(other.public_key())))
    return issue_key_server(key, quote, now(), ENTROPY), key


def _no_evidence(_impostor: Impostor) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ENTROPY.ec_key(ec.SECP384R1())
    return issue_key_client(key, now(), ENTROPY), key


def _empty_evidence(_impostor: Impostor) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ENTROPY.ec_key(ec.SECP256R1())
    return issue_key_server(key, b"", now(), ENTROPY), key


def _garbage(_impostor: Impostor) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ENTROPY.ec_key(ec.SECP256R1())
    return issue_key_server(key, b"no quote at all", now(), ENTROPY), key


def _damaged(impostor: Impostor) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ENTROPY.ec_key(ec.SECP256R1())
    quote = bytearray(impostor.quote(report_data_for(public_key_info(key.public_key()))))
    quote[600] ^= 1
    return issue_key_server(key, bytes(quote), now(), ENTROPY), key


def _stranger(impostor: Impostor) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ENTROPY.ec_key(ec.SECP256R1())
    directory = impostor.platform.directory.parent / f"stranger-{ENTROPY.token(4).hex()}"
    stranger = replace(impostor, platform=SimulatedPlatform.create(directory, at=now()))
    quote = stranger.quote(report_data_for(public_key_info(key.public_key())))
    return issue_key_server(key, quote, now(), ENTROPY), key


def _expired(impostor: Impostor) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ENTROPY.ec_key(ec.SECP256R1())
    quote = impostor.quote(report_data_for(public_key_info(key.public_key())))
    return issue_key_server(key, quote, now() - timedelta(days=366), ENTROPY), key


def _of_the_future(impostor: Impostor) -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    key = ENTROPY.ec_key(ec.SECP256R1())
    quote = impostor.quote(report_data_for(public_key_info(key.public_key())))
    return issue_key_server(key, quote, now() + timedelta(days=1), ENTROPY), key


@pytest.mark.parametrize(
    ("show", "error"),
    [
        (_other_key, Untrusted),
        (_no_evidence, Untrusted),
        (_empty_evidence, Untrusted),
        (_garbage, MarbleRunError),
        (_damaged, Untrusted),
        (_stranger, Untrusted),
        (_expired, Untrusted),
        (_of_the_future, Untrusted),
    ],
)
def test_a_server_whose_evidence_fails_is_asked_nothing(
    platform: SimulatedPlatform,
    loop: Loop,
    show: Callable[[Impostor], tuple[bytes, ec.EllipticCurvePrivateKey]],
    error: type[Exception],
) -> None:
    impostor = Impostor(platform, EnclaveIdentity())
    with pytest.raises(error):
        ask(loop, impostor, show(impostor))
    assert impostor.asked == 0


def test_evidence_about_the_keys_pem_text_and_a_zero_byte_is_accepted_too() -> None:
    """As Open Enclave makes it (protocol, section 11.4); anything else is not."""
    spki = public_key_info(ENTROPY.ec_key(ec.SECP256R1()).public_key())
    text = encode_pem(spki, "PUBLIC KEY").encode()

    def data(message: bytes, rest: bytes = bytes(32)) -> bytes:
        return hashlib.sha256(message).digest() + rest

    for bound_to in (data(spki), data(text + b"\x00"), data(spki, b"r" * 32)):
        verify_key_binding(bound_to, spki)
    for wrong in (data(text), data(text + b"\x00\x00"), data(spki + b"\x00"), bytes(64), b"", data(spki)[:63]):
        with pytest.raises(Untrusted):
            verify_key_binding(wrong, spki)
    with pytest.raises(Untrusted):
        verify_key_binding(data(b""), b"")


# -- the rules as functions --------------------------------------------------------------------------------------


def test_a_server_is_bound_to_its_key_before_it_is_compared() -> None:
    key = ENTROPY.ec_key(ec.SECP256R1())
    certificate = parse_certificate(issue_key_server(key, b"quote", now(), ENTROPY))
    claims = sgx(report_data=report_data_for(public_key_info(key.public_key())))
    verify_server(identity_of(sgx()), certificate, claims)
    with pytest.raises(Untrusted):
        verify_server(identity_of(sgx()), certificate, sgx(report_data=report_data_for(b"other"), isv_prod_id=9))
    with pytest.raises(Denied):
        verify_server(identity_of(sgx(isv_prod_id=9)), certificate, claims)


@pytest.mark.parametrize("mode", list(SealMode))
def test_a_client_is_bound_to_its_certificate_before_it_is_compared(mode: SealMode) -> None:
    leaf = issue_key_client(ENTROPY.ec_key(ec.SECP384R1()), now(), ENTROPY)
    claims = sgx(report_data=report_data_for(leaf))
    verify_client(identity_of(sgx()), mode, leaf, claims)
    with pytest.raises(Untrusted):
        verify_client(identity_of(sgx(isv_prod_id=9)), mode, b"another one", claims)
    with pytest.raises(Denied):
        verify_client(identity_of(sgx(isv_prod_id=9)), mode, leaf, claims)
    newer = identity_of(sgx(mrenclave=b"u" * 32))
    if mode is SealMode.PRODUCT_KEY:
        verify_client(newer, mode, leaf, claims)
    else:
        with pytest.raises(Denied, match="UniqueID"):
            verify_client(newer, mode, leaf, claims)


@pytest.mark.parametrize("show", [_no_evidence, _empty_evidence])
def test_a_certificate_without_evidence_says_so(
    platform: SimulatedPlatform, show: Callable[[Impostor], tuple[bytes, ec.EllipticCurvePrivateKey]]
) -> None:
    leaf, _ = show(Impostor(platform, EnclaveIdentity()))
    with pytest.raises(Untrusted) as refused:
        evidence_in(leaf, now())
    assert (refused.value.step, refused.value.reason) == ("server-certificate", "missing")


@given(st.data())
def test_a_damaged_certificate_raises_only_errors_of_ours(data: st.DataObject) -> None:
    leaf = bytearray(LEAF)
    for _ in range(data.draw(st.integers(1, 3))):
        leaf[data.draw(st.integers(0, len(leaf) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(leaf)))
    for damaged in (bytes(leaf), bytes(leaf[:cut])):
        with suppress(Malformed, Untrusted):
            evidence_in(damaged, now())


LEAF = issue_key_server(ENTROPY.ec_key(ec.SECP256R1()), b"quote", now(), ENTROPY)


@pytest.mark.parametrize("offset", [timedelta(days=-1), timedelta(days=366)])
def test_a_certificate_counts_while_it_is_valid(offset: timedelta) -> None:
    leaf = issue_key_server(ENTROPY.ec_key(ec.SECP256R1()), b"quote", now(), ENTROPY)
    assert evidence_in(leaf, now())[1] == b"quote"
    with pytest.raises(Untrusted, match="valid"):
        evidence_in(leaf, now() + offset)
    with pytest.raises(Malformed):
        evidence_in(leaf[:-1], now())


# -- what servers may answer -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "error"),
    [(b"7", Denied), (b"16", Denied), (b"13", Unavailable), (b"14", Unavailable), (b"99", Unavailable)],
)
def test_a_refusal_is_told_with_its_reason_on_one_line(
    platform: SimulatedPlatform, loop: Loop, status: bytes, error: type[Exception]
) -> None:
    impostor = Impostor(platform, EnclaveIdentity(), status=status)
    with pytest.raises(error) as refused:
        ask(loop, impostor, good(impostor))
    assert str(refused.value).endswith(": no")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        encode_message(b"\xff\xff"),
        encode_message(b""),
        encode_message(KeyResponse(key=bytes(16)).SerializeToString()),
        encode_message(KeyResponse(key=bytes(33)).SerializeToString()),
        encode_message(KeyResponse(key=KEK).SerializeToString()) * 2,
        encode_message(bytes(8000)),
        b"\x00\x00\x00\x00\x09ab",
    ],
    ids=["nothing", "no message", "no key", "short key", "long key", "two", "too large", "cut off"],
)
def test_a_broken_answer_is_refused(platform: SimulatedPlatform, loop: Loop, body: bytes) -> None:
    impostor = Impostor(platform, EnclaveIdentity(), body=body)
    with pytest.raises((Malformed, Unavailable)):
        ask(loop, impostor, good(impostor))


def test_a_server_that_says_nothing_costs_a_bounded_time(
    platform: SimulatedPlatform, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_client, "CONNECT_SECONDS", 0.05)

    async def run() -> None:
        server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with asyncio.timeout(LIMIT):
                await KeyClient(attestor(platform), ENTROPY).ask("127.0.0.1", port)
        finally:
            server.close()

    with pytest.raises(Unavailable, match="time"):
        loop.call(run())


@pytest.mark.parametrize("host", ["", "256.0.0.1", "host\x00name", "x" * 300, "::::"])
def test_addresses_that_are_none_are_unavailable(platform: SimulatedPlatform, loop: Loop, host: str) -> None:
    with pytest.raises(Unavailable):
        loop.call(KeyClient(attestor(platform), ENTROPY).ask(host, 1))


# -- all of them -------------------------------------------------------------------------------------------------


def test_d3_every_address_is_asked_whatever_the_others_do(platform: SimulatedPlatform) -> None:
    """The first is gone, the second refuses, the third gives; also our own may be in the list."""
    with (
        serving(attestor(platform, EnclaveIdentity(product_id=9))) as refusing,
        serving(attestor(platform), sealer=knowing()) as giving,
    ):
        refusing_port, giving_port = refusing.port, giving.port

        async def run() -> list[bytes]:
            client = KeyClient(attestor(platform), ENTROPY)
            addresses = [("127.0.0.1", port) for port in (1, refusing_port, giving_port, giving_port)]
            return [kek async for kek in client.ask_all(addresses)]

        assert giving.loop.call(run()) == [giving.sealer.kek] * 2


def test_nobody_to_ask_needs_no_evidence(platform: SimulatedPlatform, loop: Loop) -> None:
    own = replace(attestor(platform), issuer=NoEvidenceIssuer())

    async def run(addresses: list[tuple[str, int]]) -> list[bytes]:
        return [kek async for kek in KeyClient(own, ENTROPY).ask_all(addresses)]

    assert loop.call(run([])) == []
    with pytest.raises((IdentityUnknown, Untrusted, Malformed)):
        loop.call(run([("127.0.0.1", 1)]))


def test_a_server_that_was_judged_cannot_become_another_one_on_the_same_connection() -> None:
    key = ENTROPY.ec_key(ec.SECP384R1())
    context = client_context(issue_key_client(key, now(), ENTROPY), key)
    assert context.set_options(0) & SSL.OP_NO_RENEGOTIATION == SSL.OP_NO_RENEGOTIATION


def test_the_asking_certificate_is_p384_of_the_coordinators_name_for_292_years() -> None:
    """Protocol, section 11.4."""
    leaf = issue_key_client(ENTROPY.ec_key(ec.SECP384R1()), now(), ENTROPY)
    read = x509.load_der_x509_certificate(leaf)
    assert read.subject.rfc4514_string() == "CN=MarbleRun Coordinator"
    assert parse_certificate(leaf).not_after.year - now().year in (291, 292, 293)
