"""Evidence from a simulated platform: a real quote, under a root that stands for nothing but itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from marblerun.attestation.issue.issuer import check_report_data
from marblerun.attestation.issue.quotes import finish_quote
from marblerun.attestation.model import Origin


@dataclass(frozen=True, slots=True)
class SimulatedIssuer:
    """SGX quotes of a software TEE for one enclave identity.

    ``quote`` makes a raw quote over 64 bytes of report data; the identity is already bound to it.
    """

    quote: Callable[[bytes], bytes]
    name: str = "simulated platform"
    origin: Origin = Origin.SIMULATED

    def issue(self, report_data: bytes) -> bytes:
        """Return an SGX quote over ``report_data`` (64 bytes) with the Open Enclave header."""
        check_report_data(report_data)
        return finish_quote(self.quote(report_data), report_data)
