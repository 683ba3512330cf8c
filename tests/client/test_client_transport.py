"""Limits of the connection: sizes, times, forms; a hostile server costs neither memory nor patience."""

from __future__ import annotations

import asyncio
import time

import pytest
from tests.client.coordinators import FakeCoordinator, Identity, mint, serving

from marblerun.client import PinnedRoot, TimeOuts
from marblerun.client.rest import Reply, Request
from marblerun.client.transport import AsyncTransport, Endpoint, Transport
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
    assert time.monotonic() - start < 30


BUSY = b"HTTP/1.1 503 X\r\nRetry-After: %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
FINE = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Moody:
    """A server whose answers come from a list; the last one stays."""

    def __init__(self, root: Identity, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[float] = []
        self.fake = FakeCoordinator(root, root, lambda _: b"", root, raw_answer=self.next)

    def next(self) -> bytes:
        self.asked.append(time.monotonic())
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def _ask_moody(moody: Moody, root: Identity, request: Request, times: TimeOuts | None = None) -> Reply:
    with serving(moody.fake), Transport(Endpoint.parse(moody.fake.endpoint), PinnedRoot(root.der), None, times) as one:
        return one.exchange(request)


def test_a_question_to_a_busy_coordinator_is_repeated_when_it_says(root: Identity) -> None:
    moody = Moody(root, BUSY % b"1", BUSY % b"0", FINE)
    reply = _ask_moody(moody, root, Request("GET", "/x"))
    assert (reply.status, reply.body, len(moody.asked)) == (200, b"ok", 3)
    assert moody.asked[1] - moody.asked[0] >= 1


def test_the_asynchronous_client_repeats_questions_too(root: Identity) -> None:
    moody = Moody(root, BUSY % b"0", FINE)

    async def ask() -> Reply:
        async with AsyncTransport(Endpoint.parse(moody.fake.endpoint), PinnedRoot(root.der)) as one:
            return await one.exchange(Request("GET", "/x"))

    with serving(moody.fake):
        assert asyncio.run(ask()).status == 200
    assert len(moody.asked) == 2


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (Request("POST", "/x", body=b"{}"), BUSY % b"0"),
        (Request("GET", "/x"), BUSY % b"60"),
        (Request("GET", "/x"), BUSY % b"soon"),
        (Request("GET", "/x"), BUSY.replace(b"Retry-After", b"X-Other") % b"0"),
        (Request("GET", "/x"), BUSY.replace(b"503", b"500") % b"0"),
    ],
    ids=["a change", "beyond our patience", "unreadable", "no hint", "another status"],
)
def test_nothing_else_is_repeated(root: Identity, request_: Request, answer: bytes) -> None:
    moody = Moody(root, answer)
    reply = _ask_moody(moody, root, request_)
    assert reply.status in (500, 503)
    assert len(moody.asked) == 1


def test_repeating_ends_with_the_last_answer(root: Identity) -> None:
    moody = Moody(root, BUSY % b"0")
    reply = _ask_moody(moody, root, Request("GET", "/x"), TimeOuts(busy=2.0))
    assert (reply.status, reply.retry_after) == (503, 0.0)
    assert 1 < len(moody.asked) < 400


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
