"""Recovery over the client API (protocol, sections 7.4, 7.5 and 10.7)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from marblerun.coordinator.commands.recover import PLAIN_SIZES
from marblerun.coordinator.recovering import CannotDecrypt
from marblerun.coordinator.server import envelope
from marblerun.coordinator.server.exchange import BadRequest, Response
from marblerun.coordinator.server.rest.route import Call, Route, Table, base64_text, read_body
from marblerun.coordinator.service import Coordinator
from marblerun.errors import Busy, Unavailable, Untrusted, WrongPhase
from marblerun.wire import gojson
from marblerun.wire.limits import MAX_RECOVER_BODY_BYTES

_REHEARSED: Final[Mapping[bool | None, str]] = {
    None: "The secret is a right one; it is kept until as many as are needed were given, for a quarter of an hour.",
    True: "These secrets would recover this deployment. They are forgotten, and nothing was changed.",
    False: "These secrets would NOT recover this deployment, though each is one of it. They are forgotten.",
}
# A recovery that fails at its end, whatever the cause, forgets all secrets (protocol, section 10.7).
_AGAIN: Final = "; nothing was recovered, and all secrets have to be given again"
_RECOVER_BODY: Final = gojson.record(recoverySecret=gojson.byte_string, recoverySecretSignature=gojson.byte_string)


async def _recover(coordinator: Coordinator, call: Call) -> Response:
    # What follows the ceiling is not looked at, as in the reference; a body cut there is not JSON.
    request = replace(call.request, body=call.request.body[:MAX_RECOVER_BODY_BYTES])
    body = read_body(replace(call, request=request), _RECOVER_BODY)
    secret: bytes = body["recoverySecret"]
    try:
        progress = await coordinator.recover(secret, body["recoverySecretSignature"])
    except CannotDecrypt as problem:
        raise BadRequest(str(problem)) from None
    except WrongPhase as problem:
        if len(secret) in PLAIN_SIZES:
            raise
        raise BadRequest(str(problem)) from None
    except Busy:
        raise
    except Untrusted as problem:
        raise Untrusted(f"{problem.message}{_AGAIN}", step=problem.step, reason=problem.reason) from problem
    except Unavailable as problem:
        raise Unavailable(f"{problem.message}{_AGAIN}") from problem
    return envelope.record(remaining=progress.remaining, message=progress.message)


async def _public_key(coordinator: Coordinator, _call: Call) -> Response:
    key = await coordinator.recovery_public_key()
    return envelope.record(algorithm="RSA", ephemeralPublicKey=base64_text(key))


async def _rehearse(coordinator: Coordinator, call: Call) -> Response:
    request = replace(call.request, body=call.request.body[:MAX_RECOVER_BODY_BYTES])
    body = read_body(replace(call, request=request), _RECOVER_BODY)
    try:
        done = await coordinator.rehearse(body["recoverySecret"], body["recoverySecretSignature"])
    except CannotDecrypt as problem:
        raise BadRequest(str(problem)) from None
    return envelope.record(
        holder=done.holder,
        given=done.given,
        needed=done.needed,
        recoverable=done.recoverable,
        message=_REHEARSED[done.recoverable],
    )


async def _rehearsal_key(coordinator: Coordinator, _call: Call) -> Response:
    key = await coordinator.rehearsal_public_key()
    return envelope.record(algorithm="RSA", ephemeralPublicKey=base64_text(key))


async def _gone(_coordinator: Coordinator, _call: Call) -> Response:
    return envelope.error(410, "version 1 of the API has no recovery any more; use /api/v2/recover")


RECOVERY: Final[Table] = {
    "/recover": {"POST": Route(_gone)},
    "/api/v2/recover": {"POST": Route(_recover, jsend_fail=True)},
    "/api/v2/recover/public-key": {"GET": Route(_public_key, jsend_fail=True)},
    "/api/v2/recover/rehearse": {"POST": Route(_rehearse, jsend_fail=True)},
    "/api/v2/recover/rehearse/public-key": {"GET": Route(_rehearsal_key, jsend_fail=True)},
}
