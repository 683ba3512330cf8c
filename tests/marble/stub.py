"""Listeners for tests: the Coordinator's own TLS edge with an activation that the test decides, and bad servers."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import h2.config
import h2.connection
import h2.events
from cryptography.hazmat.primitives.serialization import Encoding
from tests.forge.mesh import Mesh, key_pem

from marblerun.coordinator.server.edge import EdgeConfig, ServerIdentity, TlsEdge, server_context
from marblerun.coordinator.server.http2 import Http2Connection
from marblerun.coordinator.server.mesh import Activate, mesh_service
from marblerun.coordinator.server.turns import Overload
from marblerun.marble.keyfile import load_key_pair
from marblerun.marble.settings import Endpoint

Behaviour = Callable[[Any], None]
MISBEHAVING = Mesh.mint()


@contextmanager
def mesh_listener(
    mesh: Mesh, activate: Activate, port: int = 0, overload: Overload | None = None, host: str = "127.0.0.1"
) -> Iterator[Endpoint]:
    """Serve ``rpc.Marble/Activate`` as the Coordinator of ``mesh`` while the block runs."""
    identity = ServerIdentity(mesh.marble_root, mesh.key)
    overload = overload or Overload()
    service = mesh_service(activate, overload.activations)
    config = EdgeConfig(
        context=lambda: server_context(identity, (b"h2",), demand_certificate=True),
        inner=lambda peer, _alpn: Http2Connection(service, peer),
        on_handshake_error=lambda _address, _reason: None,
        door=overload.mesh,
    )
    ready = threading.Event()
    bound: list[int] = []
    loop = asyncio.new_event_loop()
    done = asyncio.Event()

    async def serve() -> None:
        server = await loop.create_server(lambda: TlsEdge(config), host, port)
        bound.append(server.sockets[0].getsockname()[1])
        ready.set()
        await done.wait()
        server.close()
        await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    if not ready.wait(60):
        raise RuntimeError("the listener did not start")
    try:
        yield Endpoint("127.0.0.1", bound[0])
    finally:
        overload.close()
        loop.call_soon_threadsafe(done.set)
        thread.join(60)
        loop.close()


@contextmanager
def tls_server(behave: Behaviour, alpn: str = "h2") -> Iterator[Endpoint]:
    """A server that does what it likes after the TLS handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_key_pair(context, MISBEHAVING.marble_root.public_bytes(Encoding.PEM), key_pem(MISBEHAVING.key))
    context.set_alpn_protocols([alpn])

    def serve_tls(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            behave(secured)

    with tcp_server(serve_tls) as endpoint:
        yield endpoint


@contextmanager
def tcp_server(behave: Behaviour) -> Iterator[Endpoint]:
    """A server that does what it likes."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(60)
            with connection:
                try:
                    behave(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Endpoint("127.0.0.1", listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(60)


def http2_answer(
    headers: list[tuple[str, str]],
    data: bytes = b"",
    trailers: list[tuple[str, str]] | None = None,
    reset: bool = False,
) -> Behaviour:
    """Speak HTTP/2 well and gRPC as told."""

    def behave(connection: Any) -> None:
        protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        protocol.initiate_connection()
        connection.sendall(protocol.data_to_send())
        while received := connection.recv(65536):
            for event in protocol.receive_data(received):
                if not isinstance(event, h2.events.StreamEnded):
                    continue
                if reset:
                    protocol.reset_stream(1, 7)
                else:
                    protocol.send_headers(1, headers, end_stream=not data and trailers is None)
                    if data:
                        protocol.send_data(1, data, end_stream=trailers is None)
                    if trailers is not None:
                        protocol.send_headers(1, trailers, end_stream=True)
            connection.sendall(protocol.data_to_send())

    return behave
