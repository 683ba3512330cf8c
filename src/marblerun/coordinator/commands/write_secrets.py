"""Uploading values of user-defined secrets (protocol, section 6.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from marblerun.coordinator.commands import Event, Inputs, Outcome
from marblerun.coordinator.commands.caller import Operation, require_caller, require_deployment, require_granted
from marblerun.coordinator.commands.dry_run import try_templates
from marblerun.coordinator.commands.update_log import MAX_BY_SECRETS, log_line, logged
from marblerun.coordinator.state import State
from marblerun.errors import Malformed, NotFound
from marblerun.policy.access import WRITE_SECRET
from marblerun.secrets.model import Secret
from marblerun.secrets.upload import SecretUpload, apply_upload


def write_secrets(
    state: State, leaf: bytes | None, uploads: Mapping[str, SecretUpload], inputs: Inputs
) -> Outcome[None]:
    """Store all of the uploaded values, or none.

    1. the caller is a user (Unauthorized)  2. may write every one of them (Denied)  3. a manifest is in force
    (WrongPhase)  4. the secrets exist (NotFound)  5. the values fit their definitions (Malformed)  6. all templates
    work with them (Malformed)  7. a line of the update log for each

    The reference looks at permissions last, which lets a user ask about secrets that are not theirs. Only current
    values change; what ``.Previous`` shows stays as it is (protocol, section 6.7).
    """
    operation = Operation.WRITE_SECRETS
    user = require_caller(state, leaf, operation)  # 1
    if not uploads:
        raise Malformed("expected at least one secret")
    require_granted(user, operation, WRITE_SECRET, uploads)  # 2
    deployment = require_deployment(state)  # 3
    missing = sorted(uploads.keys() - deployment.secrets.keys())
    if missing:  # 4
        raise NotFound(f"there is no secret {', '.join(missing)}")
    uploaded: dict[str, Secret] = {
        name: apply_upload(name, deployment.secrets[name], upload)
        for name, upload in uploads.items()  # 5
    }
    new = replace(deployment, secrets={**deployment.secrets, **uploaded}, compiled={})
    try_templates(new, uploaded)  # 6
    lines = [
        log_line(inputs.at, "secret set", {"user": user.name, "secret": name, "type": uploaded[name].type})  # 7
        for name in sorted(uploaded)
    ]
    event = Event("secrets set", {"user": user.name, "secrets": ", ".join(sorted(uploaded))})
    log = logged(state, "".join(lines), MAX_BY_SECRETS)
    return Outcome(replace(state, deployment=new, update_log=log), None, (event,))
