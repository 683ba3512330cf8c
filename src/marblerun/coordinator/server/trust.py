"""Which evidence this Coordinator shows, which it believes, and which it admits: decided once, by the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from marblerun.attestation.collect import CollateralSource, collateral_source
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.issue import EvidenceIssuer, NoEvidenceIssuer, detect_issuer
from marblerun.attestation.model import Origin, TrustRoot
from marblerun.attestation.registry import DcapEvidence, NoEvidence, Registry
from marblerun.attestation.roots import INTEL
from marblerun.attestation.simulated import load_trust_root
from marblerun.coordinator.server.settings import Settings
from marblerun.errors import Misconfigured
from marblerun.policy.admission import Admission

_NO_EVIDENCE_WARNING: Final = (
    "OE_SIMULATION=1: no evidence is shown and any process is admitted as any Marble. Never use this in production."
)
_SIMULATED_WARNING: Final = (
    "EDG_SIMULATED_PLATFORM is set: a software platform is trusted like hardware. Never use this in production."
)
_DEV_MODE_WARNING: Final = (
    "no trusted execution environment was found; EDG_COORDINATOR_DEV_MODE=1 goes on without own evidence, "
    "so that no client can verify this Coordinator"
)


@dataclass(frozen=True, slots=True)
class Trust:
    """The evidence side of a Coordinator."""

    issuer: EvidenceIssuer
    registry: Registry
    admission: Admission
    collateral: CollateralSource | None
    simulated_platform: Path | None
    warnings: tuple[str, ...]


def trust_from_settings(environment: Mapping[str, str], settings: Settings) -> Trust:
    """Decide; raises Misconfigured, saying what to do, if there is neither a TEE nor a simulation asked for."""
    if environment.get("OE_SIMULATION") == "1":
        issuer = detect_issuer(environment)
        registry = Registry([NoEvidence()])
        return Trust(issuer, registry, Admission(frozenset({Origin.NONE})), None, None, (_NO_EVIDENCE_WARNING,))
    directory = environment.get("EDG_SIMULATED_PLATFORM", "")
    platform = Path(directory) if directory else None
    roots: list[TrustRoot] = [INTEL]
    origins = {Origin.HARDWARE}
    warnings: list[str] = []
    if platform is not None:
        roots.append(load_trust_root(platform))
        origins.add(Origin.SIMULATED)
        warnings.append(_SIMULATED_WARNING)
    issuer, issuer_warnings = _issuer(environment, settings)
    return Trust(
        issuer=issuer,
        registry=Registry([DcapEvidence(Verifier(roots))]),
        admission=Admission(frozenset(origins)),
        collateral=collateral_source(
            url=settings.pccs_url,
            ca_file=settings.pccs_ca_file,
            timeout_seconds=settings.pccs_timeout_seconds,
            cache_directory=settings.collateral_cache_directory,
            simulated_platform=platform,
            roots=roots,
            directory=settings.collateral_directory,
            qcnl=settings.qcnl_config,
            api_key_file=settings.pcs_api_key_file,
        ),
        simulated_platform=platform,
        warnings=(*warnings, *issuer_warnings),
    )


def _issuer(environment: Mapping[str, str], settings: Settings) -> tuple[EvidenceIssuer, tuple[str, ...]]:
    try:
        return detect_issuer(environment), ()
    except Misconfigured:
        if not settings.dev_mode:
            raise
        return NoEvidenceIssuer(), (_DEV_MODE_WARNING,)
