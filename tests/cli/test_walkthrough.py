"""The documentation's session is what really happens."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.cli.walkthrough import PAGE, comparable, replay


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("bash", "openssl", "awk")), reason="the session needs bash, openssl and awk"
)
def test_every_command_of_the_page_on_updates_prints_what_the_page_says(tmp_path: Path) -> None:
    """Users, secrets and a two-party update through the command line, with certificates of empty subject (E21)."""
    page = PAGE.read_text()
    assert comparable(replay(page, tmp_path)) == comparable(page)
