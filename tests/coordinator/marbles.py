"""The Go program of ``tests/go/meshclient``, driven from Python: a stock Marble and a stock client."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.coordinator.running import Address

SOURCE = Path(__file__).resolve().parents[1] / "go" / "meshclient"


class GoClient:
    """A running program; commands are answered in order."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """The answer; a failure is in its ``error``."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"op": op, **fields}).encode() + b"\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def identity(self, dns: tuple[str, ...] = ("localhost",), **fields: Any) -> tuple[int, bytes]:
        """A Marble's self-signed certificate (DER) and the number to use it by."""
        made = self.ask("identity", dns=list(dns), **fields)
        return made["identity"], bytes.fromhex(made["certificate"])

    def activate(self, mesh: Address, identity: int | None, marble: str, uuid: str, **fields: Any) -> dict[str, Any]:
        """One call over one new connection; ``code`` is grpc-go's name of the status."""
        fields.setdefault("curves", [])
        return self.ask("activate", target=target(mesh), identity=identity, type=marble, uuid=uuid, **fields)


def target(address: Address) -> str:
    """``host:port``."""
    return f"{address[0]}:{address[1]}"


@contextmanager
def go_client(workdir: Path) -> Iterator[GoClient | None]:
    """The program, built into ``workdir``; ``None`` where Go is missing or its modules cannot be had."""
    go = shutil.which("go")
    binary = workdir / "meshclient"
    if go is None:
        yield None
        return
    built = subprocess.run([go, "build", "-o", str(binary), "."], cwd=SOURCE, timeout=300, capture_output=True)
    if built.returncode:
        if b"dial tcp" in built.stderr or b"lookup" in built.stderr or b"disabled by GOPROXY" in built.stderr:
            yield None
            return
        raise RuntimeError(built.stderr.decode())
    process = subprocess.Popen([str(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield GoClient(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)
