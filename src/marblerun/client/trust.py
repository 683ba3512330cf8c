"""Whose word a relying party takes about evidence: roots of trust, and where their collateral comes from.

Intel's root is built in. A simulated platform's root is trusted only where ``EDG_SIMULATED_PLATFORM`` names it, and
that is said aloud.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from marblerun.attestation.collect import collateral_source
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral, CollateralKey, TrustRoot
from marblerun.attestation.registry import DcapEvidence, Registry
from marblerun.attestation.roots import INTEL
from marblerun.attestation.simulated import load_trust_root
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

    Where collateral comes from is decided as the Coordinator decides it (``collect.collateral_source``).

    Raises:
        Misconfigured: a value cannot be used. NotFound: there is no simulated platform in the directory.
    """
    simulated = environment.get("EDG_SIMULATED_PLATFORM", "")
    platform = Path(simulated) if simulated else None
    roots = (INTEL,) if platform is None else (INTEL, load_trust_root(platform))
    source = partial(
        collateral_source,
        url=pccs_url or environment.get("EDG_PCCS_URL", ""),
        ca_file=pccs_ca_file or _path(environment, "EDG_PCCS_CA_FILE"),
        timeout_seconds=seconds_named(environment, "EDG_PCCS_TIMEOUT", 10.0),
        cache_directory=_path(environment, "EDG_COLLATERAL_CACHE_DIR"),
        simulated_platform=platform,
        roots=roots,
        directory=_path(environment, "EDG_COLLATERAL_DIR"),
        qcnl=_path(environment, "EDG_QCNL_CONFIG"),
        api_key_file=_path(environment, "EDG_PCS_API_KEY_FILE"),
    )
    return Trust(roots, source, (SIMULATED_WARNING,) if platform is not None else ())


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    text = environment.get(name, "")
    return Path(text) if text else None


def seconds_named(environment: Mapping[str, str], name: str, default: float) -> float:
    """The seconds in the variable ``name``, above 0 and below 3600; ``default`` if not set, Misconfigured for else."""
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
