"""Holders of recovery keys, deployments that name them, and what their Coordinators left on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from tests.coordinator.manifests import many
from tests.coordinator.people import recovery_key, recovery_pem
from tests.coordinator.states import INPUTS, fresh

from marblerun.client.recovery import sign_recovery_secret
from marblerun.coordinator.commands.set_manifest import set_manifest
from marblerun.coordinator.state import State
from marblerun.coordinator.store.entries import encode_state
from marblerun.secrets.box import build_sealed_data

OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
NONCE = bytes(range(12))


@dataclass(frozen=True)
class Share:
    """A party's plain secret and its signature."""

    party: str
    secret: bytes
    signature: bytes


def names(count: int) -> tuple[str, ...]:
    """Parties in the order of the manifest."""
    return tuple(f"party{number}" for number in range(count))


def manifest(count: int, threshold: int = 0, **config: Any) -> bytes:
    """A small deployment with so many recovery keys."""
    document = many(100)
    document["RecoveryKeys"] = {name: recovery_pem(name) for name in names(count)}
    document["Config"] = {"RecoveryThreshold": threshold, **config}
    return json.dumps(document).encode()


def share_of(party: str, encrypted: bytes) -> Share:
    """What the party makes of its encrypted secret."""
    secret = recovery_key(party).decrypt(encrypted, OAEP)
    return Share(party, secret, sign_recovery_secret(recovery_key(party), secret))


def sealed(state: State) -> bytes:
    """The state's ``sealed_data``."""
    assert state.data_key is not None
    return build_sealed_data(state.data_key.key, state.data_key.recovery_data, encode_state(state), NONCE)


@dataclass(frozen=True)
class Estate:
    """A deployment and what it left."""

    state: State
    data: bytes
    shares: tuple[Share, ...]

    @property
    def without_list(self) -> bytes:
        """The same state with its list of secrets cut out, as E7 does."""
        return bytes(4) + self.data[4 + int.from_bytes(self.data[:4], "little") :]


@cache
def estate(count: int, threshold: int = 0) -> Estate:
    """What a deployment of so many parties leaves."""
    outcome = set_manifest(fresh(), manifest(count, threshold), INPUTS, {})
    shares = tuple(share_of(name, outcome.reply[name]) for name in names(count))
    return Estate(outcome.state, sealed(outcome.state), shares)
