"""Which issuer to use here: by name where a simulation is asked for, else by what the machine shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from marblerun.attestation.issue.gramine import GramineIssuer
from marblerun.attestation.issue.issuer import EvidenceIssuer
from marblerun.attestation.issue.none import NoEvidenceIssuer
from marblerun.attestation.issue.simulated import SimulatedIssuer
from marblerun.attestation.issue.tsm import ReportEntries, TsmIssuer
from marblerun.attestation.simulated import SimulatedPlatform, identity_from_environment
from marblerun.errors import Misconfigured

NO_EVIDENCE_VARIABLE: Final = "OE_SIMULATION"
SIMULATED_PLATFORM_VARIABLE: Final = "EDG_SIMULATED_PLATFORM"
GRAMINE_DIRECTORY: Final = Path("dev/attestation")
TSM_DIRECTORY: Final = Path("sys/kernel/config/tsm/report")

_ADVICE: Final = (
    "no trusted execution environment was found: there is neither Gramine's /dev/attestation nor configfs-tsm "
    "(/sys/kernel/config/tsm/report). Run inside one, or choose a simulation by name: EDG_SIMULATED_PLATFORM=DIR for a "
    "software platform made by `marblerun simulator init DIR`, or OE_SIMULATION=1 for no evidence at all"
)


def detect_issuer(environment: Mapping[str, str], root: Path = Path("/")) -> EvidenceIssuer:
    """Return the issuer for this process, in this order.

    1. ``OE_SIMULATION=1``: no evidence. 2. ``EDG_SIMULATED_PLATFORM=DIR``: that platform. 3. Gramine. 4. configfs-tsm.

    A simulation is never chosen by default, and one that is asked for wins over hardware, so that nobody has to guess
    what a peer will see. Nothing is asked of the TEE yet, except whether Gramine was built to attest.

    Args:
        environment: the process's environment or another mapping; empty values count as unset.
        root: where ``dev`` and ``sys`` are looked for.

    Raises:
        Misconfigured: both simulations are asked for, Gramine cannot attest, or there is no TEE; the message says
            what to do. Also whatever loading a simulated platform raises.
    """
    no_evidence = environment.get(NO_EVIDENCE_VARIABLE) == "1"
    platform = environment.get(SIMULATED_PLATFORM_VARIABLE, "")
    if no_evidence and platform:
        raise Misconfigured(
            f"{NO_EVIDENCE_VARIABLE}=1 and {SIMULATED_PLATFORM_VARIABLE} exclude each other: the first means no "
            "evidence at all, the second evidence from a simulated platform; unset one"
        )
    if no_evidence:
        return NoEvidenceIssuer()
    if platform:
        return _simulated(Path(platform), environment)
    if GramineIssuer.is_present(root / GRAMINE_DIRECTORY):
        gramine = GramineIssuer(root / GRAMINE_DIRECTORY)
        gramine.check_enabled()
        return gramine
    if TsmIssuer.is_present(root / TSM_DIRECTORY):
        return TsmIssuer(ReportEntries(root / TSM_DIRECTORY))
    raise Misconfigured(_ADVICE)


def _simulated(directory: Path, environment: Mapping[str, str]) -> SimulatedIssuer:
    platform = SimulatedPlatform.load(directory)
    identity = identity_from_environment(environment)
    return SimulatedIssuer(lambda report_data: platform.quote_as(identity, report_data))
