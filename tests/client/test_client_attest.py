"""Attestation: nothing but the quote request is sent before the answer is yes, and every lie has its own error."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import replace

import pytest
from tests.client.coordinators import FakeCoordinator, coordinator, manifest_routes, mint, quote_maker, serving, success
from tests.client.fixtures import POLICY, PRODUCT, SIGNER_ID, UNIQUE_ID

from marblerun.attestation.model import Origin
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.client import (
    UNVERIFIED,
    CoordinatorPolicy,
    PinnedRoot,
    Trust,
    attest,
    attest_async,
    trust_from_environment,
    verify_deployment,
    verify_deployment_async,
)
from marblerun.errors import Denied, Malformed, MarbleRunError, Misconfigured, Unavailable, Untrusted, WrongPhase

QUOTE = "GET /api/v2/quote"


def test_a_genuine_coordinator_is_attested_with_a_fresh_nonce(honest: FakeCoordinator, trust: Trust) -> None:
    found = attest(honest.endpoint, POLICY, trust=trust)
    assert (found.chain.root_der, found.trust) == (honest.root.der, PinnedRoot(honest.root.der))
    assert found.claims is not None
    assert found.claims.origin is Origin.SIMULATED
    assert any("SIMULATED" in warning for warning in found.warnings)
    asked = base64.urlsafe_b64decode(dict(honest.calls[0].query)["nonce"])
    assert (len(asked), found.nonce) == (32, asked)
    assert attest(honest.endpoint, POLICY, trust=trust).nonce != asked


def test_the_asynchronous_way_is_the_same(honest: FakeCoordinator, trust: Trust) -> None:
    found = asyncio.run(attest_async(honest.endpoint, POLICY, trust=trust))
    assert found.chain.root_der == honest.root.der
    assert honest.sent_requests == [QUOTE]


def test_no_client_certificate_goes_with_the_quote_request(honest: FakeCoordinator, trust: Trust) -> None:
    attest(honest.endpoint, POLICY, trust=trust)
    assert honest.certificates_seen == [None]


def test_the_cached_quote_is_asked_for_with_an_empty_nonce(honest: FakeCoordinator, trust: Trust) -> None:
    assert attest(honest.endpoint, POLICY, nonce=b"", trust=trust).nonce == b""
    assert honest.calls[0].query == ()


def _refused(fake: FakeCoordinator, trust: Trust, policy: CoordinatorPolicy = POLICY) -> MarbleRunError:
    """The refusal; sync and async refuse alike, and only quotes were asked for."""
    with serving(fake):
        with pytest.raises(MarbleRunError) as first:
            attest(fake.endpoint, policy, trust=trust)
        with pytest.raises(MarbleRunError) as second:
            asyncio.run(attest_async(fake.endpoint, policy, trust=trust))
        assert type(first.value) is type(second.value)
        assert set(fake.sent_requests) == {QUOTE}
    return first.value


def _untrusted(error: MarbleRunError) -> tuple[str, str]:
    assert isinstance(error, Untrusted)
    return error.step, error.reason


def test_no_evidence_is_refused(platform: SimulatedPlatform, trust: Trust) -> None:
    fake = coordinator(platform, product_id=PRODUCT)
    fake.evidence = lambda _: b""
    assert _untrusted(_refused(fake, trust)) == ("quote", "missing")


@pytest.mark.parametrize("quote", [b"x", b"\x03\x00" + bytes(500), b'{"quote": 1}', bytes(100_000)])
def test_garbage_as_evidence_is_refused(platform: SimulatedPlatform, trust: Trust, quote: bytes) -> None:
    fake = coordinator(platform, product_id=PRODUCT)
    fake.evidence = lambda _: quote
    assert isinstance(_refused(fake, trust), Untrusted | Malformed)


def test_a_quote_bound_to_another_root_is_refused(platform: SimulatedPlatform, trust: Trust) -> None:
    """The relay: somebody shows a genuine Coordinator's quote with a root of their own."""
    fake = coordinator(platform, product_id=PRODUCT)
    fake.evidence = quote_maker(platform, mint("other").der, product_id=PRODUCT)
    assert _untrusted(_refused(fake, trust)) == ("report-data", "mismatch")


def test_an_old_quote_is_refused_where_a_nonce_was_asked_for(platform: SimulatedPlatform, trust: Trust) -> None:
    fake = coordinator(platform, product_id=PRODUCT)
    fake.ignores_nonce = True
    assert _untrusted(_refused(fake, trust)) == ("report-data", "mismatch")


def test_report_data_must_be_zero_after_the_digest(platform: SimulatedPlatform, trust: Trust) -> None:
    from hashlib import sha256

    fake = coordinator(platform)
    fake.evidence = lambda nonce: platform.quote(sha256(fake.root.der + nonce).digest() + b"\x01", product_id=PRODUCT)
    assert _untrusted(_refused(fake, trust)) == ("report-data", "mismatch")


def test_a_platform_that_nobody_named_is_refused(honest: FakeCoordinator, platform: SimulatedPlatform) -> None:
    """The very same evidence, with Intel's root alone."""
    trusting = trust_from_environment({"EDG_SIMULATED_PLATFORM": str(platform.directory)})
    strict = Trust(trust_from_environment({}).roots, trusting.collateral)
    with pytest.raises(MarbleRunError) as refusal:
        attest(honest.endpoint, POLICY, trust=strict)
    assert isinstance(refusal.value, Untrusted | Malformed)
    assert honest.sent_requests == [QUOTE]


def test_evidence_of_another_simulated_platform_is_refused(other_platform: SimulatedPlatform, trust: Trust) -> None:
    assert isinstance(_refused(coordinator(other_platform, product_id=PRODUCT), trust), Untrusted | Unavailable)


IDENTITIES: list[tuple[dict[str, object], str]] = [
    ({"signer_id": bytes(32)}, "SignerID"),
    ({"product_id": 4}, "ProductID"),
    ({"security_version": 0}, "SecurityVersion"),
    ({"debug": True}, "Debug"),
]


@pytest.mark.parametrize(("identity", "named"), IDENTITIES)
def test_another_enclave_is_denied_by_name(
    platform: SimulatedPlatform, trust: Trust, identity: dict[str, object], named: str
) -> None:
    refusal = _refused(coordinator(platform, **{"product_id": PRODUCT, **identity}), trust)
    assert isinstance(refusal, Denied)
    assert [mismatch.split(":")[0] for mismatch in refusal.mismatches] == [f"policy.{named}"]


def test_every_mismatch_is_told_at_once(platform: SimulatedPlatform, trust: Trust) -> None:
    fake = coordinator(platform, product_id=9, security_version=0, debug=True, unique_id=b"\1" * 32)
    refusal = _refused(fake, trust, replace(POLICY, unique_id=UNIQUE_ID))
    assert isinstance(refusal, Denied)
    named = {mismatch.split(":")[0].removeprefix("policy.") for mismatch in refusal.mismatches}
    assert named == {"Debug", "UniqueID", "ProductID", "SecurityVersion"}


@pytest.mark.parametrize("policy", [CoordinatorPolicy(), CoordinatorPolicy(product_id=3, security_version=1)])
def test_a_policy_that_admits_anybody_is_refused_before_anything_is_sent(
    honest: FakeCoordinator, trust: Trust, policy: CoordinatorPolicy
) -> None:
    with pytest.raises(Misconfigured):
        attest(honest.endpoint, policy, trust=trust)
    assert honest.calls == []


CHAINS: list[tuple[str, Callable[[FakeCoordinator], bytes]]] = [
    ("root only", lambda fake: fake.root.pem),
    ("three", lambda fake: fake.intermediate.pem + fake.root.pem + fake.root.pem),
    ("none", lambda fake: b""),
    ("garbage", lambda fake: fake.intermediate.pem + fake.root.pem.replace(b"M", b"N", 3)),
    ("text", lambda fake: fake.chain + b"more"),
]


@pytest.mark.parametrize(("name", "chain"), CHAINS, ids=[name for name, _ in CHAINS])
def test_a_chain_of_another_form_is_refused(
    platform: SimulatedPlatform, trust: Trust, name: str, chain: Callable[[FakeCoordinator], bytes]
) -> None:
    fake = coordinator(platform, product_id=PRODUCT)
    quote = base64.b64encode(fake.evidence(b"")).decode()
    fake.routes[QUOTE] = lambda _: success({"cert": chain(fake).decode(), "quote": quote})
    assert isinstance(_refused(fake, trust), Malformed | Untrusted)


def test_an_intermediate_of_somebody_else_is_refused(platform: SimulatedPlatform, trust: Trust) -> None:
    """The quote covers the root alone; a foreign intermediate would vouch for foreign Marbles."""
    fake = coordinator(platform, product_id=PRODUCT)
    fake.intermediate = mint("MarbleRun Coordinator - Intermediate CA", mint("MarbleRun Coordinator"))
    assert _untrusted(_refused(fake, trust)) == ("chain", "bad-signature")


def test_the_first_api_version_is_a_fallback_without_nonce(honest: FakeCoordinator, trust: Trust) -> None:
    honest.routes = {"GET /quote": honest.quote_route_v1}
    found = attest(honest.endpoint, POLICY, trust=trust)
    assert (found.nonce, honest.sent_requests) == (b"", [QUOTE, "GET /quote"])
    with pytest.raises(Unavailable, match="nonce"):
        attest(honest.endpoint, POLICY, nonce=b"mine", trust=trust)


def test_insecure_believes_anybody_and_says_so_in_its_type(platform: SimulatedPlatform) -> None:
    fake = coordinator(platform)
    fake.evidence = lambda _: b""
    with serving(fake):
        found = attest(fake.endpoint, CoordinatorPolicy(insecure=True))
    assert (found.claims, found.trust) == (None, UNVERIFIED)


MANIFEST = b'{"Packages": {}}'


def test_a_deployment_is_verified_by_manifest_or_fingerprint(honest: FakeCoordinator, trust: Trust) -> None:
    honest.routes |= manifest_routes(MANIFEST)
    found = verify_deployment(honest.endpoint, POLICY, MANIFEST, trust=trust)
    again = asyncio.run(verify_deployment_async(honest.endpoint, POLICY, found.fingerprint.upper(), trust=trust))
    assert found.fingerprint == again.fingerprint


def test_another_manifest_is_denied_with_both_fingerprints(honest: FakeCoordinator, trust: Trust) -> None:
    honest.routes |= manifest_routes(MANIFEST)
    with pytest.raises(Denied) as refusal:
        verify_deployment(honest.endpoint, POLICY, b"{}", trust=trust)
    assert "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" in str(refusal.value)


def test_no_manifest_in_force_is_the_wrong_phase(honest: FakeCoordinator, trust: Trust) -> None:
    honest.routes["GET /manifest"] = lambda _: success({"ManifestSignature": "", "Manifest": None})
    with pytest.raises(WrongPhase):
        verify_deployment(honest.endpoint, POLICY, MANIFEST, trust=trust)


def test_genuine_evidence_with_tls_by_somebody_else_gets_no_further_byte(
    platform: SimulatedPlatform, trust: Trust
) -> None:
    """The man in the middle who passes the real quote through and terminates TLS himself."""
    fake = coordinator(platform, product_id=PRODUCT)
    fake.routes |= manifest_routes(MANIFEST)
    fake.tls = mint("MarbleRun Coordinator")
    with serving(fake), pytest.raises(Untrusted) as refusal:
        verify_deployment(fake.endpoint, POLICY, MANIFEST, trust=trust)
    assert refusal.value.step == "tls-pin"
    assert fake.sent_requests == [QUOTE]


def test_trust_needs_a_platform_where_one_is_named() -> None:
    with pytest.raises(MarbleRunError):
        trust_from_environment({"EDG_SIMULATED_PLATFORM": "/nowhere/at/all"})
    with pytest.raises(Misconfigured):
        trust_from_environment({"EDG_PCCS_TIMEOUT": "soon"})


def test_signer_in_any_case_of_hex_is_the_same(honest: FakeCoordinator, trust: Trust) -> None:
    attest(honest.endpoint, replace(POLICY, signer_id=SIGNER_ID.upper()), trust=trust)
    assert honest.sent_requests == [QUOTE]
