"""The Go program of ``tests/go/restclient``, driven from Python: a stock user of the client API."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from tests.coordinator.running import Running

SOURCE = Path(__file__).resolve().parents[1] / "go" / "restclient"
OLD_API = "/api/v9"
"""Where no Coordinator has an API: a client that looks there first falls back to version 1."""

Reply = dict[str, Any]


class Credentials(Protocol):
    """A client certificate with its key, as PEM."""

    @property
    def pem(self) -> str: ...
    @property
    def key_pem(self) -> str: ...


@dataclass
class Refused(Exception):
    """What the client library made of an answer other than 200, or of no answer."""

    text: str
    code: int = 0
    status: str = ""
    message: str = ""
    data: str = ""


@dataclass(frozen=True)
class StockClient:
    """The program with what all of a user's commands have in common; bytes become base64 as Go reads them."""

    process: subprocess.Popen[bytes]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def having(self, **settings: Any) -> StockClient:
        """The same program, with these in every command."""
        return replace(self, settings={**self.settings, **settings})

    def ask(self, op: str, **fields: Any) -> Reply:
        """One command; raises :class:`Refused` where the library would return an error."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        command = {"op": op, **self.settings, **fields}
        self.process.stdin.write(json.dumps(command, default=_base64).encode() + b"\n")
        self.process.stdin.flush()
        answer: Reply = json.loads(self.process.stdout.readline())
        if "error" in answer:
            raise Refused(answer.pop("error"), **answer)
        return answer

    def attested(self, up: Running, host: str = "localhost") -> StockClient:
        """Talks to this Coordinator from now on, trusting nothing but the root it shows now."""
        endpoint = f"{host}:{up.client[1]}"
        root = self.ask("attest", endpoint=endpoint)["root"]
        return self.having(endpoint=endpoint, root=root)

    def as_user(self, who: Credentials) -> StockClient:
        """With a client certificate."""
        return self.having(certificate=who.pem, key=who.key_pem)


def _base64(value: object) -> str:
    assert isinstance(value, bytes)
    return base64.b64encode(value).decode()


@contextmanager
def stock_client(workdir: Path) -> Iterator[StockClient | None]:
    """The program, built into ``workdir`` and in FIPS mode as the reference's is; ``None`` where Go is missing."""
    go = shutil.which("go")
    if go is None:
        yield None
        return
    binary = workdir / "restclient"
    subprocess.run([go, "build", "-o", str(binary), "."], cwd=SOURCE, check=True, timeout=300)
    environment = {**os.environ, "GODEBUG": "fips140=on"}
    process = subprocess.Popen([str(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    try:
        yield StockClient(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(timeout=60)
