"""``marblerun state``: inspect, backup, restore, with states that real Coordinators left."""

from __future__ import annotations

import io
import json
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.coordinator.parties import manifest
from tests.coordinator.running import Running, World, new_platform, running

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.cli.main import cli
from marblerun.coordinator.store.file import FileStore


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["state", *map(str, arguments)], prog_name="marblerun", catch_exceptions=False)


@contextmanager
def coordinator(
    directory: Path, platform: SimulatedPlatform | None, document: bytes | None = None
) -> Iterator[Running]:
    store = FileStore(directory)
    try:
        with running(World(store=store, platform=platform), manifest=document) as up:
            yield up
    finally:
        store.close()


def code(up: Running) -> int:
    return up.coordinator.status().code


def test_inspect_tells_what_can_be_known_without_the_key(tmp_path: Path, platform: SimulatedPlatform) -> None:
    directory = tmp_path / "state"
    with coordinator(directory, platform, manifest(3, 2, SealMode="UniqueKey")):
        result = run("inspect", directory)
    assert result.exit_code == 0, result.stderr
    assert "the holders of 3 recovery secrets" in result.stdout
    assert "its exact code (UniqueKey), security version" in result.stdout
    with coordinator(directory, platform):
        pass
    (directory / "sealed_data.aside-0123").write_bytes(b"xx")
    document = json.loads(run("inspect", directory, "--json").stdout)
    assert document["recoverySecrets"] == 3
    assert document["bytes"] == (directory / "sealed_data").stat().st_size
    assert list(document["older"]) == ["old", "aside-0123"]
    assert "problem" in document["older"]["aside-0123"]


def test_inspect_says_when_the_key_is_in_the_clear_or_missing(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    with coordinator(directory, None, manifest(0)):
        pass
    result = run("inspect", directory)
    assert "in the CLEAR (written in simulation); it opens the state" in result.stdout
    assert "the holder of a single recovery key, or nobody" in result.stdout
    (directory / "sealed_key").write_bytes(bytes(32))
    assert "it does not open the state" in run("inspect", directory).stdout
    (directory / "sealed_key").unlink()
    assert "none: a start needs recovery" in run("inspect", directory).stdout


@pytest.mark.parametrize(
    ("name", "content", "exit_code"),
    [("sealed_data", None, 8), ("sealed_data", b"", 7), ("sealed_data", b"\xff\xff\xff\xff\0", 7)],
)
def test_a_directory_without_a_sound_state_is_an_error(
    tmp_path: Path, name: str, content: bytes | None, exit_code: int
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    for arguments in (("inspect", tmp_path), ("backup", tmp_path, tmp_path / "b.tar")):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (exit_code, "")
    assert not (tmp_path / "b.tar").exists()


def test_a_backup_made_while_running_is_restored_on_the_same_platform(
    tmp_path: Path, platform: SimulatedPlatform
) -> None:
    """Also into another directory; on the way in nothing that was there is lost."""
    directory, file = tmp_path / "state", tmp_path / "b.tar"
    with coordinator(directory, platform, manifest(1)) as up:
        assert run("backup", directory, file).exit_code == 0
        root = up.coordinator.state.authority.root_der
        assert run("restore", file, directory).exit_code == 9  # it is in use
        assert run("backup", directory, file).exit_code == 5  # it exists
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    other = tmp_path / "other"
    with coordinator(other, platform, manifest(2)):
        pass
    before = (other / "sealed_data").read_bytes()
    result = run("restore", file, other)
    assert result.exit_code == 0, result.stderr
    assert before in [path.read_bytes() for path in other.glob("sealed_data.aside-*")]
    with coordinator(other, platform) as up:
        assert code(up) == 3
        assert up.coordinator.state.authority.root_der == root


def test_on_another_platform_a_restored_backup_waits_for_recovery(tmp_path: Path, platform: SimulatedPlatform) -> None:
    with coordinator(tmp_path / "state", platform, manifest(1)):
        pass
    run("backup", tmp_path / "state", tmp_path / "b.tar")
    run("restore", tmp_path / "b.tar", tmp_path / "there")
    with coordinator(tmp_path / "there", new_platform(tmp_path / "another")) as up:
        assert code(up) == 1


def test_an_older_generation_can_be_saved_and_restored(tmp_path: Path, platform: SimulatedPlatform) -> None:
    directory = tmp_path / "state"
    with coordinator(directory, platform, manifest(1)):
        pass
    for _ in range(5):
        with coordinator(directory, platform):
            pass
    names = {path.name for path in directory.glob("sealed_data.*")}
    assert names == {"sealed_data.old", "sealed_data.old.2", "sealed_data.old.3", "sealed_data.old.4"}
    for generation in ("old", "old.2", "old.3", "old.4"):
        file, target = tmp_path / f"{generation}.tar", tmp_path / generation
        assert run("backup", directory, file, "--generation", generation).exit_code == 0
        assert run("restore", file, target).exit_code == 0
        with coordinator(target, platform) as up:
            assert code(up) == 3
    assert run("backup", directory, tmp_path / "x", "--generation", "old.9").exit_code == 8


@pytest.mark.parametrize(("content", "exit_code"), [(b"", 7), (b"\xff", 7), (None, 8)])
def test_where_the_present_state_is_lost_the_older_ones_are_shown_and_one_is_brought_back(
    tmp_path: Path, platform: SimulatedPlatform, content: bytes | None, exit_code: int
) -> None:
    directory = tmp_path / "state"
    with coordinator(directory, platform, manifest(1)):
        pass
    with coordinator(directory, platform):
        pass
    (directory / "sealed_data").unlink()
    if content is not None:
        (directory / "sealed_data").write_bytes(content)
    result = run("inspect", directory, "--json")
    shown = json.loads(result.stdout)
    assert (result.exit_code, "problem" in shown, list(shown["older"])) == (exit_code, True, ["old"])
    result = run("inspect", directory)
    assert (result.exit_code, "older state sealed_data.old:" in result.stdout) == (exit_code, True)
    assert run("backup", directory, tmp_path / "old.tar", "--generation", "old").exit_code == 0
    assert run("restore", tmp_path / "old.tar", directory).exit_code == 0
    with coordinator(directory, platform) as up:
        assert code(up) == 3


def test_a_backup_whose_key_is_in_the_clear_is_warned_of(tmp_path: Path) -> None:
    with coordinator(tmp_path / "state", None, manifest(0)):
        pass
    result = run("backup", tmp_path / "state", tmp_path / "b.tar")
    assert "whoever has this file has every secret" in result.stderr


def archive(*members: tuple[str, bytes, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type, member.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            member.linkname = "/etc/passwd"
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an archive",
        b"\0" * 2048,
        archive(("sealed_key", b"k", tarfile.REGTYPE)),
        archive(("sealed_data", b"", tarfile.SYMTYPE)),
        archive(("sealed_data", b"", tarfile.LNKTYPE)),
        archive(("sealed_data", b"", tarfile.DIRTYPE)),
        archive(("sealed_data", b"xx", tarfile.REGTYPE)),
        archive(("../sealed_data", b"\x04\0\0\0null" + bytes(40), tarfile.REGTYPE)),
        archive(("sealed_data", b"\x04\0\0\0null" + bytes(40), tarfile.REGTYPE))[:540],
        archive(*[("sealed_data", b"\x04\0\0\0null" + bytes(40), tarfile.REGTYPE)] * 2),
        archive(*[(f"{number}", b"", tarfile.REGTYPE) for number in range(30)]),
    ],
)
def test_what_is_no_backup_is_refused_and_changes_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "b.tar").write_bytes(content)
    result = run("restore", tmp_path / "b.tar", tmp_path / "state")
    assert (result.exit_code, (tmp_path / "state").exists()) == (7, False), result.stderr
