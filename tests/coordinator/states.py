"""States and requests as values, for tests of the pure commands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache

from cryptography.hazmat.primitives.asymmetric import ec
from tests.coordinator.manifests import INTEGRATION

from marblerun.coordinator.commands import Inputs
from marblerun.coordinator.commands.activate import ActivationRequest
from marblerun.coordinator.commands.set_manifest import set_manifest
from marblerun.coordinator.commands.start import start_state
from marblerun.coordinator.entropy import SystemEntropy
from marblerun.coordinator.state import State
from marblerun.coordinator.store.entries import decode_state, encode_state
from marblerun.pki.csr import build_csr
from marblerun.pki.issue import issue_self_signed_marble
from marblerun.pki.profiles import SubjectNames

ENTROPY = SystemEntropy()
AT = datetime(2026, 6, 1, 12, 30, 15, 123456, tzinfo=UTC)
INPUTS = Inputs(AT, ENTROPY)
NAMES = SubjectNames(("localhost",))
UUID_1 = "d3b07384-d113-4ec6-8f2a-1c2d3e4f5a6b"
UUID_2 = "11111111-2222-4333-8444-555555555555"


@cache
def fresh() -> State:
    """A Coordinator that has just started."""
    return start_state(NAMES, INPUTS)


@cache
def deployed(manifest: bytes = INTEGRATION) -> State:
    """The same after ``manifest`` was set."""
    return set_manifest(fresh(), manifest, INPUTS, {}).state


def restarted(state: State) -> State:
    """The state as it is read from its entries, under the same CA objects, which only compare by identity."""
    entries = encode_state(state)
    decoded = decode_state(entries)
    assert encode_state(decoded) == entries
    return replace(decoded, authority=state.authority, data_key=state.data_key)


@dataclass(frozen=True)
class Applicant:
    """A Marble before its activation."""

    certificate: bytes
    csr: bytes

    def request(self, marble: str, uuid: str = UUID_1, quote: bytes = b"") -> ActivationRequest:
        """What it sends."""
        return ActivationRequest(quote=quote, csr=self.csr, marble_type=marble, uuid=uuid)


@cache
def applicant(names: str = "localhost") -> Applicant:
    """One with a P-384 key, as stock Marbles have."""
    key = ENTROPY.ec_key(ec.SECP384R1())
    parsed = SubjectNames.parse(names)
    return Applicant(issue_self_signed_marble(parsed, key, AT, ENTROPY), build_csr(parsed, key))
