"""Which sealing key this process has: that of the TEE it shows evidence from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from marblerun.attestation.issue import EvidenceIssuer
from marblerun.attestation.model import Origin
from marblerun.attestation.simulated import SimulatedPlatform, identity_from_environment
from marblerun.coordinator.seal import KeySealer
from marblerun.coordinator.seal.gramine import KEYS_DIRECTORY, GramineKeys
from marblerun.coordinator.seal.none import AbsentSealer, PlainSealer
from marblerun.coordinator.seal.platform import EnclaveSealer, SimulatedKeys
from marblerun.pki.issue import Entropy

_ROOT: Final = Path("/")


def detect_sealer(
    environment: Mapping[str, str],
    issuer: EvidenceIssuer,
    platform: Path | None,
    entropy: Entropy,
    root: Path = _ROOT,
) -> KeySealer:
    """The sealer for this process.

    Only ``OE_SIMULATION=1`` leaves the data key in the clear, as the reference does without an enclave; a machine
    without a sealing key gets a sealer that says so, and every restart there needs recovery.
    """
    if environment.get("OE_SIMULATION") == "1":
        return PlainSealer()
    if platform is not None:
        keys = SimulatedKeys(SimulatedPlatform.load(platform), identity_from_environment(environment))
        return EnclaveSealer("simulated platform", keys, entropy)
    if issuer.origin is Origin.HARDWARE and (root / KEYS_DIRECTORY).is_dir():
        return EnclaveSealer("Gramine", GramineKeys(root / KEYS_DIRECTORY), entropy)
    return AbsentSealer()
