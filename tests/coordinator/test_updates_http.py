"""Updates of a running Coordinator: the shapes on the wire, restarts, failures, and Marbles that start meanwhile."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import socket
import ssl
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from tests.coordinator.manifests import encode
from tests.coordinator.peers import wait_until
from tests.coordinator.people import ADMIN, UPDATERS, Answer, ask, office, person, recovery_pem
from tests.coordinator.running import Address, Running, World, running
from tests.coordinator.states import applicant

from marblerun.coordinator.commands.activate import Activated
from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.seal.none import PlainSealer
from marblerun.coordinator.state import State
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import Unavailable

MANIFEST = encode(office(UPDATERS))
NEW = encode(office(UPDATERS, RotateRootSecret=True))
V2 = "/api/v2"


def _wrapped(raw: bytes) -> dict[str, str]:
    return {"manifest": base64.b64encode(raw).decode()}


def _post(up: Running, path: str, who: str, body: object = None) -> Answer:
    return ask(up.client, "POST", path, body, by=person(who))


def _manifest(up: Running) -> bytes:
    return base64.b64decode(ask(up.client, "GET", f"{V2}/manifest").data["manifest"])


def test_x2_x8_a_two_party_update_in_version_2() -> None:
    """X2, X5, X7, X8, I14; protocol, section 7.4: fields, null and omitted ones."""
    with running(manifest=encode(office(UPDATERS, UpdateThreshold=2))) as up:
        nothing = ask(up.client, "GET", f"{V2}/update-manifest")
        assert (nothing.status, nothing.envelope["status"], nothing.message) == (404, "error", "no update in progress")
        assert _post(up, f"{V2}/update", "alice", _wrapped(NEW)).data == {
            "missingAcknowledgments": 1,
            "missingUsers": ["bob", "carol"],
        }
        pending = ask(up.client, "GET", f"{V2}/update-manifest").data
        assert pending.keys() == {"manifest", "message", "missingUsers"}
        assert (base64.b64decode(pending["manifest"]), pending["missingUsers"]) == (NEW, ["bob", "carol"])
        again = _post(up, f"{V2}/update", "alice", _wrapped(NEW))
        assert (again.status, again.envelope["status"]) == (500, "error")
        assert _post(up, f"{V2}/update-manifest", "bob", _wrapped(NEW + b" ")).status == 500
        assert _manifest(up) != NEW
        done = _post(up, f"{V2}/update-manifest", "bob", _wrapped(NEW)).data
        assert (done.pop("message").split()[0], done) == ("All", {"missingAcknowledgments": 0, "missingUsers": None})
        assert _manifest(up) == NEW
        assert ask(up.client, "GET", f"{V2}/update-manifest").status == 404


def test_the_fields_of_an_answer_come_in_the_order_of_the_reference() -> None:
    """Protocol, sections 7.4 and 7.5: whoever compares two Coordinators' answers byte by byte finds them alike."""
    with running(manifest=encode(office({**UPDATERS, "alice": ADMIN}, UpdateThreshold=2))) as up:
        for path, fields in (
            ("/status", ["StatusCode", "StatusMessage"]),
            ("/quote", ["Cert", "Quote"]),
            ("/manifest", ["ManifestSignatureRootECDSA", "ManifestSignature", "Manifest"]),
            (f"{V2}/status", ["code", "message", "evidence"]),
            (f"{V2}/quote", ["cert", "quote", "evidence"]),
            (f"{V2}/manifest", ["manifestSignatureRootECDSA", "manifestFingerprint", "manifest"]),
        ):
            assert list(ask(up.client, "GET", path).data) == fields
        new = _wrapped(encode({**json.loads(NEW), "RecoveryKeys": {"k": recovery_pem("k")}}))
        started = _post(up, f"{V2}/update", "alice", new)
        assert list(started.data) == ["missingAcknowledgments", "missingUsers"]
        assert list(ask(up.client, "GET", f"{V2}/update-manifest").data) == ["manifest", "message", "missingUsers"]
        applied = _post(up, f"{V2}/update-manifest", "bob", new)
        assert list(applied.data) == ["message", "missingUsers", "missingAcknowledgments", "recoverySecrets"]


def test_x2_x8_a_two_party_update_in_version_1() -> None:
    """Protocol, section 7.5: null for the start, then a sentence that begins with the number or with All."""
    with running(manifest=encode(office(UPDATERS, UpdateThreshold=0))) as up:
        assert _post(up, "/update", "alice", NEW).body == b'{"status":"success","data":null}\n'
        assert ask(up.client, "GET", "/update-manifest").data["missingUsers"] == ["bob", "carol"]
        assert _post(up, "/update", "alice", NEW).status == 400
        assert _post(up, "/update-manifest", "bob", NEW + b" ").status == 500
        assert _post(up, "/update-manifest", "bob", NEW).data.startswith("1 ")
        assert _post(up, "/update-manifest", "carol", NEW).data.startswith("All ")
        assert _manifest(up) == NEW
        gone = _post(up, "/update-manifest", "carol", NEW)
        assert (gone.status, gone.envelope["status"], gone.message) == (404, "error", "no update in progress")
        assert _post(up, "/update", "alice", MANIFEST).status == 200
        assert isinstance(_post(up, "/update-cancel", "bob").data, str)
        gone = _post(up, "/update-cancel", "bob")
        assert (gone.status, gone.message) == (404, "no update in progress")


@pytest.mark.parametrize("body", [b"", b"{", b'{"manifest":1}', b'{"manifest":"%"}'])
def test_bodies_that_cannot_be_read_are_bad_requests_in_version_2(body: bytes) -> None:
    """Protocol, section 7.4: with a user of its own, as the caller comes first."""
    with running(manifest=MANIFEST) as up:
        for path in (f"{V2}/update", f"{V2}/update-manifest"):
            answer = _post(up, path, "alice", body)
            assert (answer.status, answer.envelope["status"]) == (400, "fail")


def test_recovery_secrets_are_told_when_there_are_new_ones_and_are_an_empty_object_without_keys() -> None:
    """Protocol, section 7.4, end."""
    document = office({"admin": ADMIN})
    with_key = encode({**document, "RecoveryKeys": {"k": recovery_pem("k")}})
    with running(manifest=encode(document)) as up:
        data = _post(up, f"{V2}/update", "admin", _wrapped(with_key)).data
        assert len(base64.b64decode(data["recoverySecrets"]["k"])) == 256
        assert "recoverySecrets" not in _post(up, f"{V2}/update", "admin", _wrapped(with_key)).data
        assert _post(up, f"{V2}/update", "admin", _wrapped(encode(document))).data["recoverySecrets"] == {}


def test_e9_a_pending_update_survives_a_restart_and_marbles_and_secrets_go_on_meanwhile() -> None:
    """E9, X9."""
    world = World()
    with running(world, manifest=MANIFEST) as up:
        assert _post(up, "/update", "alice", NEW).status == 200
    with running(world) as up:
        key = {"userKey": {"Key": base64.b64encode(bytes(16)).decode()}}
        assert _post(up, "/secrets", "alice", key).status == 200
        _activate(up, "front")
        assert _post(up, "/update", "alice", b'{"Packages":{"frontend":{"SecurityVersion":9}}}').status == 400
        assert _post(up, f"{V2}/update-manifest", "bob", _wrapped(NEW)).data["missingAcknowledgments"] == 1
    with running(world) as up:
        assert _post(up, f"{V2}/update-manifest", "carol", _wrapped(NEW)).data["missingAcknowledgments"] == 0
    with running(world) as up:
        assert _manifest(up) == NEW
        data = ask(up.client, "GET", "/secrets?s=userKey", by=person("alice")).data
        assert base64.b64decode(data["userKey"]["Private"]) == bytes(16)


def test_e11_the_log_after_a_single_user_update_and_a_package_update_has_four_lines() -> None:
    """E11."""
    manifest = encode(office())
    with running(manifest=manifest) as up:
        assert _post(up, "/update", "admin", manifest).status == 200
        assert _post(up, "/update", "admin", b'{"Packages":{"frontend":{"SecurityVersion":9}}}').status == 200
        lines = [json.loads(line) for line in ask(up.client, "GET", f"{V2}/update").data["updateLog"]]
        assert len(lines) == 4
        assert (lines[3]["package"], lines[3]["new version"], lines[3]["user"]) == ("frontend", 9, "admin")


# -- listeners and Marbles ---------------------------------------------------------------------------------------


def _certificate(address: Address) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(address, 10) as raw, context.wrap_socket(raw) as connection:
        return connection.getpeercert(binary_form=True) or b""


def test_the_mesh_listener_shows_the_new_marble_root_at_once_and_the_client_listener_stays() -> None:
    manifest = encode(office())
    with running(manifest=manifest) as up:
        mesh, client = _certificate(up.mesh), _certificate(up.client)
        assert _post(up, "/update", "admin", manifest).status == 200
        assert _certificate(up.mesh) == up.coordinator.state.authority.marble_root_der != mesh
        assert _certificate(up.client) == client


def _activate(up: Running, marble: str) -> Activated:
    one = applicant()
    return up.call(up.coordinator.activate(one.request(marble), one.certificate))


def _verify_consistent(activated: Activated, states: list[State]) -> None:
    """Everything a Marble got is of one and the same state."""
    env = activated.env
    root = env["MARBLE_PREDEFINED_ROOT_CA"]
    (state,) = [s for s in states if s.authority.marble_root_pem == root]
    assert state.deployment is not None
    assert env["SHARED"].decode() == state.deployment.secrets["sharedKey"].private.hex()
    assert env["SHARED_BEFORE"].decode() == state.deployment.previous_secrets["sharedKey"].private.hex()
    anchor = x509.load_pem_x509_certificate(root)
    x509.load_pem_x509_certificate(env["CERT"]).verify_directly_issued_by(anchor)
    leaf, intermediate = x509.load_pem_x509_certificates(env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])
    leaf.verify_directly_issued_by(anchor)
    assert intermediate == state.authority.intermediate


def test_marbles_start_during_updates_each_on_one_consistent_snapshot() -> None:
    """Issue 5, point 4; limited Marbles, whose starts are stored, neither stop an update nor lose a count."""
    document = office()
    document["Marbles"]["front"]["MaxActivations"] = 100_000
    document["Secrets"]["slow"] = {"Type": "cert-rsa", "Size": 2048, "Shared": True}
    manifests = [encode({**document, "Config": {"RotateRootSecret": True, "UpdateThreshold": n}}) for n in (0, 1)]
    with running(manifest=manifests[0]) as up:
        states = [up.coordinator.state]
        up.coordinator.listeners.append(lambda state: states.append(state))
        stop = threading.Event()

        async def marbles() -> list[Activated]:
            one, seen = applicant(), []
            while not stop.is_set():
                seen.append(await up.coordinator.activate(one.request("front"), one.certificate))
                await asyncio.sleep(0)
            return seen

        def one_more() -> bool:
            """Whether somebody was activated since this was made."""
            return up.coordinator.state.activations.get("front", 0) > before[0]

        before = [0]
        started = [asyncio.run_coroutine_threadsafe(marbles(), up.loop) for _ in range(3)]
        wait_until(one_more)  # under the first rules
        for number in range(4):
            assert _post(up, "/update", "admin", manifests[number % 2]).status == 200
        before[0] = up.coordinator.state.activations["front"]
        wait_until(one_more)  # under the last ones
        stop.set()
        activated = [one for future in started for one in future.result(120)]
        assert up.coordinator.state.activations == {"front": len(activated)}
        by_authority = {s.authority.marble_root_pem: s for s in states if s.deployment is not None}
        assert len({one.env["MARBLE_PREDEFINED_ROOT_CA"] for one in activated}) > 1
        for one in activated[:: max(1, len(activated) // 200)]:
            _verify_consistent(one, list(by_authority.values()))


# -- failures and sealing ----------------------------------------------------------------------------------------


class BrokenStore(MemoryStore):
    """A store on a disk that is full for as long as ``broken`` is set."""

    broken = False

    def save(self, data: bytes, key: bytes) -> None:
        if self.broken:
            raise Unavailable("the disk is full")
        super().save(data, key)


def test_what_cannot_be_stored_did_not_happen() -> None:
    """Issue 5, point 4: a failed apply leaves the old state; the update still waits and can be acknowledged again."""
    store = BrokenStore()
    with running(World(store=store), manifest=encode(office(UPDATERS, UpdateThreshold=2))) as up:
        assert _post(up, "/update", "alice", NEW).status == 200
        before = up.coordinator.state
        store.broken = True
        assert _post(up, f"{V2}/update-manifest", "bob", _wrapped(NEW)).status == 500
        assert _post(up, f"{V2}/update-cancel", "bob").status == 500
        assert up.coordinator.state is before
        store.broken = False
        assert _post(up, f"{V2}/update-manifest", "bob", _wrapped(NEW)).data["missingAcknowledgments"] == 0


@dataclass
class NotingSealer(PlainSealer):
    """Notes the seal modes that it was asked for."""

    modes: list[SealMode] = field(default_factory=list)

    def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
        self.modes.append(mode)
        return super().seal(key, mode, additional)


def _sealed_by(mode: str, **more: Any) -> bytes:
    return encode({**office(None, SealMode=mode), **more})


def test_a_changed_seal_mode_counts_from_the_very_update_on() -> None:
    """Protocol, section 12.3, no. 32: the reference waits for the next start."""
    sealer = NotingSealer()
    with running(World(sealer=sealer), manifest=_sealed_by("")) as up:
        for mode in ("UniqueKey", "ProductKey"):
            assert _post(up, "/update", "admin", _sealed_by(mode)).status == 200
    assert sealer.modes == [SealMode.PRODUCT_KEY, SealMode.UNIQUE_KEY, SealMode.PRODUCT_KEY]


def test_the_update_to_disabled_is_stored_and_nothing_after_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """A restart must not bring back the manifest that was replaced; the operator is warned."""
    sealer, world = NotingSealer(), World()
    world.sealer = sealer
    disabled = _sealed_by("Disabled", RecoveryKeys={"k": recovery_pem("k")})
    with running(world, manifest=_sealed_by("UniqueKey")) as up:
        with caplog.at_level(logging.WARNING, "marblerun"):
            assert _post(up, "/update", "admin", disabled).status == 200
        assert _post(up, "/secrets", "admin", {"userPlain": {"Key": "YQ=="}}).status == 200
    assert sealer.modes == [SealMode.UNIQUE_KEY] * 2
    assert any("sealing is disabled from now on" in record.message for record in caplog.records)
    with running(world) as up:
        assert _manifest(up) == disabled
        assert ask(up.client, "GET", "/secrets?s=userPlain", by=person("admin")).data["userPlain"]["Private"] is None
        assert _post(up, "/update", "admin", _sealed_by("ProductKey")).status == 200
    with running(world) as up:
        assert _manifest(up) == _sealed_by("ProductKey")


def test_times_in_the_log_are_those_of_the_decision() -> None:
    world = World(clock=lambda: datetime(2026, 3, 1, 1, 2, 3, 4567, tzinfo=UTC))
    with running(world, manifest=encode(office())) as up:
        assert _post(up, "/update", "admin", encode(office())).status == 200
        lines = ask(up.client, "GET", f"{V2}/update").data["updateLog"]
    assert {json.loads(line)["time"] for line in lines} == {"2026-03-01T01:02:03.004Z"}
