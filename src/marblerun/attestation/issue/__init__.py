"""Our own evidence: from the TEE we run in, from a simulated platform, or none. Does I/O by design.

``detect_issuer`` picks one by the settings and by what the machine shows; a chosen issuer that then fails is an
error and never a reason to try a weaker one.
"""

from __future__ import annotations

from marblerun.attestation.issue.detect import detect_issuer
from marblerun.attestation.issue.gramine import GramineIssuer
from marblerun.attestation.issue.issuer import EvidenceIssuer
from marblerun.attestation.issue.none import NoEvidenceIssuer
from marblerun.attestation.issue.simulated import SimulatedIssuer
from marblerun.attestation.issue.tsm import TsmIssuer

__all__ = [
    "EvidenceIssuer",
    "GramineIssuer",
    "NoEvidenceIssuer",
    "SimulatedIssuer",
    "TsmIssuer",
    "detect_issuer",
]
