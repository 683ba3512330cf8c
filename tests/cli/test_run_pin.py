"""A pinned Marble sends nothing to a Coordinator that is not the one its user means."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from tests.client.coordinators import (
    FakeCoordinator,
    Handler,
    coordinator,
    failure,
    manifest_routes,
    mint,
    serving,
    success,
)
from tests.client.fixtures import PRODUCT, SIGNER_ID
from tests.coordinator.people import ask, person
from tests.coordinator.running import World, running
from tests.coordinator.test_provenance import crafted, recover, victims_manifest

from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.cli.run_pin import ClientApiPin, pin_from_environment
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import Denied, Malformed, MarbleRunError, Misconfigured, Unavailable, Untrusted, WrongPhase

MANIFEST = b'{"Packages": {}}'
POLICY = {"SignerID": SIGNER_ID, "ProductID": PRODUCT, "SecurityVersion": 1}


@pytest.fixture
def impostor(other_platform: SimulatedPlatform) -> Iterator[FakeCoordinator]:
    """Another Coordinator, on a platform that nobody trusts."""
    with serving(coordinator(other_platform, product_id=PRODUCT)) as fake:
        yield fake


def mesh_certificate(fake: FakeCoordinator) -> bytes:
    """What the mesh listener shows: a certificate over the intermediate's key."""
    return fake.intermediate.der


class Settings:
    """The variables of a pinned Marble."""

    def __init__(self, fake: FakeCoordinator, directory: Path) -> None:
        self.directory = directory
        self.variables = {"EDG_MARBLE_COORDINATOR_CLIENT_ADDR": fake.endpoint}

    def root(self, pem: bytes) -> Settings:
        (self.directory / "root.pem").write_bytes(pem)
        self.variables["EDG_MARBLE_COORDINATOR_ROOT_CERT"] = str(self.directory / "root.pem")
        return self

    def policy(self, platform: SimulatedPlatform, **changes: object) -> Settings:
        (self.directory / "policy.json").write_text(json.dumps(POLICY | changes))
        self.variables["EDG_MARBLE_COORDINATOR_POLICY"] = str(self.directory / "policy.json")
        self.variables["EDG_SIMULATED_PLATFORM"] = str(platform.directory)
        return self

    def fingerprint(self, manifest: bytes) -> Settings:
        self.variables["EDG_MARBLE_MANIFEST_FINGERPRINT"] = sha256(manifest).hexdigest()
        return self

    def check(self, certificate: bytes) -> None:
        pin = pin_from_environment(self.variables, "localhost")
        assert pin is not None
        pin.check(certificate)


def test_without_variables_there_is_no_pin() -> None:
    assert pin_from_environment({"EDG_MARBLE_COORDINATOR_POLICY": ""}, "localhost") is None


def test_the_client_api_is_looked_for_beside_the_mesh_api() -> None:
    root = mint("r").pem.decode()
    for host, endpoint in (("coordinator", "coordinator:4433"), ("::1", "[::1]:4433")):
        pin = pin_from_environment({"EDG_MARBLE_COORDINATOR_ROOT_CERT": root}, host)
        assert isinstance(pin, ClientApiPin)
        assert pin.endpoint == endpoint


def test_the_coordinator_under_the_pinned_root_passes(honest: FakeCoordinator, tmp_path: Path) -> None:
    Settings(honest, tmp_path).root(honest.root.pem).check(mesh_certificate(honest))
    Settings(honest, tmp_path).root(honest.chain).check(mesh_certificate(honest))


def test_a_mesh_listener_with_another_key_is_refused_under_every_pin(
    honest: FakeCoordinator, platform: SimulatedPlatform, tmp_path: Path
) -> None:
    stranger = mint("MarbleRun Coordinator - Intermediate CA").der
    for settings in (
        Settings(honest, tmp_path).root(honest.root.pem),
        Settings(honest, tmp_path).policy(platform),
    ):
        with pytest.raises(Untrusted) as refusal:
            settings.check(stranger)
        assert refusal.value.step == "coordinator-pin"


def test_a_client_api_under_another_root_is_refused(
    honest: FakeCoordinator, impostor: FakeCoordinator, tmp_path: Path
) -> None:
    with pytest.raises(MarbleRunError) as refusal:
        Settings(impostor, tmp_path).root(honest.root.pem).check(mesh_certificate(impostor))
    assert isinstance(refusal.value, Untrusted)
    assert impostor.calls == []


def test_an_intermediate_that_the_root_did_not_issue_is_refused(honest: FakeCoordinator, tmp_path: Path) -> None:
    honest.intermediate = mint("MarbleRun Coordinator - Intermediate CA")
    with pytest.raises(Untrusted):
        Settings(honest, tmp_path).root(honest.root.pem).check(mesh_certificate(honest))


def test_a_chain_that_names_another_root_than_the_tls_connection_is_refused(
    honest: FakeCoordinator, tmp_path: Path
) -> None:
    pinned = honest.root
    honest.root = mint("MarbleRun Coordinator")
    honest.intermediate = mint("MarbleRun Coordinator - Intermediate CA", honest.root)
    with pytest.raises(Untrusted):
        Settings(honest, tmp_path).root(pinned.pem).check(mesh_certificate(honest))


def test_a_coordinator_whose_evidence_fits_the_policy_passes(
    honest: FakeCoordinator, platform: SimulatedPlatform, tmp_path: Path
) -> None:
    Settings(honest, tmp_path).policy(platform).check(mesh_certificate(honest))
    Settings(honest, tmp_path).policy(platform).root(honest.root.pem).check(mesh_certificate(honest))


def test_evidence_that_does_not_fit_is_refused(
    honest: FakeCoordinator, impostor: FakeCoordinator, platform: SimulatedPlatform, tmp_path: Path
) -> None:
    with pytest.raises(Denied, match=r"SecurityVersion.* at least 2"):
        Settings(honest, tmp_path).policy(platform, SecurityVersion=2).check(mesh_certificate(honest))
    with pytest.raises(Untrusted):
        Settings(impostor, tmp_path).policy(platform).check(mesh_certificate(impostor))


def test_the_manifest_must_be_the_expected_one_and_a_missing_one_is_waited_for(
    honest: FakeCoordinator, platform: SimulatedPlatform, tmp_path: Path
) -> None:
    for settings in (
        Settings(honest, tmp_path).root(honest.root.pem),
        Settings(honest, tmp_path).policy(platform),
    ):
        honest.routes["GET /api/v2/status"] = status(3)
        honest.routes.update(manifest_routes(MANIFEST))
        settings.fingerprint(MANIFEST).check(mesh_certificate(honest))
        with pytest.raises(Denied, match="another manifest"):
            settings.fingerprint(b"other").check(mesh_certificate(honest))
        honest.routes["GET /api/v2/manifest"] = lambda _: failure(500, "no manifest is set")
        for waiting in (1, 2):
            honest.routes["GET /api/v2/status"] = status(waiting)
            with pytest.raises(WrongPhase):
                settings.fingerprint(MANIFEST).check(mesh_certificate(honest))


def status(code: int) -> Handler:
    return lambda _: success({"code": code, "message": "as told"})


def test_a_client_api_that_is_not_up_can_be_asked_again(honest: FakeCoordinator, tmp_path: Path) -> None:
    settings = Settings(honest, tmp_path).root(honest.root.pem)
    settings.variables["EDG_MARBLE_COORDINATOR_CLIENT_ADDR"] = "127.0.0.1:1"
    with pytest.raises(Unavailable):
        settings.check(mesh_certificate(honest))


def test_a_fingerprint_alone_says_nothing_about_whom_to_believe() -> None:
    with pytest.raises(Misconfigured, match="not whose word"):
        pin_from_environment({"EDG_MARBLE_MANIFEST_FINGERPRINT": "00" * 32}, "localhost")


def test_a_policy_that_admits_anybody_is_refused(platform: SimulatedPlatform, tmp_path: Path) -> None:
    for changes in ({"InsecureSkipVerify": True}, {"SignerID": ""}):
        fake = coordinator(platform)
        with pytest.raises(Misconfigured):
            Settings(fake, tmp_path).policy(platform, **changes).check(fake.root.certificate.public_bytes(Encoding.DER))


@pytest.mark.parametrize("content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\n?\n-----END CERTIFICATE-----\n"])
def test_a_root_file_without_a_certificate_is_malformed(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "root.pem").write_bytes(content)
    with pytest.raises(Malformed):
        pin_from_environment({"EDG_MARBLE_COORDINATOR_ROOT_CERT": str(tmp_path / "root.pem")}, "localhost")


def test_a_root_file_that_is_not_there_is_misconfigured(tmp_path: Path) -> None:
    with pytest.raises(Misconfigured, match="cannot read"):
        pin_from_environment({"EDG_MARBLE_COORDINATOR_ROOT_CERT": str(tmp_path / "none")}, "localhost")


def test_a_pin_that_checks_nothing_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="checks nothing"):
        ClientApiPin("localhost:4433")


def test_evidence_and_fingerprint_are_not_enough_where_somebody_brought_the_ca_along(
    platform: SimulatedPlatform, tmp_path: Path
) -> None:
    """The Marble would get its identity and secrets from whoever has the keys (docs/adr/0007-provenance.md)."""
    document = json.loads(victims_manifest())
    data, share = crafted(document)
    identity = EnclaveIdentity(product_id=PRODUCT)
    with running(World(platform=platform, identity=identity, store=MemoryStore(Sealed(data, ())))) as up:
        recover(up, share)
        authority, in_force = up.coordinator.state.authority, up.coordinator.signed_manifest().manifest
        fake = coordinator(platform, product_id=PRODUCT)
        fake.endpoint = "{}:{}".format(*up.client)
        settings = Settings(fake, tmp_path).policy(platform).fingerprint(in_force)
        settings.check(authority.intermediate_der)  # its own manifest names the keys that recovered it
        body = {"manifest": base64.b64encode(victims_manifest()).decode()}
        assert ask(up.client, "POST", "/api/v2/update", body, by=person("u")).status == 200
        intermediate = up.coordinator.state.authority.intermediate_der
        settings.fingerprint(victims_manifest())
        with pytest.raises(Untrusted) as refused:
            settings.check(intermediate)
        assert (refused.value.step, refused.value.reason) == ("provenance", "recovered")
        settings.root(authority.root_pem).check(intermediate)
