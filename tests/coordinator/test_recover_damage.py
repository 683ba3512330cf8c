"""Damaged state files are never believed, crash nothing and stay as they are; the full sweep is in ``damage``."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest
from tests.coordinator.damage import damages, outcome, sealed_state
from tests.coordinator.running import World
from tests.coordinator.states import fresh

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.coordinator.commands import start
from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.file import FileStore
from marblerun.errors import MarbleRunError


@pytest.fixture
def one_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    """The throw-away CA is not what is looked at here, and it takes most of the time."""
    authority = fresh().authority
    monkeypatch.setattr(start, "new_authority", lambda names, inputs: authority)


@pytest.mark.usefixtures("one_authority")
def test_k1_no_truncation_and_no_changed_byte_is_believed(platform: SimulatedPlatform) -> None:
    """K1."""
    sealed = sealed_state(platform)

    async def all_of_them() -> Counter[str]:
        return Counter([await outcome(damaged, platform) for _, damaged in damages(sealed, step=401)])

    found = asyncio.run(all_of_them())
    assert set(found) == {"recovery", "refused"}
    assert asyncio.run(outcome(sealed, platform)) == "running"


@pytest.mark.usefixtures("one_authority")
def test_without_a_platform_damaged_data_is_refused() -> None:
    """There the key is bound to nothing: only the tag of the state itself tells."""
    sealed = sealed_state(None)

    async def all_of_them() -> set[str]:
        box = [
            (name, damaged) for name, damaged in damages(sealed, step=401) if damaged.data[149:] != sealed.data[149:]
        ]
        return {await outcome(damaged, None) for _, damaged in box}

    assert asyncio.run(all_of_them()) == {"refused"}


@pytest.mark.usefixtures("one_authority")
def test_files_of_other_states_and_swapped_files_are_not_believed(platform: SimulatedPlatform) -> None:
    """I6, E14."""
    one, other = sealed_state(platform), sealed_state(platform)
    for strange in (
        Sealed(one.data, other.keys),
        Sealed(one.keys[0], (one.data,)),
        Sealed(one.data, (one.data,)),
        Sealed(one.keys[0], one.keys),
        Sealed(one.data, ()),
        Sealed(one.data, (b"",)),
    ):
        assert asyncio.run(outcome(strange, platform)) in ("recovery", "refused")


@pytest.mark.parametrize("name", ["sealed_data", "sealed_key"])
@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
def test_what_is_no_file_is_an_error_that_names_it(
    tmp_path: Path, platform: SimulatedPlatform, name: str, kind: str
) -> None:
    sealed = sealed_state(platform)
    store = FileStore(tmp_path / "state")
    store.save(sealed.data, sealed.keys[0])
    path = tmp_path / "state" / name
    path.rename(tmp_path / "elsewhere")
    if kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        os.mkfifo(path)
    with pytest.raises(MarbleRunError, match=name):
        asyncio.run(World(platform=platform, store=store).coordinator().start())
    store.close()
