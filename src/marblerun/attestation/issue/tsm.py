"""Evidence from a confidential VM through Linux' configfs-tsm (kernel 6.7 and later).

Source: formats, section 9; Linux ``Documentation/ABI/testing/configfs-tsm-report``.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from marblerun.attestation.issue.device import read_device, write_device
from marblerun.attestation.issue.issuer import check_report_data
from marblerun.attestation.issue.quotes import finish_quote
from marblerun.attestation.model import Origin
from marblerun.errors import Malformed, Unavailable
from marblerun.wire.limits import MAX_QUOTE_BYTES


@dataclass(frozen=True, slots=True)
class ReportEntries:
    """The directory in which one report after the other is asked for; the kernel fills what is created here."""

    directory: Path
    """``/sys/kernel/config/tsm/report``."""

    def create(self) -> Path:
        """Make an entry of our own, under a name nobody else has; raises OSError."""
        return Path(tempfile.mkdtemp(prefix="marblerun-", dir=self.directory))

    def remove(self, entry: Path) -> None:
        """Give the entry back; the kernel removes its attributes with it. Raises OSError."""
        os.rmdir(entry)


@dataclass(frozen=True, slots=True)
class TsmIssuer:
    """Bare TDX quotes through configfs-tsm."""

    entries: ReportEntries
    name: str = field(default="configfs-tsm", kw_only=True)
    origin: Origin = field(default=Origin.HARDWARE, kw_only=True)

    @staticmethod
    def is_present(directory: Path) -> bool:
        """Whether the kernel offers reports at ``directory``."""
        return directory.is_dir()

    def issue(self, report_data: bytes) -> bytes:
        """Return a TDX quote over ``report_data`` (64 bytes), cut to its size; raises Unavailable.

        The entry is removed whatever happens: leftovers would use up kernel memory with every attempt.
        """
        check_report_data(report_data)
        try:
            entry = self.entries.create()
        except OSError as error:
            raise Unavailable(f"cannot make a configfs-tsm report entry: {error.strerror}") from error
        try:
            return self._issue_in(entry, report_data)
        finally:
            try:
                self.entries.remove(entry)
            except OSError as error:
                raise Unavailable(f"cannot remove the configfs-tsm entry {entry.name}: {error.strerror}") from error

    @staticmethod
    def _issue_in(entry: Path, report_data: bytes) -> bytes:
        """Ask for one report in ``entry``.

        1. The provider must be one whose evidence we can use.
        2. One write to ``inblob``, one read of ``outblob``.
        3. ``generation`` must count exactly that one write, else somebody else wrote in between.
        4. The quote must be over our data.
        """
        provider = read_device(entry / "provider", 256).strip().decode("ascii", "replace")
        if provider != "tdx_guest":  # 1
            raise Unavailable(f"configfs-tsm offers {provider!r} evidence; only tdx_guest is understood so far")
        write_device(entry / "inblob", report_data)  # 2
        raw = read_device(entry / "outblob", MAX_QUOTE_BYTES)
        generation = read_device(entry / "generation", 64).strip()
        if generation != b"1":  # 3
            raise Unavailable("the configfs-tsm entry was changed by somebody else while the quote was made")
        try:
            return finish_quote(raw, report_data)  # 4
        except Malformed as error:
            raise Unavailable(f"configfs-tsm gave no usable quote: {error.message}") from error
