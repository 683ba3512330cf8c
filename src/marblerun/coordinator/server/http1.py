"""HTTP/1.1 connections on the sans-I/O library h11: whole requests in, whole responses out."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Final

import h11

from marblerun.coordinator.server.exchange import ConnectionShare, Peer, Request, Response, Service
from marblerun.wire.limits import MAX_HEADER_BYTES

# A response is handed to TLS in pieces of this size, as fast as the peer takes them.
_WRITE_CHUNK: Final = 128 * 1024


class Http1Connection(asyncio.Protocol):
    """One HTTP/1.1 server connection; requests on it are answered one after the other."""

    def __init__(self, service: Service, peer: Peer) -> None:
        self._service = service
        self._peer = peer
        self._share = ConnectionShare(service)
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER_BYTES)
        self._request: h11.Request | None = None
        self._body = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    # -- asyncio callbacks ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """TLS is up."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._set_timer(self._service.patience.request)

    def data_received(self, data: bytes) -> None:
        """Plaintext from the peer."""
        if self._is_open():
            self._h11.receive_data(data)
            self._advance()

    def eof_received(self) -> None:
        """The peer has nothing more to say."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody is left to answer."""
        self._transport = None
        self._stop_timer()
        if self._task is not None:
            self._task.cancel()
        self._writable.set()
        self._body.clear()
        self._share.give_all()

    def pause_writing(self) -> None:
        """The peer reads slower than we answer."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The peer caught up."""
        self._writable.set()

    # -- requests ------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Take events from h11 until it needs more bytes or a request is being answered."""
        while self._is_open() and self._task is None:
            try:
                event = self._h11.next_event()
            except h11.RemoteProtocolError as error:
                self._refuse(error.error_status_hint)
                return
            if event is h11.NEED_DATA or event is h11.PAUSED:
                break
            assert not isinstance(event, type)
            self._on_event(event)
        if self._transport is None:
            return
        if self._task is not None and len(self._h11.trailing_data[0]) > MAX_HEADER_BYTES:
            self._transport.pause_reading()  # somebody pipelines faster than we answer
        else:
            self._transport.resume_reading()

    def _on_event(self, event: h11.Event) -> None:
        if isinstance(event, h11.Request):
            self._request = event
            self._body.clear()
            self._set_timer(self._service.patience.request)
            if event.http_version in (b"1.0", b"1.1"):
                self._check_announced_size(event)
            else:
                self._refuse(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        elif isinstance(event, h11.Data):
            self._on_data(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            self._stop_timer()
            self._task = asyncio.get_running_loop().create_task(self._run())
        else:  # ConnectionClosed
            self._close()

    def _check_announced_size(self, request: h11.Request) -> None:
        for name, value in request.headers:
            if name == b"content-length" and int(value) > self._service.max_body_bytes:
                self._answer_and_close(self._service.too_large())
                return
        if self._h11.they_are_waiting_for_100_continue:
            self._write(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])))

    def _on_data(self, data: bytes) -> None:
        if len(self._body) + len(data) > self._service.max_body_bytes:
            self._answer_and_close(self._service.too_large())
        elif not self._share.take(len(data)):
            self._answer_and_close(self._service.overloaded())
        else:
            self._body += data

    async def _run(self) -> None:
        """Answer the complete request, then look for the next one."""
        received, self._request = self._request, None
        assert received is not None
        size = len(self._body)
        request = Request(
            method=received.method.decode("ascii", "replace"),
            target=received.target.decode("latin-1"),
            headers=tuple((bytes(name), bytes(value)) for name, value in received.headers),
            body=bytes(self._body),
            peer=self._peer,
        )
        self._body.clear()
        try:
            response = await self._service.handle(request)
        except Exception:  # the handler logs; whatever broke, the connection and the process live
            response = self._service.failed()
        del request
        self._share.give(size)
        if not self._share.take(len(response.body)):
            response = self._service.overloaded()
            self._share.take(len(response.body))
        try:
            async with asyncio.timeout(self._service.patience.response):
                await self._send(response, head=received.method == b"HEAD")
        except TimeoutError:
            self._abort()
            return
        self._share.give(len(response.body))
        self._task = None
        self._finish_cycle()

    # -- responses -----------------------------------------------------------------------------------------------

    async def _send(self, response: Response, *, head: bool) -> None:
        """Send a whole response as fast as the peer takes it."""
        try:
            self._write(self._h11.send(_head_of(response)))
            if not head:
                for start in range(0, len(response.body), _WRITE_CHUNK):
                    await self._writable.wait()
                    self._write(self._h11.send(h11.Data(data=response.body[start : start + _WRITE_CHUNK])))
            self._write(self._h11.send(h11.EndOfMessage()))
        except h11.LocalProtocolError:
            self._close()
        await self._writable.wait()

    def _finish_cycle(self) -> None:
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self._set_timer(self._service.patience.keep_alive)
            self._advance()
        else:
            self._close()

    def _answer_and_close(self, response: Response) -> None:
        """Give a short answer to a request that is not wanted to its end."""
        try:
            self._write(self._h11.send(_head_of(response, close=True)))
            self._write(self._h11.send(h11.Data(data=response.body)))
            self._write(self._h11.send(h11.EndOfMessage()))
        except h11.LocalProtocolError:
            pass
        self._close()

    def _refuse(self, status: int) -> None:
        """Answer bytes that are not HTTP as well as the state of the connection allows, then close."""
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = b"%d bad request\n" % status
            self._answer_and_close(Response(status, ((b"content-type", b"text/plain; charset=utf-8"),), body))
        else:
            self._close()

    # -- connection ----------------------------------------------------------------------------------------------

    def _is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def _write(self, data: bytes | None) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        self._stop_timer()
        self._share.give(len(self._body))
        self._body.clear()
        if self._transport is not None:
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _set_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _head_of(response: Response, *, close: bool = False) -> h11.Response:
    headers = [*response.headers, (b"content-length", b"%d" % len(response.body))]
    if close:
        headers.append((b"connection", b"close"))
    return h11.Response(status_code=response.status, headers=headers, reason=_reason(response.status))


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""
