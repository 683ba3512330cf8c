"""From an address in the settings to a listener whose connections begin with TLS."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from marblerun.coordinator.server.edge import EdgeConfig, InnerFactory, TlsEdge
from marblerun.coordinator.server.exchange import Peer, Service
from marblerun.coordinator.server.http2 import Http2Connection
from marblerun.coordinator.server.settings import split_address
from marblerun.errors import Misconfigured

BACKLOG: Final = 1024
# Connections accepted in one go; asyncio would take the whole backlog before it looks at anything else.
ACCEPTED_AT_ONCE: Final = 32


async def bind(config: EdgeConfig, address: str, variable: str) -> asyncio.Server:
    """Listen on ``address`` (``host:port``); raises Misconfigured, naming the variable, if it cannot be had."""
    host, port = split_address(address, variable)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(
            lambda: TlsEdge(config), host, port, backlog=ACCEPTED_AT_ONCE, reuse_address=True
        )
    except OSError as error:
        raise Misconfigured(
            f"cannot listen on {address} ({error.strerror or error}); free the port or set {variable}"
        ) from error
    for listener in server.sockets:  # the kernel may keep more waiting than we take at once
        with socket.fromfd(listener.fileno(), listener.family, listener.type) as same:
            same.listen(BACKLOG)
    return server


def bound(server: asyncio.Server) -> str:
    """The effective address as ``host:port``."""
    host, port = server.sockets[0].getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _SentAway(asyncio.Protocol):
    """A connection that is closed as soon as it is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


def only_http2(service: Service) -> InnerFactory:
    """What a listener for gRPC speaks inside TLS; whoever did not ask for it is sent away, as by grpc-go."""

    def make(peer: Peer, alpn: bytes) -> asyncio.Protocol:
        return Http2Connection(service, peer) if alpn == b"h2" else _SentAway()

    return make
