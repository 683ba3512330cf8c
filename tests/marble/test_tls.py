"""TLS between members of the mesh: real handshakes, over sockets and asyncio."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.forge.mesh import SOME_UUID, Mesh

from marblerun.errors import Malformed, Misconfigured, Untrusted
from marblerun.marble.peer import PeerIdentity, UnexpectedPeer, parse_identity, peer_identity
from marblerun.marble.tls import Identity

MESH = Mesh.mint()
OTHER_MESH = Mesh.mint()
SHOP = MESH.identity("shop", names="shop,localhost")
LEDGER = MESH.identity("ledger", UUID(int=7))


def talk(
    server: ssl.SSLContext, client: ssl.SSLContext, name: str | None = "localhost"
) -> tuple[object, object, list[bytes]]:
    """Shake hands over a socket pair; return what server and client came to, and what the server read."""
    ours, theirs = socket.socketpair()
    received: list[bytes] = []

    def serve() -> PeerIdentity:
        with server.wrap_socket(ours, server_side=True) as connection:
            peer = peer_identity(connection)
            received.append(connection.recv(100))
            connection.sendall(b"pong")
            return peer

    def call() -> PeerIdentity:
        with client.wrap_socket(theirs, server_hostname=name) as connection:
            peer = peer_identity(connection)
            connection.sendall(b"ping")
            if connection.recv(100) != b"pong":
                raise ConnectionError("closed by the server")
            return peer

    ours.settimeout(60)
    theirs.settimeout(60)
    outcomes: dict[str, object] = {}

    def keep(role: str, work: Callable[[], object]) -> None:
        try:
            outcomes[role] = work()
        except OSError as error:
            outcomes[role] = error

    threads = [threading.Thread(target=keep, args=part) for part in (("server", serve), ("client", call))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    ours.close()
    theirs.close()
    return outcomes["server"], outcomes["client"], received


def test_two_marbles_talk_and_know_who_the_other_is() -> None:
    server, client, received = talk(SHOP.server_context(), LEDGER.client_context())
    assert server == PeerIdentity("ledger", UUID(int=7))
    assert client == PeerIdentity("shop", SOME_UUID)
    assert received == [b"ping"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_marbles_talk_over_each_modern_version_with_an_aead_suite(version: ssl.TLSVersion) -> None:
    client = LEDGER.client_context()
    client.maximum_version = version
    server = SHOP.server_context()
    server.minimum_version = version
    assert talk(server, client)[2] == [b"ping"]
    suites = [suite["name"] for suite in server.get_ciphers()]
    assert [name for name in suites if "GCM" not in name and "CHACHA20" not in name] == []


def test_a_client_of_another_mesh_is_refused_before_it_is_read_from() -> None:
    server, _client, received = talk(SHOP.server_context(), _trusting_all(OTHER_MESH.identity("shop")))
    assert isinstance(server, ssl.SSLError)
    assert received == []


def test_a_client_without_certificate_is_refused() -> None:
    context = ssl.create_default_context(cadata=MESH.marble_root.public_bytes(Encoding.PEM).decode())
    server, _client, received = talk(SHOP.server_context(), context)
    assert isinstance(server, ssl.SSLError)
    assert received == []


def test_a_server_of_another_mesh_is_refused_and_gets_nothing() -> None:
    _, client, received = talk(_trusting_all(OTHER_MESH.identity("shop"), server=True), LEDGER.client_context())
    assert isinstance(client, ssl.SSLCertVerificationError)
    assert received == []


@pytest.mark.parametrize("outsider", [MESH.secret(), MESH.coordinator()], ids=["manifest-secret", "coordinator"])
def test_who_hangs_on_the_same_root_but_is_no_marble_is_refused_on_both_sides(outsider: Identity) -> None:
    server, _, received = talk(SHOP.server_context(), _trusting_all(outsider))
    assert isinstance(server, UnexpectedPeer)
    assert received == []
    _, client, received = talk(_trusting_all(outsider, server=True), LEDGER.client_context())
    assert isinstance(client, UnexpectedPeer)
    assert received in ([], [b""])


def test_a_server_can_name_the_types_that_are_welcome() -> None:
    assert talk(SHOP.server_context(marble_types={"ledger"}), LEDGER.client_context())[2] == [b"ping"]
    server, _, received = talk(SHOP.server_context(marble_types={"orders"}), LEDGER.client_context())
    assert str(server) == "mesh-peer: a Marble of type 'ledger' is not welcome here"
    assert received == []


def test_a_client_can_name_the_type_and_the_instance_it_wants() -> None:
    wanted = LEDGER.client_context(marble_types={"shop"}, uuids={SOME_UUID})
    assert talk(SHOP.server_context(), wanted)[2] == [b"ping"]
    unwanted = LEDGER.client_context(uuids={UUID(int=1)})
    _, client, received = talk(SHOP.server_context(), unwanted)
    assert isinstance(client, UnexpectedPeer)
    assert received in ([], [b""])


def test_an_empty_list_of_welcome_types_welcomes_nobody() -> None:
    server, _, received = talk(SHOP.server_context(marble_types=[]), LEDGER.client_context())
    assert isinstance(server, UnexpectedPeer)
    assert received == []


def test_one_name_instead_of_a_collection_is_our_callers_mistake() -> None:
    with pytest.raises(TypeError):
        SHOP.server_context(marble_types="ledger")


def test_the_host_name_is_checked_unless_that_is_turned_off() -> None:
    _, client, received = talk(SHOP.server_context(), LEDGER.client_context(), "orders")
    assert isinstance(client, ssl.SSLCertVerificationError)
    assert received == []
    assert talk(SHOP.server_context(), LEDGER.client_context(check_hostname=False), "orders")[2] == [b"ping"]


def test_asyncio_servers_refuse_outsiders_in_the_handshake_too() -> None:
    async def exchange(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[list[PeerIdentity], bytes]:
        seen: list[PeerIdentity] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            seen.append(peer_identity(writer.get_extra_info("ssl_object")))
            writer.write(await reader.read(100))
            await writer.drain()
            writer.close()

        listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server)
        port = listener.sockets[0].getsockname()[1]
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
            writer.write(b"ping")
            answer = await asyncio.wait_for(reader.read(100), 60)
            writer.close()
        except OSError:
            answer = b""
        listener.close()
        return seen, answer

    good = asyncio.run(exchange(SHOP.server_context(), LEDGER.client_context()))
    assert good == ([PeerIdentity("ledger", UUID(int=7))], b"ping")
    refused = asyncio.run(exchange(SHOP.server_context(marble_types={"orders"}), LEDGER.client_context()))
    assert refused == ([], b"")
    assert asyncio.run(exchange(SHOP.server_context(), _trusting_all(MESH.secret()))) == ([], b"")


def test_the_identity_comes_from_the_environment_and_knows_itself() -> None:
    environment = {
        "MARBLE_PREDEFINED_ROOT_CA": SHOP.marble_root.decode(),
        "MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN": SHOP.chain.decode(),
        "MARBLE_PREDEFINED_PRIVATE_KEY": SHOP.private_key.decode(),
        "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA": SHOP.coordinator_root.decode(),
    }
    identity = Identity.from_environment(environment)
    assert identity == SHOP
    assert identity.peer == PeerIdentity("shop", SOME_UUID)


def test_every_missing_variable_is_named() -> None:
    with pytest.raises(Misconfigured, match=r"MARBLE_PREDEFINED_ROOT_CA, .*CHAIN, .*PRIVATE_KEY not set"):
        Identity.from_environment({})


def test_repr_says_who_it_is_and_shows_no_key() -> None:
    assert repr(SHOP) == f"Identity('shop', {SOME_UUID})"


def test_a_key_of_somebody_else_is_refused_when_the_context_is_made() -> None:
    broken = Identity(SHOP.marble_root, SHOP.chain, LEDGER.private_key, b"")
    with pytest.raises(Malformed):
        broken.server_context()


@pytest.mark.parametrize("garbage", [b"", b"\x30\x00", b"garbage"])
def test_what_is_no_certificate_is_nobody(garbage: bytes) -> None:
    with pytest.raises(Untrusted):
        parse_identity(garbage)


def test_no_key_file_is_left_open_or_on_disk() -> None:
    import os

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        SHOP.client_context()
    assert len(os.listdir("/proc/self/fd")) == before


def _trusting_all(identity: Identity, *, server: bool = False) -> ssl.SSLContext:
    """An attacker's context: shows this identity and believes everybody."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    from marblerun.marble.keyfile import load_key_pair

    load_key_pair(context, identity.chain, identity.private_key)
    return context
