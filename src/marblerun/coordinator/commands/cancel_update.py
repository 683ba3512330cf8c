"""Giving up a pending update (protocol, section 9.4)."""

from __future__ import annotations

from dataclasses import replace

from marblerun.coordinator.commands import Event, Inputs, Outcome
from marblerun.coordinator.commands.caller import Operation, require_caller
from marblerun.coordinator.commands.update_log import log_line
from marblerun.coordinator.commands.update_reply import NoUpdateInProgress
from marblerun.coordinator.state import State


def cancel_update(state: State, leaf: bytes | None, inputs: Inputs) -> Outcome[str]:
    """Drop the pending update; any user who may update the manifest can. The reply is for people.

    1. the caller is a user (Unauthorized)  2. may update the manifest (Denied)  3. an update is pending
    (NoUpdateInProgress)  4. a line of the update log
    """
    user = require_caller(state, leaf, Operation.CANCEL)  # 1, 2
    pending = state.pending_update
    if pending is None:  # 3
        raise NoUpdateInProgress
    fields = {"user": user.name, "manifestFingerprint": pending.fingerprint}
    line = log_line(inputs.at, "manifest update cancelled", fields)  # 4
    event = Event("manifest update cancelled", {"user": user.name, "fingerprint": pending.fingerprint})
    new = replace(state, pending_update=None, update_log=state.update_log + line)
    return Outcome(new, "The pending update is cancelled", (event,))
