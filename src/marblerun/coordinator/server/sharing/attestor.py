"""Own evidence and verdicts on others' for the key exchange, with the Coordinator's own verifiers and collateral."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.collect import CollateralSource
from marblerun.attestation.issue import EvidenceIssuer
from marblerun.attestation.model import Claims, Origin
from marblerun.attestation.registry import Registry
from marblerun.errors import Unavailable
from marblerun.policy.sharing import IdentityUnknown


@dataclass(frozen=True, slots=True)
class Attestor:
    """What is needed to show evidence and to look at it."""

    issuer: EvidenceIssuer
    registry: Registry
    collateral: CollateralSource | None
    clock: Callable[[], datetime]

    @property
    def has_evidence(self) -> bool:
        """Whether this Coordinator can show any; without there is no key exchange."""
        return self.issuer.origin is not Origin.NONE

    async def quote(self, message: bytes) -> bytes:
        """Own evidence over ``message``; raises Unavailable."""
        return await asyncio.to_thread(self.issuer.issue, report_data_for(message))

    async def claims(self, evidence: bytes, at: datetime) -> Claims:
        """What verified evidence says; raises Malformed, Untrusted or Unavailable, and IdentityUnknown for none."""
        key = self.registry.collateral_key(evidence)
        collateral = None
        if key is not None:
            if self.collateral is None:
                raise Unavailable("no collateral service is configured; set EDG_PCCS_URL")
            collateral = await self.collateral.fetch(key)
        verdict = self.registry.verify(evidence, collateral, at)
        if not isinstance(verdict, Claims):
            raise IdentityUnknown("without evidence there is no key exchange between Coordinators")
        return verdict
