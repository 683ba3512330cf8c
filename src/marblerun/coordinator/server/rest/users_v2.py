"""Version 2 of what users do: secrets and updates (protocol, section 7.4)."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from marblerun.coordinator.commands.caller import Operation
from marblerun.coordinator.commands.update_reply import UpdateReply, waiting_text
from marblerun.coordinator.server import envelope
from marblerun.coordinator.server.exchange import Response
from marblerun.coordinator.server.rest.route import (
    MANIFEST_BODY,
    Call,
    Route,
    Table,
    base64_text,
    read_large_body,
    secret_names,
)
from marblerun.coordinator.service import Coordinator
from marblerun.secrets.codec import UPLOAD_MAP, secret_object
from marblerun.wire import gojson

_SECRETS_BODY: Final = gojson.record(secrets=UPLOAD_MAP)


async def _get_secrets(coordinator: Coordinator, call: Call) -> Response:
    found = await coordinator.read_secrets(call.leaf, secret_names(call))
    return envelope.success({"secrets": {name: secret_object(secret) for name, secret in found.items()}})


async def _post_secrets(coordinator: Coordinator, call: Call) -> Response:
    body = await read_large_body(call, _SECRETS_BODY)
    await coordinator.write_secrets(call.leaf, body["secrets"])
    return envelope.success(None)


async def _get_update(coordinator: Coordinator, _call: Call) -> Response:
    return _log(coordinator.update_log())


@lru_cache(maxsize=1)
def _log(text: str) -> Response:
    """Made once for each state of the log: anybody may ask for it."""
    return envelope.success({"updateLog": text.removesuffix("\n").split("\n")})


async def _post_update(coordinator: Coordinator, call: Call) -> Response:
    async def update() -> Response:
        body = await read_large_body(call, MANIFEST_BODY)
        reply = await coordinator.update_manifest(call.leaf, body["manifest"])
        return envelope.record(
            missingAcknowledgments=reply.missing, missingUsers=_missing_users(reply), **_recovery_secrets(reply)
        )

    return await call.between.repeats.answer(call.request, update)


async def get_pending(coordinator: Coordinator, _call: Call) -> Response:
    """The pending update; both versions answer it the same way."""
    pending = coordinator.pending_update()
    return _pending(pending.manifest, waiting_text(pending), pending.missing_users)


@lru_cache(maxsize=1)
def _pending(manifest: bytes, message: str, missing_users: tuple[str, ...]) -> Response:
    """Made once for each standing of the update: anybody may ask for it."""
    return envelope.record(manifest=base64_text(manifest), message=message, missingUsers=list(missing_users))


async def _post_pending(coordinator: Coordinator, call: Call) -> Response:
    async def acknowledge() -> Response:
        body = await read_large_body(call, MANIFEST_BODY)
        reply = await coordinator.acknowledge_update(call.leaf, body["manifest"])
        return envelope.record(
            message=reply.message,
            missingUsers=_missing_users(reply),
            missingAcknowledgments=reply.missing,
            **_recovery_secrets(reply),
        )

    return await call.between.repeats.answer(call.request, acknowledge)


async def _post_cancel(coordinator: Coordinator, call: Call) -> Response:
    return envelope.success({"message": await coordinator.cancel_update(call.leaf)})


def _missing_users(reply: UpdateReply) -> list[str] | None:
    return list(reply.missing_users) if reply.missing else None


def _recovery_secrets(reply: UpdateReply) -> dict[str, object]:
    """Only if there are new ones; an empty object if there are no more keys."""
    if reply.recovery_secrets is None:
        return {}
    return {"recoverySecrets": {name: base64_text(share) for name, share in reply.recovery_secrets.items()}}


USERS_V2: Final[Table] = {
    "/api/v2/secrets": {
        "GET": Route(_get_secrets, jsend_fail=True, operation=Operation.READ_SECRETS),
        "POST": Route(_post_secrets, jsend_fail=True, operation=Operation.WRITE_SECRETS),
    },
    "/api/v2/update": {
        "GET": Route(_get_update, jsend_fail=True),
        "POST": Route(_post_update, jsend_fail=True, operation=Operation.UPDATE),
    },
    "/api/v2/update-manifest": {
        "GET": Route(get_pending, failed=404, jsend_fail=True),
        "POST": Route(_post_pending, jsend_fail=True, operation=Operation.ACKNOWLEDGE),
    },
    "/api/v2/update-cancel": {"POST": Route(_post_cancel, jsend_fail=True, operation=Operation.CANCEL)},
}
