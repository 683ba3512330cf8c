"""Who asks, and may they: looked at before anything else of a request (protocol, sections 7.3 and 8)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import ClassVar, Final

from marblerun.coordinator.commands.update_reply import NoUpdateInProgress
from marblerun.coordinator.state import Deployment, Phase, State
from marblerun.errors import Denied, WrongPhase
from marblerun.policy.access import (
    READ_SECRET,
    UPDATE_MANIFEST,
    UPDATE_SECURITY_VERSION,
    WRITE_SECRET,
    User,
    find_user,
    is_granted,
)


class Operation(StrEnum):
    """What only users may do, in words for messages."""

    READ_SECRETS = "read secrets"
    WRITE_SECRETS = "write secrets"
    UPDATE = "update the manifest"
    ACKNOWLEDGE = "acknowledge an update"
    CANCEL = "cancel an update"


PERMISSIONS: Final[Mapping[Operation, tuple[str, ...]]] = {
    Operation.READ_SECRETS: (READ_SECRET,),
    Operation.WRITE_SECRETS: (WRITE_SECRET,),
    Operation.UPDATE: (UPDATE_SECURITY_VERSION, UPDATE_MANIFEST),
    Operation.ACKNOWLEDGE: (READ_SECRET, WRITE_SECRET, UPDATE_SECURITY_VERSION, UPDATE_MANIFEST),
    Operation.CANCEL: (UPDATE_MANIFEST,),
}
"""Permissions of which a caller needs at least one for an operation to be looked at; the command asks for the very one
and for the names. Who may acknowledge is in the pending update; until that is known it is anybody who may do anything.
Source: protocol, section 8.2.
"""

# Clients look for the beginning (protocol, section 14). No certificate, an unknown one and no users at all read the
# same, so that nobody learns which of them it was.
UNAUTHORIZED: Final = "unauthorized user: this needs the client certificate of a user of the manifest in force"


# Callers choose the names that a refusal repeats.
_SHOWN_NAME: Final = 200
_SHOWN_NAMES: Final = 20


class Unauthorized(Denied):
    """The caller is not a user."""

    code: ClassVar[str] = "unauthorized"

    def __init__(self) -> None:
        super().__init__(UNAUTHORIZED)


def find_caller(state: State, leaf: bytes | None) -> User:
    """The user whose certificate (DER) the caller has proven to own; raises Unauthorized for anybody else."""
    users = state.deployment.users if state.deployment is not None else {}
    user = find_user(users, leaf or b"")
    if user is None:
        raise Unauthorized
    return user


def require_caller(state: State, leaf: bytes | None, operation: Operation) -> User:
    """The user, if ``operation`` can be for them at all; raises Unauthorized, or Denied without a permission.

    Where nothing is pending there is nothing to acknowledge, for nobody: NoUpdateInProgress.
    """
    user = find_caller(state, leaf)
    if not any(is_granted(user, permission) for permission in PERMISSIONS[operation]):
        if operation is Operation.ACKNOWLEDGE and state.pending_update is None:
            raise NoUpdateInProgress
        raise _denied(user, operation)
    return user


def require_granted(user: User, operation: Operation, permission: str, names: Iterable[str] = ()) -> None:
    """Return if the user has the permission for all names; raises Denied with the names it is missing for.

    Whether a name exists has no influence, so that nobody learns about what is not theirs.
    """
    missing = tuple(sorted(name for name in set(names) if not is_granted(user, permission, [name])))
    if missing or not is_granted(user, permission):
        told = tuple(f"no permission for {name[:_SHOWN_NAME]}" for name in missing[:_SHOWN_NAMES])
        raise _denied(user, operation, told)


def require_deployment(state: State) -> Deployment:
    """What the manifest in force became; raises WrongPhase where there is none."""
    if state.phase is not Phase.ACCEPTING_MARBLES or state.deployment is None:
        raise WrongPhase("server is not in expected state: this needs a manifest in force")
    return state.deployment


def _denied(user: User, operation: Operation, mismatches: tuple[str, ...] = ()) -> Denied:
    return Denied(f"user {user.name} is not allowed to {operation.value}", mismatches=mismatches)
