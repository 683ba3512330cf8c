"""What a Coordinator's start does not load: whatever only some of its requests, settings or commands need."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.coordinator.running import new_platform

# Each costs tens of milliseconds: HTTP clients, formats and tools that a listening Coordinator has no use for yet.
NOT_AT_START = (
    "httpx",  # for collateral over the network and etcd, at the first request
    "httpcore",
    "rich",
    "pygments",
    "yaml",  # for people's manifests
    "prometheus_client",  # if nobody may ask for metrics
    "grpc",
    "tpm2_pytss",
    "pkcs11",
    "marblerun.coordinator.server.openapi",  # made when it is asked for
    "marblerun.coordinator.server.metrics",
    "marblerun.client",
    "marblerun.marble",
    "marblerun.cli.manifest",
)
# As ``marblerun coordinator`` does it, until both listeners are up.
START = """
import asyncio, json, os, signal, sys
from pathlib import Path
from marblerun.cli.main import cli
cli.get_command(None, "coordinator")
from marblerun.coordinator.server.logs import configure_logging
from marblerun.coordinator.server.main import serve
from marblerun.coordinator.server.settings import settings_from_environment

def ready(_listeners):
    print(json.dumps(sorted(sys.modules)))
    os.kill(os.getpid(), signal.SIGTERM)

settings = settings_from_environment(os.environ, Path.cwd())
configure_logging(console=False, debug=False)
asyncio.run(serve(os.environ, settings, ready))
"""


@pytest.fixture(scope="module", params=["simulated platform", "collateral service"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> frozenset[str]:
    """The names of all modules of a Coordinator that has just started."""
    place: Path = tmp_path_factory.mktemp("start")
    new_platform(place / "platform")
    environment = {
        "EDG_COORDINATOR_MESH_ADDR": "127.0.0.1:0",
        "EDG_COORDINATOR_CLIENT_ADDR": "127.0.0.1:0",
        "EDG_SIMULATED_PLATFORM": str(place / "platform"),
    }
    if request.param == "collateral service":
        environment["EDG_PCCS_URL"] = "https://127.0.0.1:9"
    done = subprocess.run(
        [sys.executable, "-c", START], cwd=place, env=environment, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return frozenset(json.loads(done.stdout))


@pytest.mark.parametrize("name", NOT_AT_START)
def test_a_start_does_not_load(loaded: frozenset[str], name: str) -> None:
    assert [module for module in sorted(loaded) if module == name or module.startswith(f"{name}.")] == []


def test_a_start_loads_what_it_serves_with(loaded: frozenset[str]) -> None:
    """Else this file would look in the wrong place."""
    needed = {"OpenSSL.SSL", "hpack", "marblerun.coordinator.service", "marblerun.attestation.collect"}
    assert needed - loaded == set()
