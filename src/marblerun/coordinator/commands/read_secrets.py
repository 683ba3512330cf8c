"""Reading secrets as a user (protocol, sections 7.4 and 8.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from marblerun.coordinator.commands import Event, Outcome
from marblerun.coordinator.commands.caller import Operation, require_caller, require_deployment, require_granted
from marblerun.coordinator.state import State
from marblerun.errors import Malformed, NotFound
from marblerun.policy.access import READ_SECRET
from marblerun.secrets.model import Secret


def read_secrets(state: State, leaf: bytes | None, names: Sequence[str]) -> Outcome[Mapping[str, Secret]]:
    """The named secrets; those that nobody has uploaded yet come without a value.

    1. the caller is a user (Unauthorized)  2. may read every one of them (Denied)  3. a manifest is in force
    (WrongPhase)  4. the secrets exist (NotFound)
    """
    operation = Operation.READ_SECRETS
    user = require_caller(state, leaf, operation)  # 1
    if not names:
        raise Malformed("no secret is named")
    require_granted(user, operation, READ_SECRET, names)  # 2
    deployment = require_deployment(state)  # 3
    missing = sorted(set(names) - deployment.secrets.keys())
    if missing:  # 4
        raise NotFound(f"there is no secret {', '.join(missing)}")
    found = {name: deployment.secrets[name] for name in names}
    event = Event("secrets read", {"user": user.name, "secrets": ", ".join(sorted(found))})
    return Outcome(state, found, (event,))
