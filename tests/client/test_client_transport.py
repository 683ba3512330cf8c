"""Limits of the connection: sizes, times, forms; a hostile server costs neither memory nor patience."""

from __future__ import annotations

import time

import pytest
from tests.client.coordinators import FakeCoordinator, Identity, mint, serving

from marblerun.client import PinnedRoot, TimeOuts
from marblerun.client.rest import Request
from marblerun.client.transport import Endpoint, Transport
from marblerun.errors import Malformed, MarbleRunError, Unavailable


@pytest.fixture(scope="module")
def root() -> Identity:
    return mint("MarbleRun Coordinator")


def _exchange(root: Identity, raw: bytes, times: TimeOuts | None = None, limit: int = 1000) -> object:
    fake = FakeCoordinator(root, root, lambda _: b"", root, raw_answer=raw)
    with serving(fake), Transport(Endpoint.parse(fake.endpoint), PinnedRoot(root.der), None, times) as transport:
        return transport.exchange(Request("GET", "/x", limit=limit))


HOSTILE: list[tuple[str, bytes, type[MarbleRunError]]] = [
    ("a longer body than allowed", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + b"x" * 5000, Malformed),
    ("an endless body", b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000, Malformed),
    ("a compressed body", b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\nx", Malformed),
    ("endless headers", b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 100_000, MarbleRunError),
    ("not HTTP", b"SSH-2.0-OpenSSH\r\n\r\n", Malformed),
    ("nothing", b"", MarbleRunError),
    ("half a body", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nxx", MarbleRunError),
    ("a wrong length", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nxx", MarbleRunError),
]


@pytest.mark.parametrize(("name", "raw", "kind"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_a_hostile_answer_is_an_error_of_ours(
    root: Identity, name: str, raw: bytes, kind: type[MarbleRunError]
) -> None:
    with pytest.raises(kind):
        _exchange(root, raw)


def test_a_redirection_is_not_followed(root: Identity) -> None:
    raw = b"HTTP/1.1 307 X\r\nLocation: https://elsewhere/\r\nContent-Length: 0\r\n\r\n"
    assert getattr(_exchange(root, raw), "status", None) == 307


def test_a_server_that_says_nothing_is_given_up(root: Identity) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = Endpoint("127.0.0.1", listener.getsockname()[1])
        start = time.monotonic()
        transport = Transport(endpoint, PinnedRoot(root.der), None, TimeOuts(0.2, 0.2, 1))
        with transport, pytest.raises(Unavailable):
            transport.exchange(Request("GET", "/x"))
    assert time.monotonic() - start < 3


def test_a_proxy_in_the_environment_is_not_used(root: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    found = _exchange(root, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert getattr(found, "status", None) == 200


ENDPOINTS = [
    ("localhost:4433", ("localhost", 4433)),
    ("https://localhost:4433", ("localhost", 4433)),
    ("[::1]:4433", ("[::1]", 4433)),
    ("10.0.0.1:1", ("10.0.0.1", 1)),
]
NO_ENDPOINTS = [
    "", "localhost", "localhost:", ":4433", "localhost:0", "localhost:65536", "http://localhost:1", "a@b:1",
    "a/b:1", "a:1/x", "a b:1", "a:1?x", "::1:4433", "[::1]", "a:1\n", "a\\b:1", "a:b:1",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), ENDPOINTS)
def test_endpoints_are_read(text: str, expected: tuple[str, int]) -> None:
    endpoint = Endpoint.parse(text)
    assert (endpoint.host, endpoint.port) == expected


@pytest.mark.parametrize("text", NO_ENDPOINTS)
def test_other_texts_are_no_endpoints(text: str) -> None:
    with pytest.raises(Malformed):
        Endpoint.parse(text)
