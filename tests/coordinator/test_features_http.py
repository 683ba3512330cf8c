"""Signed quotes and monotonic counters over HTTP, against a Coordinator that verifies evidence."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from tests.coordinator.manifests import INTEGRATION, encode, integration
from tests.coordinator.people import Person, ask, person
from tests.coordinator.running import Running, World, running
from tests.coordinator.states import UUID_1, UUID_2, applicant
from tests.coordinator.test_service import WatchedStore

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.dcap.quote import add_oe_header
from marblerun.attestation.model import TcbStatus
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.client.signatures import verify_signed_quote
from marblerun.coordinator.commands.activate import Activated
from marblerun.secrets.upload import SecretUpload

BOTH = encode({**integration(), "Config": {"FeatureGates": ["SignQuoteEndpoint", "MonotonicCounter"]}})
SIGN, COUNT = "/api/v2/sign-quote", "/api/v2/monotonic-counter"


@pytest.fixture(scope="module")
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture(scope="module")
def up(platform: SimulatedPlatform, store: WatchedStore) -> Iterator[Running]:
    with running(World(platform=platform, store=store), manifest=BOTH) as started:
        yield started


def activated(up: Running, uuid: str = UUID_1, marble: str = "backend") -> Person:
    """A Marble with what it got."""
    marble_tls = applicant()
    platform = up.world.platform
    quote = b"" if platform is None else platform.quote_as(EnclaveIdentity(), report_data_for(marble_tls.certificate))
    reply: Activated = up.call(up.coordinator.activate(marble_tls.request(marble, uuid, quote), marble_tls.certificate))
    chain = x509.load_pem_x509_certificates(reply.env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])
    key = load_pem_private_key(reply.env["MARBLE_PREDEFINED_PRIVATE_KEY"], None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Person(marble, chain[0], key)


@pytest.fixture(scope="module")
def marble(up: Running) -> Person:
    return activated(up)


def upload(quote: bytes) -> dict[str, str]:
    return {"sgxQuote": base64.b64encode(quote).decode()}


# -- sign-quote --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_header", [False, True])
def test_f1_i9_a_valid_quote_is_signed_exactly_as_it_was_uploaded(
    up: Running, platform: SimulatedPlatform, with_header: bool
) -> None:
    """F1, I9: raw and with the header, by anybody, of an enclave that no package is for."""
    raw = platform.quote_as(EnclaveIdentity(signer_id=b"?" * 32), bytes(64))
    quote = add_oe_header(raw) if with_header else raw
    answer = ask(up.client, "POST", SIGN, upload(quote))
    assert (answer.status, answer.envelope["status"]) == (200, "success")
    assert set(answer.data) == {"tcbStatus", "verificationSignature"}
    signature = base64.b64decode(answer.data["verificationSignature"])
    root = up.coordinator.state.authority.root
    verify_signed_quote(root, quote, signature, answer.data["tcbStatus"])
    assert answer.data["tcbStatus"] == "UpToDate"


def test_f1_a_platform_that_is_out_of_date_is_signed_as_such(tmp_path: Path) -> None:
    """F1: TCB level invalid."""
    at = datetime.now(UTC)
    old = SimulatedPlatform.create(tmp_path / "old", at=at, tcb_status=TcbStatus.OUT_OF_DATE)
    with running(World(platform=old), manifest=BOTH) as up:
        answer = ask(up.client, "POST", SIGN, upload(old.quote_as(EnclaveIdentity(), bytes(64))))
        assert (answer.status, answer.data["tcbStatus"]) == (200, "OutOfDate")


def test_f2_i9_what_does_not_verify_is_the_callers_mistake_with_the_reason_by_field(
    up: Running, platform: SimulatedPlatform
) -> None:
    """F2, I9."""
    good = platform.quote_as(EnclaveIdentity(), bytes(64))
    flipped = good[:100] + bytes([good[100] ^ 1]) + good[101:]
    for quote in (flipped, good[:-1], good[:300], b"", b"junk", bytes(5000)):
        answer = ask(up.client, "POST", SIGN, upload(quote))
        assert (answer.status, answer.envelope["status"]) == (400, "fail"), quote[:20]
        assert list(answer.data) == ["sgxQuote"]
        assert answer.data["sgxQuote"]
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("body", [b"", b"[", b'{"sgxQuote":"%"}', b'{"sgxQuote":7}', b"[]"])
def test_f6_a_body_that_cannot_be_read_is_400(up: Running, marble: Person, body: bytes) -> None:
    """F6, and the same for sign-quote."""
    for path, by in ((SIGN, None), (COUNT, marble)):
        if path == COUNT and b"sgxQuote" in body:
            continue
        answer = ask(up.client, "POST", path, body, by=by)
        assert (answer.status, answer.envelope["status"]) == (400, "fail")


def test_f3_f6_without_the_gate_both_are_403_before_anything_else_is_looked_at() -> None:
    """F3, F6: also where there is no manifest; the error envelope, not fail."""
    for manifest in (None, INTEGRATION):
        with running(manifest=manifest) as up:
            for path in (SIGN, COUNT):
                answer = ask(up.client, "POST", path, b"not json")
                assert (answer.status, answer.envelope["status"]) == (403, "error")


def test_without_evidence_nothing_verifies() -> None:
    """Protocol, section 7.8."""
    with running(manifest=BOTH) as up:
        answer = ask(up.client, "POST", SIGN, upload(b"anything"))
        assert (answer.status, answer.envelope["status"]) == (400, "fail")
        assert "evidence" in answer.data["sgxQuote"]


# -- counters ----------------------------------------------------------------------------------------------------


def count(up: Running, by: Person | None, name: str, value: int, **more: Any) -> tuple[int, Any]:
    answer = ask(up.client, "POST", COUNT, {"name": name, "value": value}, by=by, **more)
    return answer.status, answer.envelope["data"]


def test_i10_f4_f6_the_answer_is_the_value_before(up: Running, marble: Person) -> None:
    """I10, F4, F6."""
    calls = [(2, 0), (3, 2), (1, 3), (3, 3), (2**53 + 1, 3), (2**64 - 1, 2**53 + 1), (0, 2**64 - 1)]
    for value, before in calls:
        assert count(up, marble, "tickets", value) == (200, {"value": before})
    assert count(up, marble, "", 1) == (200, {"value": 0})


@pytest.mark.parametrize("value", ["-1", "1.0", "1e1", "18446744073709551616", '"1"', "true"])
def test_f6_only_plain_numbers_of_64_bits_are_values(up: Running, marble: Person, value: str) -> None:
    """F6."""
    answer = ask(up.client, "POST", COUNT, f'{{"name":"odd","value":{value}}}'.encode(), by=marble)
    assert (answer.status, answer.envelope["status"]) == (400, "fail")


def test_f6_f8_only_the_marble_that_proved_to_own_its_certificate_may_count(up: Running, marble: Person) -> None:
    """F6, F8, U5 for Marbles: the reference lets (other, Marble) through."""
    stranger = person("stranger")
    for by, behind in ((None, ()), (stranger, ()), (stranger, (marble,))):
        answer = ask(up.client, "POST", COUNT, {"name": "stolen", "value": 9}, by=by, behind=behind)
        assert (answer.status, answer.envelope["status"]) == (401, "fail")
        assert answer.message.startswith("unauthorized marble")
    assert count(up, marble, "stolen", 1, behind=(stranger,)) == (200, {"value": 0})


def test_every_instance_has_counters_of_its_own(up: Running, marble: Person) -> None:
    assert count(up, marble, "own", 5) == (200, {"value": 0})
    assert count(up, activated(up, UUID_2), "own", 6) == (200, {"value": 0})
    assert count(up, activated(up, UUID_1, "bare"), "own", 7) == (200, {"value": 0})
    assert count(up, activated(up), "own", 8) == (200, {"value": 5})  # the same instance after a restart


def test_f5_f6_a_store_that_fails_is_500_and_nothing_has_changed(
    up: Running, marble: Person, store: WatchedStore
) -> None:
    """F5, F6."""
    assert count(up, marble, "disk", 1) == (200, {"value": 0})
    store.failing = True
    try:
        assert count(up, marble, "disk", 2)[0] == 500
        assert count(up, marble, "disk", 1) == (200, {"value": 1})  # nothing to write, nothing to fail
    finally:
        store.failing = False
    assert count(up, marble, "disk", 2) == (200, {"value": 1})


def test_a_value_that_does_not_rise_is_not_written(up: Running, marble: Person, store: WatchedStore) -> None:
    """Better than the reference, which seals everything again (protocol, section 12.2, no. 22)."""
    assert count(up, marble, "lazy", 4) == (200, {"value": 0})
    before = store.saves
    assert [count(up, marble, "lazy", value) for value in (4, 3, 0)] == [(200, {"value": 4})] * 3
    assert store.saves == before


def test_a_counter_is_durable_before_the_answer_and_survives_a_restart(
    up: Running, marble: Person, store: WatchedStore
) -> None:
    assert count(up, marble, "restart", 41) == (200, {"value": 0})
    sealed = store.inner.load()
    other = WatchedStore()
    assert sealed is not None
    other.inner.save(sealed.data, sealed.keys[0])
    with running(replace(up.world, store=other)) as again:
        assert count(again, marble, "restart", 42) == (200, {"value": 41})


def test_concurrent_calls_see_every_value_once_and_wait_for_the_disk_together(
    up: Running, marble: Person, store: WatchedStore
) -> None:
    leaf = marble.der
    before = store.saves

    async def all_at_once() -> list[int]:
        calls = [up.coordinator.set_monotonic_counter(leaf, "race", value) for value in range(1, 101)]
        return list(await asyncio.gather(*calls))

    answers = up.call(all_at_once())
    assert sorted(answers) == list(range(100))
    assert store.saves - before <= 3
    assert count(up, marble, "race", 0) == (200, {"value": 100})


def test_counting_goes_on_while_a_manifest_change_is_decided(up: Running, marble: Person) -> None:
    """A secret is uploaded at the same time: neither is lost."""
    users = {"Users": {"w": {"Certificate": person("w").pem, "Roles": ["w"]}}}
    roles = {"Roles": {"w": {"ResourceType": "Secrets", "ResourceNames": ["mine"], "Actions": ["WriteSecret"]}}}
    document = json.loads(BOTH) | users | roles
    document["Secrets"]["mine"] = {"Type": "plain", "UserDefined": True}
    with running(manifest=encode(document)) as other:
        counting = activated(other)

        async def both() -> list[object]:
            writer = person("w").der
            counts = [other.coordinator.set_monotonic_counter(counting.der, "c", n) for n in range(1, 30)]
            uploads = [
                other.coordinator.write_secrets(writer, {"mine": SecretUpload(key=b"v%d" % n)}) for n in range(3)
            ]
            return list(await asyncio.gather(*counts[:15], *uploads, *counts[15:]))

        other.call(both())
        assert count(other, counting, "c", 0) == (200, {"value": 29})
        assert other.coordinator.state.update_log.count("secret set") == 3
