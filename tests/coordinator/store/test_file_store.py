"""The file store: after a crash at any moment, even a second one, what is there opens."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.file import FileStore
from marblerun.errors import Misconfigured, Unavailable

Files = dict[str, bytes]


def state(number: int) -> bytes:
    return b"state %d " % number * 50


def key_of(data: bytes) -> bytes:
    """Sealed keys are bound to their state: only this one opens it."""
    return b"key " + hashlib.sha256(data).digest()


def opens(sealed: Sealed | None) -> bytes:
    """The state that can be opened; the test fails if there is one that cannot."""
    if sealed is None:
        return b""
    assert key_of(sealed.data) in sealed.keys
    return sealed.data


# -- a disk that remembers what was made durable -----------------------------------------------------------------


Change = dict[str, int | None]


@dataclass
class Disk:
    """What a power cut leaves: synced contents, and any selection of the name changes since the last directory sync."""

    durable: dict[str, int] = field(default_factory=dict)
    """Name to file number, as of the last directory sync."""
    names: dict[str, int] = field(default_factory=dict)
    """The same as processes see it now."""
    contents: dict[int, bytes] = field(default_factory=dict)
    """By file number, what was synced."""
    pending: list[Change] = field(default_factory=list)
    """Each changes one or two names at once."""

    def after_a_crash(self) -> Iterator[Files]:
        for selection in range(1 << len(self.pending)):
            names = dict(self.durable)
            for position, change in enumerate(self.pending):
                if selection >> position & 1:
                    names.update({name: number for name, number in change.items() if number is not None})
                    for name in (name for name, number in change.items() if number is None):
                        names.pop(name, None)
            yield {name: self.contents.get(number, b"") for name, number in names.items()}


@contextmanager
def watched(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Files]]:
    """Every state that a power cut during the block could leave behind."""
    crashes: dict[tuple[tuple[str, bytes], ...], Files] = {}
    found: list[Files] = []
    disk = Disk()
    for path in directory.iterdir():
        number = path.stat().st_ino
        disk.names[path.name], disk.contents[number] = number, path.read_bytes()
    disk.durable = dict(disk.names)

    def look() -> None:
        names = {path.name: path.stat().st_ino for path in directory.iterdir()}
        change: Change = {
            name: names.get(name) for name in {*names, *disk.names} if names.get(name) != disk.names.get(name)
        }
        disk.names = names
        if change:
            disk.pending.append(change)

    def power_cut() -> None:
        """Later moments before the next sync leave all that earlier ones would, and more."""
        for files in disk.after_a_crash():
            if crashes.setdefault(tuple(sorted(files.items())), files) is files:
                found.append(files)

    real_fsync, real_open, real_replace, real_unlink, real_link = os.fsync, os.open, os.replace, os.unlink, os.link

    def fsync(descriptor: int) -> None:
        power_cut()
        real_fsync(descriptor)
        about = os.fstat(descriptor)
        if stat.S_ISDIR(about.st_mode):
            disk.durable, disk.pending = dict(disk.names), []
        else:
            disk.contents[about.st_ino] = Path(f"/proc/self/fd/{descriptor}").read_bytes()
        look()

    def opened(*args: object, **kwargs: object) -> int:
        descriptor = real_open(*args, **kwargs)  # type: ignore[arg-type]
        look()
        return descriptor

    def renamed(source: object, target: object) -> None:
        real_replace(source, target)  # type: ignore[arg-type]
        look()

    def unlinked(path: object) -> None:
        real_unlink(path)  # type: ignore[arg-type]
        look()

    def linked(*args: object, **kwargs: object) -> None:
        real_link(*args, **kwargs)  # type: ignore[arg-type]
        look()

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        patch.setattr(os, "open", opened)
        patch.setattr(os, "replace", renamed)
        patch.setattr(os, "unlink", unlinked)
        patch.setattr(os, "link", linked)
        yield found
        power_cut()


def lay_out(directory: Path, files: Files) -> None:
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    for name, content in files.items():
        (directory / name).write_bytes(content)


def saved(directory: Path, number: int) -> None:
    store = FileStore(directory)
    store.save(state(number), key_of(state(number)))
    store.close()


def loaded(directory: Path) -> bytes:
    store = FileStore(directory)
    try:
        return opens(store.load())
    finally:
        store.close()


def test_after_a_crash_at_any_moment_the_old_or_the_new_state_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, before in ((1, b""), (2, state(1)), (3, state(2))):
        directory, crashed = tmp_path / "state", tmp_path / "crashed"
        directory.mkdir(exist_ok=True)
        with watched(directory, monkeypatch) as crashes:
            saved(directory, number)
        found = set()
        for files in crashes:
            lay_out(crashed, files)
            found.add(loaded(crashed))
        assert found == {before, state(number)}
        assert loaded(directory) == state(number)


def test_so_it_does_where_a_store_that_has_saved_before_keeps_the_older_generations_as_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, crashed = tmp_path / "state", tmp_path / "crashed"
    store = FileStore(directory)
    for number in (1, 2):
        store.save(state(number), key_of(state(number)))
    second = (directory / "sealed_data").stat().st_ino
    with watched(directory, monkeypatch) as crashes:
        store.save(state(3), key_of(state(3)))
    assert (directory / "sealed_data.old").stat().st_ino == second
    found = set()
    for files in crashes:
        lay_out(crashed, files)
        found.add(loaded(crashed))
    assert found == {state(2), state(3)}
    store.close()


@pytest.mark.parametrize("error", [PermissionError, NotImplementedError])
def test_where_there_are_no_links_generations_are_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(os, "link", refused)
    directory = tmp_path / "state"
    store = FileStore(directory)
    for number in range(1, 8):
        store.save(state(number), key_of(state(number)))
    store.close()
    check_generations(directory, 7)


def check_generations(directory: Path, latest: int) -> None:
    for number, suffix in enumerate(("", ".old", ".old.2", ".old.3", ".old.4")):
        assert (directory / f"sealed_data{suffix}").read_bytes() == state(latest - number)
        assert (directory / f"sealed_key{suffix}").read_bytes() == key_of(state(latest - number))
        assert (directory / f"sealed_data{suffix}").stat().st_nlink == 1


def test_one_store_keeps_four_generations_each_a_file_of_its_own(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "state")
    for number in range(1, 8):
        store.save(state(number), key_of(state(number)))
    store.close()
    check_generations(tmp_path / "state", 7)


def without_generations(crashes: list[Files]) -> list[Files]:
    """Those that differ in more than older generations, which nobody reads by himself."""
    different: list[Files] = []
    for files in crashes:
        kept = {name: content for name, content in files.items() if ".old" not in name}
        if kept not in different:
            different.append(kept)
    return different


def test_after_a_second_crash_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash left under interim names must not be lost by the next attempt to save."""
    directory, crashed, twice = tmp_path / "state", tmp_path / "crashed", tmp_path / "twice"
    saved(directory, 1)
    saved(directory, 2)
    with watched(directory, monkeypatch) as first:
        saved(directory, 3)
    seen = set()
    for files in without_generations(first):
        lay_out(crashed, files)
        before = loaded(crashed)
        with watched(crashed, monkeypatch) as second:
            saved(crashed, 4)
        older = (crashed / "sealed_data.old").read_bytes()
        assert (older, key_of(older)) == (before, (crashed / "sealed_key.old").read_bytes())
        for again in without_generations(second):
            lay_out(twice, again)
            seen.add(loaded(twice))
            assert loaded(twice) in (before, state(4))
    assert seen == {state(2), state(3), state(4)}


def calls_of_a_save(directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    saved(directory, 1)
    store = FileStore(directory)
    with failing_at(1000, monkeypatch) as calls:
        store.save(state(2), key_of(state(2)))
    store.close()
    return calls[0]


def test_what_failed_saves_left_is_not_lost_by_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a broken sync at any call, twice: the old or the new state opens and the store stays usable."""
    calls = calls_of_a_save(tmp_path / "count", monkeypatch)
    for first in range(calls):
        directory = tmp_path / f"{first}"
        saved(directory, 1)
        store = FileStore(directory)
        with failing_at(first, monkeypatch), pytest.raises(Unavailable, match="No space left"):
            store.save(state(2), key_of(state(2)))
        before = opens(store.load())
        assert before in (state(1), state(2))
        for number, second in enumerate(range(first % 4, calls, 4), start=3):
            with failing_at(second, monkeypatch), suppress(Unavailable):
                store.save(state(number), key_of(state(number)))
            after = opens(store.load())
            assert after in (before, state(number))
            before = after
        store.save(state(99), key_of(state(99)))
        assert opens(store.load()) == state(99)
        assert not [path for path in directory.iterdir() if len(path.name) > 30]
        store.close()


@contextmanager
def failing_at(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The system call with this number fails with ENOSPC."""
    count = [0]
    real = {name: getattr(os, name) for name in ("open", "fsync", "replace")}

    def failing(name: str) -> object:
        def call(*args: object, **kwargs: object) -> object:
            count[0] += 1
            if count[0] == number + 1:
                raise OSError(28, "No space left on device")
            return real[name](*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in real:
            patch.setattr(os, name, failing(name))
        yield count


# -- the rest ----------------------------------------------------------------------------------------------------


def test_an_empty_directory_holds_no_state(state_directory: Path) -> None:
    store = FileStore(state_directory)
    assert store.load() is None
    assert stat.S_IMODE(state_directory.stat().st_mode) == 0o700


def test_files_are_named_as_the_reference_names_them_and_private(state_directory: Path) -> None:
    """Protocol, section 10.1."""
    saved(state_directory, 1)
    saved(state_directory, 2)
    assert (state_directory / "sealed_data").read_bytes() == state(2)
    assert (state_directory / "sealed_key").read_bytes() == key_of(state(2))
    assert (state_directory / "sealed_data.old").read_bytes() == state(1)
    assert (state_directory / "sealed_key.old").read_bytes() == key_of(state(1))
    for path in state_directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_state_written_by_the_reference_is_read(state_directory: Path) -> None:
    lay_out(state_directory, {"sealed_data": b"data", "sealed_key": b"key"})
    assert FileStore(state_directory).load() == Sealed(b"data", (b"key",))


def test_a_state_without_its_key_is_still_there(state_directory: Path) -> None:
    lay_out(state_directory, {"sealed_data": b"data"})
    assert FileStore(state_directory).load() == Sealed(b"data", ())


def test_one_directory_belongs_to_one_coordinator(state_directory: Path) -> None:
    store = FileStore(state_directory)
    with pytest.raises(Misconfigured, match="another Coordinator"):
        FileStore(state_directory)
    store.close()
    FileStore(state_directory).close()


def test_a_directory_that_cannot_be_made_is_misconfigured_and_says_which_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Misconfigured, match="EDG_COORDINATOR_SEAL_DIR"):
        FileStore(tmp_path / "file" / "state")


@pytest.mark.parametrize(("name", "kind"), [("sealed_data", "a directory"), ("sealed_key", "a symbolic link")])
def test_what_is_no_file_is_named_with_what_to_do(state_directory: Path, name: str, kind: str) -> None:
    saved(state_directory, 1)
    (state_directory / name).rename(state_directory / "elsewhere")
    if kind == "a directory":
        (state_directory / name).mkdir()
    else:
        (state_directory / name).symlink_to("elsewhere")
    with pytest.raises(Unavailable, match=f"{name} is {kind}.*move it away"):
        loaded(state_directory)


@pytest.mark.parametrize("name", ["sealed_data", "sealed_key", "sealed_data.tmp", "sealed_key.tmp"])
def test_symbolic_links_are_not_followed(state_directory: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"untouched")
    saved(state_directory, 1)
    (state_directory / name).unlink(missing_ok=True)
    (state_directory / name).symlink_to(outside)
    store = FileStore(state_directory)
    try:
        store.load()
        store.save(state(2), key_of(state(2)))
    except Unavailable:
        pass
    assert outside.read_bytes() == b"untouched"


def test_a_file_that_is_too_large_is_refused_before_it_is_read(state_directory: Path) -> None:
    saved(state_directory, 1)
    with (state_directory / "sealed_data").open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(Unavailable, match="larger"):
        FileStore(state_directory).load()


def test_sealed_values_are_not_changed_by_the_way_through_the_store(state_directory: Path) -> None:
    sealed = Sealed(b"\0\n\r\xff" * 10, (b"\r\n",))
    store = FileStore(state_directory)
    store.save(sealed.data, sealed.keys[0])
    assert replace(sealed) == store.load()


@pytest.mark.parametrize(
    "name", ["sealed_data.tmp", "sealed_key.tmp", "sealed_data.old.4", "sealed_key.old.4", "sealed_data.old.tmp"]
)
def test_a_directory_where_a_file_belongs_is_named_and_whoever_moves_it_away_goes_on(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "state"
    store = FileStore(directory)
    for number in range(1, 7):
        store.save(state(number), key_of(state(number)))
    if (directory / name).exists():
        (directory / name).unlink()
    (directory / name / "inside").mkdir(parents=True)
    with pytest.raises(Unavailable, match=f"{name} is a directory where a file belongs: move it away"):
        store.save(state(7), key_of(state(7)))
    assert opens(store.load()) in (state(6), state(7))
    (directory / name).rename(tmp_path / "away")
    store.save(state(8), key_of(state(8)))
    assert opens(store.load()) == state(8)
    store.close()


def test_saves_that_fail_again_and_again_do_not_fill_the_directory(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    saved(directory, 1)
    (directory / "sealed_data.old.tmp").mkdir()
    store = FileStore(directory)
    for number in range(2, 12):
        with pytest.raises(Unavailable):
            store.save(state(number), key_of(state(number)))
    assert len([path for path in directory.iterdir() if len(path.name) > 30]) == 1
    assert opens(store.load()) == state(1)
    store.close()
