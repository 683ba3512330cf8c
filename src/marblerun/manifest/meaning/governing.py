"""What users may do, who may update the manifest and recover the state, and how many of them it takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from marblerun.manifest.check import READ_SECRET, UPDATE_SECURITY_VERSION, WRITE_SECRET, update_users
from marblerun.manifest.meaning.statement import Statement, Topic, came_and_went, gain, listed, loss, other
from marblerun.manifest.model import Manifest
from marblerun.wire.gojson import lower

_CHANGE: Final = Topic.CHANGE
_RECOVER: Final = Topic.RECOVER
_DEEDS: Final[Mapping[str, tuple[Topic, str]]] = {
    READ_SECRET: (Topic.READ, "read the secret {}"),
    WRITE_SECRET: (Topic.CHANGE, "set the secret {}"),
    UPDATE_SECURITY_VERSION: (Topic.CHANGE, "raise the security version of package {}"),
}


def permissions(manifest: Manifest, user: str) -> dict[str, frozenset[str]]:
    """What a user may do: permission to names; to update the manifest is not among them, see ``update_users``."""
    found: dict[str, set[str]] = {permission: set() for permission in _DEEDS}
    if user in manifest.users:
        for role in (manifest.roles[name] for name in manifest.users[user].roles if name in manifest.roles):
            for action in role.actions:
                if lower(action) in found:
                    found[lower(action)] |= set(role.resource_names)
    return {permission: frozenset(names) for permission, names in found.items()}


def users(old: Manifest, new: Manifest) -> Iterator[Statement]:
    """What each user may do, and whether it is still the same person."""
    for name in sorted(old.users.keys() | new.users.keys()):
        path = f"Users.{name}"
        before, after = old.users.get(name), new.users.get(name)
        if before and after and before.certificate.split() != after.certificate.split():
            text = f"user {name} is known by another certificate: whoever has its key has the rights of {name}"
            yield gain(_CHANGE, f"{path}.Certificate", text)
        was, now = permissions(old, name), permissions(new, name)
        for permission, (topic, deed) in _DEEDS.items():
            gained, lost = f"user {name} may {deed}", f"user {name} may not {deed} any more"
            yield from came_and_went(topic, path, was[permission], now[permission], gained, lost)


def updates(old: Manifest, new: Manifest) -> Iterator[Statement]:
    """Who may replace the manifest."""
    was, now = update_users(old), update_users(new)
    gained, lost = "user {} may update the manifest", "user {} may not update the manifest any more"
    yield from came_and_went(_CHANGE, "Users", was, now, gained, lost)
    before, after = (m.config.update_threshold or len(names) for m, names in ((old, was), (new, now)))
    if before != after:
        text = f"{_people(after)} can update the manifest; it was {_people(before)}"
        weaker = 0 < after < before or not before
        yield (gain if weaker else loss)(_CHANGE, "Config.UpdateThreshold", text)


def _people(needed: int) -> str:
    return {0: "nobody", 1: "one user alone"}.get(needed, f"{needed} users together")


def recovery(old: Manifest, new: Manifest) -> Iterator[Statement]:
    """Who can recover the state."""
    for name in sorted(old.recovery_keys.keys() | new.recovery_keys.keys()):
        path = f"RecoveryKeys.{name}"
        before, after = old.recovery_keys.get(name), new.recovery_keys.get(name)
        if before is None:
            yield gain(_RECOVER, path, f"{name} takes part in recovery")
        elif after is None:
            yield loss(_RECOVER, path, f"{name} does not take part in recovery any more")
        elif before.split() != after.split():
            yield gain(_RECOVER, path, f"{name} has another recovery key: whoever has it takes part in recovery")
    was, now = _needed(old), _needed(new)
    if was != now:
        say = gain if 0 < now[0] < was[0] or not was[0] else loss
        text = f"recovery takes {_share(*now)}; it was {_share(*was)}"
        yield say(_RECOVER, "Config.RecoveryThreshold", text)


def _needed(manifest: Manifest) -> tuple[int, int]:
    keys = len(manifest.recovery_keys)
    return manifest.config.recovery_threshold or keys, keys


def _share(needed: int, keys: int) -> str:
    return f"{needed} of {keys} keys" if keys else "impossible: no keys"


def coordinator(old: Manifest, new: Manifest) -> Iterator[Statement]:
    """How the Coordinator itself works."""
    was, now = (manifest.config.seal_mode or "ProductKey" for manifest in (old, new))
    if was != now:
        say = gain if now == "ProductKey" and was == "UniqueKey" else other
        yield say(Topic.COORDINATOR, "Config.SealMode", f"the state is sealed with {now}; it was {was}")
    before, after = ({lower(gate) for gate in manifest.config.feature_gates} for manifest in (old, new))
    if before != after:
        text = f"optional features: {listed(after)}; it was {listed(before)}"
        yield other(Topic.COORDINATOR, "Config.FeatureGates", text)
