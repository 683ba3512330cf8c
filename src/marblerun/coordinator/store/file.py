"""The file store: ``sealed_data`` and ``sealed_key`` in one directory (protocol, sections 10.1 and 10.5).

Two files cannot be replaced in one step. So the new key is first made durable under an interim name that says which
data it belongs to; then renaming ``sealed_data`` is the moment of truth; then the key gets its final name. Whatever
survives a crash, the data that is there opens with one of the two keys that are there, and the next save gives that key
its name before it begins, so that a second crash does no more harm than the first.

Older generations stay: the last one as ``*.old``, as in the reference, those before as ``*.old.2`` to ``*.old.4``.
What a new deployment replaced in the recovery phase stays as ``*.aside-`` with the beginning of its hash, until someone
removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import stat
from itertools import pairwise
from pathlib import Path
from typing import Final

from marblerun.coordinator.store import Sealed
from marblerun.errors import Misconfigured, Unavailable
from marblerun.wire.limits import MAX_SEALED_STATE_BYTES

DATA: Final = "sealed_data"
KEY: Final = "sealed_key"
GENERATIONS: Final = ("old", "old.2", "old.3", "old.4")
"""Suffixes of older generations, the latest first."""
ASIDE: Final = "aside-"
_INTERIM: Final = re.compile(r"sealed_key\.[0-9a-f]{32}")
_LOCK: Final = "lock"
_MOVE_AWAY: Final = "nothing was changed; move it away and put the state's own file in its place"


class FileStore:
    """A sealed state in a directory that belongs to one Coordinator at a time."""

    def __init__(self, directory: Path) -> None:
        """Create the directory (mode 0700) if it is missing and take its lock; raises Misconfigured."""
        self._directory = directory
        self._on_disk: set[str] = set()  # what this process has written, and so knows to be on the disk
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise Misconfigured(
                f"the state directory {directory} cannot be used ({error.strerror}); "
                "set EDG_COORDINATOR_SEAL_DIR to a directory this process may write"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
                return  # this file system (or library OS) has no locks
            os.close(self._lock)
            raise Misconfigured(
                f"another Coordinator uses the state directory {directory}; stop it or choose another directory"
            ) from error

    def close(self) -> None:
        """Give the directory free."""
        os.close(self._lock)

    def load(self) -> Sealed | None:
        """The stored state with every key that may belong to it; ``None`` if there is none."""
        data = self._read(DATA)
        if data is None:
            return None
        keys = (self._read(interim_key_name(data)), self._read(KEY))
        return Sealed(data, tuple(key for key in keys if key is not None))

    def save(self, data: bytes, key: bytes) -> None:
        """Make ``data`` with ``key`` the stored state, durably; never one that ``load`` would refuse."""
        if len(data) > MAX_SEALED_STATE_BYTES:
            raise Unavailable(f"the state is larger ({len(data)} bytes) than {MAX_SEALED_STATE_BYTES}, nothing is kept")
        interim = interim_key_name(data)
        try:
            self._settle()
            self._remove_strays()
            self._write_temporary(DATA, data)
            self._write_temporary(KEY, key)
            self._rename(f"{KEY}.tmp", interim)
            self._keep_old(DATA)
            self._sync_directory()
            self._rename(f"{DATA}.tmp", DATA)
            self._sync_directory()
            self._name_key(interim)
            self._on_disk |= {DATA, KEY}
        except OSError as error:
            raise Unavailable(f"the state could not be written to {self._directory}: {self._why(error)}") from error

    def set_aside(self) -> None:
        """Keep a copy of the stored state, and of the keys that may open it, under names that no save touches."""
        sealed = self.load()
        if sealed is None:
            return
        suffix = f"{ASIDE}{hashlib.sha256(sealed.data).hexdigest()[:16]}"
        copies = {f"{DATA}.{suffix}": sealed.data}
        for number, key in enumerate(sealed.keys, start=1):
            copies[f"{KEY}.{suffix}" + (f".{number}" if number > 1 else "")] = key
        try:
            for name, content in copies.items():
                self._write_temporary(name, content)
                self._rename(f"{name}.tmp", name)
            self._sync_directory()
        except OSError as error:
            raise Unavailable(f"the old state could not be kept in {self._directory}: {self._why(error)}") from error

    def _settle(self) -> None:
        """Give the key of the present data its final name, if it has only its interim name yet."""
        data = self._read(DATA)
        if data is not None and self._exists(interim := interim_key_name(data)):
            self._name_key(interim)

    def _name_key(self, interim: str) -> None:
        self._keep_old(KEY)
        self._rename(interim, KEY)
        self._sync_directory()

    def _why(self, error: OSError) -> str:
        """What the system says, and which directories lie where files belong: waiting does not help against those."""
        reason = error.strerror or str(error)
        with contextlib.suppress(OSError), os.scandir(self._directory) as entries:
            in_the_way = sorted(
                entry.name
                for entry in entries
                if entry.name.startswith((DATA, KEY)) and entry.is_dir(follow_symlinks=False)
            )
            if in_the_way:
                are = "is a directory" if len(in_the_way) == 1 else "are directories"
                return f"{reason}; {', '.join(in_the_way)} {are} where a file belongs: move it away"
        return reason

    def _remove_strays(self) -> None:
        """Remove keys of data that a crash or a full disk kept from ever being the state.

        Before anything is written, so that one save after the other that fails leaves no more than one.
        """
        for name in os.listdir(self._directory):
            if _INTERIM.fullmatch(name):
                os.unlink(self._path(name))

    def _read(self, name: str) -> bytes | None:
        return read_sealed_file(self._directory / name)

    def _write_temporary(self, name: str, content: bytes) -> None:
        path = self._path(f"{name}.tmp")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def _keep_old(self, name: str) -> None:
        """Keep the present generation under ``.old``, the ones before under the names that follow.

        As a link, since nothing here is ever written to again; as a copy where there are no links (library OSes).
        """
        if not self._exists(name):
            return
        newest = f"{name}.{GENERATIONS[0]}"
        if not self._link(name, f"{newest}.tmp"):
            current = self._read(name)
            if current is None:
                return
            self._write_temporary(newest, current)
        for younger, older in reversed(list(pairwise(GENERATIONS))):
            with contextlib.suppress(FileNotFoundError):
                self._rename(f"{name}.{younger}", f"{name}.{older}")
        self._rename(f"{newest}.tmp", newest)

    def _link(self, name: str, target: str) -> bool:
        """Whether ``target`` is now another name of the file ``name``, whose content is on the disk."""
        source, path = self._path(name), self._path(target)
        if name not in self._on_disk or not stat.S_ISREG(os.lstat(source).st_mode):
            return False
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            os.link(source, path, follow_symlinks=False)
        except (OSError, NotImplementedError):
            return False
        return True

    def _exists(self, name: str) -> bool:
        return os.path.lexists(self._path(name))

    def _path(self, name: str) -> str:
        return f"{self._directory}/{name}"

    def _rename(self, source: str, target: str) -> None:
        os.replace(self._path(source), self._path(target))

    def _sync_directory(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read_sealed_file(path: Path) -> bytes | None:
    """The content of a state file, ``None`` if there is none; raises Unavailable for links, devices and giants."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Unavailable(f"{path} is a symbolic link, which is not followed: {_MOVE_AWAY}") from error
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "rb") as file:
            about = os.fstat(file.fileno())
            # A size that is wrong is refused before that much is read.
            bad = not stat.S_ISREG(about.st_mode) or about.st_size > MAX_SEALED_STATE_BYTES
            content = b"" if bad else file.read(MAX_SEALED_STATE_BYTES + 1)
    except IsADirectoryError as error:
        raise Unavailable(f"{path} is a directory: {_MOVE_AWAY}") from error
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error
    if bad or len(content) > MAX_SEALED_STATE_BYTES:
        raise Unavailable(f"{path} is not a file, or larger than any state can be: {_MOVE_AWAY}")
    return content


def interim_key_name(data: bytes) -> str:
    """Under which name the key of ``data`` is kept until ``data`` is the state."""
    return f"{KEY}.{hashlib.sha256(data).hexdigest()[:32]}"
