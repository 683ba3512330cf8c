"""The command line against the real Coordinator in a process of its own, on a simulated platform."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from tests.cli.session import Session
from tests.client.fixtures import PRODUCT, SIGNER_ID

from marblerun.attestation.simulated import SimulatedPlatform

pytestmark = pytest.mark.e2e
ERA = ("--era-config", "era.json")
MANIFEST = json.dumps(
    {
        "Packages": {"p": {"SignerID": SIGNER_ID, "ProductID": 1, "SecurityVersion": 1}},
        "Marbles": {"m": {"Package": "p", "Parameters": {}}},
    }
).encode()


@pytest.fixture
def endpoint(tmp_path: Path, platform: SimulatedPlatform) -> Iterator[str]:
    """A running Coordinator that waits for its manifest."""
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "EDG_SIMULATED_PLATFORM": str(platform.directory),
        "EDG_SIMULATED_PRODUCT_ID": str(PRODUCT),
        "EDG_COORDINATOR_MESH_ADDR": "127.0.0.1:0",
        "EDG_COORDINATOR_CLIENT_ADDR": "127.0.0.1:0",
        "EDG_COORDINATOR_SEAL_DIR": str(tmp_path / "state"),
    }
    log = (tmp_path / "log").open("w+")
    process = subprocess.Popen([sys.executable, "-m", "marblerun", "coordinator"], env=environment, stderr=log)
    try:
        yield _client_address(tmp_path / "log", process)
    finally:
        process.terminate()
        process.wait(timeout=60)
        log.close()


def _client_address(log: Path, process: subprocess.Popen[bytes]) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text().splitlines():
            if line.startswith("{") and "client" in (fields := json.loads(line)):
                return str(fields["client"])
        time.sleep(0.05)
    raise AssertionError(f"the Coordinator did not start: {log.read_text()}")


def test_a_deployment_is_set_verified_and_read(session: Session, endpoint: str) -> None:
    (session.folder / "m.json").write_bytes(MANIFEST)
    assert session.run("status", endpoint).exit_code == 9
    assert session.run("status", endpoint, *ERA).stdout.startswith("2: Coordinator is ready to accept a manifest")
    result = session.run("manifest", "set", "m.json", endpoint, *ERA)
    assert (result.exit_code, result.stdout) == (0, f"Manifest signature: {sha256(MANIFEST).hexdigest()}\n")
    assert session.run("manifest", "set", "m.json", endpoint, *ERA).exit_code == 5
    assert session.run("manifest", "verify", "m.json", endpoint, *ERA).stdout == "OK\n"
    assert session.run("manifest", "verify", "new.json", endpoint, *ERA).exit_code == 4
    assert session.run("manifest", "get", endpoint, *ERA).stdout_bytes == MANIFEST + b"\n"
    status = session.run("status", endpoint).stdout
    assert status.startswith("3: Coordinator is running correctly and ready to accept marbles")
    assert session.run("certificate", "chain", endpoint, *ERA).exit_code == 0
    assert (session.folder / "marblerunChainCA.crt").read_bytes() == session.cached
    (session.folder / "era.json").write_text(json.dumps({"UniqueID": "ab" * 32}))
    assert session.run("manifest", "get", endpoint, *ERA).exit_code == 4
