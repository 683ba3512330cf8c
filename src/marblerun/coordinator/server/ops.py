"""The metrics listener: plain HTTP for machines that watch, off unless an address is set (protocol, 1.6 and 1.7).

Nobody is authenticated here and the event log holds quotes and UUIDs, so an address without a host is loopback.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Final

from marblerun.coordinator.server.exchange import Headers, Patience, Peer, Request, Response, Service
from marblerun.coordinator.server.http1 import Http1Connection
from marblerun.coordinator.server.metrics import Metrics
from marblerun.coordinator.server.routing import split_target
from marblerun.coordinator.server.settings import split_address
from marblerun.coordinator.state import Phase, State
from marblerun.errors import Misconfigured, WrongPhase

VARIABLE: Final = "EDG_COORDINATOR_PROMETHEUS_ADDR"
LOOPBACK: Final = "127.0.0.1"
MAX_CONNECTIONS: Final = 64
_MAX_BODY_BYTES: Final = 4096
# Scrapers keep their connection for a minute or so.
_PATIENCE: Final = Patience(request=5.0, response=15.0, keep_alive=120.0)

_JSON: Final[Headers] = ((b"content-type", b"application/json"),)
_TEXT: Final[Headers] = ((b"content-type", b"text/plain; charset=utf-8"),)


def ops_service(metrics: Metrics, state: Callable[[], State]) -> Service:
    """``/metrics``, ``/events``, ``/healthz``, ``/readyz`` and ``/readyz/marbles``; the method does not matter."""

    def answer(request: Request) -> Response:
        split = split_target(request.target)
        path = split[0] if split is not None else ""
        if path == "/metrics":
            page, content_type = metrics.page(request.header(b"accept").decode("latin-1"))
            return Response(200, ((b"content-type", content_type.encode("latin-1")),), page)
        if path == "/events":
            return Response(200, _JSON, metrics.events.page())
        if path == "/healthz":
            return Response(200, _TEXT, b"ok\n")
        if path in ("/readyz", "/readyz/marbles"):
            return _readiness(state, wanted=Phase.ACCEPTING_MARBLES if path == "/readyz/marbles" else None)
        return Response(404, _TEXT, b"not found\n")

    async def handle(request: Request) -> Response:
        return answer(request)

    return Service(
        handle=handle,
        max_body_bytes=_MAX_BODY_BYTES,
        too_large=lambda: Response(413, _TEXT, b"too large\n"),
        failed=lambda: Response(500, _TEXT, b"internal error\n"),
        overloaded=lambda: Response(503, _TEXT, b"too many requests\n"),
        patience=_PATIENCE,
    )


def _readiness(state: Callable[[], State], wanted: Phase | None) -> Response:
    """200 while requests make sense: the client API's from the first state on, Marbles' in the last one."""
    try:
        phase = state().phase
    except WrongPhase:
        phase = Phase.UNINITIALIZED
    ready = phase is not Phase.UNINITIALIZED and wanted in (None, phase)
    return Response(200 if ready else 503, _JSON, json.dumps({"ready": ready, "state": int(phase)}).encode() + b"\n")


class _OpsConnection(Http1Connection):
    """An HTTP/1.1 connection without TLS; one too many is closed at once."""

    def __init__(self, service: Service, open_connections: set[_OpsConnection]) -> None:
        super().__init__(service, Peer("metrics"))
        self._others = open_connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TCP is up."""
        self._others.add(self)
        super().connection_made(transport)
        if len(self._others) > MAX_CONNECTIONS:
            assert isinstance(transport, asyncio.Transport)
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is left to answer."""
        self._others.discard(self)
        super().connection_lost(exc)


async def listen_ops(service: Service, address: str) -> asyncio.Server:
    """Bind the listener; raises Misconfigured if the address cannot be had."""
    host, port = split_address(address, VARIABLE)
    connections: set[_OpsConnection] = set()
    try:
        return await asyncio.get_running_loop().create_server(
            lambda: _OpsConnection(service, connections), host or LOOPBACK, port, reuse_address=True
        )
    except OSError as error:
        raise Misconfigured(
            f"cannot listen on {address} ({error.strerror or error}); free the port or set {VARIABLE}"
        ) from error
