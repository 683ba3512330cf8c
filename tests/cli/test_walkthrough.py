"""The documentation's session is what really happens."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path

import pytest
from tests.cli.walkthrough import PAGE, comparable, replay, shell

ROOT = PAGE.parents[1]


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("bash", "openssl", "awk")), reason="the session needs bash, openssl and awk"
)
def test_every_command_of_the_page_on_updates_prints_what_the_page_says(tmp_path: Path) -> None:
    """Users, secrets and a two-party update through the command line, with certificates of empty subject (E21)."""
    page = PAGE.read_text()
    assert comparable(replay(page, tmp_path)) == comparable(page)


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="the session needs bash")
def test_the_commands_of_the_readme_work_as_they_are_printed_all_at_once(tmp_path: Path) -> None:
    _, by_hand = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").write_text("")
    with shell(tmp_path) as session:
        patience = threading.Timer(300, session.close)  # should the Coordinator never listen
        patience.start()
        session.run("export EDG_COORDINATOR_MESH_ADDR=localhost:2001 EDG_COORDINATOR_CLIENT_ADDR=localhost:4433")
        output = session.run(by_hand)
        patience.cancel()
    assert "\nManifest successfully set\n" in output
    assert "\nOK\n" in output
    assert re.search(r"^GREETING=hello from [0-9a-f]{32}$", output, re.MULTILINE)
