"""gRPC's unary calls over HTTP/2: what a listener with one method does around the call itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from marblerun.coordinator.server.exchange import Headers, Peer, Request, Response, Service
from marblerun.coordinator.server.overload import network_of
from marblerun.coordinator.server.problems import INTERNAL_TEXT
from marblerun.coordinator.server.turns import Caller, Desk
from marblerun.errors import Busy, Malformed
from marblerun.wire.rpc import GrpcStatus, encode_grpc_message, encode_message, parse_timeout
from marblerun.wire.rpc.framing import PREFIX_BYTES

_CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
_GRPC: Final = re.compile(rb"application/grpc(?:[+;](.*))?\Z", re.DOTALL)
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/]*={0,2}")


@dataclass(frozen=True, slots=True)
class Method:
    """The one method of a listener.

    ``answer`` takes the request's message and the peer and gives the response's message; ``problem`` says how its
    errors are answered.
    """

    path: str
    answer: Callable[[bytes, Peer], Awaitable[bytes]]
    problem: Callable[[Exception], tuple[GrpcStatus, str]]
    max_message_bytes: int
    max_seconds: float
    """Longest that one call may take, whatever the caller's patience."""
    what: str
    """What is asked for, in the plural."""


def unary_service(method: Method, desk: Desk) -> Service:
    """The requests of a listener, answered by ``method`` in the turns that ``desk`` gives."""

    async def handle(request: Request) -> Response:
        response = await answer(request)
        content_type = request.header(b"content-type")
        if content_type == _CONTENT_TYPE[1]:
            return response
        return replace(response, headers=(_echo(content_type), *response.headers[1:]))

    async def answer(request: Request) -> Response:
        refusal = _refuse_non_grpc(request)
        if refusal is not None:
            return refusal
        if request.target != method.path:
            return _status(GrpcStatus.UNIMPLEMENTED, f"unknown method {request.target[:200]}")
        if _announced_size(request.body) > method.max_message_bytes:
            return _too_large(method)
        patience = min(_timeout(request, method.max_seconds), method.max_seconds)
        if patience <= 0:
            return _late(method)
        deadline = asyncio.get_running_loop().time() + patience
        caller = Caller(network_of(request.peer.address), deadline)
        try:
            async with asyncio.timeout_at(deadline):
                await desk.enter(caller)
                try:
                    return _message(await method.answer(_first_message(request.body), request.peer))
                finally:
                    desk.leave(caller)
        except Busy as busy:
            return _busy(busy)
        except _CutOff as cut:
            return _status(GrpcStatus.UNKNOWN, str(cut))
        except Malformed as error:
            return _status(GrpcStatus.INTERNAL, str(error))
        except TimeoutError:
            return _late(method)
        except Exception as error:
            return _status(*method.problem(error))

    return Service(
        handle=handle,
        max_body_bytes=method.max_message_bytes + PREFIX_BYTES,
        too_large=lambda: _too_large(method),
        overloaded=lambda: _busy(Busy(f"too many {method.what} at once; try again", retry_after=1.0)),
        failed=lambda: _status(GrpcStatus.INTERNAL, INTERNAL_TEXT),
    )


class _CutOff(Exception):
    """The request ended before its message did."""


def _refuse_non_grpc(request: Request) -> Response | None:
    """The checks of grpc-go around a call, in its order."""
    content_type = request.header(b"content-type")
    if content_type != b"application/grpc" and not _GRPC.match(content_type):
        return replace(_status(GrpcStatus.INVALID_ARGUMENT, "the content type is not that of gRPC"), status=415)
    if any(name.endswith(b"-bin") and not _is_base64(value) for name, value in request.headers):
        return replace(_status(GrpcStatus.INTERNAL, "malformed binary metadata"), status=400)
    try:
        _timeout(request, 0.0)
    except Malformed as error:
        return replace(_status(GrpcStatus.INTERNAL, f"malformed grpc-timeout: {error}"), status=400)
    if request.method != "POST":
        refused = _status(GrpcStatus.INTERNAL, f"the method is {request.method[:20]}, gRPC uses POST")
        return replace(refused, status=405)
    encoding = request.header(b"grpc-encoding")
    if encoding not in (b"", b"identity"):
        return _status(GrpcStatus.UNIMPLEMENTED, "compressed messages are not accepted")
    return None


def _is_base64(value: bytes) -> bool:
    """Whether Go's decoder takes it: with padding to a multiple of four, or without any."""
    if not _BASE64.fullmatch(value):
        return False
    return len(value) % 4 == 0 or (len(value) % 4 != 1 and not value.endswith(b"="))


def _echo(content_type: bytes) -> tuple[bytes, bytes]:
    """The content type of an answer: with the subtype that was asked for, which is Protocol Buffers in any case."""
    found = _GRPC.match(content_type)
    subtype = found[1] if found is not None else None
    return (b"content-type", b"application/grpc+" + subtype) if subtype else _CONTENT_TYPE


def _announced_size(body: bytes) -> int:
    return int.from_bytes(body[1:PREFIX_BYTES], "big") if len(body) >= PREFIX_BYTES else 0


def _too_large(method: Method) -> Response:
    return _status(GrpcStatus.RESOURCE_EXHAUSTED, f"the message is larger than {method.max_message_bytes} bytes")


def _late(method: Method) -> Response:
    return _status(GrpcStatus.DEADLINE_EXCEEDED, f"{method.what}: the answer took longer than the caller would wait")


def _busy(busy: Busy) -> Response:
    """Nothing has been begun; the trailer says when to try again (gRPC proposal A6)."""
    refused = _status(GrpcStatus.RESOURCE_EXHAUSTED, str(busy))
    hint = (b"grpc-retry-pushback-ms", b"%d" % round(busy.retry_after * 1000))
    return replace(refused, headers=(*refused.headers, hint))


def _timeout(request: Request, longest: float) -> float:
    """The caller's patience in seconds, ``longest`` if nothing was said; raises Malformed."""
    text = request.header(b"grpc-timeout")
    if not text and not any(name == b"grpc-timeout" for name, _ in request.headers):
        return longest
    return parse_timeout(text.decode("ascii", "replace"))


def _first_message(body: bytes) -> bytes:
    """The message of a unary call; what follows it is not looked at. Raises Malformed, or _CutOff."""
    if len(body) < PREFIX_BYTES:
        raise _CutOff("unexpected EOF" if body else "EOF")
    end = PREFIX_BYTES + _announced_size(body)
    if len(body) < end:
        raise _CutOff("unexpected EOF")
    if body[0]:
        raise Malformed("the message is compressed, but no encoding was agreed on", where="grpc message")
    return body[PREFIX_BYTES:end]


def _message(message: bytes) -> Response:
    trailers: Headers = ((b"grpc-status", b"0"),)
    return Response(200, (_CONTENT_TYPE,), encode_message(message), trailers)


def _status(code: GrpcStatus, text: str) -> Response:
    """A trailers-only response (gRPC over HTTP/2): the call failed before any message."""
    message = encode_grpc_message(text).encode("ascii")
    return Response(200, (_CONTENT_TYPE, (b"grpc-status", b"%d" % code), (b"grpc-message", message)))
