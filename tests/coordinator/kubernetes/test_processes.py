"""Real Coordinator processes on one Secret: over their listeners, killed, and started again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.coordinator.manifests import encode, many
from tests.coordinator.peers import Http2, http1
from tests.coordinator.running import Address, new_platform
from tests.coordinator.states import UUID_1, applicant
from tests.coordinator.test_process import Process, post, process
from tests.forge.kubernetes import Kube, Pod, needs_kube
from tests.forge.machines import another_machine

from marblerun.wire.rpc import ACTIVATE_PATH, GrpcStatus, encode_activation_request, encode_message

pytestmark = [needs_kube, pytest.mark.e2e]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def begin(stack: ExitStack, pod: Pod, directory: Path, **environment: str) -> Process:
    directory.mkdir(exist_ok=True)
    settings = {**pod.environment, "EDG_COORDINATOR_KEY_ADDR": "127.0.0.1:0", "OE_SIMULATION": "1", **environment}
    return stack.enter_context(process(directory, **settings))


def status(client: Address) -> dict[str, Any]:
    answer = http1(client, b"GET /api/v2/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 30)
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])["data"]
    return found


def reaches(up: Process, code: int) -> bool:
    """Whether it tells this status; where the API server is slow it may tell an older one for a while."""
    deadline = time.monotonic() + 60
    while (found := status(up.client)["code"]) != code and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(found == code)


def activate(up: Process) -> tuple[int, str]:
    request = encode_activation_request(quote=b"", csr=applicant().csr, marble_type="m", uuid=UUID_1)
    with Http2(up.mesh, mesh=True) as peer:
        grpc = [(b"content-type", b"application/grpc")]
        answer = peer.answer(peer.request(b"POST", ACTIVATE_PATH.encode(), encode_message(request), grpc))
    assert answer.grpc is not None
    return answer.grpc, str(answer)


def test_three_processes_are_one_coordinator_and_the_last_one_left_goes_on(
    pod: Pod, folder: ExitStack, tmp_path: Path
) -> None:
    """E1, with processes: one sets, all have it at once; limits count for all; two are killed, and one comes back."""
    one, two, three = (begin(folder, pod, tmp_path / name) for name in ("one", "two", "three"))
    assert all(reaches(up, 2) for up in (one, two, three))
    assert post(one, encode(many(3))) == 200
    assert all(reaches(up, 3) for up in (one, two, three))
    assert [post(up, encode(many(3))) for up in (one, two, three)] == [400, 400, 400]
    assert [activate(up)[0] for up in (one, two)] == [0, 0]
    for up in (one, two):
        up.process.kill()
        up.process.wait()
    assert activate(three)[0] == 0
    assert activate(three)[0] == GrpcStatus.PERMISSION_DENIED
    again = begin(folder, pod, tmp_path / "one")
    assert reaches(again, 3)
    assert activate(again)[0] == GrpcStatus.PERMISSION_DENIED
    assert (three.stop(), again.stop()) == (0, 0)


def test_the_reason_of_a_start_that_fails_says_what_to_do(kube: Kube, folder: ExitStack, tmp_path: Path) -> None:
    """Without the rights that a Coordinator needs it does not begin with a state of its own."""
    pod = kube.namespace([])
    with pytest.raises(AssertionError, match="may not get secrets in the namespace"):
        begin(folder, pod, tmp_path / "one")


def test_processes_on_one_machine_with_a_sealing_key_restart_by_themselves(
    pod: Pod, folder: ExitStack, tmp_path: Path
) -> None:
    """The key that seals the data key is kept in the ConfigMap, under the machine's own."""
    new_platform(tmp_path / "platform")
    place = {"EDG_SIMULATED_PLATFORM": str(tmp_path / "platform"), "OE_SIMULATION": ""}
    one, two = (begin(folder, pod, tmp_path / name, **place) for name in ("one", "two"))
    assert post(one, encode(many(3))) == 200
    assert reaches(two, 3)
    assert (one.stop(), two.stop()) == (0, 0)
    kept = pod.admin().config_map("marblerun-sealed-kek")
    assert kept is not None
    assert len(kept.data or {}) == 1
    assert reaches(begin(folder, pod, tmp_path / "three", **place), 3)


def test_a_startup_manifest_does_not_replace_a_state_that_only_waits_for_its_key(
    pod: Pod, folder: ExitStack, tmp_path: Path
) -> None:
    """A new replica on a new machine must not end the deployment that it was started for."""
    platform = new_platform(tmp_path / "platform")
    another_machine(platform, tmp_path / "other")
    (tmp_path / "manifest.json").write_bytes(encode(many(3)))
    usual = {"EDG_STARTUP_MANIFEST": str(tmp_path / "manifest.json"), "OE_SIMULATION": ""}
    one = begin(folder, pod, tmp_path / "one", EDG_SIMULATED_PLATFORM=str(platform.directory), **usual)
    assert reaches(one, 3)
    two = begin(folder, pod, tmp_path / "two", EDG_SIMULATED_PLATFORM=str(tmp_path / "other"), **usual)
    assert reaches(two, 1)
    assert "cannot be followed" not in status(one.client)["message"]
    assert activate(one)[0] != GrpcStatus.UNAVAILABLE


def test_an_api_server_that_comes_back_finds_a_process_that_waited(
    kube: Kube, pod: Pod, folder: ExitStack, tmp_path: Path
) -> None:
    """Requests fail meanwhile, and can be made again; the status is told all the time, so that nobody kills it."""
    up = begin(folder, pod, tmp_path / "one")
    assert post(up, encode(many(3))) == 200
    kube.stop()
    try:
        code, text = activate(up)
        assert code == GrpcStatus.UNAVAILABLE, text
        told = status(up.client)
        assert (told["code"], "cannot be followed" in told["message"]) == (3, True)
    finally:
        kube.start()
    assert activate(up)[0] == 0
    assert reaches(up, 3)
    assert "cannot be followed" not in status(up.client)["message"]
