"""The recorded session of ``docs/updates.md``: every command on the page, run in one shell, with what comes out.

``python -m tests.cli.walkthrough`` writes the page's output anew. ``sh`` blocks are run, ``console`` blocks are run and
compared; a command begins with ``$``.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from marblerun.cli.demo.world import free_port

PAGE = Path(__file__).resolve().parents[2] / "docs" / "updates.md"
PORTS = (4433, 2001)
"""As they are on the page; in truth the session runs on free ones."""

_BLOCK = re.compile(r"```(sh|console)\n(.*?)```\n", re.DOTALL)
_END = "--- end of command ---"
_WAIT = "for i in $(seq 600); do grep -q 'is listening' coordinator.log && break; sleep 0.1; done"


class Shell:
    """One bash for the whole page; standard error is shown with the output."""

    def __init__(self, folder: Path, ports: Mapping[int, int]) -> None:
        self._ports = ports
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=folder,
            env={"PATH": path, "HOME": str(folder), "EDG_MARBLE_COORDINATOR_ADDR": f"localhost:{ports[2001]}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """What the command prints."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for shown, real in self._ports.items():
            command = command.replace(f"localhost:{shown}", f"localhost:{real}")
        self._process.stdin.write(f"{command}\necho '{_END}'\n")
        self._process.stdin.flush()
        output = ""
        for line in self._process.stdout:
            if line.rstrip("\n").endswith(_END):
                output += line.rstrip("\n").removesuffix(_END)
                break
            output += line
        for shown, real in self._ports.items():
            output = output.replace(f"localhost:{real}", f"localhost:{shown}")
        return output

    def close(self) -> None:
        """End the shell and what it started."""
        os.killpg(self._process.pid, signal.SIGTERM)
        os.killpg(self._process.pid, signal.SIGHUP)
        self._process.communicate(timeout=60)


@contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    """A shell in ``folder`` with free ports in place of the page's."""
    made = Shell(folder, {port: free_port() for port in PORTS})
    try:
        yield made
    finally:
        made.close()


def replay(page: str, folder: Path) -> str:
    """The page with the output of its commands as it is now."""
    with shell(folder) as session:

        def block(match: re.Match[str]) -> str:
            kind, text = match.groups()
            if kind == "console":
                text = "".join(f"$ {command}\n{_output(session, command)}" for command in _commands(text))
            else:
                session.run(text)
                if "marblerun coordinator " in text:
                    session.run(_WAIT)
            return f"```{kind}\n{text}```\n"

        return _BLOCK.sub(block, page)


def _commands(text: str) -> list[str]:
    return [line.removeprefix("$ ") for line in text.splitlines() if line.startswith("$ ")]


def _output(session: Shell, command: str) -> str:
    output = session.run(command)
    return output if not output or output.endswith("\n") else output + "\n"


def comparable(page: str) -> str:
    """The page without what is different each time; equal keys and fingerprints stay equal."""
    names: dict[str, str] = {}
    page = re.sub(r"\b[0-9a-f]{32,64}\b", lambda found: names.setdefault(found[0], f"<hex {len(names)}>"), page)
    return re.sub(r'"time":"[^"]*"', '"time":"<time>"', page)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        PAGE.write_text(replay(PAGE.read_text(), Path(scratch)))
