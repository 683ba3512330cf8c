"""HTTP/2 connections on the sans-I/O library h2: whole requests in, whole responses out."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field, replace
from typing import Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from marblerun.coordinator.server.exchange import ConnectionShare, Headers, Peer, Request, Response, Service
from marblerun.wire.limits import MAX_HEADER_BYTES

MAX_CONCURRENT_STREAMS: Final = 100
# Requests that may be reset, beyond those answered, before we stop listening to the peer (CVE-2023-44487 and, for the
# resets that it makes us send, CVE-2025-8671).
MAX_RESET_STREAMS: Final = 200
# What the protocol allows without asking (RFC 9113, section 4.2), and we do not ask for more.
MAX_FRAME_BYTES: Final = 16384
_PREFACE_BYTES: Final = 24
_FRAME_HEADER_BYTES: Final = 9
_HEADERS: Final = 1
_CONTINUATION: Final = 9
_END_HEADERS: Final = 4
_INITIAL_WINDOW: Final = 1024 * 1024
# Deadlines are looked at this often, or four times in the shortest of them.
_TICK_SECONDS: Final = 5.0


class FrameGuard:
    """Looks at frame headers before the library buffers what they announce.

    The library waits for a whole frame, and for a whole header block, before it says that either is too long; until
    then it would hold 16 MiB for anybody.
    """

    __slots__ = ("_block", "_header", "_skip")

    def __init__(self) -> None:
        self._skip = _PREFACE_BYTES
        self._header = bytearray()
        self._block = 0

    @property
    def in_header_block(self) -> bool:
        """Whether a header block has begun and not ended."""
        return self._block > 0

    def feed(self, data: bytes) -> h2.errors.ErrorCodes | None:
        """What is wrong with the frames in ``data``, so far as they are announced; ``None`` if nothing is."""
        position = 0
        while position < len(data):
            if self._skip:
                step = min(self._skip, len(data) - position)
                self._skip -= step
                position += step
                continue
            part = data[position : position + _FRAME_HEADER_BYTES - len(self._header)]
            self._header += part
            position += len(part)
            if len(self._header) == _FRAME_HEADER_BYTES:
                problem = self._judge(int.from_bytes(self._header[:3], "big"), self._header[3], self._header[4])
                if problem is not None:
                    return problem
                self._header.clear()
        return None

    def _judge(self, length: int, kind: int, flags: int) -> h2.errors.ErrorCodes | None:
        if length > MAX_FRAME_BYTES:
            return h2.errors.ErrorCodes.FRAME_SIZE_ERROR
        self._skip = length
        if kind in (_HEADERS, _CONTINUATION):
            self._block += length + 1
            if self._block > MAX_HEADER_BYTES:
                return h2.errors.ErrorCodes.ENHANCE_YOUR_CALM
            if flags & _END_HEADERS:
                self._block = 0
        return None


@dataclass(slots=True)
class _Stream:
    """A request on its way in, or being answered."""

    headers: list[tuple[bytes, bytes]]
    deadline: float
    body: bytearray = field(default_factory=bytearray)
    held: int = 0
    """Bytes of our share that it takes."""
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Outgoing:
    """A body on its way out, as far as flow control lets it."""

    data: bytes
    trailers: Headers
    deadline: float
    sent: int = 0


class Http2Connection(asyncio.Protocol):
    """One HTTP/2 server connection."""

    def __init__(self, service: Service, peer: Peer) -> None:
        self._service = service
        self._peer = peer
        self._share = ConnectionShare(service)
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding=None, validate_inbound_headers=True)
        )
        self._guard = FrameGuard()
        self._block_at: float | None = None
        """When the header block began that has not ended yet."""
        self._streams: dict[int, _Stream] = {}
        self._outgoing: dict[int, _Outgoing] = {}
        self._resets = 0
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Handle | None = None
        self._paused_at: float | None = None
        """Since when the peer has taken nothing."""
        self._busy_at = self._loop.time()
        """When there was a request last."""

    # -- asyncio callbacks ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up and both sides agreed on h2."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_CONCURRENT_STREAMS,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _INITIAL_WINDOW,
                h2.settings.SettingCodes.ENABLE_CONNECT_PROTOCOL: 0,
            },
        )
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(_INITIAL_WINDOW)
        self._flush_soon()
        self._restart_timer()

    def data_received(self, data: bytes) -> None:
        """Plaintext from the peer."""
        if not self._is_open():
            return
        problem = self._guard.feed(data)
        if problem is not None:
            self._go_away(problem)
            return
        if not self._guard.in_header_block:
            self._block_at = None
        elif self._block_at is None:
            self._block_at = self._loop.time()
        try:
            events = self._h2.receive_data(data)
        except Exception:  # whatever the library makes of hostile bytes, it only ends this connection
            self._flush()  # h2 queued the GOAWAY that names the error
            self._close()
            return
        for event in events:
            self._on_event(event)
            if not self._is_open():
                return
        self._flush_soon()

    def eof_received(self) -> None:
        """The peer has nothing more to say."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is left to answer: stop the work for this connection."""
        self._transport = None
        for handle in (self._timer, self._flushing):
            if handle is not None:
                handle.cancel()
        self._timer = self._flushing = None
        for stream in self._streams.values():
            if stream.task is not None:
                stream.task.cancel()
        self._streams.clear()
        self._outgoing.clear()
        self._share.give_all()

    def pause_writing(self) -> None:
        """The peer reads slower than we answer: until it catches up nothing of what it sends needs an answer."""
        self._paused_at = self._loop.time()
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        """Go on with bodies that waited."""
        self._paused_at = None
        if self._transport is not None:
            self._transport.resume_reading()
        self._send_bodies()
        self._flush()

    # -- requests ------------------------------------------------------------------------------------------------

    def _on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                self._on_request(event)
            case h2.events.DataReceived():
                self._on_data(event)
            case h2.events.StreamEnded():
                assert event.stream_id is not None
                self._start(event.stream_id)
            case h2.events.StreamReset():
                assert event.stream_id is not None
                self._on_reset(event.stream_id)
            case h2.events.WindowUpdated():
                self._send_bodies(event.stream_id or None)
            case h2.events.RemoteSettingsChanged():
                self._send_bodies()
            case h2.events.ConnectionTerminated():
                self._close()  # h2 sends nothing after that
            case _:
                pass

    def _on_request(self, event: h2.events.RequestReceived) -> None:
        assert event.stream_id is not None
        self._busy_at = self._loop.time()
        headers = [(bytes(name), bytes(value)) for name, value in event.headers or ()]
        self._streams[event.stream_id] = _Stream(headers, self._busy_at + self._service.patience.request)

    def _on_data(self, event: h2.events.DataReceived) -> None:
        stream_id = event.stream_id
        assert stream_id is not None
        if event.flow_controlled_length:
            self._h2.acknowledge_received_data(event.flow_controlled_length, stream_id)
        stream, data = self._streams.get(stream_id), event.data or b""
        if stream is None or stream.task is not None:
            return
        if len(stream.body) + len(data) > self._service.max_body_bytes:
            self._refuse(stream_id, self._service.too_large())
        elif not self._share.take(len(data)):
            self._refuse(stream_id, self._service.overloaded())
        else:
            stream.held += len(data)
            stream.body += data

    def _on_reset(self, stream_id: int) -> None:
        self._drop(stream_id)
        self._resets += 1
        if self._resets > MAX_RESET_STREAMS:
            self._go_away(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)

    def _start(self, stream_id: int) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None and stream.task is None:
            stream.task = self._loop.create_task(self._run(stream_id, stream))

    async def _run(self, stream_id: int, stream: _Stream) -> None:
        pseudo = {name: value for name, value in stream.headers if name.startswith(b":")}
        request = Request(
            method=pseudo.get(b":method", b"").decode("ascii", "replace"),
            target=pseudo.get(b":path", b"").decode("latin-1"),
            headers=tuple(header for header in stream.headers if not header[0].startswith(b":")),
            body=bytes(stream.body),
            peer=self._peer,
        )
        stream.body.clear()
        try:
            response = await self._service.handle(request)
        except Exception:  # the handler logs; whatever broke, the connection and the process live
            response = self._service.failed()
        del request
        if stream_id in self._streams:
            self._resets = max(0, self._resets - 1)
            if pseudo.get(b":method") == b"HEAD":
                response = replace(response, body=b"", trailers=())
            self._respond(stream_id, response)
            self._flush()

    # -- responses -----------------------------------------------------------------------------------------------

    def _refuse(self, stream_id: int, response: Response) -> None:
        """Answer before the request has ended, and ask the peer not to send the rest."""
        self._respond(stream_id, response)
        self._reset(stream_id, h2.errors.ErrorCodes.NO_ERROR)

    def _respond(self, stream_id: int, response: Response) -> None:
        stream = self._streams[stream_id]
        self._busy_at = self._loop.time()
        self._share.give(stream.held)
        stream.held = len(response.body)
        if not self._share.take(stream.held):
            response, stream.held = self._service.overloaded(), 0
        headers = [(b":status", b"%d" % response.status), *response.headers]
        try:
            if not response.body and not response.trailers:
                self._h2.send_headers(stream_id, headers, end_stream=True)
                self._drop(stream_id)
                return
            self._h2.send_headers(stream_id, headers)
        except h2.exceptions.ProtocolError:  # the peer closed the stream meanwhile, or we may not say that
            self._reset(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
            return
        deadline = self._busy_at + self._service.patience.response
        self._outgoing[stream_id] = _Outgoing(response.body, response.trailers, deadline)
        self._send_body(stream_id)

    def _send_bodies(self, stream_id: int | None = None) -> None:
        for waiting in list(self._outgoing) if stream_id is None else [stream_id]:
            self._send_body(waiting)

    def _send_body(self, stream_id: int) -> None:
        outgoing = self._outgoing.get(stream_id)
        if outgoing is None:
            return
        try:
            while outgoing.sent < len(outgoing.data):
                if self._paused_at is not None:
                    return
                window = self._h2.local_flow_control_window(stream_id)
                size = min(window, self._h2.max_outbound_frame_size, len(outgoing.data) - outgoing.sent)
                if size <= 0:
                    return
                chunk = outgoing.data[outgoing.sent : outgoing.sent + size]
                outgoing.sent += size
                last = outgoing.sent == len(outgoing.data)
                self._h2.send_data(stream_id, chunk, end_stream=last and not outgoing.trailers)
                if not last:
                    self._flush()  # tells us, by pausing, when the peer is slower
            if outgoing.trailers:
                self._h2.send_headers(stream_id, list(outgoing.trailers), end_stream=True)
        except h2.exceptions.ProtocolError:
            self._reset(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
            return
        self._drop(stream_id)

    def _reset(self, stream_id: int, code: h2.errors.ErrorCodes) -> None:
        """End a stream from our side, if it has not ended yet."""
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.reset_stream(stream_id, code)
        self._drop(stream_id)

    def _drop(self, stream_id: int) -> None:
        self._outgoing.pop(stream_id, None)
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        self._share.give(stream.held)
        if stream.task is not None and stream.task is not asyncio.current_task():
            stream.task.cancel()

    # -- connection ----------------------------------------------------------------------------------------------

    def _is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def _flush_soon(self) -> None:
        """Send after the requests that have just begun: an answer that is ready at once travels with our settings.

        A system call for each would cost more than everything h2 does.
        """
        if self._flushing is not None:
            self._flushing.cancel()
        self._flushing = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport is not None:
            self._transport.write(data)

    def _go_away(self, code: h2.errors.ErrorCodes) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.close_connection(code)
        self._flush()
        self._close()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _restart_timer(self) -> None:
        patience = self._service.patience
        delay = min(_TICK_SECONDS, patience.request / 4, patience.response / 4, patience.idle / 4)
        self._timer = self._loop.call_later(delay, self._on_tick)

    def _on_tick(self) -> None:
        """Look who has been waiting for too long."""
        now, patience = self._loop.time(), self._service.patience
        if self._paused_at is not None and now > self._paused_at + patience.response:
            if self._transport is not None:
                self._transport.abort()
            return
        late = [stream_id for stream_id, stream in self._streams.items() if not stream.task and now > stream.deadline]
        late += [stream_id for stream_id, outgoing in self._outgoing.items() if now > outgoing.deadline]
        for stream_id in late:
            self._reset(stream_id, h2.errors.ErrorCodes.CANCEL)
        begun = now if self._block_at is None else self._block_at
        idle = not self._streams and now > self._busy_at + patience.idle
        if idle or now > begun + patience.request:
            self._go_away(h2.errors.ErrorCodes.NO_ERROR)
            return
        self._flush()
        self._restart_timer()
