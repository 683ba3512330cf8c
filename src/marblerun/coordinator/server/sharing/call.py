"""One unary gRPC call over a connection whose server has been judged."""

from __future__ import annotations

from typing import Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import H2Error
from hpack.exceptions import HPACKError
from hyperframe.exceptions import HyperframeError

from marblerun.coordinator.server.sharing.tls import Connection
from marblerun.errors import Denied, Malformed, Unavailable
from marblerun.version import __version__
from marblerun.wire.rpc import GrpcStatus, MessageReader, decode_grpc_message, encode_message, parse_status

_MAX_REASON_CHARACTERS: Final = 1000
_REFUSALS: Final = (GrpcStatus.PERMISSION_DENIED, GrpcStatus.UNAUTHENTICATED)


async def call(connection: Connection, authority: str, path: str, message: bytes, max_answer_bytes: int) -> bytes:
    """The answer's message (protobuf bytes) to ``message``.

    Raises Denied, with the server's reason, where it refuses us, Unavailable for every other end, and Malformed for an
    answer that is too large or not one message.
    """
    stream = _Stream(max_answer_bytes)
    try:
        stream.begin(authority, path, encode_message(message))
        while not stream.has_ended:
            await connection.send(stream.outgoing())
            stream.take(await connection.receive())
    except (H2Error, HPACKError, HyperframeError) as error:
        raise Unavailable("the server broke the rules of HTTP/2") from error
    return stream.answer()


class _Stream:
    """The HTTP/2 side of it, without any I/O."""

    def __init__(self, max_answer_bytes: int) -> None:
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._reader = MessageReader(max_answer_bytes)
        self._messages: list[bytes] = []
        self._headers: dict[str, str] = {}
        self._unsent = b""
        self._id = 0
        self.has_ended = False

    def begin(self, authority: str, path: str, body: bytes) -> None:
        """The request's headers; its body goes out as the server allows."""
        self._h2.initiate_connection()
        self._id = self._h2.get_next_available_stream_id()
        self._unsent = body
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", path),
            (":authority", authority),
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            ("user-agent", f"marblerun-python/{__version__}"),
        ]
        self._h2.send_headers(self._id, headers)

    def outgoing(self) -> bytes:
        """What is to be sent now."""
        while self._unsent:
            window = min(self._h2.local_flow_control_window(self._id), self._h2.max_outbound_frame_size)
            if window <= 0:
                break
            chunk, self._unsent = self._unsent[:window], self._unsent[window:]
            self._h2.send_data(self._id, chunk, end_stream=not self._unsent)
        return self._h2.data_to_send()

    def take(self, data: bytes) -> None:
        """What was received."""
        for event in self._h2.receive_data(data):
            self._handle(event)

    def _handle(self, event: Event) -> None:
        match event:
            case ResponseReceived(headers=headers) | TrailersReceived(headers=headers):
                self._headers.update((str(name), str(value)) for name, value in headers or ())
            case DataReceived(stream_id=int(stream), data=bytes(data), flow_controlled_length=int(size)):
                self._messages += self._reader.feed(data)
                if len(self._messages) > 1:
                    raise Malformed("the answer has more than one message", where="grpc message")
                self._h2.acknowledge_received_data(size, stream)
            case StreamEnded():
                self.has_ended = True
            case StreamReset() | ConnectionTerminated() if not self.has_ended:
                raise Unavailable("the server gave up the call")
            case _:
                pass

    def answer(self) -> bytes:
        """The message, if the call went well."""
        status = parse_status(self._headers.get("grpc-status", ""))
        if status is not GrpcStatus.OK:
            told = decode_grpc_message(self._headers.get("grpc-message", ""))[:_MAX_REASON_CHARACTERS]
            text = f"the server answered {status.name}: {''.join(c for c in told if c.isprintable()) or 'no reason'}"
            raise Denied(text) if status in _REFUSALS else Unavailable(text)
        self._reader.finish()
        if not self._messages:
            raise Malformed("the answer has no message", where="grpc message")
        return self._messages[0]
