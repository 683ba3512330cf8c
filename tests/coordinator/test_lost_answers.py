"""Recovery secrets are told once: a client whose connection breaks gets them by the name it gave its request."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field

import pytest
from tests.coordinator.manifests import encode
from tests.coordinator.parties import manifest
from tests.coordinator.people import Answer, office, person, recovery_pem
from tests.coordinator.running import Address, Running, World, running

from marblerun.client import UNVERIFIED, AsyncClient, Client
from marblerun.client.lost import new_key
from marblerun.coordinator.server.exchange import Peer, Request, Response
from marblerun.coordinator.server.rest.repeats import MAX_KEPT, Repeats
from marblerun.coordinator.server.rest.strangers import SMALL_BODY_BYTES, LargeBodies
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import Busy, Malformed, Unavailable

PATH = "/api/v2/manifest"


@dataclass
class SlowStore(MemoryStore):
    """Writes when it is told to."""

    begun: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        super().__init__()

    def save(self, data: bytes, key: bytes) -> None:
        self.begun.set()
        assert self.go_on.wait(60)
        super().save(data, key)


@pytest.fixture
def store() -> SlowStore:
    return SlowStore()


@pytest.fixture
def up(store: SlowStore) -> Iterator[Running]:
    with running(World(store=store)) as started:
        yield started


def connect(server: Address) -> http.client.HTTPSConnection:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(*server, context=context, timeout=60)


def post(connection: http.client.HTTPSConnection, key: str, document: bytes, path: str = PATH) -> None:
    body = json.dumps({"manifest": base64.b64encode(document).decode()}).encode()
    connection.request("POST", path, body, {"Idempotency-Key": key} if key else {})


def answer(connection: http.client.HTTPSConnection) -> Answer:
    response = connection.getresponse()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def ask(server: Address, key: str, document: bytes) -> Answer:
    connection = connect(server)
    try:
        post(connection, key, document)
        return answer(connection)
    finally:
        connection.close()


def lose_answer(up: Running, store: SlowStore, key: str) -> None:
    """A connection breaks while the manifest is being written."""
    connection = connect(up.client)
    post(connection, key, manifest(2))
    assert store.begun.wait(60)
    connection.close()
    time.sleep(0.1)
    store.go_on.set()


def test_whoever_named_the_request_gets_the_lost_answer_and_nobody_else_does(up: Running, store: SlowStore) -> None:
    key = new_key()
    lose_answer(up, store, key)
    again = ask(up.client, key, manifest(2))
    assert (again.status, sorted(again.data["RecoverySecrets"])) == (200, ["party0", "party1"])
    assert ask(up.client, key, manifest(2)).data == again.data
    for other, document in (("", manifest(2)), (new_key(), manifest(2)), (key, manifest(2) + b" ")):
        refused = ask(up.client, other, document)
        assert (refused.status, "server is not in expected state" in refused.message) == (500, True)


def test_without_a_name_it_is_as_in_the_reference(up: Running, store: SlowStore) -> None:
    lose_answer(up, store, "")
    refused = ask(up.client, "", manifest(2))
    assert (refused.status, "server is not in expected state" in refused.message) == (500, True)


@pytest.mark.parametrize("key", ["x", "x" * 15, "x" * 200])
def test_a_name_that_can_be_guessed_is_refused(up: Running, store: SlowStore, key: str) -> None:
    store.go_on.set()
    refused = ask(up.client, key, manifest(2))
    assert (refused.status, "Idempotency-Key" in refused.message) == (400, True)
    assert up.coordinator.status().code == 2


# -- the clients -------------------------------------------------------------------------------------------------


class Breaking:
    """Passes connections on to a Coordinator and breaks the first ones that send a POST, after it was done."""

    def __init__(self, up: Running, store: SlowStore, times: int) -> None:
        self._up, self._store, self._times = up, store, times
        self._loop = up.loop
        self.endpoint = up.call(self._listen())
        self.connections = 0

    async def _listen(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Take no more connections."""
        self._up.call(self._close())

    async def _close(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        breaks = self.connections <= self._times
        there, back = await asyncio.open_connection(*self._up.client)
        pipes = [asyncio.ensure_future(pipe(reader, back)), asyncio.ensure_future(pipe(there, writer))]
        if breaks:
            await asyncio.to_thread(self._store.begun.wait, 60)
        else:
            self._store.go_on.set()
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        for one in pipes:
            one.cancel()
        writer.transport.abort()
        back.transport.abort()


async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


def test_the_client_asks_again_and_gets_the_secrets(up: Running, store: SlowStore) -> None:
    with closing(Breaking(up, store, 1)) as proxy, Client(proxy.endpoint, UNVERIFIED) as client:
        assert sorted(client.manifest_set(manifest(2))) == ["party0", "party1"]
    assert proxy.connections == 2


def test_so_does_the_asynchronous_one(up: Running, store: SlowStore) -> None:
    async def main(endpoint: str) -> list[str]:
        async with AsyncClient(endpoint, UNVERIFIED) as client:
            return sorted(await client.manifest_set(manifest(2)))

    with closing(Breaking(up, store, 1)) as proxy:
        assert asyncio.run(main(proxy.endpoint)) == ["party0", "party1"]


def test_an_answer_that_stays_lost_is_told(up: Running, store: SlowStore) -> None:
    with closing(Breaking(up, store, 99)) as proxy, Client(proxy.endpoint, UNVERIFIED) as client:
        with pytest.raises(Unavailable, match="may have been done"):
            client.manifest_set(manifest(2))
        store.go_on.set()


def test_a_connection_that_never_was_is_not_tried_twice() -> None:
    with Client("127.0.0.1:9", UNVERIFIED) as client, pytest.raises(Unavailable, match="no connection"):
        client.manifest_set(manifest(2))


# -- the memory --------------------------------------------------------------------------------------------------


def request(key: bytes, body: bytes = b"", leaf: bytes | None = None, target: str = PATH) -> Request:
    return Request("POST", target, ((b"idempotency-key", key),) if key else (), body, Peer("127.0.0.1", leaf))


def test_one_request_is_done_once_and_only_for_whom_it_was_done() -> None:
    done: list[int] = []

    async def handle() -> Response:
        done.append(1)
        await asyncio.sleep(0)
        return Response(200, body=b"%d" % len(done))

    async def main() -> list[bytes]:
        repeats = Repeats()
        key = b"k" * 32
        same = [repeats.answer(request(key), handle) for _ in range(3)]
        others = [
            request(key, b"other"), request(key, leaf=b"somebody"), request(key, target="/other"), request(b"j" * 32),
            request(b""), request(b""),
        ]  # fmt: skip
        found = await asyncio.gather(*same)
        return [one.body for one in (*found, *[await repeats.answer(other, handle) for other in others])]

    assert asyncio.run(main()) == [b"1", b"1", b"1", b"2", b"3", b"4", b"5", b"6", b"7"]


def test_failures_are_not_remembered_and_the_memory_has_an_end() -> None:
    async def main() -> None:
        repeats = Repeats()
        outcomes: list[Response | Malformed] = [Malformed("x"), Response(500), *[Response(200)] * (MAX_KEPT + 3)]

        async def handle() -> Response:
            outcome = outcomes.pop(0)
            if isinstance(outcome, Malformed):
                raise outcome
            return outcome

        with pytest.raises(Malformed):
            await repeats.answer(request(b"k" * 32), handle)
        assert (await repeats.answer(request(b"k" * 32), handle)).status == 500
        for number in range(MAX_KEPT + 2):
            await repeats.answer(request(b"%032d" % number), handle)
        assert len(outcomes) == 1
        await repeats.answer(request(b"%032d" % 0), handle)  # forgotten
        assert not outcomes

    asyncio.run(main())


def test_a_large_body_is_read_alone_also_if_its_client_is_gone() -> None:
    go_on = threading.Event()

    async def main() -> None:
        bodies = LargeBodies()
        first = asyncio.ensure_future(bodies.read(SMALL_BODY_BYTES + 1, lambda: go_on.wait(60)))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        with pytest.raises(Busy):
            await bodies.read(SMALL_BODY_BYTES + 1, lambda: 1)
        assert await bodies.read(SMALL_BODY_BYTES, lambda: 2) == 2
        go_on.set()
        for _ in range(100):
            with suppress(Busy):
                assert await bodies.read(SMALL_BODY_BYTES + 1, lambda: 3) == 3
                return
            await asyncio.sleep(0.01)
        raise AssertionError("still busy")

    asyncio.run(main())


def test_a_large_manifest_is_not_even_read_where_one_is_set(up: Running, store: SlowStore) -> None:
    store.go_on.set()
    up.set_manifest(manifest(1))
    connection = connect(up.client)
    connection.request("POST", PATH, b"{" + b" " * (SMALL_BODY_BYTES + 1))
    refused = answer(connection)
    assert "server is not in expected state" in refused.message
    connection.request("POST", PATH, b"{")
    assert answer(connection).status == 400
    connection.close()


def test_the_last_acknowledgment_can_be_repeated_too() -> None:
    raw = encode(office({"u": ["updater"]}))
    new = encode({**office({"u": ["updater"]}), "RecoveryKeys": {"r": recovery_pem("r")}})
    with running(World(), manifest=raw) as up:
        key = new_key()
        found = []
        for _ in range(2):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            load(context, "u")
            connection = http.client.HTTPSConnection(*up.client, context=context, timeout=60)
            post(connection, key, new, "/api/v2/update")
            found.append(answer(connection))
            connection.close()
        assert [one.status for one in found] == [200, 200]
        assert found[0].data == found[1].data
        assert list(found[0].data["recoverySecrets"]) == ["r"]


def load(context: ssl.SSLContext, name: str) -> None:
    import tempfile

    with tempfile.NamedTemporaryFile() as chain:
        chain.write((person(name).pem + person(name).key_pem).encode())
        chain.flush()
        context.load_cert_chain(chain.name)
