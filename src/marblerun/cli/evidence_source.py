"""Where the commands about evidence get collateral: a file, a directory, or the service that the settings name."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click

from marblerun.attestation.collect import DirectorySource, collateral_source
from marblerun.attestation.dcap.collateral import MAX_COLLATERAL_JSON_BYTES
from marblerun.attestation.model import Collateral, CollateralKey, Origin, TrustRoot
from marblerun.attestation.roots import INTEL
from marblerun.attestation.simulated import load_trust_root
from marblerun.cli.evidence_view import parse_recorded, read_input, read_root
from marblerun.cli.options import global_options
from marblerun.cli.output import show_collateral_warnings, warn
from marblerun.client.trust import seconds_named

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Service:
    """How the service is named on the command line; the environment's settings stand behind."""

    url: str | None
    ca_file: str | None

    async def fetch(self, key: CollateralKey, roots: tuple[TrustRoot, ...]) -> Collateral:
        """Collateral from the service, authentic under ``roots``. Raises Unavailable, Malformed or Misconfigured."""
        environment = {name: value for name, value in os.environ.items() if value}

        def path(name: str) -> Path | None:
            return Path(environment[name]) if name in environment else None

        show_collateral_warnings()
        given = global_options()
        ca_file = self.ca_file or given.pccs_ca
        source = collateral_source(
            url=self.url or given.pccs_url or environment.get("EDG_PCCS_URL", ""),
            ca_file=Path(ca_file) if ca_file else path("EDG_PCCS_CA_FILE"),
            timeout_seconds=seconds_named(environment, "EDG_PCCS_TIMEOUT", 10.0),
            simulated_platform=path("EDG_SIMULATED_PLATFORM"),
            roots=roots,
            directory=path("EDG_COLLATERAL_DIR"),
            qcnl=path("EDG_QCNL_CONFIG"),
            api_key_file=path("EDG_PCS_API_KEY_FILE"),
        )
        try:
            return await source.fetch(key)
        finally:
            await source.aclose()


def service_options(command: F) -> F:
    """Adds the options that name a collateral service."""
    url = click.option("--pccs-url", metavar="URL[,URL]", help="Collateral service; EDG_PCCS_URL, else Intel's.")
    ca = click.option("--pccs-ca", metavar="FILE", help="CA certificates (PEM) for the service; EDG_PCCS_CA_FILE.")
    return url(ca(command))


def trusted_roots(root_ca: str | None) -> tuple[TrustRoot, ...]:
    """The root in ``--root-ca`` alone; otherwise Intel's, and that of the platform in EDG_SIMULATED_PLATFORM."""
    if root_ca is not None:
        roots: tuple[TrustRoot, ...] = (read_root(root_ca),)
    else:
        simulated = os.environ.get("EDG_SIMULATED_PLATFORM", "")
        roots = (INTEL, load_trust_root(Path(simulated))) if simulated else (INTEL,)
    for root in roots:
        if root.origin is not Origin.HARDWARE:
            warn(f"trusting {root.name}, which is not evidence of any hardware")
    return roots


def obtain(
    key: CollateralKey,
    at: datetime,
    roots: tuple[TrustRoot, ...],
    service: Service,
    *,
    file: str | None,
    directory: str | None,
) -> Collateral:
    """Collateral for ``key`` from the file or directory if one is named, else from the service."""
    if file is not None:
        return parse_recorded(read_input(file, MAX_COLLATERAL_JSON_BYTES, "--collateral"))
    if directory is not None:
        return asyncio.run(DirectorySource(Path(directory), lambda: at).fetch(key))
    return asyncio.run(service.fetch(key, roots))
