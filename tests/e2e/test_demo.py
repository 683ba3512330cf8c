"""The whole way, with real processes: what `make demo` shows a newcomer is what is tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EVERY_STEP = (
    "the Coordinator is genuine and enforces exactly this manifest",
    "ledger was admitted",
    "orders was admitted",
    "shop was admitted",
    "shop, orders and ledger each handled it",
    "the ledger does not talk to a stranger",
    "4 impostors refused, each with the reason",
    "same root certificate, unsealed from disk",
    "same sealing key: it reads what it encrypted before",
)


@pytest.mark.e2e
def test_the_demo_shows_every_step_and_ends_with_code_zero(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "marblerun", "demo"],
        cwd=tmp_path,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert (done.returncode, [step for step in EVERY_STEP if step not in done.stdout]) == (0, []), (
        done.stdout + done.stderr
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_a_demo_that_cannot_show_a_step_ends_with_another_code(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    done = subprocess.run(
        [sys.executable, "-m", "marblerun", "demo", "--directory", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2
    assert "is not empty" in done.stderr
