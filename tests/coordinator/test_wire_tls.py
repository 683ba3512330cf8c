"""TLS on both listeners (protocol, sections 2.2, 3.3, 3.6), seen by Go and by OpenSSL."""

from __future__ import annotations

import contextlib
import random
import resource
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL, crypto
from tests.coordinator.manifests import INTEGRATION
from tests.coordinator.marbles import GoClient, target
from tests.coordinator.peers import LAST_REQUEST, LIMIT_SECONDS, Http2, http1, read_all, status_of, tls, wait_until
from tests.coordinator.running import Address, Running, running

from marblerun.coordinator.server.exchange import Patience
from marblerun.marble.credentials import make_credentials
from marblerun.pki.profiles import SubjectNames

TLS_1_0, TLS_1_1, TLS_1_2, TLS_1_3 = 0x301, 0x302, 0x303, 0x304
CBC_SHA, CBC_SHA256, AES128_GCM, AES256_GCM, CHACHA20 = 0xC009, 0xC023, 0xC02B, 0xC02C, 0xCCA9
CURVES = {"CurveP256": 23, "CurveP384": 24, "X25519": 29, "X25519MLKEM768": 4588}

# Much longer than the patience that a test gives, and shorter than it would be without.
SOON_SECONDS = 14.0


def address_of(up: Running, listener: str) -> Address:
    return up.mesh if listener == "mesh" else up.client


@contextlib.contextmanager
def descriptors(wanted: int) -> Iterator[None]:
    """At least so many descriptors for this process, which holds both ends."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < wanted:
        pytest.skip(f"this machine allows {before[1]} descriptors, {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], wanted), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def lives(up: Running) -> bool:
    return status_of(http1(up.client, LAST_REQUEST)) == 200


@pytest.mark.parametrize("listener", ["mesh", "client"])
@pytest.mark.parametrize("version", [TLS_1_0, TLS_1_1])
def test_old_versions_are_refused(go: GoClient, unattested: Running, listener: str, version: int) -> None:
    identity, _ = go.identity()
    tried = {"min": version, "max": version, "identity": identity}
    answer = go.ask("tls", target=target(address_of(unattested, listener)), **tried)
    assert "protocol version not supported" in answer["error"]


@pytest.mark.parametrize("listener", ["mesh", "client"])
@pytest.mark.parametrize(
    ("version", "curve"),
    [*((TLS_1_2, curve) for curve in CURVES if "MLKEM" not in curve), *((TLS_1_3, curve) for curve in CURVES)],
)
def test_every_group_that_peers_have_is_accepted(
    go: GoClient, unattested: Running, listener: str, version: int, curve: str
) -> None:
    """Protocol, section 3.6; hybrids exist in TLS 1.3 only."""
    identity, _ = go.identity()
    # In TLS 1.2 the list also says which curves a server's certificate may have: ours is P-384.
    curves = [CURVES[curve]] if version == TLS_1_3 else [CURVES[curve], CURVES["CurveP384"]]
    asked = {"min": version, "max": version, "identity": identity, "curves": curves, "alpn": ["h2"]}
    answer = go.ask("tls", target=target(address_of(unattested, listener)), **asked)
    assert (answer["version"], answer["curve"], answer["alpn"]) == (version, curve, "h2")


@pytest.mark.parametrize("listener", ["mesh", "client"])
def test_only_authenticated_encryption_is_accepted_in_tls_1_2(go: GoClient, unattested: Running, listener: str) -> None:
    identity, _ = go.identity()
    where = target(address_of(unattested, listener))
    for suite in (CBC_SHA, CBC_SHA256):
        answer = go.ask("tls", target=where, identity=identity, max=TLS_1_2, suites=[suite])
        assert "handshake failure" in answer["error"]
    for suite in (AES128_GCM, AES256_GCM, CHACHA20):
        assert "error" not in go.ask("tls", target=where, identity=identity, max=TLS_1_2, suites=[suite])


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_the_mesh_demands_a_certificate_and_the_client_listener_only_asks_for_one(
    go: GoClient, unattested: Running, version: int
) -> None:
    mesh = go.ask("tls", target=target(unattested.mesh), min=version, max=version)
    assert "certificate required" in mesh["error"] or "handshake failure" in mesh["error"]
    client = go.ask("tls", target=target(unattested.client), min=version, max=version)
    assert (client["requested"], client["version"]) == (True, version)


@pytest.mark.parametrize("listener", ["mesh", "client"])
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_the_request_for_a_certificate_names_no_authorities(
    go: GoClient, unattested: Running, listener: str, version: int
) -> None:
    """Protocol, sections 2.2, 3.3: a client that filters by CA would otherwise send nothing."""
    identity, _ = go.identity()
    asked = {"identity": identity, "min": version, "max": version}
    answer = go.ask("tls", target=target(address_of(unattested, listener)), **asked)
    assert (answer["requested"], answer["authorities"]) == (True, 0)


def test_the_client_listener_shows_the_root_and_speaks_both_versions_of_http(go: GoClient, unattested: Running) -> None:
    """Protocol, section 3.3."""
    root = unattested.coordinator.state.authority.root_der
    for offered, chosen in ((["h2"], "h2"), (["http/1.1"], "http/1.1"), (["http/1.1", "h2"], "h2"), ([], "")):
        answer = go.ask("tls", target=target(unattested.client), alpn=offered)
        assert (answer["alpn"], bytes.fromhex(answer["certificate"]), answer["chain"]) == (chosen, root, 1)


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
def test_clients_without_a_protocol_in_common_are_told_so_as_by_go(
    go: GoClient, unattested: Running, version: int
) -> None:
    """Alert 120; and nothing of it is left for the connections that come after it."""
    identity, _ = go.identity()
    limits = {"identity": identity, "min": version, "max": version}
    for where, offered in (
        (unattested.client, ["spdy/3"]),
        (unattested.mesh, ["spdy/3"]),
        (unattested.mesh, ["x", "y"]),
    ):
        waiting = tls(unattested.client)
        answer = go.ask("tls", target=target(where), alpn=offered, **limits)
        assert "no application protocol" in answer["error"]
        waiting.sendall(LAST_REQUEST)
        assert status_of(read_all(waiting)) == 200
        assert go.ask("tls", target=target(where), alpn=["h2"], **limits)["alpn"] == "h2"


def test_the_mesh_sends_away_who_does_not_ask_for_http_2(unattested: Running) -> None:
    """As grpc-go since 1.67: the handshake succeeds, for HTTP/1.1 too, and then the connection ends."""
    credentials = make_credentials(SubjectNames(), ec.SECP256R1())
    for offered in ([], ["http/1.1"]):
        context = credentials.client_context()
        context.set_alpn_protocols(offered)
        with socket.create_connection(unattested.mesh, timeout=LIMIT_SECONDS) as plain:
            connection = context.wrap_socket(plain, server_hostname="localhost")
            assert connection.selected_alpn_protocol() is None
            assert read_all(connection) == b""
            connection.close()


def test_no_session_is_ever_resumed(unattested: Running) -> None:
    """A resumed session would carry an earlier handshake's client certificate."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(SSL.TLS1_2_VERSION)
    session, masters = None, set()
    for _ in range(2):
        connection = SSL.Connection(context, socket.create_connection(unattested.client))
        if session is not None:
            connection.set_session(session)
        connection.set_connect_state()
        connection.do_handshake()
        masters.add(connection.master_key())
        session = connection.get_session()
        connection.close()
    assert len(masters) == 2


# -- certificates nobody expects ---------------------------------------------------------------------------------


def strange_certificate() -> tuple[bytes, ec.EllipticCurvePrivateKey]:
    """A certificate of X.509 version 5, which OpenSSL reads and stricter libraries do not."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    assert made.count(b"\xa0\x03\x02\x01\x02") == 1
    return made.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x04"), key


@pytest.mark.filterwarnings("ignore:Passing pyOpenSSL")
def test_a_client_certificate_that_is_odd_reaches_the_decision_and_no_stack_trace(unattested: Running) -> None:
    der, key = strange_certificate()
    with pytest.raises((ValueError, x509.InvalidVersion)):
        x509.load_der_x509_certificate(der)
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.use_certificate(crypto.load_certificate(crypto.FILETYPE_ASN1, der))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_PEM, pem))
    connection = SSL.Connection(context, socket.create_connection(unattested.client))
    connection.set_connect_state()
    connection.do_handshake()
    connection.sendall(LAST_REQUEST)
    assert status_of(connection.recv(65536)) == 200
    connection.close()


# -- hostile bytes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("listener", ["mesh", "client"])
@pytest.mark.parametrize("size", [5, 100, 70_000])
def test_garbage_ends_the_connection_and_nothing_else(patient: Running, listener: str, size: int) -> None:
    garbage = random.Random(size).randbytes(size)
    with socket.create_connection(address_of(patient, listener), timeout=LIMIT_SECONDS) as connection:
        connection.sendall(garbage)
        read_all(connection)
    assert lives(patient)


@pytest.mark.parametrize("listener", ["mesh", "client"])
def test_a_connection_we_closed_is_torn_down_even_if_the_peer_keeps_its_side_open(listener: str) -> None:
    def refused() -> bool:
        try:
            connection.sendall(b"more")
        except (ConnectionResetError, BrokenPipeError):
            return True
        return False

    with running(patience=Patience(close=0.3)) as up, socket.create_connection(address_of(up, listener)) as connection:
        connection.sendall(b"garbage")
        read_all(connection)
        wait_until(refused)


@pytest.mark.parametrize("listener", ["mesh", "client"])
def test_plain_http_on_the_tls_port_is_closed(patient: Running, listener: str) -> None:
    with socket.create_connection(address_of(patient, listener), timeout=LIMIT_SECONDS) as connection:
        connection.sendall(LAST_REQUEST)
        assert b"HTTP/1.1 200" not in read_all(connection)


CLIENT_HELLO_START = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)


@pytest.mark.parametrize("listener", ["mesh", "client"])
@pytest.mark.parametrize("begun", [b"", CLIENT_HELLO_START], ids=["silent", "half a hello"])
def test_half_handshakes_are_not_waited_for(listener: str, begun: bytes) -> None:
    with running(patience=Patience(handshake=0.4)) as up:
        start = time.monotonic()
        where = address_of(up, listener)
        connections = [socket.create_connection(where, timeout=LIMIT_SECONDS) for _ in range(20)]
        for connection in connections:
            with contextlib.suppress(OSError):  # on a busy machine the first ones are closed by now
                connection.sendall(begun)
        for connection in connections:
            read_all(connection)
            connection.close()
        assert 0.2 < time.monotonic() - start < SOON_SECONDS


def test_a_handshake_that_trickles_in_is_not_waited_for_either() -> None:
    with running(patience=Patience(handshake=0.4)) as up:
        with socket.create_connection(up.client, timeout=LIMIT_SECONDS) as connection:
            sent, begun = 0, iter(CLIENT_HELLO_START)
            with contextlib.suppress(OSError):
                for byte in begun:
                    connection.sendall(bytes([byte]))
                    sent += 1
                    connection.settimeout(0.05)
                    with contextlib.suppress(TimeoutError):
                        if not connection.recv(100):
                            break
        assert sent < len(CLIENT_HELLO_START)


def test_an_endless_handshake_message_is_cut_off(patient: Running) -> None:
    """Cut off by its size: this Coordinator would wait for the rest for longer than the test does."""
    with socket.create_connection(patient.mesh, timeout=LIMIT_SECONDS) as connection:
        record = b"\x16\x03\x01\x40\x00" + b"\x01\xff\xff\xff" + bytes(0x4000 - 4)
        with contextlib.suppress(OSError):
            for _ in range(16):
                connection.sendall(record)
                record = b"\x16\x03\x01\x40\x00" + bytes(0x4000)
        read_all(connection)
    assert lives(patient)


@pytest.mark.parametrize("listener", ["mesh", "client"])
def test_garbage_after_the_handshake_ends_the_connection(patient: Running, listener: str) -> None:
    with tls(address_of(patient, listener), mesh=listener == "mesh", alpn="h2") as connection:
        plain = socket.socket(fileno=connection.detach())
        plain.sendall(random.Random(1).randbytes(5000))
        read_all(plain)
        plain.close()
    assert lives(patient)


def test_a_thousand_idle_connections_hurt_nobody_and_are_closed_in_the_end() -> None:
    """The honest request is answered while they are open; nobody honest is idle for as long as these."""
    patience = Patience(keep_alive=8, request=8, idle=8)
    with running(manifest=INTEGRATION, patience=patience) as up, descriptors(4096):
        idle = [tls(up.client, alpn="h2" if number % 2 else "http/1.1") for number in range(1000)]
        assert lives(up)
        for connection in idle:
            read_all(connection)
            connection.close()


def test_a_peer_that_resets_in_the_middle_of_anything_is_forgotten(patient: Running) -> None:
    for step in range(3):
        connection = tls(patient.client)
        if step:
            connection.sendall(b"GET /manifest HTTP/1.1\r\nHost: x\r\n\r\n" * step)
        if step == 2:
            connection.recv(10)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert lives(patient)


def test_peers_that_go_away_in_the_handshake_are_forgotten(patient: Running) -> None:
    for _ in range(50):
        connection = socket.create_connection(patient.mesh)
        connection.sendall(CLIENT_HELLO_START)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()
    assert lives(patient)


def test_a_connection_without_alpn_on_the_mesh_may_still_speak_http2(unattested: Running) -> None:
    """Nothing else is spoken there, so there is nothing to confuse it with."""
    with Http2(unattested.mesh, mesh=True) as peer:
        assert peer.answer(peer.request(b"POST", b"/rpc.Marble/Activate", b"")).status == 415
