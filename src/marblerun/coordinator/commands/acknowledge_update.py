"""Agreeing to a pending update; the last one needed applies it (protocol, section 9.4)."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import replace

from marblerun.coordinator.commands import Event, Inputs, Outcome
from marblerun.coordinator.commands.apply_update import apply_update
from marblerun.coordinator.commands.caller import Operation, require_caller
from marblerun.coordinator.commands.set_manifest import verify_usable
from marblerun.coordinator.commands.update_log import log_line
from marblerun.coordinator.commands.update_reply import IN_FORCE, NoUpdateInProgress, UpdateReply
from marblerun.coordinator.state import PendingUpdate, State
from marblerun.errors import Conflict, Denied, MarbleRunError
from marblerun.manifest.parse import parse_manifest


def acknowledge_update(
    state: State, leaf: bytes | None, raw: bytes, inputs: Inputs, environment: Mapping[str, str]
) -> Outcome[UpdateReply]:
    """Count the caller's agreement to the pending update.

    1. the caller is a user (Unauthorized)  2. an update is pending (NoUpdateInProgress)  3. the caller is one of those
    who may acknowledge it (Denied)  4. ``raw`` is byte for byte the pending manifest (Conflict)  5. a line of the
    update log  6. with nothing missing, the update is applied

    A second time by the same user changes nothing, the log included, which would grow with every one. If applying
    fails, the reply says why and the new state is the old one without the pending update.
    """
    user = require_caller(state, leaf, Operation.ACKNOWLEDGE)  # 1
    pending = state.pending_update
    if pending is None:  # 2
        raise NoUpdateInProgress
    if user.name not in pending.acknowledged:  # 3
        raise Denied(f"user {user.name} is not one of those who may acknowledge this update")
    if not hmac.compare_digest(raw, pending.manifest):  # 4
        raise Conflict("the manifest is not the pending one: it has to be the same byte for byte")
    first_time = not pending.acknowledged[user.name]
    if not first_time and pending.missing > 0:
        return Outcome(state, UpdateReply.waiting(pending))
    pending = PendingUpdate(
        pending.manifest, {**pending.acknowledged, user.name: True}, pending.missing - (1 if first_time else 0)
    )
    fields = {
        "user": user.name,
        "missingAcknowledgments": max(pending.missing, 0),
        "missingUsers": pending.missing_users,
        "manifestFingerprint": pending.fingerprint,
    }
    line = log_line(inputs.at, "manifest update acknowledged", fields)  # 5
    acknowledged = replace(state, pending_update=pending, update_log=state.update_log + line)
    event = Event("manifest update acknowledged", {"user": user.name, "fingerprint": pending.fingerprint})
    if pending.missing > 0:
        return Outcome(acknowledged, UpdateReply.waiting(pending), (event,))
    outcome = _apply(acknowledged, pending, inputs, environment)  # 6
    return replace(outcome, events=(event, *outcome.events))


def _apply(
    state: State, pending: PendingUpdate, inputs: Inputs, environment: Mapping[str, str]
) -> Outcome[UpdateReply]:
    try:
        manifest = parse_manifest(pending.manifest)
        verify_usable(manifest, environment)
        applied = apply_update(state, pending.manifest, manifest, inputs)
    except MarbleRunError as failure:
        line = log_line(
            inputs.at, "manifest update failed and was cancelled", {"manifestFingerprint": pending.fingerprint}
        )
        dropped = replace(state, pending_update=None, update_log=state.update_log + line)
        fields = {"fingerprint": pending.fingerprint, "reason": str(failure)}
        event = Event("the manifest update cannot be applied; it is dropped", fields, warning=True)
        return Outcome(dropped, UpdateReply(failure=failure), (event,))
    reply = UpdateReply(recovery_secrets=applied.recovery_secrets, message=IN_FORCE)
    return Outcome(applied.state, reply, applied.events)
