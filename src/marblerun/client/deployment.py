"""Verifies a whole deployment: the Coordinator is genuine, and the manifest in force is the one that was audited."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from marblerun.client.attest import AttestedCoordinator, attest, attest_async
from marblerun.client.policy import CoordinatorPolicy
from marblerun.client.replies import ManifestView
from marblerun.client.transport import TimeOuts
from marblerun.client.trust import Trust
from marblerun.errors import Denied, Malformed, WrongPhase


@dataclass(frozen=True, slots=True)
class VerifiedDeployment:
    """An attested Coordinator that runs the expected manifest; its root may be trusted from here on."""

    coordinator: AttestedCoordinator
    fingerprint: str
    """SHA-256 of the manifest, hex."""


def verify_deployment(
    endpoint: str,
    policy: CoordinatorPolicy,
    manifest: bytes | str,
    *,
    nonce: bytes | None = None,
    trust: Trust | None = None,
    at: datetime | None = None,
    times: TimeOuts | None = None,
) -> VerifiedDeployment:
    """Attests, then compares the manifest; ``manifest`` is its JSON bytes or its fingerprint (64 hex digits).

    Raises:
        WrongPhase: no manifest is in force. Denied: another one is; both fingerprints are told.
        Malformed: the fingerprint is not one. All of :func:`~marblerun.client.attest.attest`.
    """
    expected = fingerprint_of(manifest)
    coordinator = attest(endpoint, policy, nonce=nonce, trust=trust, at=at, times=times)
    with coordinator.client(times=times) as client:
        verify_manifest(client.manifest_get(), expected)
    return VerifiedDeployment(coordinator, expected)


async def verify_deployment_async(
    endpoint: str,
    policy: CoordinatorPolicy,
    manifest: bytes | str,
    *,
    nonce: bytes | None = None,
    trust: Trust | None = None,
    at: datetime | None = None,
    times: TimeOuts | None = None,
) -> VerifiedDeployment:
    """As :func:`verify_deployment`, for asyncio."""
    expected = fingerprint_of(manifest)
    coordinator = await attest_async(endpoint, policy, nonce=nonce, trust=trust, at=at, times=times)
    async with coordinator.async_client(times=times) as client:
        verify_manifest(await client.manifest_get(), expected)
    return VerifiedDeployment(coordinator, expected)


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
        raise WrongPhase("the Coordinator has no manifest in force; is it in the right state?")
    if view.fingerprint != expected:
        raise Denied(
            "the Coordinator runs another manifest",
            mismatches=(f"fingerprint is {view.fingerprint}, expected {expected}",),
        )
