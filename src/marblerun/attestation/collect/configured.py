"""The collateral source that a process's settings ask for, the same for Coordinators and relying parties."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from marblerun.attestation.collect.cache import CachedSource
from marblerun.attestation.collect.directory import DirectorySource
from marblerun.attestation.collect.disk import DiskShelf
from marblerun.attestation.collect.pccs import PccsSource
from marblerun.attestation.collect.settings import INTEL_PCS, CollateralSettings
from marblerun.attestation.collect.source import CollateralSource
from marblerun.attestation.dcap.collateral import verify_collateral
from marblerun.attestation.model import TrustRoot


def collateral_source(
    *,
    url: str,
    ca_file: Path | None,
    timeout_seconds: float,
    cache_directory: Path | None,
    simulated_platform: Path | None,
    roots: Sequence[TrustRoot] = (),
) -> CachedSource:
    """A cache before the service at ``url``; without a URL, before the simulated platform itself or Intel's service.

    With ``roots``, what does not verify under them never displaces what does.
    """
    source: CollateralSource
    if simulated_platform is not None and not url:
        source = DirectorySource(simulated_platform, _now)
    else:
        source = PccsSource(CollateralSettings(url=url or INTEL_PCS, ca_file=ca_file, timeout=timeout_seconds))
    return CachedSource(
        source,
        _now,
        check=(lambda collateral: verify_collateral(collateral, roots)) if roots else None,
        shelf=DiskShelf(cache_directory) if cache_directory else None,
    )


def _now() -> datetime:
    return datetime.now(UTC)
