"""A real etcd for tests: one member on the loopback, its data in a folder of the test."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from marblerun.cli.demo.world import free_port

START_SECONDS = 60.0
BINARY = shutil.which("etcd")
needs_etcd = pytest.mark.skipif(BINARY is None, reason="SKIPPED: there is no etcd here (Debian: etcd-server)")


@dataclass
class Etcd:
    """A member that can be stopped and started again with what it knew."""

    folder: Path
    scheme: str = "http"
    options: Sequence[str] = ()
    port: int = field(default_factory=free_port)
    peer_port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self) -> None:
        peer = f"http://127.0.0.1:{self.peer_port}"
        arguments = [
            *(str(BINARY), "--data-dir", str(self.folder / "data"), "--log-level", "error"),
            *("--listen-client-urls", self.url, "--advertise-client-urls", self.url),
            *(
                "--listen-peer-urls",
                peer,
                "--initial-advertise-peer-urls",
                peer,
                "--initial-cluster",
                f"default={peer}",
            ),
            *self.options,
        ]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(arguments, stdout=log, stderr=log, env={"PATH": "/usr/bin"})
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, (self.folder / "log").read_text()
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.05)
        raise AssertionError("etcd did not start in time")

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@contextmanager
def etcd(folder: Path, scheme: str = "http", *options: str) -> Iterator[Etcd]:
    folder.mkdir(parents=True, exist_ok=True)
    one = Etcd(folder, scheme, options)
    try:
        one.start()
        yield one
    finally:
        one.stop()
