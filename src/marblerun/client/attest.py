"""Attests a Coordinator: is the thing behind this endpoint the enclave that the policy describes, and what is its root?

Nothing but the request for a quote is sent before the answer is yes, and no client credentials with it.

Source: cli-marble-k8s, sections 1.4 and 2.4; protocol, sections 3.4 and 7.7.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from marblerun.attestation.binding import verify_binding
from marblerun.attestation.model import Claims, Collateral, CollateralKey
from marblerun.attestation.registry import Registry
from marblerun.client import calls
from marblerun.client.api import AsyncClient, Client, converse, converse_async
from marblerun.client.chain import CoordinatorChain, parse_chain
from marblerun.client.pinning import UNVERIFIED, Credentials, PeerTrust
from marblerun.client.policy import CoordinatorPolicy
from marblerun.client.replies import QuoteReply
from marblerun.client.transport import AsyncTransport, Endpoint, TimeOuts, Transport
from marblerun.client.trust import Trust, trust_from_environment
from marblerun.errors import Untrusted
from marblerun.wire.limits import MAX_QUOTE_BYTES

NONCE_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class AttestedCoordinator:
    """A Coordinator that was found to be the one the policy describes.

    ``claims`` are ``None`` only where the policy was ``insecure``; then nothing at all is known about the peer.
    """

    endpoint: str
    chain: CoordinatorChain
    quote: bytes
    claims: Claims | None
    nonce: bytes
    """What the quote covers besides the root; empty if it is the Coordinator's cached quote."""
    warnings: tuple[str, ...] = ()
    collateral: Collateral | None = field(default=None, repr=False, compare=False)
    """What the quote was verified with; another quote of the same platform needs no other."""

    @property
    def trust(self) -> PeerTrust:
        """How every later connection has to be checked: the leaf is exactly the attested root."""
        return UNVERIFIED if self.claims is None else self.chain.pin

    def client(self, credentials: Credentials | None = None, times: TimeOuts | None = None) -> Client:
        """A blocking client that talks to this Coordinator only."""
        return Client(self.endpoint, self.trust, credentials=credentials, times=times)

    def async_client(self, credentials: Credentials | None = None, times: TimeOuts | None = None) -> AsyncClient:
        """An asynchronous client that talks to this Coordinator only."""
        return AsyncClient(self.endpoint, self.trust, credentials=credentials, times=times)


def attest(
    endpoint: str,
    policy: CoordinatorPolicy,
    *,
    nonce: bytes | None = None,
    trust: Trust | None = None,
    at: datetime | None = None,
    times: TimeOuts | None = None,
) -> AttestedCoordinator:
    """Attests the Coordinator at ``HOST:PORT``; blocking, must not be called from a running event loop.

    ``nonce`` ``None`` means a fresh random one, so that the quote was made now; a Coordinator that speaks only
    version 1 of the API is then asked without. Bytes are required to be covered. ``b""`` accepts
    the Coordinator's cached quote.

    1. The policy can refuse somebody. 2. Quote and chain are fetched. 3. Two certificates, the root issued the other.
    4. There is a quote. 5. The collateral for its platform is fetched. 6. The quote is genuine. 7. It covers root and
    nonce. 8. The policy admits what it says. With an ``insecure`` policy only 2 and 3.

    Raises:
        Misconfigured: 1. Unavailable: 2 or 5. Malformed: the answer is not of the right form.
        Untrusted: 3, 4, 6 or 7. Denied: 8, with every mismatch.
    """
    policy.verify_complete()  # 1
    asked, required = _nonce(policy, nonce)
    with Transport(Endpoint.parse(endpoint), UNVERIFIED, None, times) as transport:
        reply, covered = converse(transport, calls.quote(asked, nonce_required=required))  # 2
    evidence = _Evidence.of(endpoint, reply, covered)  # 3
    if policy.insecure:
        return evidence.unverified()
    trust = trust or trust_from_environment(os.environ)
    registry = trust.registry()
    key = evidence.collateral_key(registry)  # 4
    collateral = None if key is None else asyncio.run(fetch_collateral(trust, key))  # 5
    return evidence.verified(registry, collateral, at or datetime.now(UTC), policy, trust)  # 6, 7, 8


async def attest_async(
    endpoint: str,
    policy: CoordinatorPolicy,
    *,
    nonce: bytes | None = None,
    trust: Trust | None = None,
    at: datetime | None = None,
    times: TimeOuts | None = None,
) -> AttestedCoordinator:
    """As :func:`attest`, for asyncio."""
    policy.verify_complete()  # 1
    asked, required = _nonce(policy, nonce)
    async with AsyncTransport(Endpoint.parse(endpoint), UNVERIFIED, None, times) as transport:
        reply, covered = await converse_async(transport, calls.quote(asked, nonce_required=required))  # 2
    evidence = _Evidence.of(endpoint, reply, covered)  # 3
    if policy.insecure:
        return evidence.unverified()
    trust = trust or trust_from_environment(os.environ)
    registry = trust.registry()
    key = evidence.collateral_key(registry)  # 4
    collateral = None if key is None else await fetch_collateral(trust, key)  # 5
    return await asyncio.to_thread(
        evidence.verified, registry, collateral, at or datetime.now(UTC), policy, trust
    )  # 6, 7, 8


def _nonce(policy: CoordinatorPolicy, nonce: bytes | None) -> tuple[bytes, bool]:
    """The nonce to ask for, and whether an answer without one is refused."""
    if nonce is None:
        nonce = policy.nonce or None
    if nonce is None:
        # Without evidence there is nothing that a nonce could make fresh.
        return (b"" if policy.insecure else secrets.token_bytes(NONCE_BYTES)), False
    return nonce, bool(nonce)


async def fetch_collateral(trust: Trust, key: CollateralKey) -> Collateral:
    """The collateral for one platform, or Unavailable."""
    source = trust.collateral()
    try:
        return await source.fetch(key)
    finally:
        await source.aclose()


@dataclass(frozen=True, slots=True)
class _Evidence:
    """What the Coordinator said about itself; not believed yet."""

    endpoint: str
    chain: CoordinatorChain
    quote: bytes
    nonce: bytes

    @classmethod
    def of(cls, endpoint: str, reply: QuoteReply, nonce: bytes) -> _Evidence:
        chain = parse_chain(reply.chain)
        chain.verify_intermediate()
        return cls(endpoint, chain, reply.quote, nonce)

    def unverified(self) -> AttestedCoordinator:
        return AttestedCoordinator(self.endpoint, self.chain, self.quote, None, self.nonce)

    def collateral_key(self, registry: Registry) -> CollateralKey | None:
        if not self.quote:
            raise Untrusted(
                "the Coordinator shows no evidence; it may run in simulation (then only --insecure reaches it)",
                step="quote",
                reason="missing",
            )
        if len(self.quote) > MAX_QUOTE_BYTES:
            raise Untrusted(f"the quote is larger than {MAX_QUOTE_BYTES} bytes", step="quote", reason="too-large")
        return registry.collateral_key(self.quote)

    def verified(
        self, registry: Registry, collateral: Collateral | None, at: datetime, policy: CoordinatorPolicy, trust: Trust
    ) -> AttestedCoordinator:
        verdict = registry.verify(self.quote, collateral, at)
        if not isinstance(verdict, Claims):
            raise Untrusted("the Coordinator shows no evidence", step="quote", reason="missing")
        verify_binding(verdict.report_data, self.chain.root_der + self.nonce, strict=True)
        warnings = (*trust.warnings, *policy.judge(verdict))
        return AttestedCoordinator(self.endpoint, self.chain, self.quote, verdict, self.nonce, warnings, collateral)
