"""Rehearsing a recovery: would the parties' secrets bring this very deployment back? Changes nothing.

In the running state more is known than in a recovery: the key itself, who the holders are and how many are needed. So
every secret is judged at once and its holder named, and a secret that no holder has signed is compared with nothing.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric import rsa

from marblerun.coordinator.commands.caller import require_deployment
from marblerun.coordinator.commands.recover import MAX_SIGNATURE_BYTES, PLAIN_SIZES, combined
from marblerun.coordinator.state import DataKey, State
from marblerun.errors import Denied, Malformed, NotFound, WrongPhase
from marblerun.manifest.material import recovery_key
from marblerun.manifest.parse import parse_manifest
from marblerun.secrets.recovery import parse_recovery_data, share_id, signer_of


class RehearsalRefused(Denied):
    """A secret that no holder signed, that is none of this deployment, or that was given before; nothing changed."""


class NoRecoveryKeys(NotFound):
    """Nobody can recover this deployment, so there is nothing to rehearse."""


@dataclass(frozen=True, slots=True, repr=False)
class Rehearsal:
    """What was given so far; counts only as long as the state has this data key."""

    data_key: DataKey
    given: Mapping[str, bytes]
    """Plain secrets by holder."""


@dataclass(frozen=True, slots=True, repr=False)
class Rehearsed:
    """Where a rehearsal stands after a secret was accepted."""

    rehearsal: Rehearsal | None
    """``None`` at its end: everything given is forgotten."""
    holder: str
    given: int
    needed: int
    recoverable: bool | None
    """At the end: whether these secrets would recover; ``None`` before."""


def rehearse(state: State, rehearsal: Rehearsal | None, secret: bytes, signature: bytes) -> Rehearsed:
    """Take one plain secret with its holder's signature.

    Raises RehearsalRefused, and then ``rehearsal`` still holds; WrongPhase without a manifest in force; NoRecoveryKeys
    where the manifest names none.

    1. A holder has signed the secret.  2. Neither holder nor secret were there before.  3. The secret is one of this
    deployment.  4. With as many as are needed, together they make the data key; compared in constant time.
    """
    deployment, data_key = require_deployment(state), state.data_key
    if data_key is None:
        raise WrongPhase("server is not in expected state: there is no data key to rehearse for")
    holders = _holders(deployment.manifest)
    if not holders:
        raise NoRecoveryKeys("the manifest in force names no recovery keys: nobody can recover this deployment")
    needed = deployment.config.recovery_threshold or len(holders)
    if rehearsal is None or rehearsal.data_key is not data_key:
        rehearsal = Rehearsal(data_key, {})
    holder = _verify_signed(rehearsal, holders, secret, signature)  # 1, 2
    _verify_belongs(data_key, holder, secret, len(holders))  # 3
    given = {**rehearsal.given, holder: secret}
    if len(given) < needed:
        return Rehearsed(replace(rehearsal, given=given), holder, len(given), needed, None)
    key = combined(tuple(given.values()))  # 4
    recoverable = key is not None and hmac.compare_digest(key, data_key.key)
    return Rehearsed(None, holder, len(given), needed, recoverable)


@lru_cache(maxsize=1)
def _holders(manifest: bytes) -> Mapping[str, rsa.RSAPublicKey]:
    """Recovery keys by name; remembered, since anybody may ask and a manifest may be large."""
    return {name: recovery_key(text) for name, text in parse_manifest(manifest).recovery_keys.items()}


def _verify_signed(
    rehearsal: Rehearsal, holders: Mapping[str, rsa.RSAPublicKey], secret: bytes, signature: bytes
) -> str:
    if len(secret) not in PLAIN_SIZES or len(signature) > MAX_SIGNATURE_BYTES:
        raise RehearsalRefused("a recovery secret has 16, 32 or 33 bytes, and a signature no more than 2048")
    # Who has not been there yet comes first: one key may stand under two names.
    waiting = {name: key for name, key in holders.items() if name not in rehearsal.given}
    holder = signer_of(secret, signature, waiting)
    again = signer_of(secret, signature, holders) if holder is None else None
    if again is not None:
        same = hmac.compare_digest(rehearsal.given[again], secret)
        raise RehearsalRefused(
            f"the secret of {again} was given before, and still counts"
            if same
            else f"{again} has given a secret before, which still counts; this is another one"
        )
    if holder is None:
        raise RehearsalRefused("the signature is by none of the recovery keys in the manifest in force")
    for other, known in rehearsal.given.items():
        if hmac.compare_digest(known, secret):
            raise RehearsalRefused(f"{holder} has sent the same secret as {other}")
    return holder


def _verify_belongs(data_key: DataKey, holder: str, secret: bytes, holders: int) -> None:
    """Whether the secret is one that was given out for this data key, as far as that is known."""
    if holders == 1:
        belongs = hmac.compare_digest(secret, data_key.key)
    else:
        try:
            listed = parse_recovery_data(data_key.recovery_data)
        except Malformed:
            listed = None
        belongs = listed is None or share_id(secret) in listed
    if not belongs:
        raise RehearsalRefused(
            f"the secret of {holder} is none of this deployment: it may be from before an update of the recovery keys"
        )
