"""A server that does nothing but answer: the Coordinator's TLS edge and HTTP, and behind them fixed bytes.

``python -m benchmarks.bare DIRECTORY`` serves each file of the directory, a recorded answer, under its name, on a free
port of the loopback interface, and prints the address. What a Coordinator needs beyond it is what answering costs.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.coordinator.entropy import SystemEntropy
from marblerun.coordinator.server.edge import EdgeConfig, ServerIdentity, TlsEdge, server_context
from marblerun.coordinator.server.exchange import Peer, Request, Response, Service
from marblerun.coordinator.server.http1 import Http1Connection
from marblerun.coordinator.server.http2 import Http2Connection
from marblerun.coordinator.server.listening import BACKLOG
from marblerun.pki.issue import issue_root
from marblerun.pki.profiles import SubjectNames


def service(directory: Path) -> Service:
    """Answers with the files of the directory, read now."""
    answers = {f"/{path.name}": _response(path.read_bytes()) for path in directory.iterdir()}
    nothing = Response(404)

    async def handle(request: Request) -> Response:
        return answers.get(request.target, nothing)

    return Service(
        handle=handle,
        max_body_bytes=1 << 20,
        too_large=lambda: Response(413),
        failed=lambda: Response(500),
        overloaded=lambda: Response(503),
    )


def _response(recorded: bytes) -> Response:
    """The answer with its headers; length and framing are the protocol's business."""
    head, _, body = recorded.partition(b"\r\n\r\n")
    fields = [line.partition(b":")[::2] for line in head.split(b"\r\n")[1:]]
    own = (b"content-length", b"connection")
    headers = tuple((name.lower(), value.strip()) for name, value in fields if name.lower() not in own)
    return Response(200, headers, body)


async def serve(directory: Path) -> None:
    """Serve until the process is ended."""
    calls = service(directory)
    entropy = SystemEntropy()
    key = entropy.ec_key(ec.SECP384R1())
    certificate = issue_root(SubjectNames.parse("localhost"), key, datetime.now(UTC), entropy)
    context = server_context(ServerIdentity(certificate, key), (b"h2", b"http/1.1"), demand_certificate=False)

    def inner(peer: Peer, alpn: bytes) -> asyncio.Protocol:
        return Http2Connection(calls, peer) if alpn == b"h2" else Http1Connection(calls, peer)

    config = EdgeConfig(lambda: context, inner, lambda _address, _reason: None)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: TlsEdge(config), "127.0.0.1", 0, backlog=BACKLOG)
    gc.collect()
    gc.freeze()
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
