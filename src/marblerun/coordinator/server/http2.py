"""HTTP/2 connections: whole requests in, whole responses out (ADR 8).

The state of a connection and of its streams is kept here, as far as a server needs it that pushes nothing and answers
whole requests: ``frames`` cuts and writes frames, ``heads`` reads and writes header blocks. A peer that breaks the
rules loses its connection.

Source: RFC 9113.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final

from marblerun.coordinator.server import frames
from marblerun.coordinator.server.exchange import ConnectionShare, Headers, Peer, Request, Response, Service
from marblerun.coordinator.server.frames import MAX_FRAME_BYTES, ErrorCode, FrameReader, Setting, Violation
from marblerun.coordinator.server.heads import Head, HeadReader, response_block, trailer_block
from marblerun.wire.limits import MAX_HEADER_BYTES

__all__ = ["MAX_CONCURRENT_STREAMS", "MAX_FRAME_BYTES", "MAX_RESET_STREAMS", "Http2Connection"]

MAX_CONCURRENT_STREAMS: Final = 100
# Requests that may be reset, beyond those answered, before we stop listening to the peer (CVE-2023-44487 and, for the
# resets that it makes us send, CVE-2025-8671).
MAX_RESET_STREAMS: Final = 200
# Streams that we ended early, of which the peer may not know yet. What it sends on older ones is its mistake.
MAX_REMEMBERED: Final = 2 * MAX_RESET_STREAMS
_WINDOW: Final = 1024 * 1024
_CONNECTION_WINDOW: Final = frames.DEFAULT_WINDOW + _WINDOW
# Deadlines are looked at this often, or four times in the shortest of them.
_TICK_SECONDS: Final = 5.0
# An activation takes a few milliseconds. Settings and pings may wait that long for its answer, and no longer.
_ANSWER_SECONDS: Final = 0.02

_FIRST_WORDS: Final = frames.settings(
    {
        Setting.MAX_CONCURRENT_STREAMS: MAX_CONCURRENT_STREAMS,
        Setting.INITIAL_WINDOW_SIZE: _WINDOW,
        Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
    }
) + frames.number_frame(frames.WINDOW_UPDATE, 0, _WINDOW)
_SETTINGS_TAKEN: Final = frames.frame(frames.SETTINGS, frames.ACK, 0)


class _PeerLeft(Exception):
    """The peer said goodbye; nothing is owed to somebody who leaves."""


class _Stream:
    """A request on its way in, or being answered, or its response on its way out."""

    __slots__ = (
        "body",
        "deadline",
        "ended",
        "head",
        "held",
        "received",
        "response",
        "send_window",
        "sent",
        "task",
        "trailers",
        "window",
    )

    def __init__(self, head: Head, deadline: float, send_window: int) -> None:
        self.head = head
        self.deadline = deadline
        """When the request, or once there is a response, that must have gone through."""
        self.body = bytearray()
        self.received = 0
        self.window = _WINDOW
        self.ended = False
        """Whether the request is complete."""
        self.held = 0
        """Bytes of our share that it takes."""
        self.task: asyncio.Task[None] | None = None
        self.response: bytes | None = None
        self.trailers: Headers = ()
        self.sent = 0
        self.send_window = send_window


class Http2Connection(asyncio.Protocol):
    """One HTTP/2 server connection."""

    __slots__ = (
        "_abandoned",
        "_block",
        "_block_at",
        "_busy_at",
        "_flushing",
        "_forget",
        "_frame_limit",
        "_heads",
        "_initial_window",
        "_last_stream",
        "_loop",
        "_open",
        "_out",
        "_paused_at",
        "_peer",
        "_reader",
        "_resets",
        "_says_length",
        "_send_window",
        "_service",
        "_settled",
        "_share",
        "_streams",
        "_timer",
        "_transport",
        "_window",
    )

    def __init__(self, service: Service, peer: Peer, *, says_length: bool = False) -> None:
        """``says_length``: each response announces the length of its body, as those of Go's HTTP server do."""
        self._service = service
        self._says_length = says_length
        self._peer = peer
        self._share = ConnectionShare(service)
        self._reader = FrameReader()
        self._heads = HeadReader()
        self._streams: dict[int, _Stream] = {}
        self._abandoned: dict[int, None] = {}
        self._last_stream = 0
        self._resets = 0
        self._settled = False  # whether the peer's first settings have come
        self._block: tuple[int, int, bytearray] | None = None  # stream, flags and what there is of a header block
        self._block_at: float | None = None  # when it began
        # What the peer may still send, what we may, and what he wants to see.
        self._window = _CONNECTION_WINDOW
        self._send_window = frames.DEFAULT_WINDOW
        self._initial_window = frames.DEFAULT_WINDOW
        self._frame_limit = MAX_FRAME_BYTES
        self._forget = False  # the next header block has to say that we do not use the peer's table
        self._out: list[bytes] = []
        self._open = False
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Handle | None = None
        self._paused_at: float | None = None  # since when the peer has taken nothing
        self._busy_at = self._loop.time()  # when there was a request last

    # -- asyncio callbacks ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up and both sides agreed on h2."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._open = True
        # A client says its own first words without waiting for ours (RFC 9113, section 3.4), so ours can wait for the
        # answer to what comes with them.
        self._out.append(_FIRST_WORDS)
        self._restart_timer()

    def data_received(self, data: bytes) -> None:
        """Plaintext from the peer."""
        if not self._open:
            return
        try:
            for kind, flags, stream_id, payload in self._reader.feed(data):
                self._on_frame(kind, flags, stream_id, payload)
        except _PeerLeft:
            self._close()
            return
        except Violation as violation:
            self._go_away(violation.code)
            return
        except Exception:  # whatever a library makes of hostile bytes, it only ends this connection
            self._go_away(ErrorCode.INTERNAL_ERROR)
            return
        if not self._reader.in_header_block:
            self._block_at = None
        elif self._block_at is None:
            self._block_at = self._loop.time()
        self._flush_soon()

    def eof_received(self) -> None:
        """The peer has nothing more to say."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is left to answer: stop the work for this connection."""
        self._transport = None
        self._open = False
        for handle in (self._timer, self._flushing):
            if handle is not None:
                handle.cancel()
        self._timer = self._flushing = None
        for stream in self._streams.values():
            if stream.task is not None:
                stream.task.cancel()
        self._streams.clear()
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

    # -- frames --------------------------------------------------------------------------------------------------

    def _on_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and kind != frames.CONTINUATION:
            raise Violation(ErrorCode.PROTOCOL_ERROR)
        if not self._settled:
            if kind != frames.SETTINGS or flags & frames.ACK:
                raise Violation(ErrorCode.PROTOCOL_ERROR)
            self._settled = True
        if kind == frames.DATA:
            self._on_data(flags, stream_id, payload)
        elif kind == frames.HEADERS:
            self._on_headers(flags, stream_id, payload)
        elif kind == frames.CONTINUATION:
            self._on_continuation(flags, stream_id, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, frames.read_number(payload))
        elif kind == frames.RST_STREAM:
            self._on_reset(stream_id, frames.read_number(payload))
        elif kind == frames.PRIORITY:
            self._require_stream(stream_id)
            frames.require_priority(stream_id, payload)
        elif kind <= frames.GOAWAY:
            self._on_connection_frame(kind, flags, stream_id, payload)

    def _on_connection_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or kind == frames.PUSH_PROMISE:
            raise Violation(ErrorCode.PROTOCOL_ERROR)
        if kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._on_settings(frames.read_settings(payload))
            elif payload:
                raise Violation(ErrorCode.FRAME_SIZE_ERROR)
        elif kind == frames.PING:
            if len(payload) != 8:
                raise Violation(ErrorCode.FRAME_SIZE_ERROR)
            if not flags & frames.ACK:
                self._out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif len(payload) < 8:
            raise Violation(ErrorCode.FRAME_SIZE_ERROR)
        else:
            raise _PeerLeft

    def _on_settings(self, found: dict[int, int]) -> None:
        for name, value in found.items():
            if name == Setting.INITIAL_WINDOW_SIZE:
                change, self._initial_window = value - self._initial_window, value
                for stream in self._streams.values():
                    stream.send_window += change
                    if stream.send_window > frames.MAX_WINDOW:
                        raise Violation(ErrorCode.FLOW_CONTROL_ERROR)
            elif name == Setting.MAX_FRAME_SIZE:
                self._frame_limit = value
            elif name == Setting.HEADER_TABLE_SIZE and value < frames.DEFAULT_TABLE_BYTES:
                self._forget = True
        self._out.append(_SETTINGS_TAKEN)
        self._send_bodies()

    def _on_window_update(self, stream_id: int, increment: int) -> None:
        increment &= frames.MAX_WINDOW
        if not increment:
            raise Violation(ErrorCode.PROTOCOL_ERROR)
        if not stream_id:
            self._send_window += increment
            if self._send_window > frames.MAX_WINDOW:
                raise Violation(ErrorCode.FLOW_CONTROL_ERROR)
            self._send_bodies()
            return
        self._require_known(stream_id)
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.send_window += increment
        if stream.send_window > frames.MAX_WINDOW:
            self._reset(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
            self._count_reset()
        else:
            self._send_body(stream_id, stream)

    def _on_reset(self, stream_id: int, _code: int) -> None:
        self._require_known(stream_id)
        if stream_id in self._streams:
            self._drop(stream_id)
            self._count_reset()

    def _require_stream(self, stream_id: int) -> None:
        if not stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR)

    def _require_known(self, stream_id: int) -> None:
        """Only some frames may be on a stream that nobody has opened (RFC 9113, section 5.1)."""
        if not 0 < stream_id <= self._last_stream or not stream_id & 1:
            raise Violation(ErrorCode.PROTOCOL_ERROR)

    def _count_reset(self) -> None:
        self._resets += 1
        if self._resets > MAX_RESET_STREAMS:
            raise Violation(ErrorCode.ENHANCE_YOUR_CALM)

    # -- requests ------------------------------------------------------------------------------------------------

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id & 1:  # 0 included
            raise Violation(ErrorCode.PROTOCOL_ERROR)
        fragment = frames.header_fragment(flags, stream_id, payload)
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, flags, fragment)
        else:
            self._block = (stream_id, flags, bytearray(fragment))

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != stream_id:
            raise Violation(ErrorCode.PROTOCOL_ERROR)
        _, first_flags, block = self._block
        block += payload
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(stream_id, first_flags, bytes(block))

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        """A complete header block: a request's, or its trailers."""
        if stream_id > self._last_stream:
            self._on_request(stream_id, flags, self._heads.request(block))
            return
        stream = self._streams.get(stream_id)
        if stream is not None:
            if stream.ended:
                raise Violation(ErrorCode.STREAM_CLOSED)
            if not flags & frames.END_STREAM:
                raise Violation(ErrorCode.PROTOCOL_ERROR)
            self._heads.trailers(block)
            self._end(stream_id, stream)
        elif stream_id in self._abandoned:
            self._heads.skip(block)
        else:
            raise Violation(ErrorCode.STREAM_CLOSED)

    def _on_request(self, stream_id: int, flags: int, head: Head) -> None:
        self._last_stream = stream_id
        if len(self._streams) >= MAX_CONCURRENT_STREAMS:
            raise Violation(ErrorCode.PROTOCOL_ERROR)
        self._busy_at = now = self._loop.time()
        stream = self._streams[stream_id] = _Stream(head, now + self._service.patience.request, self._initial_window)
        if flags & frames.END_STREAM:
            self._end(stream_id, stream)

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._require_known(stream_id)
        size = len(payload)  # padding counts
        if size > self._window:
            raise Violation(ErrorCode.FLOW_CONTROL_ERROR)
        self._window -= size
        if self._window < _CONNECTION_WINDOW // 2:
            self._grant(0, _CONNECTION_WINDOW - self._window)
            self._window = _CONNECTION_WINDOW
        stream = self._streams.get(stream_id)
        if stream is None and stream_id in self._abandoned:
            return
        if stream is None or stream.ended:
            raise Violation(ErrorCode.STREAM_CLOSED)
        if size > stream.window:
            raise Violation(ErrorCode.FLOW_CONTROL_ERROR)
        stream.window -= size
        data = frames.without_padding(flags, payload)
        if not self._take(stream_id, stream, data):
            return
        if flags & frames.END_STREAM:
            self._end(stream_id, stream)
        elif stream.window < _WINDOW // 2:
            self._grant(stream_id, _WINDOW - stream.window)
            stream.window = _WINDOW

    def _grant(self, stream_id: int, size: int) -> None:
        self._out.append(frames.number_frame(frames.WINDOW_UPDATE, stream_id, size))

    def _take(self, stream_id: int, stream: _Stream, data: bytes) -> bool:
        """Keep a piece of a body, or refuse the request."""
        stream.received += len(data)
        if stream.head.length is not None and stream.received > stream.head.length:
            raise Violation(ErrorCode.PROTOCOL_ERROR)
        if len(stream.body) + len(data) > self._service.max_body_bytes:
            self._refuse(stream_id, stream, self._service.too_large())
        elif not self._share.take(len(data)):
            self._refuse(stream_id, stream, self._service.overloaded())
        else:
            stream.held += len(data)
            stream.body += data
            return True
        return False

    def _end(self, stream_id: int, stream: _Stream) -> None:
        """The request is complete."""
        if stream.head.length is not None and stream.received != stream.head.length:
            raise Violation(ErrorCode.PROTOCOL_ERROR)
        stream.ended = True
        stream.task = self._loop.create_task(self._run(stream_id, stream))

    async def _run(self, stream_id: int, stream: _Stream) -> None:
        head = stream.head
        request = Request(head.method, head.target, head.headers, bytes(stream.body), self._peer)
        stream.body.clear()
        try:
            response = await self._service.handle(request)
        except Exception:  # the handler logs; whatever broke, the connection and the process live
            response = self._service.failed()
        del request
        if self._streams.get(stream_id) is stream:
            self._resets = max(0, self._resets - 1)
            if self._says_length and (response.body or head.method != "HEAD"):
                response = response.with_header(b"content-length", b"%d" % len(response.body))
            if head.method == "HEAD":
                response = replace(response, body=b"", trailers=())
            stream.task = None
            self._respond(stream_id, stream, response)
            self._flush()

    # -- responses -----------------------------------------------------------------------------------------------

    def _refuse(self, stream_id: int, stream: _Stream, response: Response) -> None:
        """Answer before the request has ended, and ask the peer not to send the rest."""
        stream.ended = True
        self._respond(stream_id, stream, response)
        self._reset(stream_id, ErrorCode.NO_ERROR)

    def _respond(self, stream_id: int, stream: _Stream, response: Response) -> None:
        self._busy_at = now = self._loop.time()
        self._share.give(stream.held)
        stream.held = len(response.body)
        if not self._share.take(stream.held):
            response, stream.held = self._service.overloaded(), 0
        block = response_block(response.status, response.headers, forget=self._forget)
        self._forget = False
        if not response.body and not response.trailers:
            self._out.append(frames.header_frames(stream_id, block, end_stream=True, limit=self._frame_limit))
            self._drop(stream_id)
            return
        self._out.append(frames.header_frames(stream_id, block, end_stream=False, limit=self._frame_limit))
        stream.response, stream.trailers = response.body, response.trailers
        stream.deadline = now + self._service.patience.response
        self._send_body(stream_id, stream)

    def _send_bodies(self) -> None:
        for stream_id, stream in list(self._streams.items()):
            self._send_body(stream_id, stream)

    def _send_body(self, stream_id: int, stream: _Stream) -> None:
        """As much of a response as flow control lets through."""
        body = stream.response
        if body is None:
            return
        while stream.sent < len(body):
            if self._paused_at is not None:
                return
            size = min(self._send_window, stream.send_window, self._frame_limit, len(body) - stream.sent)
            if size <= 0:
                return
            chunk = body[stream.sent : stream.sent + size]
            stream.sent += size
            stream.send_window -= size
            self._send_window -= size
            last = stream.sent == len(body)
            flags = frames.END_STREAM if last and not stream.trailers else 0
            self._out.append(frames.frame(frames.DATA, flags, stream_id, chunk))
            if not last:
                self._flush()  # tells us, by pausing, when the peer is slower
        if stream.trailers:
            block = trailer_block(stream.trailers, forget=self._forget)
            self._forget = False
            self._out.append(frames.header_frames(stream_id, block, end_stream=True, limit=self._frame_limit))
        self._drop(stream_id)

    def _reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream from our side."""
        self._out.append(frames.number_frame(frames.RST_STREAM, stream_id, code))
        self._drop(stream_id)
        self._abandoned[stream_id] = None
        if len(self._abandoned) > MAX_REMEMBERED:
            del self._abandoned[next(iter(self._abandoned))]

    def _drop(self, stream_id: int) -> None:
        stream = self._streams.pop(stream_id, None)
        if stream is None:
            return
        self._share.give(stream.held)
        if stream.task is not None:
            stream.task.cancel()

    # -- connection ----------------------------------------------------------------------------------------------

    def _flush_soon(self) -> None:
        """Send what there is after the requests that have just begun.

        The only request of a connection is waited for a moment longer: its answer travels with our settings, and the
        peer confirms those while we need not listen any more. A system call and a record for each would cost more than
        everything that is done here.
        """
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if not self._out:
            return
        if len(self._streams) == 1 and all(stream.task is not None for stream in self._streams.values()):
            self._flushing = self._loop.call_later(_ANSWER_SECONDS, self._flush)
        else:
            self._flushing = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        if self._out and self._open and self._transport is not None:
            data = b"".join(self._out)
            self._out.clear()
            self._transport.write(data)

    def _go_away(self, code: ErrorCode) -> None:
        self._out.append(frames.goaway(self._last_stream, code))
        self._flush()
        self._close()

    def _close(self) -> None:
        self._open = False
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
            self._open = False
            if self._transport is not None:
                self._transport.abort()
            return
        for stream_id, stream in list(self._streams.items()):
            if stream.task is None and now > stream.deadline:
                self._reset(stream_id, ErrorCode.CANCEL)
        begun = now if self._block_at is None else self._block_at
        # A connection that never asks anything is not kept as long as one that did.
        idle = not self._streams and now > self._busy_at + (patience.idle if self._last_stream else patience.request)
        if idle or now > begun + patience.request:
            self._go_away(ErrorCode.NO_ERROR)
            return
        self._flush()
        self._restart_timer()
