"""A Coordinator as a real process with its anchor in a real etcd, rehearsed by the command line and turned back."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.coordinator.parties import manifest, names
from tests.coordinator.people import ask, recovery_key
from tests.coordinator.running import new_platform
from tests.coordinator.store.etcd import etcd, needs_etcd
from tests.coordinator.test_process import process

from marblerun.attestation.simulated import EnclaveIdentity
from marblerun.cli.main import cli

pytestmark = pytest.mark.e2e


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@needs_etcd
def test_it_is_rehearsed_without_a_change_and_an_older_directory_means_recovery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_platform(tmp_path / "platform")
    identity = EnclaveIdentity()
    policy = {
        "SecurityVersion": identity.security_version,
        "ProductID": identity.product_id,
        "SignerID": identity.signer_id.hex(),
    }
    (tmp_path / "era.json").write_text(json.dumps(policy))
    (tmp_path / "m.json").write_bytes(manifest(3, 2))
    for name in names(3):
        key = recovery_key(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.pem").write_bytes(key)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("EDG_SIMULATED_PLATFORM", str(tmp_path / "platform"))

    def rehearse(endpoint: str, party: str) -> Result:
        arguments = ["recover", "rec.json", endpoint, "-k", f"{party}.pem", "--era-config", "era.json", "--rehearse"]
        return CliRunner().invoke(cli, [*arguments, "--manifest", "m.json", "--json"], prog_name="marblerun")

    with etcd(tmp_path / "etcd") as server:
        environment = {
            "EDG_SIMULATED_PLATFORM": str(tmp_path / "platform"),
            "EDG_COORDINATOR_ANCHOR": f"etcd:{server.url}/deployments/one",
        }
        with process(tmp_path, **environment) as up:
            body = {"manifest": base64.b64encode(manifest(3, 2)).decode()}
            secrets = ask(up.client, "POST", "/api/v2/manifest", body).data
            (tmp_path / "rec.json").write_text(json.dumps(secrets))
            before = files(tmp_path / "state")
            endpoint = f"{up.client[0]}:{up.client[1]}"
            for number, party in enumerate(("party2", "party0"), start=1):
                result = rehearse(endpoint, party)
                assert result.exit_code == 0, result.stderr
                answer = json.loads(result.stdout)
                found = [answer[name] for name in ("holder", "given", "needed", "recoverable")]
                assert found == [party, number, 2, True if number == 2 else None]
            assert files(tmp_path / "state") == before
            shutil.copytree(tmp_path / "state", tmp_path / "older")
        with process(tmp_path, **environment) as up:
            assert ask(up.client, "GET", "/api/v2/status").data["code"] == 3
            assert rehearse(f"{up.client[0]}:{up.client[1]}", "party1").exit_code == 0
        shutil.rmtree(tmp_path / "state")
        (tmp_path / "older").rename(tmp_path / "state")
        with process(tmp_path, **environment) as up:
            status = ask(up.client, "GET", "/api/v2/status").data
            assert (status["code"], "OLDER than the latest one" in status["message"]) == (1, True)
            assert rehearse(f"{up.client[0]}:{up.client[1]}", "party1").exit_code == 5
