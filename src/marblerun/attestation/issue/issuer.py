"""What an evidence issuer is, and what it is asked to vouch for."""

from __future__ import annotations

from typing import Protocol

from marblerun.attestation.binding import REPORT_DATA_BYTES
from marblerun.attestation.model import Origin


class EvidenceIssuer(Protocol):
    """Something that makes evidence about the code that is running right here."""

    @property
    def name(self) -> str:
        """What to call it in a log line, for example ``Gramine``."""
        ...

    @property
    def origin(self) -> Origin:
        """Who will stand behind the evidence."""
        ...

    def issue(self, report_data: bytes) -> bytes:
        """Return evidence over ``report_data`` (64 bytes), ready for the wire.

        SGX quotes carry the 16-byte Open Enclave header, TDX quotes are bare; without evidence it is empty.

        Raises:
            Unavailable: the platform did not give evidence over exactly this data.
        """
        ...


def check_report_data(report_data: bytes) -> None:
    """Refuse, as our own mistake (ValueError), report data of another size than 64 bytes."""
    if len(report_data) != REPORT_DATA_BYTES:
        raise ValueError(f"report data has {len(report_data)} bytes, not {REPORT_DATA_BYTES}")
