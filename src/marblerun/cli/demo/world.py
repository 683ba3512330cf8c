"""The demo's world: one directory, some ports, and the processes in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from marblerun.errors import Unavailable

STOP_SECONDS: Final = 5.0
COMMAND_SECONDS: Final = 60.0


_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOWEST_PORT, _HIGHEST_PORT = 10_000, 65_535
_USUAL_RANGE: Final = (32_768, 60_999)


def _lasting_ports() -> list[int]:
    """Ports that the system gives to no outgoing connection; all where it leaves too few."""
    low, high = _USUAL_RANGE
    with contextlib.suppress(OSError, ValueError):
        low, high = map(int, _PORT_RANGE.read_text().split())
    every = range(_LOWEST_PORT, _HIGHEST_PORT + 1)
    lasting = [port for port in every if not low <= port <= high]
    return lasting if len(lasting) >= 1_000 else list(every)


_PORTS: Final = _lasting_ports()
_NEXT: Final = itertools.count(os.getpid() * 97)  # programs that run at the same time begin at different places


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses, and that stays free until it is used or asked for again.

    Not one that the system chose and that was closed again: it takes the ports of outgoing connections from the same
    range, so a server that is started there later, or once more, may find its place taken. A client that keeps trying
    a closed port of that range is sometimes even connected to itself. Raises Unavailable if no port is free.
    """
    for _ in _PORTS:
        port = _PORTS[next(_NEXT) % len(_PORTS)]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise Unavailable("no port of the loopback interface is free")


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that ran to its end."""

    code: int
    output: str
    """Standard output and standard error together."""


@dataclass(slots=True)
class Running:
    """A process that goes on."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """SIGKILL: the process has no say in it."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """SIGTERM, and SIGKILL if that does not help."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


@dataclass(slots=True)
class World:
    """Starts processes with a common environment and ends them all."""

    directory: Path
    environment: dict[str, str]
    running: list[Running] = field(default_factory=list)

    def command(self, *arguments: str) -> list[str]:
        """The command line of ``marblerun`` with these arguments, by this very installation."""
        return [sys.executable, "-m", "marblerun", *arguments]

    def run(
        self, arguments: Sequence[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> Finished:
        """Run ``marblerun`` to its end."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=cwd or self.directory,
            env={**self.environment, **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        return Finished(done.returncode, done.stdout.decode("utf-8", "replace"))

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Running:
        """Start ``marblerun`` as a process that goes on, its output in ``<name>.log``."""
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            process = self._spawn(arguments, cwd or self.directory, environment or {}, output)
        running = Running(name, process, log)
        self.running.append(running)
        return running

    def _spawn(
        self, arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(*arguments),
            cwd=cwd,
            env={**self.environment, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )

    def wait_for_port(self, port: int, running: Running, seconds: float = 60.0) -> None:
        """Wait until a process listens; raises Unavailable with the end of its log if it dies or does not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if running.process.poll() is not None:
                raise Unavailable(f"{running.name} ended with code {running.process.returncode}:\n{running.tail()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.05)
        raise Unavailable(f"{running.name} does not listen on port {port}:\n{running.tail()}")

    def stop_all(self) -> None:
        """End every process, the youngest first."""
        for running in reversed(self.running):
            running.stop()


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without settings of other Coordinators, Marbles and simulations."""
    strange = ("EDG_", "OE_", "MARBLE_", "MARBLERUN_", "SSL_CERT")
    kept = {name: value for name, value in environment.items() if not name.startswith(strange)}
    return {**kept, "PYTHONUNBUFFERED": "1", "XDG_CONFIG_HOME": os.devnull}
