"""HTTP/1 connections: whole requests in, whole responses out, in the forms of Go's server."""

from __future__ import annotations

import asyncio
import time
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from marblerun.coordinator.server.exchange import ConnectionShare, Peer, Request, Response, Service
from marblerun.coordinator.server.http1_heads import BadBody, BadHead, BodyReader, Head1, head_end, parse_head
from marblerun.wire.limits import MAX_HEADER_BYTES

# A response is handed to TLS in pieces of this size, as fast as the peer takes them.
_WRITE_CHUNK: Final = 128 * 1024
_REFUSAL: Final = b"HTTP/1.1 %d %s\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n%s"


class Http1Connection(asyncio.Protocol):
    """One HTTP/1 server connection; requests on it are answered one after the other."""

    def __init__(self, service: Service, peer: Peer) -> None:
        self._service = service
        self._peer = peer
        self._share = ConnectionShare(service)
        self._received = bytearray()
        self._searched = 0  # of those, for the end of a head
        self._head: Head1 | None = None
        self._reader = BodyReader(0)
        self._body = bytearray()
        self._after_post = False
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
            self._received += data
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
        self._received.clear()
        self._share.give_all()

    def pause_writing(self) -> None:
        """The peer reads slower than we answer."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The peer caught up."""
        self._writable.set()

    # -- requests ------------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Take from what has arrived until more is needed or a request is being answered."""
        try:
            while self._is_open() and self._task is None and self._step():
                pass
        except BadHead as bad:
            self._refuse(bad.status, bad.text)
        except BadBody:
            self._refuse(400, "Bad Request")
        if self._transport is None:
            return
        if self._task is not None and len(self._received) > MAX_HEADER_BYTES:
            self._transport.pause_reading()  # somebody pipelines faster than we answer
        else:
            self._transport.resume_reading()

    def _step(self) -> bool:
        """Take one head or a piece of a body; whether there may be more to take."""
        if self._head is None:
            return self._take_head()
        data = self._reader.take(self._received)
        if data:
            self._on_data(data)
        if self._reader.done and self._is_open():
            self._stop_timer()
            self._task = asyncio.get_running_loop().create_task(self._run(self._head))
        return False

    def _take_head(self) -> bool:
        if self._after_post:  # line ends that some clients send behind a body
            del self._received[: len(self._received) - len(self._received.lstrip(b"\r\n"))]
        if not self._received:
            return False
        self._after_post = False
        end = head_end(self._received, self._searched)
        if not end:
            self._searched = len(self._received)
            return False
        head = self._head = parse_head(bytes(self._received[:end]))
        del self._received[:end]
        self._searched = 0
        self._reader = BodyReader(head.length)
        self._body.clear()
        self._set_timer(self._service.patience.request)
        if head.is_expectation_unknown:
            self._answer_and_close(Response(417))
        elif head.length is not None and head.length > self._service.max_body_bytes:
            self._answer_and_close(self._service.too_large())
        elif head.expects_continue:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _on_data(self, data: bytes) -> None:
        if len(self._body) + len(data) > self._service.max_body_bytes:
            self._answer_and_close(self._service.too_large())
        elif not self._share.take(len(data)):
            self._answer_and_close(self._service.overloaded())
        else:
            self._body += data

    async def _run(self, head: Head1) -> None:
        """Answer the complete request, then look for the next one."""
        size = len(self._body)
        keep = head.keep
        if head.target == "*" and head.method != "OPTIONS":  # about the server as a whole there is nothing else to say
            response, keep = Response(400), keep and not head.is_1_1
            self._body.clear()
        else:
            request = Request(head.method, head.target, head.headers, bytes(self._body), self._peer)
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
                await self._send(head, response, keep=keep)
        except TimeoutError:
            self._abort()
            return
        self._share.give(len(response.body))
        self._task = self._head = None
        self._after_post = head.method == "POST"
        if keep:
            self._set_timer(self._service.patience.keep_alive)
            self._advance()
        else:
            self._close()

    # -- responses -----------------------------------------------------------------------------------------------

    async def _send(self, head: Head1, response: Response, *, keep: bool) -> None:
        """Send a whole response as fast as the peer takes it."""
        is_head = head.method == "HEAD"
        self._write(response_head(response, is_1_1=head.is_1_1, keep=keep, head=is_head))
        if not is_head:
            for start in range(0, len(response.body), _WRITE_CHUNK):
                await self._writable.wait()
                self._write(response.body[start : start + _WRITE_CHUNK])
        await self._writable.wait()

    def _answer_and_close(self, response: Response) -> None:
        """Give a short answer to a request that is not wanted to its end."""
        is_1_1 = self._head is None or self._head.is_1_1
        self._write(response_head(response, is_1_1=is_1_1, keep=False) + response.body)
        self._close()

    def _refuse(self, status: int, text: str) -> None:
        """Answer bytes that are not a request, then close."""
        words = text.encode("ascii")
        body = b"Unsupported transfer encoding" if status == 501 else b"%d %s" % (status, words)
        self._write(_REFUSAL % (status, words, body))
        self._close()

    # -- connection ----------------------------------------------------------------------------------------------

    def _is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        self._stop_timer()
        self._share.give(len(self._body))
        self._body.clear()
        self._received.clear()
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


def response_head(response: Response, *, is_1_1: bool, keep: bool, head: bool = False) -> bytes:
    """The head of a response; ``keep`` says whether the connection goes on after it, ``head`` that HEAD was asked."""
    fields = [(_spelled(name), value) for name, value in response.headers]
    if not any(name == b"Date" for name, _ in fields):
        fields.append((b"Date", _date(int(time.time()))))
    if response.body or not head:
        fields.append((b"Content-Length", b"%d" % len(response.body)))
    if keep != is_1_1 or response.status == 417:  # each version has its own default
        fields.append((b"Connection", b"keep-alive" if keep else b"close"))
    version = b"1.1" if is_1_1 else b"1.0"
    start = b"HTTP/%s %d %s\r\n" % (version, response.status, _reason(response.status))
    return start + b"".join([b"%s: %s\r\n" % field for field in fields]) + b"\r\n"


@lru_cache(maxsize=64)
def _spelled(name: bytes) -> bytes:
    return name.title()


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode("ascii")


def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode("ascii")
    except ValueError:
        return b""
