"""Fetching collateral: from a service, from a directory, kept in memory and on disk. Nothing here verifies it."""

from marblerun.attestation.collect.cache import CachedSource, CacheLimits, CacheStatistics, Upkeep
from marblerun.attestation.collect.configured import collateral_source
from marblerun.attestation.collect.directory import DirectorySource
from marblerun.attestation.collect.disk import DiskShelf
from marblerun.attestation.collect.pccs import PccsSource
from marblerun.attestation.collect.qcnl import QcnlSettings, parse_qcnl
from marblerun.attestation.collect.settings import CollateralSettings
from marblerun.attestation.collect.source import CollateralSource

__all__ = [
    "CacheLimits",
    "CacheStatistics",
    "CachedSource",
    "CollateralSettings",
    "CollateralSource",
    "DirectorySource",
    "DiskShelf",
    "PccsSource",
    "QcnlSettings",
    "Upkeep",
    "collateral_source",
    "parse_qcnl",
]
