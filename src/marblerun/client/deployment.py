"""Verifies a whole deployment: a genuine Coordinator, the manifest that was audited, a CA that nobody brought along."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from marblerun.attestation.binding import verify_binding
from marblerun.attestation.model import Claims, Collateral, CollateralKey
from marblerun.client.api import AsyncClient, Client
from marblerun.client.attest import NONCE_BYTES, AttestedCoordinator, attest, attest_async, fetch_collateral
from marblerun.client.policy import CoordinatorPolicy
from marblerun.client.problems import WHAT_NEXT
from marblerun.client.provenance import UNSTATED, Unstated, verify_provenance
from marblerun.client.replies import ManifestView
from marblerun.client.statement import Statement
from marblerun.client.transport import TimeOuts
from marblerun.client.trust import Trust, trust_from_environment
from marblerun.errors import Denied, Malformed, Untrusted, WrongPhase
from marblerun.wire.limits import MAX_QUOTE_BYTES


@dataclass(frozen=True, slots=True)
class Demands:
    """What is demanded of a deployment beside the evidence and the manifest (docs/recovery.md)."""

    allow_recovered: bool = False
    """Accept a state that was brought in with recovery keys that are not those of the manifest."""
    require_provenance: bool = False
    """Refuse Coordinators that do not say where their CA comes from, such as those of the reference."""
    known_root: bytes | None = None
    """Root certificate (DER) that is known from before; where it is the attested one nothing more is asked."""


@dataclass(frozen=True, slots=True)
class VerifiedDeployment:
    """An attested Coordinator that runs the expected manifest; its root may be trusted from here on."""

    coordinator: AttestedCoordinator
    fingerprint: str
    """SHA-256 of the manifest, hex."""
    warnings: tuple[str, ...] = ()
    """What could not be verified; to be shown to the user."""


def verify_deployment(
    endpoint: str,
    policy: CoordinatorPolicy,
    manifest: bytes | str,
    *,
    nonce: bytes | None = None,
    trust: Trust | None = None,
    at: datetime | None = None,
    times: TimeOuts | None = None,
    demands: Demands | None = None,
) -> VerifiedDeployment:
    """Attests, compares the manifest, and verifies where the CA comes from.

    ``manifest`` is its JSON bytes or its fingerprint (64 hex digits). A Coordinator that does not say where its CA
    comes from is a warning unless ``demands`` requires it.

    Raises:
        WrongPhase: no manifest is in force. Denied: another one is; both fingerprints are told.
        Malformed: the fingerprint is not one. All of :func:`~marblerun.client.attest.attest`.
        Untrusted: (step ``statement`` or ``provenance``) as :class:`Origin`.
    """
    expected = fingerprint_of(manifest)
    coordinator = attest(endpoint, policy, nonce=nonce, trust=trust, at=at, times=times)
    origin = Origin(coordinator, policy, demands or Demands(), trust, at)
    with coordinator.client(times=times) as client:
        view = client.manifest_get()
        verify_manifest(view, expected)
        warnings = origin.verify(client, view.manifest)
    return VerifiedDeployment(coordinator, expected, warnings)


async def verify_deployment_async(
    endpoint: str,
    policy: CoordinatorPolicy,
    manifest: bytes | str,
    *,
    nonce: bytes | None = None,
    trust: Trust | None = None,
    at: datetime | None = None,
    times: TimeOuts | None = None,
    demands: Demands | None = None,
) -> VerifiedDeployment:
    """As :func:`verify_deployment`, for asyncio."""
    expected = fingerprint_of(manifest)
    coordinator = await attest_async(endpoint, policy, nonce=nonce, trust=trust, at=at, times=times)
    origin = Origin(coordinator, policy, demands or Demands(), trust, at)
    async with coordinator.async_client(times=times) as client:
        view = await client.manifest_get()
        verify_manifest(view, expected)
        warnings = await origin.verify_async(client, view.manifest)
    return VerifiedDeployment(coordinator, expected, warnings)


@dataclass(frozen=True, slots=True)
class Origin:
    """Asks an attested Coordinator where its CA comes from and judges the answer (docs/adr/0007-provenance.md).

    1. A root certificate that is known from before is not asked about. 2. The statement is fetched; a Coordinator
    without statements is a warning, or refused. 3. Its quote is genuine, covers exactly its text and is admitted by the
    policy. 4. It was made for our nonce and names the attested root. 5. It names the manifest that was shown. 6. Nobody
    but the holders of that manifest's recovery keys can have brought the state in.

    Raises:
        Untrusted: (step ``statement``) 4; (step ``provenance``) 2, 6; as ``attest``: 3. Denied: 3, 5.
    """

    coordinator: AttestedCoordinator
    policy: CoordinatorPolicy
    demands: Demands
    trust: Trust | None = None
    at: datetime | None = None

    def verify(self, client: Client, manifest: bytes) -> tuple[str, ...]:
        """Ask over ``client``; what comes back are warnings."""
        if self._is_known():  # 1
            return ()
        nonce = secrets.token_bytes(NONCE_BYTES)
        stated = client.quoted_statement(nonce)  # 2
        if stated is None:
            return self._unstated()
        trust = self.trust or trust_from_environment(os.environ)
        key = self._other_platform(trust, stated[1])
        collateral = self.coordinator.collateral if key is None else asyncio.run(fetch_collateral(trust, key))
        return self._judge(stated, nonce, manifest, trust, collateral)

    async def verify_async(self, client: AsyncClient, manifest: bytes) -> tuple[str, ...]:
        """The same for asyncio."""
        if self._is_known():  # 1
            return ()
        nonce = secrets.token_bytes(NONCE_BYTES)
        stated = await client.quoted_statement(nonce)  # 2
        if stated is None:
            return self._unstated()
        trust = self.trust or trust_from_environment(os.environ)
        key = self._other_platform(trust, stated[1])
        collateral = self.coordinator.collateral if key is None else await fetch_collateral(trust, key)
        return await asyncio.to_thread(self._judge, stated, nonce, manifest, trust, collateral)

    def _is_known(self) -> bool:
        is_unverified = self.coordinator.claims is None
        return is_unverified or self.demands.known_root == self.coordinator.chain.root_der

    def _unstated(self) -> tuple[str, ...]:
        if self.demands.require_provenance:
            raise Unstated(UNSTATED, step="provenance", reason="unstated")
        return (UNSTATED,)

    def _other_platform(self, trust: Trust, quote: bytes) -> CollateralKey | None:
        """Whose collateral has to be fetched; ``None`` where what was fetched for the attestation serves."""
        if not quote or len(quote) > MAX_QUOTE_BYTES:
            raise Untrusted("there is no quote over it", step="statement", reason="missing")
        registry = trust.registry()
        key = registry.collateral_key(quote)
        return None if key == registry.collateral_key(self.coordinator.quote) else key

    def _judge(
        self,
        stated: tuple[Statement, bytes],
        nonce: bytes,
        manifest: bytes,
        trust: Trust,
        collateral: Collateral | None,
    ) -> tuple[str, ...]:
        statement, quote = stated
        verdict = trust.registry().verify(quote, collateral, self.at or datetime.now(UTC))  # 3
        if not isinstance(verdict, Claims):
            raise Untrusted("there is no evidence for it", step="statement", reason="missing")
        verify_binding(verdict.report_data, statement.text.encode(), strict=True)
        self.policy.judge(verdict)
        if statement.nonce != base64.b64encode(nonce).decode():  # 4
            raise Untrusted("it was not made for this request", step="statement", reason="nonce")
        if statement.root_certificate.encode() != self.coordinator.chain.root_pem:
            raise Untrusted("it is about another root certificate", step="statement", reason="root")
        fingerprint = hashlib.sha256(manifest).hexdigest()
        if statement.manifest_fingerprint != fingerprint:  # 5
            raise Denied(
                "the manifest that the Coordinator's address shows is not the one in force in the enclave",
                mismatches=(f"fingerprint is {statement.manifest_fingerprint or 'none'}, expected {fingerprint}",),
            )
        try:
            verify_provenance(statement.provenance, manifest, allow_recovered=self.demands.allow_recovered)  # 6
        except Unstated:
            return self._unstated()
        return ()


def fingerprint_of(manifest: bytes | str) -> str:
    """The fingerprint, in lower case, of manifest bytes or of a text that is one already.

    Raises:
        Malformed: a text that is not 64 hex digits; wrong length and wrong characters are told apart.
    """
    if isinstance(manifest, bytes):
        return hashlib.sha256(manifest).hexdigest()
    text = manifest.strip().lower()
    if len(text) != 64:
        raise Malformed(f"a fingerprint has 64 hex digits, not {len(text)} characters", where="manifest fingerprint")
    if not set(text) <= set("0123456789abcdef"):
        raise Malformed("holds characters that are not hex digits", where="manifest fingerprint")
    return text


def verify_manifest(view: ManifestView, expected: str) -> None:
    """Raises unless the manifest in force has the expected fingerprint."""
    if not view.fingerprint:
        raise WrongPhase(f"the Coordinator has no manifest in force; {WHAT_NEXT}")
    if view.fingerprint != expected:
        raise Denied(
            "the Coordinator runs another manifest",
            mismatches=(f"fingerprint is {view.fingerprint}, expected {expected}",),
        )
