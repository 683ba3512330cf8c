"""Starting an update: packages at once, a whole manifest as soon as enough users agree (protocol, 9.1 and 9.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from marblerun.coordinator.commands import Event, Inputs, Outcome
from marblerun.coordinator.commands.apply_update import apply_update
from marblerun.coordinator.commands.caller import Operation, require_caller, require_deployment, require_granted
from marblerun.coordinator.commands.set_manifest import verify_usable
from marblerun.coordinator.commands.update_log import log_line
from marblerun.coordinator.commands.update_packages import update_packages
from marblerun.coordinator.commands.update_reply import IN_FORCE, UpdateReply
from marblerun.coordinator.state import Deployment, PendingUpdate, State
from marblerun.errors import Conflict
from marblerun.manifest.changes import is_package_update
from marblerun.manifest.model import Manifest
from marblerun.manifest.parse import parse_manifest
from marblerun.policy.access import UPDATE_MANIFEST, User, update_users


def update_manifest(
    state: State, leaf: bytes | None, raw: bytes, inputs: Inputs, environment: Mapping[str, str]
) -> Outcome[UpdateReply]:
    """Start the update that ``raw`` asks for.

    1. the caller is a user (Unauthorized) who may update something (Denied)  2. ``raw`` is a manifest (Malformed)
    3. no update is pending (Conflict)  4. packages alone are a package update, anything more a full one
    """
    user = require_caller(state, leaf, Operation.UPDATE)  # 1
    manifest = parse_manifest(raw)  # 2
    if state.pending_update is not None:  # 3
        raise Conflict("update already in progress: it has to be acknowledged or cancelled first")
    if is_package_update(manifest):  # 4
        return update_packages(state, user, manifest, inputs)
    return _start(state, user, raw, manifest, inputs, environment)


def _start(
    state: State, user: User, raw: bytes, manifest: Manifest, inputs: Inputs, environment: Mapping[str, str]
) -> Outcome[UpdateReply]:
    """Start a full update, and apply it if nobody else has to agree.

    It is applied on trial even where it has to wait, so that nobody acknowledges what cannot work; the reference finds
    that out after the last acknowledgment (protocol, section 12.3, no. 39).
    """
    require_granted(user, Operation.UPDATE, UPDATE_MANIFEST)
    deployment = require_deployment(state)
    verify_usable(manifest, environment)
    pending = _pending(deployment, user, raw)
    fields: dict[str, object] = {"user": user.name}
    if pending.missing > 0:
        fields |= {"missingAcknowledgments": pending.missing, "missingUsers": pending.missing_users}
    fields["manifestFingerprint"] = pending.fingerprint
    line = log_line(inputs.at, "manifest update started", fields)
    started = replace(state, pending_update=pending, update_log=state.update_log + line)
    event = Event(
        "manifest update started",
        {"user": user.name, "fingerprint": pending.fingerprint, "missing": max(pending.missing, 0)},
    )
    applied = apply_update(started, raw, manifest, inputs)
    if pending.missing > 0:
        return Outcome(started, UpdateReply.waiting(pending), (event,))
    reply = UpdateReply(recovery_secrets=applied.recovery_secrets, message=IN_FORCE)
    return Outcome(applied.state, reply, (event, *applied.events))


def _pending(deployment: Deployment, user: User, raw: bytes) -> PendingUpdate:
    """The update with its first acknowledgment, under the rules of the manifest in force."""
    required = update_users(deployment.users)
    needed = deployment.config.update_threshold or len(required)
    return PendingUpdate(raw, {name: name == user.name for name in required}, needed - 1)
