"""What the benchmark measures with: CPU of another process, and requests that a server understands."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded

from benchmarks.__main__ import main
from benchmarks.floor import Activation
from benchmarks.marbles import request_frames
from benchmarks.process import cpu_seconds, cpu_seconds_from_stat, tree, usage
from benchmarks.soak import Judgement, latency_drift

# Works until it has used so much CPU itself, says so, and waits; a child of it does the same.
BUSY = """
import subprocess, sys, time
if len(sys.argv) > 1:
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
while time.process_time() < 0.2:
    pass
print("done", flush=True)
sys.stdin.readline()
"""

# Opens two files and starts a thread when it is told to, and waits.
OPENS = """
import os, sys, threading
print("before", flush=True)
sys.stdin.readline()
held = [open(os.devnull), open(os.devnull)]
threading.Thread(target=threading.Event().wait, daemon=True).start()
print("after", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has used 0.2 s of CPU, and has a child that has used as much."""
    command = [sys.executable, "-c", BUSY, BUSY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def test_the_cpu_clock_of_another_process_says_what_proc_says(busy: subprocess.Popen[bytes]) -> None:
    """Up to the steps of the latter: user and system time, each cut to 10 ms, of two processes."""
    from_stat = sum(cpu_seconds_from_stat(pid) for pid in tree(busy.pid))
    assert -0.001 <= cpu_seconds(busy.pid) - from_stat <= 0.05


def test_children_count_with_their_parent(busy: subprocess.Popen[bytes]) -> None:
    assert len(tree(busy.pid)) == 2
    assert cpu_seconds(busy.pid) >= 0.4 > cpu_seconds(tree(busy.pid)[1]) >= 0.2
    assert usage(busy.pid).resident > usage(tree(busy.pid)[1]).resident > 0


def test_a_process_that_is_gone_uses_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert cpu_seconds_from_stat(process.pid) == 0
    assert usage(process.pid).resident == 0


def test_descriptors_and_threads_are_counted() -> None:
    """Of a process of its own: in this one, what earlier tests left may just be coming to its end."""
    with subprocess.Popen([sys.executable, "-c", OPENS], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"before\n"
        before = usage(process.pid)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"after\n"
        now = usage(process.pid)
    assert (now.descriptors - before.descriptors, now.threads - before.threads) == (2, 1)


@pytest.mark.parametrize("size", [1, 16384, 16385, 65535])
def test_the_ready_made_request_is_what_an_http2_server_reads(size: int) -> None:
    server = H2Connection(H2Configuration(client_side=False, header_encoding=None))
    events = server.receive_data(request_frames("/some.Service/Method", bytes(size)))
    headers = next(dict(event.headers or ()) for event in events if isinstance(event, RequestReceived))
    assert headers[b":path"] == b"/some.Service/Method"
    assert sum(len(event.data or b"") for event in events if isinstance(event, DataReceived)) == size
    assert [event.stream_id for event in events if isinstance(event, StreamEnded)] == [1]


def test_a_request_beyond_the_first_window_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="window"):
        request_frames("/x", bytes(65536))


def test_the_floor_is_the_sum_of_its_parts_and_all_parts_take_time() -> None:
    floor = Activation(ec.SECP256R1()).measure(2)
    parts = (
        floor.handshake, floor.request_signature, floor.key, floor.certificate_signature, floor.quote_signature,
    )  # fmt: skip
    assert min(parts) > 0
    assert floor.total == sum(parts)


def test_drift_is_the_last_third_over_the_first() -> None:
    steady = [(float(at), 0.01) for at in range(90)]
    assert latency_drift(steady) == 1
    assert latency_drift([(at, 0.03 if at >= 60 else 0.01) for at in range(90)]) == pytest.approx(3)
    assert latency_drift(steady[:5]) == 1


def test_a_judgement_is_good_up_to_its_limit() -> None:
    assert Judgement("growth", 8.0, 8.0).is_good
    assert not Judgement("growth", 8.1, 8.0).is_good


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pid", "1"], "--pid is about another server"),
        (["--set-manifest", "-"], "--set-manifest is about another server"),
        (["--mesh", "localhost:1", "--pid", "999999999"], "there is no process 999999999"),
        (["--mesh", "localhost:1", "--only", "rsa-mesh"], "these can be measured: typical, p256, durable"),
        (["--client", "localhost:1", "--only", "typical"], "these can be measured: requests"),
    ],
)
def test_what_is_said_about_another_server_is_never_passed_over_in_silence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert (ended.value.code, words in capsys.readouterr().err) == (2, True)


def test_a_server_that_does_not_answer_is_an_error_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OE_SIMULATION", "1")
    assert main(["--mesh", "127.0.0.1:1", "--short", "--only", "p256"]) == 1
    assert capsys.readouterr().err == "error: that server cannot be measured: [Errno 111] Connection refused\n"
