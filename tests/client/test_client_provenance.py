"""First contact: evidence and manifest fit, and still somebody may have brought the CA along; the client notices."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tests.client.coordinators import Call, FakeCoordinator, coordinator, manifest_routes, serving, success
from tests.client.fixtures import POLICY, PRODUCT
from tests.coordinator.parties import manifest, names, share_of
from tests.coordinator.people import ask, person
from tests.coordinator.running import Running, World, running
from tests.coordinator.test_provenance import crafted, recover, victims_manifest

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.client import Demands, Trust, verify_deployment, verify_deployment_async
from marblerun.client.provenance import Provenance, parse_provenance, recovery_keys_of, verify_provenance
from marblerun.coordinator.provenance import BEGUN
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import Denied, Malformed, MarbleRunError, Untrusted

STATEMENT = "GET /api/v2/statement"
IDENTITY = EnclaveIdentity(product_id=PRODUCT)


@contextmanager
def up_with(platform: SimulatedPlatform, store: MemoryStore | None = None) -> Iterator[Running]:
    with running(World(platform=platform, identity=IDENTITY, store=store or MemoryStore())) as up:
        yield up


def endpoint(up: Running) -> str:
    return "{}:{}".format(*up.client)


def refusal(
    where: str, trust: Trust, document: bytes, demands: Demands | None = None
) -> tuple[type[MarbleRunError], str, str]:
    """Kind, step and reason of the refusal; both clients refuse alike."""
    with pytest.raises(MarbleRunError) as refused:
        verify_deployment(where, POLICY, document, trust=trust, demands=demands)
    with pytest.raises(MarbleRunError) as refused_too:
        asyncio.run(verify_deployment_async(where, POLICY, document, trust=trust, demands=demands))
    first, second = (
        (type(error), getattr(error, "step", ""), getattr(error, "reason", ""))
        for error in (refused.value, refused_too.value)
    )
    assert first == second
    return first


# -- against real Coordinators -----------------------------------------------------------------------------------


def test_a_deployment_that_grew_up_in_its_enclave_passes_without_a_word(
    platform: SimulatedPlatform, trust: Trust
) -> None:
    with up_with(platform) as up:
        up.set_manifest(manifest(1))
        assert verify_deployment(endpoint(up), POLICY, manifest(1), trust=trust).warnings == ()
        assert asyncio.run(verify_deployment_async(endpoint(up), POLICY, manifest(1), trust=trust)).warnings == ()


def test_a_state_of_somebodys_own_making_under_the_right_manifest_is_refused(
    platform: SimulatedPlatform, trust: Trust
) -> None:
    """Genuine evidence, the expected manifest, and a CA whose keys the attacker has."""
    data, share = crafted(json.loads(victims_manifest()), provenance=replace(BEGUN, first_manifest="ab" * 32))
    with up_with(platform, MemoryStore(Sealed(data, ()))) as up:
        recover(up, share)
        body = {"manifest": base64.b64encode(victims_manifest()).decode()}
        assert ask(up.client, "POST", "/api/v2/update", body, by=person("u")).status == 200
        expected = (Untrusted, "provenance", "recovered")
        assert refusal(endpoint(up), trust, victims_manifest()) == expected
        assert refusal(endpoint(up), trust, victims_manifest(), Demands(known_root=b"another")) == expected
        known = Demands(known_root=up.coordinator.state.authority.root_der)
        for demands in (Demands(allow_recovered=True), known):
            found = verify_deployment(endpoint(up), POLICY, victims_manifest(), trust=trust, demands=demands)
            assert found.warnings == ()


def test_a_recovery_by_the_manifests_own_holders_passes(platform: SimulatedPlatform, trust: Trust) -> None:
    with up_with(platform) as up:
        secrets = up.call(up.coordinator.set_manifest(manifest(3, 2)))
    sealed = up.world.store.load()
    assert sealed is not None
    with up_with(platform, MemoryStore(Sealed(sealed.data, ()))) as up:
        for name in names(2):
            share = share_of(name, secrets[name])
            up.call(up.coordinator.recover(share.secret, share.signature))
        assert verify_deployment(endpoint(up), POLICY, manifest(3, 2), trust=trust).warnings == ()


# -- against somebody who answers in the enclave's place ---------------------------------------------------------


def fake(platform: SimulatedPlatform, change: Callable[[dict[str, object]], None]) -> FakeCoordinator:
    """Has the root key and can have the enclave quote its statements, but not make it state anything else."""
    made = coordinator(platform, product_id=PRODUCT)
    made.routes |= manifest_routes(manifest(1))

    def statement(call: Call) -> tuple[int, bytes]:
        nonce = base64.urlsafe_b64decode(dict(call.query)["nonce"])
        fields: dict[str, object] = {
            "statement": 1,
            "rootCertificate": made.root.pem.decode(),
            "manifestFingerprint": hashlib.sha256(manifest(1)).hexdigest(),
            "provenance": {"complete": True, "firstManifest": "ab" * 32, "recoveries": 0, "recoveredBy": []},
            "nonce": base64.b64encode(nonce).decode(),
        }
        change(fields)
        shown = str(fields.pop("shown", ""))
        text = json.dumps(fields)
        quote = platform.quote_as(IDENTITY, report_data_for(text.encode()))
        answer = {"statement": shown or text, "quote": base64.b64encode(quote).decode()}
        return success(answer | ({"quote": None} if "no quote" in fields else {}))

    made.routes[STATEMENT] = statement
    return made


def test_the_fake_passes_where_it_changes_nothing(platform: SimulatedPlatform, trust: Trust) -> None:
    with serving(fake(platform, lambda _: None)) as made:
        assert verify_deployment(made.endpoint, POLICY, manifest(1), trust=trust).warnings == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"nonce": "AAAA"}, (Untrusted, "statement", "nonce")),
        ({"nonce": ""}, (Untrusted, "statement", "nonce")),
        ({"rootCertificate": "x"}, (Untrusted, "statement", "root")),
        ({"manifestFingerprint": "ab" * 32}, (Denied, "", "")),
        ({"manifestFingerprint": ""}, (Denied, "", "")),
        ({"no quote": 1}, (Untrusted, "statement", "missing")),
        ({"shown": '{"statement": 1}'}, (Untrusted, "report-data", "mismatch")),
        ({"provenance": {"complete": False}}, (Untrusted, "provenance", "unknown")),
        ({"provenance": {}}, (Untrusted, "provenance", "unknown")),
        ({"provenance": []}, (Malformed, "", "")),
        ({"provenance": {"complete": True, "recoveries": 1}}, (Malformed, "", "")),
    ],
)
def test_what_the_enclave_did_not_state_here_and_now_is_refused(
    platform: SimulatedPlatform, trust: Trust, changes: dict[str, object], expected: tuple[object, str, str]
) -> None:
    with serving(fake(platform, lambda fields: fields.update(changes))) as made:
        assert refusal(made.endpoint, trust, manifest(1)) == expected


def test_a_statement_quoted_by_another_enclave_is_refused(platform: SimulatedPlatform, trust: Trust) -> None:
    made = fake(platform, lambda _: None)
    honest = made.routes[STATEMENT]

    def by_another(call: Call) -> tuple[int, bytes]:
        document = json.loads(honest(call)[1])["data"]
        data = report_data_for(document["statement"].encode())
        quote = platform.quote_as(replace(IDENTITY, product_id=PRODUCT + 1), data)
        return success(document | {"quote": base64.b64encode(quote).decode()})

    made.routes[STATEMENT] = by_another
    with serving(made):
        assert refusal(made.endpoint, trust, manifest(1))[0] is Denied


def test_a_coordinator_that_states_nothing_is_a_warning_or_refused(platform: SimulatedPlatform, trust: Trust) -> None:
    """As the reference, and as somebody who would rather not say."""
    demands = Demands(require_provenance=True)
    for has_statement in (False, True):
        made = fake(platform, lambda fields: fields.update(provenance=None))
        if not has_statement:
            del made.routes[STATEMENT]
        with serving(made):
            (warning,) = verify_deployment(made.endpoint, POLICY, manifest(1), trust=trust).warnings
            assert "does not say where its CA comes from" in warning
            assert refusal(made.endpoint, trust, manifest(1), demands)[1:] == ("provenance", "unstated")


# -- the rule ----------------------------------------------------------------------------------------------------


def provenance(keys: tuple[str, ...], needed: int) -> Provenance | None:
    group = {"recoveryKeys": list(keys), "needed": needed, "times": 2, "first": "a", "last": "b"}
    return parse_provenance({"complete": True, "recoveries": 2, "recoveredBy": [group]})


def test_keys_and_number_of_signatures_have_to_be_those_of_the_manifest() -> None:
    keys, needed = recovery_keys_of(manifest(3, 2))
    assert (len(keys), needed, list(keys)) == (3, 2, sorted(keys))
    verify_provenance(provenance(keys, 2), manifest(3, 2))
    for others, number in ((keys, 1), (keys, 3), (keys[:2], 2), ((*keys, keys[0]), 2), ((), 0)):
        with pytest.raises(Untrusted, match="recovered 2 times"):
            verify_provenance(provenance(others, number), manifest(3, 2))
