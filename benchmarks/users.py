"""A client for the REST API that costs little: HTTP/1.1 over a new connection for each request, or over a kept one."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass

from benchmarks.marbles import SECONDS, CallFailed
from marblerun.marble.settings import Endpoint


def user_context() -> ssl.SSLContext:
    """As somebody without a certificate; whom he talks to is not what is measured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def get_request(path: str) -> bytes:
    """The bytes of a GET."""
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post_request(path: str, body: bytes, method: str = "POST") -> bytes:
    """The bytes of a request with a body of JSON."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; ``head`` ends before the empty line."""

    status: int
    head: bytes
    body: bytes


class Kept:
    """One connection that is used again and again."""

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext, seconds: float = SECONDS) -> None:
        plain = socket.create_connection((endpoint.host, endpoint.port), seconds)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection = context.wrap_socket(plain, server_hostname=endpoint.host)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask(self, request: bytes) -> Reply:
        """Send the request and read the answer, whose length must be given."""
        self._connection.sendall(request)
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._read()
        head = data[:end]
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        while len(data) < end + 4 + length:
            data += self._read()
        return Reply(int(head[9:12]), head, data[end + 4 :])

    def _read(self) -> bytes:
        data = self._connection.recv(65536)
        if not data:
            raise CallFailed("the server closed the connection before it had answered")
        return data


def ask(endpoint: Endpoint, context: ssl.SSLContext, request: bytes, seconds: float = SECONDS) -> Reply:
    """One request on a connection of its own."""
    with Kept(endpoint, context, seconds) as connection:
        return connection.ask(request)
