"""Small Go programs that answer questions line by line, so that our results can be compared with Go's own."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Answer(NamedTuple):
    """Whether Go accepted a document, and what it read."""

    ok: bool
    value: Any = None


class Oracle:
    """A running program; :meth:`ask` sends one document and waits for the answer."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def ask(self, mode: str, document: bytes) -> Answer:
        """What Go makes of a document."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{mode} {base64.b64encode(document).decode()}\n".encode())
        self._process.stdin.flush()
        reply = json.loads(self._process.stdout.readline())
        return Answer(reply["ok"], reply.get("value"))


@contextmanager
def running(program: str, workdir: Path) -> Iterator[Oracle | None]:
    """The program of a folder beside this file, built into ``workdir``; ``None`` where Go is not installed."""
    go = shutil.which("go")
    if go is None:
        yield None
        return
    binary = workdir / program
    subprocess.run([go, "build", "-o", str(binary), "."], cwd=HERE / program, check=True, timeout=300)
    process = subprocess.Popen([str(binary)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Oracle(process)
    finally:
        process.terminate()
        process.wait(timeout=60)
