"""What a listener spends on its peers, as values."""

from __future__ import annotations

import asyncio

import pytest
from hyperframe.frame import Frame, PingFrame, SettingsFrame

from marblerun.coordinator.server.exchange import (
    MAX_CONNECTION_EXTRA_BYTES,
    BufferBudget,
    ConnectionShare,
    Peer,
    Request,
    Response,
    Service,
)
from marblerun.coordinator.server.frames import PREFACE
from marblerun.coordinator.server.http1 import Http1Connection
from marblerun.coordinator.server.http2 import Http2Connection


async def nothing(_request: Request) -> Response:
    return Response(200)


def service(limit: int, max_body: int = 100) -> Service:
    empty = Response(503)
    return Service(nothing, max_body, lambda: empty, lambda: empty, lambda: empty, budget=BufferBudget(limit))


def test_a_budget_is_never_overdrawn_and_comes_back() -> None:
    budget = BufferBudget(10)
    assert [budget.take(6), budget.take(5), budget.take(4), budget.take(1)] == [True, False, True, False]
    budget.give(6)
    assert (budget.left, budget.take(6)) == (6, True)


def test_connections_share_a_budget_and_each_has_its_own_limit() -> None:
    shared = service(limit=MAX_CONNECTION_EXTRA_BYTES + 150)
    one, two = ConnectionShare(shared), ConnectionShare(shared)
    assert one.take(MAX_CONNECTION_EXTRA_BYTES + 100)
    assert not one.take(1)
    assert not two.take(51)
    assert two.take(50)
    one.give_all()
    one.give_all()
    two.give_all()
    assert shared.budget.left == MAX_CONNECTION_EXTRA_BYTES + 150


# -- a peer that sends without end and reads nothing -------------------------------------------------------------


class StuckTransport(asyncio.Transport):
    """A connection whose other side takes nothing; it keeps asyncio's promises about flow control."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.protocol = protocol
        self.unsent = 0
        self.reading = True
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        before, self.unsent = self.unsent, self.unsent + len(data)
        if before <= HIGH_WATER < self.unsent:
            self.protocol.pause_writing()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True


HIGH_WATER = 64 * 1024
ROOMY = service(limit=1 << 30, max_body=1 << 20)


async def bytes_taken(protocol: asyncio.Protocol, start: bytes, flood: bytes, limit: int) -> tuple[int, int]:
    """How much of a flood is taken, and how much is waiting to be sent in the end."""
    transport = StuckTransport(protocol)
    protocol.connection_made(transport)
    if start:
        protocol.data_received(start)
    taken = 0
    while transport.reading and not transport.closing and taken < limit:
        protocol.data_received(flood)
        taken += len(flood)
        await asyncio.sleep(0)
    protocol.connection_lost(None)
    return taken, transport.unsent


@pytest.mark.parametrize("frame", [PingFrame(0, b"12345678"), SettingsFrame(0)], ids=["ping", "settings"])
def test_http2_stops_reading_when_its_answers_are_not_taken(frame: Frame) -> None:
    """CVE-2019-9512, CVE-2019-9515."""

    async def flood() -> tuple[int, int]:
        start = PREFACE + SettingsFrame(0).serialize()
        return await bytes_taken(Http2Connection(ROOMY, Peer("test")), start, frame.serialize() * 500, 2 << 20)

    taken, unsent = asyncio.run(flood())
    assert taken < 1 << 20
    assert unsent < 4 * HIGH_WATER


def test_http1_stops_reading_when_its_answers_are_not_taken() -> None:
    async def flood() -> tuple[int, int]:
        return await bytes_taken(
            Http1Connection(ROOMY, Peer("test")), b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50, 8 << 20
        )

    taken, unsent = asyncio.run(flood())
    assert taken < 1 << 20
    assert unsent < 4 * HIGH_WATER


def test_a_connection_that_is_lost_gives_back_what_it_held() -> None:
    async def abandon() -> int:
        roomy = service(limit=1 << 20, max_body=1 << 20)
        protocol = Http1Connection(roomy, Peer("test"))
        protocol.connection_made(StuckTransport(protocol))
        protocol.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + bytes(50_000))
        assert roomy.budget.left == (1 << 20) - 50_000
        protocol.connection_lost(None)
        return roomy.budget.left

    assert asyncio.run(abandon()) == 1 << 20


def test_the_budget_of_all_connections_together_is_kept() -> None:
    async def crowd() -> tuple[int, list[bool]]:
        tight = service(limit=100_000, max_body=1 << 20)
        protocols = [Http1Connection(tight, Peer("test")) for _ in range(3)]
        transports = [StuckTransport(protocol) for protocol in protocols]
        for protocol, transport in zip(protocols, transports, strict=True):
            protocol.connection_made(transport)
            protocol.data_received(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n" + bytes(40_000))
        left = tight.budget.left
        for protocol in protocols:
            protocol.connection_lost(None)
        assert tight.budget.left == 100_000
        return left, [transport.closing for transport in transports]

    assert asyncio.run(crowd()) == (20_000, [False, False, True])
