"""Evidence from Gramine's pseudo-files. Source: formats, section 9; Gramine documentation, "Attestation"."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from marblerun.attestation.issue.device import read_device, write_device
from marblerun.attestation.issue.issuer import check_report_data
from marblerun.attestation.issue.quotes import finish_quote
from marblerun.attestation.model import Origin
from marblerun.errors import Malformed, Misconfigured, Unavailable
from marblerun.wire.limits import MAX_QUOTE_BYTES


@dataclass(frozen=True, slots=True)
class GramineIssuer:
    """SGX quotes from ``/dev/attestation`` inside a Gramine enclave."""

    directory: Path
    """``/dev/attestation``."""
    name: str = "Gramine"
    origin: Origin = Origin.HARDWARE

    @staticmethod
    def is_present(directory: Path) -> bool:
        """Whether ``directory`` looks like Gramine's."""
        return (directory / "user_report_data").exists()

    def check_enabled(self) -> None:
        """Raise Misconfigured if this Gramine enclave was built without DCAP attestation."""
        kind_file = self.directory / "attestation_type"
        if not kind_file.exists():  # older Gramine; the quote itself will tell
            return
        kind = read_device(kind_file, 64).strip(b" \n\x00").decode("ascii", "replace")
        if kind != "dcap":
            raise Misconfigured(
                f'this Gramine enclave has attestation type "{kind}"; set sgx.remote_attestation = "dcap" in its '
                "manifest and sign it again"
            )

    def issue(self, report_data: bytes) -> bytes:
        """Return an SGX quote over ``report_data`` (64 bytes) with the Open Enclave header; raises Unavailable."""
        check_report_data(report_data)
        write_device(self.directory / "user_report_data", report_data)
        raw = read_device(self.directory / "quote", MAX_QUOTE_BYTES)
        try:
            return finish_quote(raw, report_data)
        except Malformed as error:
            raise Unavailable(f"Gramine gave no usable quote: {error.message}") from error
