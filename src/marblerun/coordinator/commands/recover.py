"""Recovery: secrets are gathered until a key opens the state, and the state then says whether they were the right ones.

A state machine over values: :class:`Gathering` is what has been given, :func:`give` takes one more secret,
:func:`recovered_state` judges the result (protocol, sections 10.7 to 10.9).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import combinations
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import Certificate

from marblerun.coordinator.commands.update_log import log_line
from marblerun.coordinator.state import Authority, DataKey, Phase, State
from marblerun.coordinator.store.entries import decode_state
from marblerun.coordinator.store.lineage import Link, link_of
from marblerun.errors import Denied, Malformed, Untrusted
from marblerun.manifest.material import recovery_key
from marblerun.manifest.parse import parse_manifest
from marblerun.secrets.box import KEY_BYTES, LEGACY_KEY_BYTES, is_data_key, open_sealed_data, parse_sealed_data
from marblerun.secrets.recovery import (
    NO_RECOVERY_DATA,
    SHARE_BYTES,
    build_recovery_data,
    parse_recovery_data,
    share_id,
    verify_recovery_signatures,
)
from marblerun.secrets.shares import MAX_SHARES, combine_shamir, xor

PLAIN_SIZES: Final = (LEGACY_KEY_BYTES, KEY_BYTES, SHARE_BYTES)
"""A secret of another length is an encrypted one (protocol, section 10.7)."""
# An RSA key of 16384 bits signs with this much.
MAX_SIGNATURE_BYTES: Final = 2048
# While the list of secrets is lost, anybody can add a wrong one. Up to this many are tried in every combination (512
# per upload); with more, all of them and all but one.
MAX_COMBINED: Final = 10


@dataclass(frozen=True, slots=True, repr=False)
class Given:
    """A secret, and the signature that came with it; judged only when the state is open."""

    secret: bytes
    signature: bytes

    @property
    def name(self) -> str:
        """How to speak of it: the beginning of its SHA-256, which lies in the clear beside the state anyway."""
        return share_id(self.secret)[:16]


@dataclass(frozen=True, slots=True, repr=False)
class Gathering:
    """What was given so far towards one sealed state."""

    sealed_data: bytes
    expected: frozenset[str] | None
    """SHA-256 (hex) of every secret of this state; ``None``: a single holder has the key, or the list is lost."""
    given: tuple[Given, ...] = ()

    def forgotten(self) -> Gathering:
        """The same with nothing given."""
        return replace(self, given=())


@dataclass(frozen=True, slots=True, repr=False)
class Found:
    """The key that opens the state, and the secrets that it was made from."""

    key: bytes
    used: tuple[Given, ...]


@dataclass(frozen=True, slots=True, repr=False)
class Progress:
    """Where a recovery stands after a secret was accepted."""

    gathering: Gathering
    remaining: int
    """How many more are needed; where a threshold is below the number of secrets, at most (protocol, 10.8)."""
    message: str
    found: Found | None = None


class SecretRefused(Denied):
    """A secret that cannot belong to this state, or was given before; nothing has changed."""


def begin(sealed_data: bytes) -> Gathering:
    """Nothing is given yet. A list of secrets that cannot be read counts as lost; raises Malformed for the rest."""
    try:
        expected = parse_recovery_data(parse_sealed_data(sealed_data).recovery_data)
    except Malformed:
        parse_sealed_data(sealed_data)
        expected = None
    return Gathering(sealed_data, expected or None)


def give(gathering: Gathering, secret: bytes, signature: bytes) -> Progress:
    """Take one plain secret.

    Raises SecretRefused for one that is not of this state or was given already, and then ``gathering`` still holds;
    Untrusted if all have been given and together do not open the state, and then all have to start again.
    """
    if len(secret) not in PLAIN_SIZES:
        raise SecretRefused(f"a recovery secret has 16, 32 or 33 bytes, this one has {len(secret)}")
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise SecretRefused(f"a signature of {len(signature)} bytes is longer than that of any RSA key")
    new = Given(secret, signature)
    if gathering.expected is None:
        return _give_unlisted(gathering, new)
    return _give_listed(gathering, gathering.expected, new)


def _give_listed(gathering: Gathering, expected: frozenset[str], new: Given) -> Progress:
    if share_id(new.secret) not in expected:
        raise SecretRefused(
            f"the secret {new.name} is invalid or already used: it is none of the {len(expected)} of this state"
        )
    if any(new.secret == other.secret for other in gathering.given):
        raise SecretRefused(f"the secret {new.name} is invalid or already used: it was given before, and still counts")
    given = (*gathering.given, new)
    gathering = replace(gathering, given=given)
    remaining = len(expected) - len(given)
    is_share = len(new.secret) == SHARE_BYTES
    if not remaining or (is_share and len(given) > 1):
        key = combined([one.secret for one in given])
        if key is not None and is_data_key(key, gathering.sealed_data):
            return _done(gathering, Found(key, given))
    if remaining:
        return Progress(gathering, remaining, _still_needed(len(given), remaining, at_most=is_share))
    raise Untrusted(
        "all secrets of this state were given, and together they do not open it; the state or its list of secrets "
        "was changed",
        step="recovery-key",
        reason="bad-key",
    )


def _give_unlisted(gathering: Gathering, new: Given) -> Progress:
    """Without a list nobody knows how many there are, nor whether one is wrong: try what can be made of them."""
    others = [given for given in gathering.given if given.secret != new.secret]
    given = (*others, new)[-MAX_SHARES:]
    gathering = replace(gathering, given=given)
    for chosen in _combinations([other for other in given[:-1] if len(other.secret) == len(new.secret)], new):
        key = combined([one.secret for one in chosen])
        if key is not None and is_data_key(key, gathering.sealed_data):
            return _done(gathering, Found(key, chosen))
    message = (
        f"The secret {new.name} does not open the state by itself or with the others given so far. "
        "If it is one of several, send the next one; otherwise it is not a secret of this state."
    )
    return Progress(gathering, 1, message)


def _combinations(others: Sequence[Given], new: Given) -> Iterator[tuple[Given, ...]]:
    """Every choice that holds the newest secret: the rest was tried when it came.

    Small ones first: a secret of zeros, or three that cancel each other out, make no difference to the key, but whoever
    sent them has not signed as a holder.
    """
    count = len(others)
    sizes: Sequence[int] = range(count) if count < MAX_COMBINED else (0, count - 1)
    for size in (*sizes, count):
        for chosen in combinations(others, size):
            yield (*chosen, new)


def combined(secrets: Sequence[bytes]) -> bytes | None:
    """The key that plain secrets make; ``None`` if they do not fit together. At least one is needed."""
    try:
        return combine_shamir(secrets) if len(secrets[0]) == SHARE_BYTES else xor(secrets)
    except Malformed:
        return None


def _done(gathering: Gathering, found: Found) -> Progress:
    return Progress(gathering, 0, "Recovery successful.", found)


def _still_needed(given: int, remaining: int, *, at_most: bool) -> str:
    accepted = f"Secret {given} of {given + remaining} accepted."
    return f"{accepted} {'At most ' if at_most else ''}{remaining} more {'is' if remaining == 1 else 'are'} needed."


def recovered_state(gathering: Gathering, found: Found) -> State:
    """The state that the key opens, if its own manifest's recovery keys stand behind the secrets.

    Raises Untrusted when a step fails; then nobody's secrets count any more.

    1. It opens, and every entry can be read.  2. It is the state of a running deployment.  3. Keys and certificates of
    the CA belong together.  4. Each secret is signed by another recovery key of the manifest inside, as many as it
    demands: whoever crafts a state around somebody else's manifest cannot sign for its holders.
    """
    try:  # 1
        state = decode_state(open_sealed_data(found.key, gathering.sealed_data))
    except Malformed as error:
        raise Untrusted(f"the recovered state is damaged: {error}", step="recovered-state") from error
    if state.deployment is None or state.phase is not Phase.ACCEPTING_MARBLES:  # 2
        raise Untrusted("the recovered state is not that of a running deployment", step="recovered-state")
    _verify_authority(state.authority)  # 3
    signatures = {given.secret: given.signature for given in found.used}  # 4
    try:
        manifest = parse_manifest(state.deployment.manifest)
        keys = {name: recovery_key(text) for name, text in manifest.recovery_keys.items()}
    except Malformed as error:
        raise Untrusted(f"the manifest inside the state is damaged: {error}", step="recovered-state") from error
    verify_recovery_signatures(signatures, keys, manifest.config.recovery_threshold)
    return replace(state, data_key=DataKey(found.key, _recovery_data(gathering, found, len(keys))))


def with_recovery_recorded(recovered: State, at: datetime) -> State:
    """What ``recovered_state`` gave, with this recovery in its record and in its update log.

    The enclave writes this itself, whatever the state says: so a state of somebody's own making can be told from one
    that never left the enclaves it was made in.
    """
    if recovered.deployment is None:
        raise RuntimeError("a recovered state has a manifest")
    manifest = parse_manifest(recovered.deployment.manifest)
    keys = [
        recovery_key(text).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for text in manifest.recovery_keys.values()
    ]
    needed = manifest.config.recovery_threshold or len(keys)
    provenance = recovered.provenance.after_recovery(keys, needed, at)
    fields = {
        "recoveries": provenance.recoveries,
        "recoveryKeys": sorted(manifest.recovery_keys),
        "needed": needed,
        "manifestFingerprint": hashlib.sha256(recovered.deployment.manifest).hexdigest(),
    }
    line = log_line(at, "state recovered", fields)
    return replace(recovered, provenance=provenance, update_log=recovered.update_log + line)


def link_of_found(gathering: Gathering, found: Found) -> Link:
    """Where the state that the key opens stands among those before and after it; raises Malformed."""
    return link_of(open_sealed_data(found.key, gathering.sealed_data), gathering.sealed_data)


def _recovery_data(gathering: Gathering, found: Found, holders: int) -> bytes:
    """The list of secrets to go on with: as it was, or made anew from all secrets if they were all used.

    Of Shamir shares a threshold was enough, so the others are not known; the list stays lost, which is never written
    as no bytes at all (protocol, section 10.3).
    """
    if gathering.expected is not None:
        return parse_sealed_data(gathering.sealed_data).recovery_data
    if holders > 1 and len(found.used) == holders:
        return build_recovery_data(tuple(given.secret for given in found.used))
    return NO_RECOVERY_DATA


def _verify_authority(authority: Authority) -> None:
    pairs: tuple[tuple[str, Certificate, ec.EllipticCurvePrivateKey], ...] = (
        ("root", authority.root, authority.root_key),
        ("intermediate", authority.intermediate, authority.intermediate_key),
        ("Marble root", authority.marble_root, authority.intermediate_key),
    )
    for name, certificate, key in pairs:
        if certificate.public_key() != key.public_key():
            raise Untrusted(f"the {name} certificate is not that of the stored key", step="recovered-authority")
