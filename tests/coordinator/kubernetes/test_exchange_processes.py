"""Real Coordinator processes on two machines: the key goes over the network, found by the Service's slices."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.coordinator.manifests import encode, many
from tests.coordinator.peers import http1
from tests.coordinator.running import new_platform
from tests.coordinator.test_process import Process, post, process
from tests.forge.kubernetes import Pod, needs_kube
from tests.forge.machines import another_machine

pytestmark = [needs_kube, pytest.mark.e2e]

LIMIT = 120.0


def own_address() -> str | None:
    """An address of this machine that is not loopback, which slices may not have; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith(("127.", "169.254.", "0.")) else address


ADDRESS = own_address()
needs_address = pytest.mark.skipif(ADDRESS is None, reason="SKIPPED: this machine has no address but loopback")


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.05)


def said(up: Process, message: str) -> list[dict[str, Any]]:
    """The lines of the log with this text; the last one may be half written, or be for people."""
    lines = [line for line in up.log.read_text().split("\n")[:-1] if line.startswith("{")]
    return [entry for entry in map(json.loads, lines) if entry["msg"] == message]


def code(up: Process) -> int:
    answer = http1(up.client, b"GET /api/v2/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 30)
    found: int = json.loads(answer.partition(b"\r\n\r\n")[2])["data"]["code"]
    return found


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@needs_address
def test_d1_a_process_on_another_machine_gets_the_key_and_restarts_alone(
    pod: Pod, stack: ExitStack, tmp_path: Path
) -> None:
    first_machine = new_platform(tmp_path / "machine-1")
    another_machine(first_machine, tmp_path / "machine-2")

    def begin(machine: str) -> Process:
        directory = tmp_path / f"on-{machine}"
        directory.mkdir(exist_ok=True)
        settings = {**pod.environment, "EDG_COORDINATOR_KEY_ADDR": f"{ADDRESS}:0"}
        return stack.enter_context(process(directory, **settings, EDG_SIMULATED_PLATFORM=str(tmp_path / machine)))

    first = begin("machine-1")
    assert post(first, encode(many(3))) == 200
    until(lambda: bool(said(first, "the key exchange is listening")), "the key is served")
    port = int(said(first, "the key exchange is listening")[0]["key"].rpartition(":")[2])
    body = {
        "metadata": {"name": "key", "labels": {"kubernetes.io/service-name": "coordinator-key-api"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [ADDRESS], "conditions": {"ready": True}}],
        "ports": [{"name": "key", "port": port}],
    }
    pod.kube.ask("POST", f"/apis/discovery.k8s.io/v1/namespaces/{pod.namespace}/endpointslices", body)
    second = begin("machine-2")
    until(lambda: code(second) == 3, "the second instance has the state")
    assert len(said(first, "the key was given to another Coordinator")) == 1
    assert (first.stop(), second.stop()) == (0, 0)
    again = begin("machine-2")
    assert code(again) == 3
    assert again.stop() == 0


def test_d2_a_process_whose_key_address_is_taken_ends_and_says_so(pod: Pod, stack: ExitStack, tmp_path: Path) -> None:
    new_platform(tmp_path / "machine")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = {**pod.environment, "EDG_COORDINATOR_KEY_ADDR": f"127.0.0.1:{port}"}
        up = stack.enter_context(process(tmp_path, **settings, EDG_SIMULATED_PLATFORM=str(tmp_path / "machine")))
        assert up.process.wait(LIMIT) != 0
    assert "EDG_COORDINATOR_KEY_ADDR" in str(said(up, "the key exchange failed")[0])
    assert up.log.read_text().splitlines()[-1].startswith("Error: cannot listen on")
