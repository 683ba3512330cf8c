"""Overload on real connections: good peers are served, the others are told to come again, and nothing piles up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.coordinator.manifests import INTEGRATION
from tests.coordinator.peers import LAST_REQUEST, LIMIT_SECONDS, Http2, http1, read_all, status_of, tls, wait_until
from tests.coordinator.running import Running, World, running
from tests.forge.mesh import Mesh
from tests.marble.stub import mesh_listener

from marblerun.coordinator.commands.activate import Activated, ActivationRequest
from marblerun.coordinator.entropy import SystemEntropy
from marblerun.coordinator.server.exchange import Patience
from marblerun.coordinator.server.overload import Limits
from marblerun.coordinator.server.settings import Settings
from marblerun.coordinator.server.turns import Overload
from marblerun.errors import Denied, Unavailable
from marblerun.marble.credentials import Credentials, make_credentials
from marblerun.marble.pins import AnyCoordinator
from marblerun.marble.rpc_client import Answer, Timeouts, call_unary
from marblerun.marble.settings import Endpoint
from marblerun.pki.profiles import SubjectNames
from marblerun.wire.rpc import ACTIVATE_PATH, GrpcStatus, encode_activation_request

MESH = Mesh.mint()
GOOD, BAD = "127.0.0.2", "127.0.0.66"
RESOURCE_EXHAUSTED = GrpcStatus.RESOURCE_EXHAUSTED


class Slow:
    """Activations that end when the test says so; those of the type "bad" are refused at once."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.cancelled = 0
        self._held = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, request: ActivationRequest, _leaf: bytes | None) -> Activated:
        self.begun.append(request.marble_type)
        if request.marble_type == "bad":
            raise Denied("not you")
        if request.marble_type == "held":
            self._loop = asyncio.get_running_loop()
            try:
                await self._held.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        return Activated({}, {"A": b"b"}, ())

    def release(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._held.set)


@pytest.fixture(scope="module")
def credentials() -> Credentials:
    return make_credentials(SubjectNames(), ec.SECP256R1())


def ask(endpoint: Endpoint, credentials: Credentials, marble_type: str, seconds: float = LIMIT_SECONDS) -> Answer:
    message = encode_activation_request(quote=b"", csr=credentials.csr, marble_type=marble_type, uuid="u")
    timeouts = Timeouts(seconds, seconds)
    context = credentials.client_context()
    return call_unary(endpoint, ACTIVATE_PATH, message, context=context, pin=AnyCoordinator(), timeouts=timeouts)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- refusals ----------------------------------------------------------------------------------------------------


def test_an_activation_too_many_is_told_when_to_come_again_and_the_others_are_served(credentials: Credentials) -> None:
    slow, overload = Slow(), Overload(Limits(activations=2))
    with mesh_listener(MESH, slow, overload=overload) as endpoint, ThreadPoolExecutor(2) as threads:
        held = [threads.submit(ask, endpoint, credentials, "held") for _ in range(2)]
        wait_until(lambda: slow.begun == ["held", "held"])
        refused = ask(endpoint, credentials, "light")
        assert refused.status is RESOURCE_EXHAUSTED
        assert refused.retry_after is not None
        assert 0.5 <= refused.retry_after < 1
        slow.release()
        assert [one.result().status for one in held] == [GrpcStatus.OK, GrpcStatus.OK]
        assert ask(endpoint, credentials, "light").status is GrpcStatus.OK
    assert overload.tally.refused == {("activations", "full"): 1}
    assert "light" in slow.begun[2:]
    assert len(slow.begun) == 3


def test_nobody_works_for_a_caller_who_has_given_up(credentials: Credentials) -> None:
    slow, overload = Slow(), Overload()
    with mesh_listener(MESH, slow, overload=overload) as endpoint:
        with pytest.raises(Unavailable):
            ask(endpoint, credentials, "held", seconds=0.3)
        wait_until(lambda: slow.cancelled == 1)
        wait_until(lambda: overload.activations.under_way.held == 0)
        assert ask(endpoint, credentials, "light").status is GrpcStatus.OK


def test_a_connection_too_many_is_closed_before_its_handshake_and_another_address_is_not_affected(
    credentials: Credentials,
) -> None:
    overload = Overload(Limits(connections=18, handshakes=18))
    with mesh_listener(MESH, Slow(), overload=overload) as endpoint, contextlib.ExitStack() as stack:
        for _ in range(40):
            one = socket.create_connection((endpoint.host, endpoint.port), LIMIT_SECONDS, source_address=(BAD, 0))
            stack.enter_context(one)
        wait_until(lambda: overload.tally.refused.total() == 24)
        assert overload.mesh.connections.held_by(BAD) == 16
        with socket.create_connection((endpoint.host, endpoint.port), LIMIT_SECONDS, source_address=(BAD, 0)) as one:
            assert read_all(one) == b""
        for _ in range(5):
            assert ask(endpoint, credentials, "light").status is GrpcStatus.OK
        stack.close()
        wait_until(lambda: overload.mesh.connections.held == 0)
        assert overload.mesh.handshakes.held == 0


@pytest.mark.parametrize("path", [b"/status", b"/api/v2/status"])
def test_a_request_too_many_is_answered_503_with_a_hint_in_the_envelope_of_both_versions(path: bytes) -> None:
    overload = Overload(Limits(requests=1))
    with overloaded(overload) as up:
        request = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path
        assert status_of(http1(up.client, request)) == 200
        up.loop.call_soon_threadsafe(overload.requests.under_way.take, "somebody")
        answer = http1(up.client, request)
        assert status_of(answer) == 503
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"retry-after: 1" in head.lower()
        assert body.startswith(b'{"status":"error","data":null,"message":"the Coordinator is asked for more')
        up.loop.call_soon_threadsafe(overload.requests.under_way.give, "somebody")
        assert status_of(http1(up.client, request)) == 200


@contextlib.contextmanager
def overloaded(overload: Overload) -> Iterator[Running]:
    with running(manifest=INTEGRATION, overload=overload) as up:
        yield up


def test_changes_that_find_no_thread_in_time_are_answered_503_and_nothing_was_begun() -> None:
    overload = Overload(Limits(slow_wait_seconds=0.001))
    release = threading.Event()
    with running(overload=overload) as up:
        up.coordinator._ports = replace(up.coordinator._ports, changing=overload.changes)
        busy = [
            asyncio.run_coroutine_threadsafe(overload.changes(release.wait, LIMIT_SECONDS), up.loop) for _ in range(3)
        ]
        wait_until(lambda: overload.changes.queue.waiting == 1)
        request = b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
        answer = http1(up.client, request)
        assert status_of(answer) == 503
        assert b"retry-after:" in answer.lower()
        assert status_of(http1(up.client, LAST_REQUEST)) == 200
        release.set()
        assert [one.result(LIMIT_SECONDS) for one in busy] == [True] * 3


def test_light_requests_do_not_wait_for_rsa_keys() -> None:
    """Outcome only: with every thread for keys at work and many waiting, ``status`` is answered."""
    overload = Overload()
    with overloaded(overload) as up:
        keys = [
            asyncio.run_coroutine_threadsafe(overload.keys(SystemEntropy().rsa_key, 2048), up.loop) for _ in range(8)
        ]
        answers = []
        while not all(key.done() for key in keys):
            answers.append(status_of(http1(up.client, LAST_REQUEST)))
        assert answers
        assert set(answers) == {200}
        assert {key.result(LIMIT_SECONDS).key_size for key in keys} == {2048}


# -- floods ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hello() -> bytes:
    """The first flight of a handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


@contextlib.contextmanager
def flood(endpoint: Endpoint, first: bytes, at_most: int) -> Iterator[list[int]]:
    """Connections from another address, replaced as the server closes them, until the block ends; how many."""
    stop, opened = threading.Event(), [0]

    def work() -> None:
        held: list[socket.socket] = []
        while not stop.is_set():
            with contextlib.suppress(OSError):
                one = socket.create_connection((endpoint.host, endpoint.port), LIMIT_SECONDS, source_address=(BAD, 0))
                one.sendall(first)
                held.append(one)
                opened[0] += 1
            if len(held) > at_most:
                held.pop(0).close()
        for one in held:
            one.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield opened
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("begun", ["nothing", "garbage", "first flight"])
def test_good_marbles_are_all_served_during_a_flood_of_half_handshakes(
    begun: str, hello: bytes, credentials: Credentials
) -> None:
    overload = Overload(Limits(connections=90, handshakes=45))
    before = descriptors()
    first = {"nothing": b"", "garbage": os.urandom(200), "first flight": hello}[begun]
    with mesh_listener(MESH, Slow(), overload=overload) as endpoint:
        with flood(endpoint, first, at_most=150) as opened:
            wait_until(lambda: opened[0] > 600)
            answers = [ask(endpoint, credentials, "light").status for _ in range(20)]
            assert overload.mesh.connections.held <= 90
            # Both ends are here: what is held, and what was accepted a moment ago and is about to be closed.
            assert descriptors() < before + 90 + 150 + 150
        assert answers == [GrpcStatus.OK] * 20
        wait_until(lambda: overload.mesh.connections.held == 0)
        assert overload.mesh.handshakes.held == 0
    assert overload.tally.refused.total() or begun != "nothing"


def test_good_marbles_are_all_served_during_a_flood_of_refused_ones(credentials: Credentials) -> None:
    slow, overload = Slow(), Overload()
    stop = threading.Event()
    refused: list[GrpcStatus] = []

    def work(endpoint: Endpoint) -> None:
        while not stop.is_set():
            refused.append(ask(endpoint, credentials, "bad").status)

    with mesh_listener(MESH, slow, overload=overload) as endpoint:
        threads = [threading.Thread(target=work, args=(endpoint,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        answers = [ask(endpoint, credentials, "light").status for _ in range(20)]
        stop.set()
        for thread in threads:
            thread.join()
        wait_until(lambda: overload.activations.under_way.held == 0)
    assert answers == [GrpcStatus.OK] * 20
    assert set(refused) == {GrpcStatus.INTERNAL}  # what this listener makes of Denied
    assert not overload.tally.refused


def test_a_hundred_marbles_at_the_same_moment_are_all_served(credentials: Credentials) -> None:
    overload = Overload()
    together = threading.Barrier(100)

    def start(endpoint: Endpoint) -> GrpcStatus:
        together.wait(LIMIT_SECONDS)
        return ask(endpoint, credentials, "light").status

    with mesh_listener(MESH, Slow(), overload=overload) as endpoint, ThreadPoolExecutor(100) as threads:
        answers = list(threads.map(start, [endpoint] * 100))
    assert answers == [GrpcStatus.OK] * 100
    assert not overload.tally.refused


def test_a_large_request_right_behind_the_handshake_arrives() -> None:
    """Handshake and request may come in one piece, and while others have their turn."""
    with overloaded(Overload()) as up:
        body = b" " * 2_000_000
        head = b"POST /manifest HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)

        def send() -> int:
            with tls(up.client) as connection:
                connection.sendall(head + body)
                return status_of(read_all(connection))

        with ThreadPoolExecutor(16) as threads:
            statuses = {one.result() for one in [threads.submit(send) for _ in range(32)]}
        assert statuses == {400}


# -- peers that are slow -----------------------------------------------------------------------------------------


def test_a_connection_that_never_asks_anything_is_not_kept_as_long_as_one_that_did() -> None:
    with running(patience=Patience(request=0.4, idle=60)) as up, Http2(up.client) as asked:
        assert asked.answer(asked.request()).status == 200
        with tls(up.mesh, mesh=True) as silent, Http2(up.client) as polite:
            read_all(silent)  # until it is closed
            wait_until(lambda: _closed(polite))
        assert asked.answer(asked.request()).status == 200


def _closed(peer: Http2) -> bool:
    with contextlib.suppress(TimeoutError):
        peer.pump(lambda: False, 0.05)
    return peer.closed


def test_limits_come_from_the_settings() -> None:
    settings = replace(Settings(), limits=Limits(connections=3, handshakes=3))
    with running(World(settings=settings)) as up, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection(up.client, LIMIT_SECONDS))
        with socket.create_connection(up.client, LIMIT_SECONDS) as one:
            assert read_all(one) == b""
