"""Which sealing key this process has: that of the TEE it shows evidence from, or of a TPM that was asked for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from marblerun.attestation.issue import EvidenceIssuer
from marblerun.attestation.model import Origin
from marblerun.attestation.simulated import SimulatedPlatform, identity_from_environment
from marblerun.coordinator.seal import MachineSealer, SealMode
from marblerun.coordinator.seal.gramine import KEYS_DIRECTORY, GramineKeys
from marblerun.coordinator.seal.none import AbsentSealer, PlainSealer
from marblerun.coordinator.seal.platform import EnclaveSealer, SimulatedKeys
from marblerun.errors import MarbleRunError, Misconfigured, Unavailable
from marblerun.pki.issue import Entropy
from marblerun.secrets.box import KEY_BYTES

_log = logging.getLogger(__name__)

_ROOT: Final = Path("/")
TPM_VARIABLE: Final = "EDG_COORDINATOR_TPM"
PCRS_VARIABLE: Final = "EDG_COORDINATOR_TPM_PCRS"


def detect_sealer(
    environment: Mapping[str, str],
    issuer: EvidenceIssuer,
    platform: Path | None,
    entropy: Entropy,
    root: Path = _ROOT,
) -> MachineSealer:
    """The sealer for this process.

    A TPM seals only where ``EDG_COORDINATOR_TPM`` asks for it, and then before all others; in Gramine that is refused,
    since the host owns the TPM and would be given the data key. Only ``OE_SIMULATION=1`` leaves the data key in the
    clear, as the reference does without an enclave; a machine without a sealing key gets a sealer that says so, and
    every restart there needs recovery.
    """
    tpm = _tpm_sealer(environment, entropy, root)
    if tpm is not None:
        return tpm
    if environment.get("OE_SIMULATION") == "1":
        return PlainSealer()
    if platform is not None:
        keys = SimulatedKeys(SimulatedPlatform.load(platform), identity_from_environment(environment))
        return EnclaveSealer("simulated platform", keys, entropy)
    if issuer.origin is Origin.HARDWARE and (root / KEYS_DIRECTORY).is_dir():
        return EnclaveSealer("Gramine", GramineKeys(root / KEYS_DIRECTORY), entropy)
    return AbsentSealer()


def verify_sealing(machine: MachineSealer, entropy: Entropy) -> None:
    """Seal and open a key of no meaning: a sealing key that cannot be used is found out before a state depends on it.

    Raises Misconfigured or Unavailable, saying what to do. A machine without a sealing key passes, with a warning.
    """
    key = entropy.token(KEY_BYTES)
    what = f"nothing could be sealed on this machine ({machine.name})"
    try:
        sealed = machine.seal(key, SealMode.PRODUCT_KEY, b"")
        if not sealed:
            _log.warning("this machine has no sealing key: every restart will need recovery")
            return
        opened = machine.unseal(sealed, b"")
    except Misconfigured as error:
        raise Misconfigured(f"{what}: {error}") from error
    except MarbleRunError as error:
        raise Unavailable(f"{what}: {error}") from error
    if opened != key:
        raise Unavailable(f"{what}: it opens something else than was sealed")


def _tpm_sealer(environment: Mapping[str, str], entropy: Entropy, root: Path) -> MachineSealer | None:
    """The TPM that the settings name; raises Misconfigured for one that cannot, or must not, be used."""
    device, pcrs = environment.get(TPM_VARIABLE, ""), environment.get(PCRS_VARIABLE, "")
    if not device:
        if pcrs:
            raise Misconfigured(f"{PCRS_VARIABLE} is set but {TPM_VARIABLE} is not: nothing would be sealed to a TPM")
        return None
    if (root / KEYS_DIRECTORY.parent).exists():
        raise Misconfigured(
            f"{TPM_VARIABLE} is set inside an enclave, where the TPM is the host's and would learn the data key; unset "
            "it, and Gramine's sealing key is used"
        )
    from marblerun.coordinator.seal.tpm import TpmSealer
    from marblerun.coordinator.seal.tpm_device import parse_tcti, tpm_library
    from marblerun.coordinator.seal.tpm_key import DEFAULT_PCRS, parse_pcrs

    sealer = TpmSealer(parse_tcti(device), parse_pcrs(pcrs) if pcrs else DEFAULT_PCRS, entropy)
    tpm_library()
    return sealer
