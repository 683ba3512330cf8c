"""Writing the files that the manifest gives: private, whole, and only where the manifest says.

Rules, in this order; the first four are judged for all files before any is written:

1. A path is not empty, has no NUL, no ``..`` and no name longer than the file system takes, and names a file, not a
   directory. Relative paths start in the working directory.
2. No two paths are the same, also when only case or Unicode normalisation tells them apart: on a file system that
   ignores case the second would silently replace the first.
3. No path lies below another one.
4. Gramine's key files (``/dev/attestation/keys/...``) come first and are written in place: they unlock the encrypted
   files that may follow (cli-marble-k8s, section 3.3).
5. Directories on the way are opened one by one without following symbolic links. Missing ones are made, mode 0700.
   A link is followed only if it is part of the system: in a directory that belongs to root and that nobody else may
   write, on the root file system (``/var/run`` is such a link on most distributions). So nobody who can write to a
   volume, and no prepared volume, can send a secret elsewhere.
6. The file itself is new or a regular file; it appears whole, mode 0600, by a rename. A mounted single file, which
   cannot be renamed over, is rewritten in place unless it has a second name.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from marblerun.errors import Denied, Malformed, Unavailable

DIRECTORY_MODE: Final = 0o700
FILE_MODE: Final = 0o600

_GRAMINE_KEYS: Final = ("dev", "attestation", "keys")
_GRAMINE_LEGACY_KEY: Final = ("dev", "attestation", "protected_files_key")
_MAX_PATH_BYTES: Final = 4095
_MAX_NAME_BYTES: Final = 255
_MAX_LINKS: Final = 40
_OPEN_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_FILE: Final = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
# What a file that is a mount point of its own, or lies in a read-only directory, answers to a rename or a new name.
_NOT_REPLACEABLE: Final = frozenset({errno.EBUSY, errno.EACCES, errno.EPERM, errno.EROFS})


@dataclass(frozen=True, slots=True, repr=False)
class PlannedFile:
    """A file to be written; ``names`` leads to it from the root directory."""

    path: str
    """As the manifest writes it, for messages."""
    names: tuple[str, ...]
    content: bytes

    @property
    def is_gramine_key(self) -> bool:
        """Whether this is one of Gramine's key files."""
        return self.names[:3] == _GRAMINE_KEYS or self.names == _GRAMINE_LEGACY_KEY


def plan_files(files: Mapping[str, bytes], working_directory: Path) -> tuple[PlannedFile, ...]:
    """Return the files in the order in which to write them, by rules 1 to 4; nothing is touched.

    Raises:
        Malformed: a path breaks rule 1.
        Denied: paths collide (rules 2 and 3); every collision is listed.
    """
    base = tuple(name for name in os.path.abspath(working_directory).split("/") if name)
    planned = [
        PlannedFile(path, _names_of(path) if path.startswith("/") else (*base, *_names_of(path)), content)
        for path, content in files.items()
    ]
    if collisions := _collisions(planned):
        raise Denied("files of the manifest collide", mismatches=collisions)
    return tuple(sorted(planned, key=lambda file: (not file.is_gramine_key, file.names)))


def write_files(planned: tuple[PlannedFile, ...], root: Path = Path("/"), system_owner: int = 0) -> None:
    """Write the files, by rules 5 and 6. ``system_owner`` is the user id whose links are part of the system.

    Raises:
        Denied: a link that is not the system's, something else than a regular file, or two paths that lead to the same
            file. Files written before stay.
        Unavailable: the file system refused, with its reason.
    """
    root_descriptor = os.open(root, _OPEN_DIRECTORY)
    try:
        writer = _Writer(root_descriptor, system_owner)
        for file in planned:
            writer.write(file)
    finally:
        os.close(root_descriptor)


def _names_of(path: str) -> tuple[str, ...]:
    """Return the names in ``path`` by rule 1."""
    raw = path.encode("utf-8", "surrogateescape")
    names = path.split("/")
    if not path or "\x00" in path:
        raise Malformed("empty, or with a NUL in it", where=f"file {path!r}")
    if ".." in names:
        raise Malformed("'..' is not allowed in the path of a file", where=f"file {path!r}")
    if names[-1] in ("", "."):
        raise Malformed("names a directory, not a file", where=f"file {path!r}")
    if len(raw) > _MAX_PATH_BYTES or any(len(name) > _MAX_NAME_BYTES for name in raw.split(b"/")):
        raise Malformed("too long", where=f"file {path[:80]!r}")
    return tuple(name for name in names if name not in ("", "."))


def _collisions(planned: list[PlannedFile]) -> tuple[str, ...]:
    """Return a line for each pair of paths that rules 2 and 3 forbid."""
    found: list[str] = []
    seen: dict[tuple[str, ...], str] = {}
    for file in planned:
        key = _folded(file.names)
        if key in seen:
            found.append(f"{seen[key]!r} and {file.path!r} are the same file, at least where case is ignored")
        seen.setdefault(key, file.path)
    for key, path in seen.items():
        found += [f"{path!r} lies below the file {seen[key[:n]]!r}" for n in range(1, len(key)) if key[:n] in seen]
    return tuple(found)


def _folded(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold()) for name in names)


class _Writer:
    """Writes files below one root directory and remembers where it has been."""

    def __init__(self, root: int, system_owner: int) -> None:
        self._root = root
        self._root_device = os.fstat(root).st_dev
        self._system_owner = system_owner
        self._written: dict[tuple[int, int, str], str] = {}

    def write(self, file: PlannedFile) -> None:
        parent = -1
        try:
            parent = self._open_parent(file)
            if file.is_gramine_key:
                _write_in_place(parent, file, os.O_CREAT)
                return
            self._remember(parent, file)
            _replace(parent, file)
        except OSError as error:
            raise Unavailable(f"cannot write the file {file.path!r}: {error.strerror}") from error
        finally:
            if parent >= 0:
                os.close(parent)

    def _remember(self, parent: int, file: PlannedFile) -> None:
        """Refuse a second path to a file of this run; links and mounts can make two of what looked different."""
        where = os.fstat(parent)
        key = (where.st_dev, where.st_ino, _folded(file.names)[-1])
        if key in self._written:
            raise Denied(f"the files {self._written[key]!r} and {file.path!r} of the manifest are the same file")
        self._written[key] = file.path

    def _open_parent(self, file: PlannedFile) -> int:
        """Return a descriptor of the directory that shall hold the file, by rule 5."""
        current = os.dup(self._root)
        pending = list(reversed(file.names[:-1]))
        links = 0
        try:
            while pending:
                name = pending.pop()
                step = self._enter(current, name, may_create=not file.is_gramine_key)
                if step is None:
                    links += 1
                    target = self._system_link(current, name, file.path, links)
                    pending += [part for part in reversed(target.split("/")) if part not in ("", ".")]
                    step = os.dup(self._root if target.startswith("/") else current)
                os.close(current)
                current = step
        except BaseException:
            os.close(current)
            raise
        return current

    def _enter(self, current: int, name: str, *, may_create: bool) -> int | None:
        """Return a descriptor of the directory ``name`` in ``current``, made if it is missing; None if it is a link."""
        if name == ".." and os.path.samestat(os.fstat(current), os.fstat(self._root)):
            return os.dup(current)
        try:
            return os.open(name, _OPEN_DIRECTORY, dir_fd=current)
        except FileNotFoundError:
            if not may_create:
                raise
            os.mkdir(name, DIRECTORY_MODE, dir_fd=current)
            return os.open(name, _OPEN_DIRECTORY, dir_fd=current)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            if stat.S_ISLNK(os.stat(name, dir_fd=current, follow_symlinks=False).st_mode):
                return None
            raise

    def _system_link(self, directory: int, name: str, path: str, links: int) -> str:
        """Return the target of the link ``name`` if it is part of the system; raises Denied."""
        holder = os.fstat(directory)
        is_system = (
            holder.st_dev == self._root_device
            and holder.st_uid == self._system_owner
            and not holder.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            and os.stat(name, dir_fd=directory, follow_symlinks=False).st_uid == self._system_owner
        )
        if not is_system or links > _MAX_LINKS:
            raise Denied(f"the way to the file {path!r} leads over the symbolic link {name!r}; write the real path")
        return os.readlink(name, dir_fd=directory)


def _replace(parent: int, file: PlannedFile) -> None:
    """Write a new file and put it in its place, by rule 6."""
    name = file.names[-1]
    existing = _existing(parent, name)
    if existing is not None and not stat.S_ISREG(existing.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(existing.st_mode) else "no regular file"
        raise Denied(f"the file {file.path!r} exists and is {kind}")
    temporary = f".marblerun-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(temporary, _OPEN_FILE | os.O_CREAT | os.O_EXCL, FILE_MODE, dir_fd=parent)
        try:
            _write_all(descriptor, file.content)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            os.unlink(temporary, dir_fd=parent)
            raise
    except OSError as error:
        if existing is None or error.errno not in _NOT_REPLACEABLE:
            raise
        _write_in_place(parent, file, 0)


def _write_in_place(parent: int, file: PlannedFile, flags: int) -> None:
    """Overwrite an existing regular file that has only one name, or a key file of Gramine."""
    descriptor = os.open(file.names[-1], _OPEN_FILE | flags, 0, dir_fd=parent)
    try:
        found = os.fstat(descriptor)
        if not file.is_gramine_key:
            if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                raise Denied(f"the file {file.path!r} is no regular file, or has a second name")
            os.fchmod(descriptor, FILE_MODE)
        if stat.S_ISREG(found.st_mode):
            os.ftruncate(descriptor, 0)
    except BaseException:
        os.close(descriptor)
        raise
    _write_all(descriptor, file.content)


def _write_all(descriptor: int, content: bytes) -> None:
    with os.fdopen(descriptor, "wb", buffering=0) as stream:
        rest = memoryview(content)
        while rest:
            rest = rest[stream.write(rest) :]


def _existing(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None
