"""A Coordinator in a process of its own, or one that somebody else started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import users
from benchmarks.manifests import PRODUCT
from benchmarks.marbles import Maker, environment_of
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.cli.demo.manifest import enclave
from marblerun.cli.demo.world import clean_environment, free_port
from marblerun.marble.settings import Endpoint, parse_endpoint

START_SECONDS = 120.0
STOP_SECONDS = 60.0
LISTENING = "the Coordinator is listening"


@dataclass(frozen=True, slots=True)
class Target:
    """A server that is measured."""

    mesh: Endpoint
    client: Endpoint
    pid: int | None
    """None: its CPU cannot be measured from here."""
    evidence: Mapping[str, str] = field(default_factory=dict)
    """The variables that choose a Marble's evidence."""
    marble_type: str = "service"

    def maker(self, **settings: Any) -> Maker:
        """Makes Marbles for it."""
        return Maker.from_environment(environment_of(self.evidence), **{"marble_type": self.marble_type, **settings})

    @property
    def process(self) -> int:
        """Its process id; RuntimeError if it is not known."""
        if self.pid is None:
            raise RuntimeError("this row measures the server's CPU: give --pid")
        return self.pid


class Site:
    """A directory with a simulated platform, for one Coordinator that may be started again and again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.log = directory / "coordinator.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._begin = 0  # of the present process's part of the log
        self.platform = directory / "platform"
        SimulatedPlatform.create(self.platform, at=datetime.now(UTC))
        self.environment = {
            **clean_environment(os.environ),
            "EDG_SIMULATED_PLATFORM": str(self.platform),
            "EDG_COORDINATOR_MESH_ADDR": "127.0.0.1:0",
            "EDG_COORDINATOR_CLIENT_ADDR": "127.0.0.1:0",
            "EDG_COORDINATOR_SEAL_DIR": str(directory / "state"),
        }

    def start(self, **variables: str) -> Target:
        """Start the Coordinator and wait until it listens."""
        self.spawn(**variables)
        return self.target()

    def spawn(self, **variables: str) -> None:
        """Start the Coordinator, and do not wait."""
        with self.log.open("ab") as output:
            self._begin = output.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", "marblerun", "coordinator"],
                env={**self.environment, **variables},
                cwd=self.directory,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def target(self) -> Target:
        """The Coordinator that was started, as soon as it listens."""
        if self.process is None:
            raise RuntimeError("no Coordinator was started")
        entry = self._listening(self.process, self._begin)
        return Target(
            mesh=parse_endpoint(entry["mesh"], "mesh"),
            client=parse_endpoint(entry["client"], "client"),
            pid=self.process.pid,
            evidence={"EDG_SIMULATED_PLATFORM": str(self.platform), **enclave(PRODUCT)},
        )

    def _listening(self, process: subprocess.Popen[bytes], begin: int) -> dict[str, Any]:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and process.poll() is None:
            for line in self.log.read_bytes()[begin:].splitlines():
                with contextlib.suppress(ValueError):
                    entry: dict[str, Any] = json.loads(line)
                    if entry.get("msg") == LISTENING:
                        return entry
            time.sleep(0.002)
        raise RuntimeError(f"the Coordinator does not listen:\n{self.log.read_text(errors='replace')[-4000:]}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it, with a signal of choice; the exit code."""
        if self.process is None:
            return 0
        self.process.send_signal(number)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise RuntimeError("the Coordinator did not end in time") from None
        finally:
            self.process = None


def free_endpoint() -> Endpoint:
    """An address of the loopback interface that nobody uses right now."""
    return Endpoint("127.0.0.1", free_port())


@contextmanager
def site() -> Iterator[Site]:
    """A place for a Coordinator; it is ended and removed with the block."""
    with tempfile.TemporaryDirectory(prefix="marblerun-bench-") as place:
        one = Site(Path(place))
        try:
            yield one
        finally:
            if one.process is not None and one.process.poll() is None:
                one.stop()


@contextmanager
def coordinator(manifest: Mapping[str, Any] | None = None) -> Iterator[Target]:
    """A running Coordinator with this manifest."""
    with site() as place:
        target = place.start()
        if manifest is not None:
            set_manifest(target, manifest)
        yield target


def set_manifest(target: Target, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Make it the Coordinator's manifest; what the Coordinator answers, with the recovery secrets."""
    request = users.post_request("/manifest", json.dumps(manifest).encode())
    reply = users.ask(target.client, users.user_context(), request)
    if reply.status != 200:
        raise RuntimeError(f"the manifest was refused: {reply.status} {reply.body[:500]!r}")
    answer: dict[str, Any] = json.loads(reply.body)
    return answer
