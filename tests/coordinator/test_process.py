"""A Coordinator as a process of its own: memory under attack, secrets in logs and arguments, start and end."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hyperframe.frame import PingFrame
from tests.coordinator.manifests import CANARY, INTEGRATION, encode, integration
from tests.coordinator.peers import LAST_REQUEST, Http2, http1, push, read_all, status_of, tls
from tests.coordinator.running import Address, new_platform
from tests.coordinator.states import UUID_1, UUID_2, applicant

from marblerun.coordinator.store.file import FileStore
from marblerun.wire.rpc import ACTIVATE_PATH, ActivationResp, encode_activation_request, encode_message

pytestmark = pytest.mark.e2e

MIB = 1 << 20


@dataclass
class Process:
    """A running Coordinator."""

    process: subprocess.Popen[bytes]
    log: Path
    mesh: Address
    client: Address

    @property
    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(10)


@contextmanager
def process(directory: Path, **environment: str) -> Iterator[Process]:
    """Started with nothing in its environment but what is given."""
    log = directory / "log"
    settings = {
        "EDG_COORDINATOR_MESH_ADDR": "127.0.0.1:0",
        "EDG_COORDINATOR_CLIENT_ADDR": "127.0.0.1:0",
        "EDG_COORDINATOR_SEAL_DIR": str(directory / "state"),
        "EDG_DEBUG_LOGGING": "1",
        **environment,
    }
    with log.open("ab") as stderr:
        start = log.stat().st_size
        started = subprocess.Popen(
            [sys.executable, "-m", "marblerun", "coordinator"], env=settings, stderr=stderr, cwd=directory
        )
    try:
        yield _listening(started, log, start)
    finally:
        started.kill()
        started.wait(10)


def _listening(started: subprocess.Popen[bytes], log: Path, start: int) -> Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and started.poll() is None:
        for line in log.read_bytes()[start:].splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if entry["msg"] == "the Coordinator is listening":
                    return Process(started, log, _address(entry["mesh"]), _address(entry["client"]))
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


def post(up: Process, manifest: bytes) -> int:
    head = b"POST /manifest HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(manifest)
    return status_of(http1(up.client, head + manifest, 10))


def activate(up: Process, marble: str, uuid: str = UUID_1) -> ActivationResp:
    request = encode_activation_request(quote=b"", csr=applicant().csr, marble_type=marble, uuid=uuid)
    with Http2(up.mesh, mesh=True) as peer:
        grpc = [(b"content-type", b"application/grpc")]
        answer = peer.answer(peer.request(b"POST", ACTIVATE_PATH.encode(), encode_message(request), grpc))
    assert (answer.status, answer.grpc) == (200, 0)
    return ActivationResp.FromString(bytes(answer.body[5:]))


# -- memory ------------------------------------------------------------------------------------------------------


def too_large_by_length(up: Process) -> None:
    with tls(up.client) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n")
            for _ in range(100):
                connection.sendall(bytes(MIB))
        read_all(connection)


def too_large_in_chunks(up: Process) -> None:
    with tls(up.client) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(b"POST /manifest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            for _ in range(100):
                connection.sendall(b"100000\r\n" + bytes(MIB) + b"\r\n")
        read_all(connection)


def too_large_over_http2(up: Process) -> None:
    with Http2(up.client) as peer:
        assert peer.answer(peer.request(b"POST", b"/api/v2/manifest", bytes(100 * MIB))).status == 413


def too_large_over_grpc(up: Process) -> None:
    with Http2(up.mesh, mesh=True) as peer:
        grpc = [(b"content-type", b"application/grpc")]
        body = b"\0" + (100 * MIB).to_bytes(4, "big") + bytes(100 * MIB)
        assert peer.answer(peer.request(b"POST", ACTIVATE_PATH.encode(), body, grpc)).grpc == 8


def unread_pings(up: Process) -> None:
    with Http2(up.client) as peer:
        push(peer.socket, PingFrame(0, b"12345678").serialize() * 2000, 0.5, 100 * MIB)


def endless_frame(up: Process) -> None:
    with Http2(up.client) as peer:
        peer.raw(b"\xff\xff\xff" + bytes(6))
        for _ in range(16):
            peer.raw(bytes(MIB))


def abandoned_halves(up: Process) -> None:
    peers = [Http2(up.client) for _ in range(4)]
    for peer in peers:
        peer.request(b"POST", b"/manifest", bytes(8 * MIB), end=False)
    for peer in peers:
        peer.socket.close()


ATTACKS = (
    too_large_by_length, too_large_in_chunks, too_large_over_http2, too_large_over_grpc, unread_pings, endless_frame,
    abandoned_halves,
)  # fmt: skip


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with process(tmp_path_factory.mktemp("attacked"), OE_SIMULATION="1") as up:
        assert post(up, INTEGRATION) == 200
        too_large_in_chunks(up)  # the first time costs what the allocator keeps
        yield up


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.__name__ for attack in ATTACKS])
def test_memory_stays_flat_under_attack_and_the_process_lives(attacked: Process, attack: Any) -> None:
    before = attacked.memory
    for _ in range(2):
        attack(attacked)
    time.sleep(0.1)
    assert status_of(http1(attacked.client, LAST_REQUEST)) == 200
    assert attacked.memory - before < 48 * MIB
    assert attacked.memory < 220 * MIB


def test_hundreds_of_connections_cost_little_and_are_given_back(attacked: Process) -> None:
    before = attacked.memory
    for _ in range(2):
        connections = [tls(attacked.client) for _ in range(150)]
        assert attacked.memory - before < 40 * MIB
        for connection in connections:
            connection.close()
    assert status_of(http1(attacked.client, LAST_REQUEST)) == 200


def test_nothing_of_all_this_left_a_stack_trace(attacked: Process) -> None:
    """Runs after the attacks of this module."""
    assert [entry["msg"] for entry in attacked.lines() if "stacktrace" in entry or "Traceback" in entry["msg"]] == []


# -- secrets -----------------------------------------------------------------------------------------------------


def spellings(secret: bytes) -> list[bytes]:
    """What a secret may look like in a log."""
    plain = base64.b64encode(secret)
    return [
        secret, secret.hex().encode(), secret.hex().upper().encode(), plain, plain.rstrip(b"="),
        base64.urlsafe_b64encode(secret), repr(secret).encode(), json.dumps(secret.decode("latin-1")).encode()[1:-1],
    ]  # fmt: skip


def test_secrets_are_nowhere_but_in_the_answers(tmp_path: Path) -> None:
    """Threats: canary secrets in logs at debug level, arguments, environment, and answers to others."""
    document = integration()
    document["Marbles"]["frontend"]["Parameters"]["Env"]["PRIVATE_RAW"] = "{{ base64 .Secrets.privateKey }}"
    with process(tmp_path, OE_SIMULATION="1") as up:
        assert post(up, encode(document)) == 200
        parameters = [activate(up, "frontend", uuid).Parameters for uuid in (UUID_1, UUID_2)]
        answers = [
            http1(up.client, b"GET /%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path)
            for path in (b"status", b"quote", b"nothing", b"api/v2/quote?nonce=!", b"api/v2/secrets?s=sharedKey")
        ]
        answers.append(http1(up.client, b"POST /manifest HTTP/1.0\r\nContent-Length: 1\r\n\r\n{"))
        status = Path(f"/proc/{up.process.pid}")
        seen = [(status / name).read_bytes() for name in ("cmdline", "environ", "comm", "status")]
        assert up.stop() == 0
    seen += [up.log.read_bytes(), *answers]
    secrets = [CANARY.encode(), FileStore(tmp_path / "state").load().keys[0]]  # type: ignore[union-attr]
    for parameter in parameters:
        secrets += [bytes.fromhex(parameter.Env[name].decode()) for name in ("SHARED", "PRIVATE")]
        pem = parameter.Env["MARBLE_PREDEFINED_PRIVATE_KEY"]
        secrets += [base64.b64decode(b"".join(pem.splitlines()[1:-1])), pem.splitlines()[1], pem.splitlines()[2]]
    for secret in secrets:
        for spelling in spellings(secret):
            assert [text[:80] for text in seen if spelling in text] == []
    assert any(entry["msg"] == "marble activated" for entry in up.lines())


def test_the_state_is_sealed_and_private_on_disk(tmp_path: Path) -> None:
    new_platform(tmp_path / "platform")
    with process(tmp_path, EDG_SIMULATED_PLATFORM=str(tmp_path / "platform")) as up:
        assert post(up, INTEGRATION) == 200
    for path in (tmp_path / "state").iterdir():
        assert CANARY.encode() not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


# -- life --------------------------------------------------------------------------------------------------------


def test_after_a_kill_everything_is_there_again(tmp_path: Path) -> None:
    """C2, I2: without a chance to say goodbye."""
    with process(tmp_path, OE_SIMULATION="1") as up:
        assert post(up, INTEGRATION) == 200
        before = activate(up, "frontend").Parameters.Env
        up.stop(signal.SIGKILL)
    with process(tmp_path, OE_SIMULATION="1") as up:
        assert post(up, INTEGRATION) == 400
        after = activate(up, "frontend").Parameters.Env
        for name in ("PRIVATE", "SHARED", "MARBLE_PREDEFINED_ROOT_CA", "MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"):
            assert before[name] == after[name]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_even_with_open_connections(tmp_path: Path, number: int) -> None:
    with process(tmp_path, OE_SIMULATION="1") as up:
        held = [tls(up.client), Http2(up.mesh, mesh=True).socket]
        start = time.monotonic()
        assert up.stop(number) == 0
        assert time.monotonic() - start < 5
        for connection in held:
            connection.close()
    assert up.lines()[-1]["msg"] == "the Coordinator is shutting down"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "OE_SIMULATION=1"),
        ({"OE_SIMULATION": "1", "EDG_COORDINATOR_MESH_ADDR": "nonsense"}, "EDG_COORDINATOR_MESH_ADDR"),
        ({"OE_SIMULATION": "1", "EDG_STARTUP_MANIFEST": "/does/not/exist"}, "EDG_STARTUP_MANIFEST"),
        ({"OE_SIMULATION": "1", "EDG_COORDINATOR_SEAL_DIR": "/proc/nope"}, "EDG_COORDINATOR_SEAL_DIR"),
        ({"EDG_SIMULATED_PLATFORM": "/does/not/exist"}, "/does/not/exist"),
    ],
)
def test_what_cannot_run_says_why_and_what_to_do(tmp_path: Path, environment: dict[str, str], words: str) -> None:
    base = {"EDG_COORDINATOR_SEAL_DIR": str(tmp_path / "state"), "EDG_COORDINATOR_CLIENT_ADDR": "127.0.0.1:0"}
    done = subprocess.run(
        [sys.executable, "-m", "marblerun", "coordinator"],
        env={**base, **environment}, capture_output=True, timeout=20, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode not in (0, -signal.SIGABRT)
    assert words in done.stderr.decode()
    assert b"Traceback" not in done.stderr
