"""Whose word a relying party takes about evidence: roots of trust, and where their collateral comes from.

Intel's root is built in. A simulated platform's root is trusted only where ``EDG_SIMULATED_PLATFORM`` names it, and
that is said aloud.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from marblerun.attestation.collect import CachedSource, CollateralSettings, DirectorySource, DiskShelf, PccsSource
from marblerun.attestation.collect.settings import INTEL_PCS
from marblerun.attestation.dcap.collateral import verify_collateral
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral, CollateralKey, TrustRoot
from marblerun.attestation.registry import DcapEvidence, Registry
from marblerun.attestation.roots import INTEL
from marblerun.attestation.simulated import load_trust_root
from marblerun.attestation.simulated.platform import is_simulated_platform
from marblerun.errors import Misconfigured

SIMULATED_WARNING: Final = (
    "EDG_SIMULATED_PLATFORM is set: evidence of a SIMULATED platform is trusted like hardware. "
    "Never use this in production."
)


class OpenSource(Protocol):
    """A source of collateral that is in use and has to be closed."""

    async def fetch(self, key: CollateralKey) -> Collateral:
        """The collateral, or :class:`~marblerun.errors.Unavailable`."""
        ...

    async def aclose(self) -> None:
        """Closes all connections."""
        ...


@dataclass(frozen=True, slots=True)
class Trust:
    """Roots, and how to open a source of collateral. ``warnings`` are to be shown to the user."""

    roots: tuple[TrustRoot, ...]
    collateral: Callable[[], OpenSource]
    warnings: tuple[str, ...] = ()

    def registry(self) -> Registry:
        """The verifiers under these roots. There is none for missing evidence, so that is refused."""
        return Registry([DcapEvidence(Verifier(self.roots))])


def trust_from_environment(
    environment: Mapping[str, str], *, pccs_url: str = "", pccs_ca_file: Path | None = None
) -> Trust:
    """The trust that the variables ask for; the two arguments go before ``EDG_PCCS_URL`` and ``EDG_PCCS_CA_FILE``.

    Collateral of a simulated platform comes from its directory, unless a service is named.

    Raises:
        Misconfigured: a value cannot be used. NotFound: there is no simulated platform in the directory.
    """
    simulated = environment.get("EDG_SIMULATED_PLATFORM", "")
    platform = Path(simulated) if simulated else None
    roots = (INTEL,) if platform is None else (INTEL, load_trust_root(platform))
    url = pccs_url or environment.get("EDG_PCCS_URL", "")
    settings = CollateralSettings(
        url=url or INTEL_PCS,
        ca_file=pccs_ca_file or _path(environment, "EDG_PCCS_CA_FILE"),
        timeout=_seconds(environment, "EDG_PCCS_TIMEOUT", 10.0),
        cache_dir=_path(environment, "EDG_COLLATERAL_CACHE_DIR"),
    )
    own = platform if platform is not None and not url and is_simulated_platform(platform) else None
    warnings = (SIMULATED_WARNING,) if platform is not None else ()
    return Trust(roots, lambda: _Collateral(settings, roots, own), warnings)


class _Collateral:
    """A service, behind the cache on disk if one is configured; or the directory of a simulated platform."""

    def __init__(self, settings: CollateralSettings, roots: tuple[TrustRoot, ...], platform: Path | None) -> None:
        self._service = None if platform is not None else PccsSource(settings)
        source = self._service or DirectorySource(platform or Path(), _now)
        self._cache = CachedSource(
            source,
            _now,
            check=lambda collateral: verify_collateral(collateral, roots),
            shelf=DiskShelf(settings.cache_dir) if settings.cache_dir else None,
        )

    async def fetch(self, key: CollateralKey) -> Collateral:
        return await self._cache.fetch(key)

    async def aclose(self) -> None:
        await self._cache.aclose()
        if self._service is not None:
            await self._service.aclose()


def _now() -> datetime:
    return datetime.now(UTC)


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    text = environment.get(name, "")
    return Path(text) if text else None


def _seconds(environment: Mapping[str, str], name: str, default: float) -> float:
    text = environment.get(name, "")
    if not text:
        return default
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise Misconfigured(f"{name} is {text!r}; give a number of seconds above 0 and below 3600")
    return seconds
