"""Simulated machines of one make: one root of trust, each with sealing keys of its own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from marblerun.attestation.simulated import SimulatedPlatform


def another_machine(like: SimulatedPlatform, directory: Path) -> SimulatedPlatform:
    """The same platform with another sealing secret: what was sealed on one does not open on the other."""
    shutil.copytree(like.directory, directory)
    secret = directory / "sealing.secret"
    secret.write_bytes(os.urandom(secret.stat().st_size))
    return SimulatedPlatform.load(directory)
