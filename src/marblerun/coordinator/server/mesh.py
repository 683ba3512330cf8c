"""The mesh API: gRPC's unary calls over HTTP/2, for the one method a Marble needs (protocol, section 2.1)."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from marblerun.coordinator.commands.activate import Activated, ActivationRequest
from marblerun.coordinator.server.exchange import Headers, Request, Response, Service
from marblerun.coordinator.server.overload import network_of
from marblerun.coordinator.server.problems import INTERNAL_TEXT, grpc_problem
from marblerun.coordinator.server.turns import Caller, Desk, Overload
from marblerun.errors import Busy, Malformed
from marblerun.wire.limits import MAX_GRPC_MESSAGE_BYTES
from marblerun.wire.rpc import (
    ACTIVATE_PATH,
    ActivationResp,
    GrpcStatus,
    MessageReader,
    encode_grpc_message,
    encode_message,
    parse_activation_request,
    parse_timeout,
)
from marblerun.wire.rpc.framing import PREFIX_BYTES

Activate = Callable[[ActivationRequest, bytes | None], Awaitable[Activated]]
"""What answers an activation: the request and the client's leaf certificate (DER)."""

# Longest that one activation may take, whatever the caller's patience.
MAX_ACTIVATION_SECONDS: Final = 120.0
_CONTENT_TYPE: Final = (b"content-type", b"application/grpc")
_GRPC: Final = re.compile(rb"application/grpc(?:[+;].*)?\Z", re.DOTALL)


def mesh_service(activate: Activate, desk: Desk | None = None) -> Service:
    """The mesh listener's requests, answered by ``activate`` in the turns that ``desk`` gives."""
    desk = desk or Overload().activations

    async def handle(request: Request) -> Response:
        refusal = _refuse_non_grpc(request)
        if refusal is not None:
            return refusal
        if request.target != ACTIVATE_PATH:
            return _status(GrpcStatus.UNIMPLEMENTED, f"unknown method {request.target[:200]}")
        if _announced_size(request.body) > MAX_GRPC_MESSAGE_BYTES:
            return _too_large()
        patience = _patience(request)
        if patience <= 0:
            return _late()
        deadline = asyncio.get_running_loop().time() + patience
        caller = Caller(network_of(request.peer.address), deadline)
        try:
            async with asyncio.timeout_at(deadline):
                await desk.enter(caller)
                try:
                    return _message(_encode(await activate(_parse(request), request.peer.leaf)))
                finally:
                    desk.leave(caller)
        except Busy as busy:
            return _busy(busy)
        except Malformed as error:
            return _status(GrpcStatus.INTERNAL, str(error))
        except TimeoutError:
            return _late()
        except Exception as error:
            return _status(*grpc_problem(error))

    return Service(
        handle=handle,
        max_body_bytes=MAX_GRPC_MESSAGE_BYTES + PREFIX_BYTES,
        too_large=_too_large,
        overloaded=lambda: _busy(Busy("too many activations at once; try again", retry_after=1.0)),
        failed=lambda: _status(GrpcStatus.INTERNAL, INTERNAL_TEXT),
    )


def _refuse_non_grpc(request: Request) -> Response | None:
    if request.method != "POST":
        refused = _status(GrpcStatus.INTERNAL, f"the method is {request.method[:20]}, gRPC uses POST")
        return replace(refused, status=405, headers=(*refused.headers, (b"allow", b"POST")))
    content_type = request.header(b"content-type")
    if content_type != b"application/grpc" and not _GRPC.match(content_type):
        return replace(_status(GrpcStatus.INVALID_ARGUMENT, "the content type is not that of gRPC"), status=415)
    encoding = request.header(b"grpc-encoding")
    if encoding not in (b"", b"identity"):
        return _status(GrpcStatus.UNIMPLEMENTED, "compressed messages are not accepted")
    return None


def _announced_size(body: bytes) -> int:
    return int.from_bytes(body[1:PREFIX_BYTES], "big") if len(body) >= PREFIX_BYTES else 0


def _too_large() -> Response:
    return _status(GrpcStatus.RESOURCE_EXHAUSTED, f"the message is larger than {MAX_GRPC_MESSAGE_BYTES} bytes")


def _late() -> Response:
    return _status(GrpcStatus.DEADLINE_EXCEEDED, "the activation took longer than the caller would wait")


def _busy(busy: Busy) -> Response:
    """Nothing has been begun; the trailer says when to try again (gRPC proposal A6)."""
    refused = _status(GrpcStatus.RESOURCE_EXHAUSTED, str(busy))
    hint = (b"grpc-retry-pushback-ms", b"%d" % round(busy.retry_after * 1000))
    return replace(refused, headers=(*refused.headers, hint))


def _patience(request: Request) -> float:
    text = request.header(b"grpc-timeout").decode("ascii", "replace")
    if not text:
        return MAX_ACTIVATION_SECONDS
    try:
        return min(parse_timeout(text), MAX_ACTIVATION_SECONDS)
    except Malformed:
        return MAX_ACTIVATION_SECONDS


def _parse(request: Request) -> ActivationRequest:
    reader = MessageReader(MAX_GRPC_MESSAGE_BYTES)
    messages = reader.feed(request.body)
    reader.finish()
    if len(messages) != 1:
        raise Malformed(f"a unary call carries one message, not {len(messages)}", where="grpc message")
    message = parse_activation_request(messages[0])
    return ActivationRequest(quote=message.Quote, csr=message.CSR, marble_type=message.MarbleType, uuid=message.UUID)


def _encode(activated: Activated) -> bytes:
    response = ActivationResp()
    parameters = response.Parameters
    parameters.SetInParent()  # also where all of it is empty
    parameters.Files.update(activated.files)
    parameters.Env.update(activated.env)
    parameters.Argv.extend(activated.argv)
    return response.SerializeToString()


def _message(message: bytes) -> Response:
    trailers: Headers = ((b"grpc-status", b"0"),)
    return Response(200, (_CONTENT_TYPE,), encode_message(message), trailers)


def _status(code: GrpcStatus, text: str) -> Response:
    """A trailers-only response (gRPC over HTTP/2): the call failed before any message."""
    message = encode_grpc_message(text).encode("ascii")
    return Response(200, (_CONTENT_TYPE, (b"grpc-status", b"%d" % code), (b"grpc-message", message)))
