"""A call goes out as the server allows and ends with what the server said: against a server in memory."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded

from marblerun.coordinator.server.sharing.call import call
from marblerun.coordinator.server.sharing.tls import Connection
from marblerun.errors import Denied
from marblerun.wire.rpc import encode_message


class Server:
    """Lets a window full of a request come at a time, and answers the whole of it with a status."""

    def __init__(self, status: str) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=False))
        self._h2.initiate_connection()
        self._status = status
        self.taken: list[bytes] = []

    async def send(self, data: bytes) -> None:
        """What the client has for us."""
        for event in self._h2.receive_data(data) if data else []:
            if isinstance(event, DataReceived) and event.data:
                self.taken.append(event.data)
            elif isinstance(event, StreamEnded):
                self._answer(event.stream_id)
                return
        if sum(map(len, self.taken)) >= 65535:  # all that may come unasked (RFC 9113, section 6.9.2)
            self._h2.increment_flow_control_window(65535)
            self._h2.increment_flow_control_window(65535, 1)

    async def receive(self) -> bytes:
        """What we have for the client."""
        return self._h2.data_to_send()

    def _answer(self, stream: int) -> None:
        self._h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        if self._status == "0":
            self._h2.send_data(stream, encode_message(b"taken"))
        self._h2.send_headers(stream, [("grpc-status", self._status)], end_stream=True)


def called(server: Server, message: bytes) -> bytes:
    """The answer to the message."""
    return asyncio.run(call(cast("Connection", server), "key.test", "/Some/Path", message, 1000))


def test_a_request_waits_until_the_server_takes_more_of_it() -> None:
    server, message = Server("0"), bytes(range(256)) * 300
    assert called(server, message) == b"taken"
    assert b"".join(server.taken) == encode_message(message)


def test_a_refusal_without_a_reason_says_that_there_is_none() -> None:
    with pytest.raises(Denied, match="PERMISSION_DENIED: no reason"):
        called(Server("7"), b"message")
