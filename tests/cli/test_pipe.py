"""Output that nobody reads to its end, as behind ``| head``: no traceback, whatever the program."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ("marblerun", "--help"),
        ("marblerun", "manifest", "schema"),
        ("marblerun", "completion", "bash"),
        ("marblerun.cli.reference",),
        ("marblerun.cli.lint_page",),
        ("benchmarks", "--list"),
        ("benchmarks", "--print-manifest"),
    ],
)
def test_a_reader_that_has_gone_is_no_failure_to_tell(arguments: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, cwd=ROOT, timeout=120, check=False)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
