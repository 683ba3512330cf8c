"""No evidence at all: the reference's ``OE_SIMULATION=1``."""

from __future__ import annotations

from dataclasses import dataclass

from marblerun.attestation.issue.issuer import check_report_data
from marblerun.attestation.model import Origin


@dataclass(frozen=True, slots=True)
class NoEvidenceIssuer:
    """Answers every request with empty evidence, which only a Coordinator that asked for this admits.

    Source: protocol, sections 2.3 and 4.5.
    """

    name: str = "no evidence (OE_SIMULATION=1)"
    origin: Origin = Origin.NONE

    def issue(self, report_data: bytes) -> bytes:
        """Return zero bytes."""
        check_report_data(report_data)
        return b""
