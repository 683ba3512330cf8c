"""Making a new manifest the one in force, in one step (protocol, section 9.5)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from marblerun.coordinator.commands import Event, Inputs
from marblerun.coordinator.commands.authority import renewed_authority
from marblerun.coordinator.commands.dry_run import try_templates
from marblerun.coordinator.commands.set_manifest import new_recovery, sign_manifest
from marblerun.coordinator.commands.start import ROOT_SECRET_BYTES
from marblerun.coordinator.commands.update_log import log_line
from marblerun.coordinator.state import DataKey, Deployment, State
from marblerun.manifest import changes
from marblerun.manifest.model import Manifest
from marblerun.manifest.parse import parse_manifest
from marblerun.policy.access import users_equal, users_from_manifest
from marblerun.secrets import generate
from marblerun.secrets.model import Secret, SecretDefinition, SecretType

T = TypeVar("T")


@dataclass(frozen=True, slots=True, repr=False)
class Applied:
    """The state with the new manifest in force."""

    state: State
    recovery_secrets: Mapping[str, bytes] | None
    """By recovery key name, encrypted to it; ``None`` if the recovery keys stayed the same."""
    events: tuple[Event, ...]


def apply_update(state: State, raw: bytes, manifest: Manifest, inputs: Inputs) -> Applied:
    """Replace the manifest in force by ``manifest``, whose bytes are ``raw``.

    1. entities: what is equal stays as it is stored  2. root secret, if it is to rotate  3. new intermediate CA
    4. secrets  5. all templates work (Malformed)  6. manifest, signature, log; nothing is pending any more
    7. new data key, if the recovery keys changed

    Root certificate, counters and the log of the past are kept. Package versions become what the manifest says, also
    if a package update raised them further.
    """
    old = state.deployment
    if old is None:
        raise RuntimeError("apply_update() needs a manifest in force")
    rotates = manifest.config.rotate_root_secret
    new = replace(state, pending_update=None)
    if rotates:  # 2
        fresh = inputs.entropy.token(ROOT_SECRET_BYTES)
        new = replace(new, root_secret=fresh, previous_root_secret=state.root_secret)
    new = replace(new, authority=renewed_authority(state.authority, inputs))  # 3
    generation = generate.Inputs(new.root_secret, new.authority.marble_issuer, inputs.at, inputs.entropy)
    secrets, previous = _secrets(old, manifest.secrets, generation, rotates=rotates)  # 4
    deployment = replace(
        old,
        manifest=raw,  # 6
        signature=sign_manifest(state.authority.root_key, raw),
        config=manifest.config,
        packages=_merged(old.packages, manifest.packages, changes.packages_equal),  # 1
        infrastructures=_merged(old.infrastructures, manifest.infrastructures, changes.infrastructures_equal),
        marbles=_merged(old.marbles, manifest.marbles, changes.marbles_equal),
        tls=_merged(old.tls, manifest.tls, changes.tls_tags_equal),
        users=_merged(old.users, users_from_manifest(manifest), users_equal),
        secrets=secrets,
        previous_secrets=previous,
        compiled={},
    )
    try_templates(deployment, lenient=True)  # 5
    fingerprint = hashlib.sha256(raw).hexdigest()
    line = log_line(inputs.at, "manifest update applied", {"manifestFingerprint": fingerprint})
    new = replace(new, deployment=deployment, update_log=new.update_log + line)
    event = Event("manifest updated", {"fingerprint": fingerprint, "marbles": len(manifest.marbles)})
    if not changes.is_recovery_changed(parse_manifest(old.manifest), manifest):
        return Applied(new, None, (event, *_remarks(old, manifest)))
    recovery = new_recovery(manifest, inputs.entropy)  # 7
    new = replace(new, data_key=DataKey(recovery.key, recovery.recovery_data))
    return Applied(new, recovery.shares, (event, *_remarks(old, manifest)))


def _merged(old: Mapping[str, T], new: Mapping[str, T], equal: Callable[[T, T], bool]) -> dict[str, T]:
    """The new entities, each in the stored form where it is equal: order and spelling may differ without a meaning."""
    return {name: old[name] if name in old and equal(old[name], value) else value for name, value in new.items()}


def _secrets(
    old: Deployment, definitions: Mapping[str, SecretDefinition], inputs: generate.Inputs, *, rotates: bool
) -> tuple[dict[str, Secret], dict[str, Secret]]:
    """Current and previous values under the new manifest; what it no longer defines is gone from both."""
    placeholder = generate.random_uuid(inputs.entropy)
    unset = generate.unset_secrets(definitions)
    current: dict[str, Secret] = {}
    previous: dict[str, Secret] = {}
    for name, definition in definitions.items():
        stored = old.secrets.get(name)
        if stored is not None and not changes.definitions_equal(stored, definition):
            stored = None  # another definition is another secret
        keeps = definition.user_defined or (definition.type == SecretType.SYMMETRIC_KEY and not rotates)
        if stored is not None and keeps:
            current[name] = stored
            previous[name] = old.previous_secrets.get(name, stored)
            continue
        if definition.user_defined:
            current[name] = unset[name]
        else:
            uuid = None if definition.shared else placeholder
            current[name] = generate.generate_secret(name, definition, uuid=uuid, marble_name="", inputs=inputs)
        previous[name] = current[name] if stored is None else stored
    return current, previous


def _remarks(old: Deployment, manifest: Manifest) -> tuple[Event, ...]:
    """What an operator should know about the update beside that it happened."""
    lowered = [
        name
        for name, package in sorted(manifest.packages.items())
        if name in old.packages and (package.security_version or 0) < (old.packages[name].security_version or 0)
    ]
    if not lowered:
        return ()
    text = "the update lowers security versions: what was shut out before is admitted again"
    return (Event(text, {"packages": ", ".join(lowered)}, warning=True),)
