"""A run without the recorded evidence says so, with the count of what it has not tested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.vectors import EXPECTED_DCAP_VECTORS, names, vectors_directory

ROOT = Path(__file__).resolve().parents[1]


def run(directory: Path) -> str:
    """What pytest says of the tests of recorded quotes, as quietly as it can."""
    command = [sys.executable, "-m", "pytest", "-qq", "-p", "no:cacheprovider", "--no-cov"]
    environment = os.environ | {"MARBLERUN_VECTORS": str(directory)}
    test = "tests/attestation/test_vectors.py"
    done = subprocess.run([*command, test], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def test_a_run_without_vectors_passes_and_tells_how_many_quotes_it_did_not_test(tmp_path: Path) -> None:
    assert f"NO VECTORS: {EXPECTED_DCAP_VECTORS} recorded quotes were NOT tested" in run(tmp_path)


def test_the_count_is_that_of_the_recorded_index() -> None:
    directory = vectors_directory()
    if directory is None:
        pytest.skip(f"no vectors: the count of {EXPECTED_DCAP_VECTORS} is not compared")
    assert len(names("sgx", "tdx", "sim", "negative")) == EXPECTED_DCAP_VECTORS
    assert "NO VECTORS" not in run(directory)
