"""Fixtures of the command line's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.session import Session, start
from tests.client.fixtures import honest, other_platform, platform, trust

from marblerun.attestation.simulated import SimulatedPlatform

__all__ = ["honest", "other_platform", "platform", "trust"]


@pytest.fixture
def session(tmp_path: Path, platform: SimulatedPlatform, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A user's folder, without a policy in the working directory and without a cached certificate."""
    (tmp_path / "work").mkdir()
    return start(tmp_path / "work", platform, monkeypatch)
