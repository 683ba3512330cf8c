"""Files of the manifest end up where it says, private and whole, and nowhere else."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.errors import Denied, Malformed, MarbleRunError, Unavailable
from marblerun.marble.apply import plan_files, write_files

ME = os.getuid()


def write(files: Mapping[str, bytes], root: Path, *, system_owner: int = -1) -> None:
    """Write below ``root``; no user's links are the system's unless a test says whose."""
    write_files(plan_files(files, Path("/cwd")), root, system_owner)


def content_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_files_are_0600_and_new_directories_0700_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write({"/etc/app/secret.key": b"k"}, tmp_path)
    finally:
        os.umask(before)
    assert content_of(tmp_path) == {"etc/app/secret.key": b"k"}
    assert [mode(tmp_path / p) for p in ("etc", "etc/app", "etc/app/secret.key")] == [0o700, 0o700, 0o600]


def test_existing_directories_keep_their_mode_and_existing_files_are_replaced_as_private(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir(mode=0o755)
    (tmp_path / "etc/conf").write_bytes(b"a much longer old content")
    (tmp_path / "etc/conf").chmod(0o666)
    write({"/etc/conf": b"new"}, tmp_path)
    assert content_of(tmp_path) == {"etc/conf": b"new"}
    assert [mode(tmp_path / p) for p in ("etc", "etc/conf")] == [0o755, 0o600]


def test_a_reader_of_the_old_file_never_sees_a_half_written_new_one(tmp_path: Path) -> None:
    (tmp_path / "conf").write_bytes(b"old")
    with (tmp_path / "conf").open("rb") as reader:
        write({"/conf": b"new"}, tmp_path)
        assert reader.read() == b"old"


def test_relative_paths_start_in_the_working_directory_and_dots_and_double_slashes_mean_nothing(tmp_path: Path) -> None:
    write({"./data//x": b"1", "/a/./b": b"2", "y": b""}, tmp_path)
    assert content_of(tmp_path) == {"cwd/data/x": b"1", "a/b": b"2", "cwd/y": b""}


@pytest.mark.parametrize(
    "path",
    ["", "/", ".", "a/", "a/.", "/a/..", "../x", "/a/../b", "a/b/../../../x", "a\x00b", "/" + "n" * 256, "/a" * 3000],
)
def test_paths_that_escape_or_name_no_file_are_refused_before_anything_is_written(path: str, tmp_path: Path) -> None:
    with pytest.raises(Malformed):
        write({"/good": b"1", path: b"2"}, tmp_path)
    assert content_of(tmp_path) == {}


@pytest.mark.parametrize(
    "paths",
    [
        ("/cwd/x", "x"),
        ("/a/b", "/a//b"),
        ("/Key", "/key"),
        ("/stra\u00dfe", "/STRASSE"),
        ("/\u00e9", "/e\u0301"),
        ("/a", "/a/b"),
        ("/A", "/a/b/c"),
    ],
    ids=["relative", "slashes", "case", "folding", "normalisation", "below", "below-in-other-case"],
)
def test_paths_that_collide_are_refused_before_anything_is_written(paths: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(Denied, match="collide"):
        write({paths[0]: b"1", paths[1]: b"2"}, tmp_path)
    assert content_of(tmp_path) == {}


def test_all_collisions_are_named_at_once() -> None:
    with pytest.raises(Denied) as refusal:
        plan_files({"/a": b"", "/A": b"", "/b": b"", "/b/c": b""}, Path("/"))
    assert len(refusal.value.mismatches) == 2


@pytest.mark.parametrize("target", ["elsewhere", "/elsewhere", "../elsewhere"])
def test_a_symbolic_link_on_the_way_is_refused_and_its_target_untouched(target: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "volume").symlink_to(target)
    with pytest.raises(Denied, match="symbolic link 'volume'"):
        write({"/volume/secret": b"s"}, tmp_path)
    assert content_of(tmp_path) == {}


def test_a_link_to_the_outside_is_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "out").symlink_to(outside)
    with pytest.raises(Denied):
        write({"/out/secret": b"s"}, root)
    assert list(outside.iterdir()) == []


def test_a_link_in_place_of_the_file_is_refused_and_its_target_untouched(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / "conf").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    for path in ("/conf", "/dangling"):
        with pytest.raises(Denied, match="symbolic link"):
            write({path: b"secret"}, tmp_path, system_owner=ME)
    assert content_of(tmp_path) == {"target": b"precious"}


@pytest.mark.parametrize("target", ["run", "/run", "../run", "./deep/../run"])
def test_a_link_of_the_system_is_followed(target: str, tmp_path: Path) -> None:
    """``/var/run`` is such a link; an absolute one starts at the root, and ``..`` does not leave it."""
    for name in ("var/deep", "var/run", "run"):
        (tmp_path / name).mkdir(parents=True, mode=0o755)
    (tmp_path / "var/link").symlink_to(target)
    write({"/var/link/app/s": b"1"}, tmp_path, system_owner=ME)
    place = "run" if target.startswith(("/", "..")) else "var/run"
    assert content_of(tmp_path) == {f"{place}/app/s": b"1"}


def test_a_link_in_a_directory_that_others_may_write_is_nobodys_system(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common").chmod(0o1777)
    (tmp_path / "real").mkdir()
    (tmp_path / "common/link").symlink_to("/real")
    with pytest.raises(Denied):
        write({"/common/link/s": b"1"}, tmp_path, system_owner=ME)
    assert content_of(tmp_path) == {}


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(Denied):
        write({"/a/x": b"1"}, tmp_path, system_owner=ME)


def test_two_paths_that_a_link_makes_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    with pytest.raises(Denied, match="same file"):
        write({"/link/x": b"1", "/run/X": b"2"}, tmp_path, system_owner=ME)
    assert content_of(tmp_path) == {"run/x": b"1"}


def test_a_directory_a_pipe_and_a_file_on_the_way_are_refused(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"")
    for path in ("/directory", "/pipe"):
        with pytest.raises(Denied, match="no regular file"):
            write({path: b"1"}, tmp_path)
    with pytest.raises(Unavailable, match="Not a directory"):
        write({"/file/x": b"1"}, tmp_path)
    assert content_of(tmp_path) == {"file": b""}


def test_another_name_of_the_old_file_keeps_the_old_content(tmp_path: Path) -> None:
    (tmp_path / "conf").write_bytes(b"old")
    os.link(tmp_path / "conf", tmp_path / "hard")
    write({"/conf": b"secret"}, tmp_path)
    assert content_of(tmp_path) == {"conf": b"secret", "hard": b"old"}


def test_gramine_keys_are_written_first_in_place_and_never_as_ordinary_files(tmp_path: Path) -> None:
    files = {"/a": b"1", "/dev/attestation/keys/default": b"k" * 16, "/dev/attestation/protected_files_key": b"p"}
    planned = plan_files(files, Path("/"))
    assert [file.path for file in planned] == [
        "/dev/attestation/keys/default",
        "/dev/attestation/protected_files_key",
        "/a",
    ]
    with pytest.raises(Unavailable):
        write_files(planned, tmp_path)
    assert content_of(tmp_path) == {}
    (tmp_path / "dev/attestation/keys").mkdir(parents=True)
    (tmp_path / "dev/attestation/keys/default").write_bytes(b"")
    inode = (tmp_path / "dev/attestation/keys/default").stat().st_ino
    write_files(planned, tmp_path)
    assert (tmp_path / "dev/attestation/keys/default").stat().st_ino == inode
    assert content_of(tmp_path)["dev/attestation/keys/default"] == b"k" * 16


@pytest.mark.skipif(ME != 0 or sys.platform != "linux", reason="needs root to mount")
def test_a_mounted_file_is_rewritten_in_place(tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"a longer old content")
    (tmp_path / "conf").write_bytes(b"")
    if os.system(f"mount --bind {tmp_path / 'source'} {tmp_path / 'conf'} 2>/dev/null") != 0:
        pytest.skip("mounts are not allowed here")
    try:
        write({"/conf": b"new"}, tmp_path)
        assert content_of(tmp_path) == {"source": b"new", "conf": b"new"}
        assert mode(tmp_path / "source") == 0o600
    finally:
        os.system(f"umount {tmp_path / 'conf'}")


def test_no_temporary_file_and_no_descriptor_is_left(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    write({"/x/y": b"1"}, tmp_path)
    with pytest.raises(Denied):
        write({"/directory": b"1"}, tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == ["directory", "x", "x/y"]


@given(
    st.dictionaries(st.text(max_size=20) | st.sampled_from(["/a/b", "../x", "/a/./b", "/"]), st.just(b""), max_size=5)
)
def test_any_set_of_paths_is_planned_inside_the_root_or_refused(files: dict[str, bytes]) -> None:
    try:
        planned = plan_files(files, Path("/cwd"))
    except MarbleRunError:
        return
    assert len(planned) == len(files)
    assert all(name not in ("", ".", "..") and "/" not in name for file in planned for name in file.names)
