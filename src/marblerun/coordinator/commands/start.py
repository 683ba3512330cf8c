"""The state a Coordinator begins with: fresh, or waiting for recovery (protocol, sections 1.3 and 3.2)."""

from __future__ import annotations

from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.coordinator.commands import Inputs
from marblerun.coordinator.provenance import BEGUN
from marblerun.coordinator.state import Authority, DataKey, Phase, State
from marblerun.pki.issue import Issuer, issue_intermediate, issue_marble_root, issue_root
from marblerun.pki.profiles import SubjectNames
from marblerun.secrets.box import KEY_BYTES
from marblerun.secrets.recovery import NO_RECOVERY_DATA

ROOT_SECRET_BYTES: Final = 32


def start_state(names: SubjectNames, inputs: Inputs) -> State:
    """A new Coordinator that waits for a manifest, with a CA and a root secret of its own.

    The data key is for Coordinators that share their state before there is a manifest; nobody can recover it.
    """
    return State(
        phase=Phase.ACCEPTING_MANIFEST,
        authority=new_authority(names, inputs),
        root_secret=inputs.entropy.token(ROOT_SECRET_BYTES),
        data_key=DataKey(inputs.entropy.token(KEY_BYTES), NO_RECOVERY_DATA),
        provenance=BEGUN,
    )


def recovery_state(names: SubjectNames, recovery_data: bytes, inputs: Inputs) -> State:
    """A Coordinator whose stored state does not open here: a throw-away CA, so that recovery can be asked for.

    The recovery data of the stored state is kept for the recovery; there is no data key yet.
    """
    return State(
        phase=Phase.RECOVERY,
        authority=new_authority(names, inputs),
        root_secret=inputs.entropy.token(ROOT_SECRET_BYTES),
        data_key=DataKey(b"", recovery_data),
        provenance=BEGUN,
    )


def new_authority(names: SubjectNames, inputs: Inputs) -> Authority:
    """A new root, intermediate and Marble root (protocol, section 3.1)."""
    at, entropy = inputs.at, inputs.entropy
    root_key = entropy.ec_key(ec.SECP384R1())
    root = issue_root(names, root_key, at, entropy)
    intermediate_key = entropy.ec_key(ec.SECP384R1())
    intermediate = issue_intermediate(names, intermediate_key, Issuer.of(root, root_key), at, entropy)
    marble_root = issue_marble_root(names, intermediate_key, at, entropy)
    return Authority(root, root_key, intermediate, intermediate_key, marble_root)
