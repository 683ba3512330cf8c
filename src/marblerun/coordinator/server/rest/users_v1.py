"""Version 1 of what users do: bodies and answers without wrapping (protocol, section 7.5)."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Final

from marblerun.coordinator.commands.caller import Operation
from marblerun.coordinator.server import envelope
from marblerun.coordinator.server.exchange import Response
from marblerun.coordinator.server.rest.route import Call, Route, Table, secret_names
from marblerun.coordinator.server.rest.users_v2 import get_pending
from marblerun.coordinator.service import Coordinator
from marblerun.secrets.codec import decode_uploads, secret_object


async def _get_secrets(coordinator: Coordinator, call: Call) -> Response:
    found = await coordinator.read_secrets(call.leaf, secret_names(call))
    return envelope.success({name: secret_object(secret) for name, secret in found.items()})


async def _post_secrets(coordinator: Coordinator, call: Call) -> Response:
    await coordinator.write_secrets(call.leaf, await asyncio.to_thread(decode_uploads, call.request.body))
    return envelope.success(None)


async def _get_update(coordinator: Coordinator, _call: Call) -> Response:
    return _log(coordinator.update_log())


@lru_cache(maxsize=1)
def _log(text: str) -> Response:
    """Made once for each state of the log: anybody may ask for it."""
    return envelope.success(text)


async def _post_update(coordinator: Coordinator, call: Call) -> Response:
    await coordinator.update_manifest(call.leaf, call.request.body)
    return envelope.success(None)


async def _post_pending(coordinator: Coordinator, call: Call) -> Response:
    return envelope.success((await coordinator.acknowledge_update(call.leaf, call.request.body)).message)


async def _post_cancel(coordinator: Coordinator, call: Call) -> Response:
    return envelope.success(await coordinator.cancel_update(call.leaf))


USERS_V1: Final[Table] = {
    "/secrets": {
        "GET": Route(_get_secrets, failed=400, operation=Operation.READ_SECRETS),
        "POST": Route(_post_secrets, failed=400, operation=Operation.WRITE_SECRETS),
    },
    "/update": {
        "GET": Route(_get_update),
        "POST": Route(_post_update, failed=400, operation=Operation.UPDATE),
    },
    "/update-manifest": {
        "GET": Route(get_pending, failed=404),
        "POST": Route(_post_pending, operation=Operation.ACKNOWLEDGE),
    },
    "/update-cancel": {"POST": Route(_post_cancel, operation=Operation.CANCEL)},
}
