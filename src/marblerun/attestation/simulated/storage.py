"""A directory of small files that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from marblerun.errors import Conflict, Malformed, NotFound, Unavailable

MAX_FILE_BYTES: Final = 64 * 1024
"""No file of a platform comes near; whatever is larger is something else."""
_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600


def write_new_directory(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write ``files`` (mode 0600, synced) into ``directory`` (mode 0700), which must not exist or be empty.

    The files are prepared beside it and moved in one rename: of two writers one wins and the other is told.

    Raises:
        Conflict: the directory is not empty.
        Unavailable: the file system does not let us.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            staging.chmod(_DIRECTORY_MODE)
            for name, content in files.items():
                _write(staging / name, content)
            _sync_directory(staging)
            staging.rename(directory)  # replaces an empty directory, and no other
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _sync_directory(directory.parent)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise Conflict(f"{directory} is not empty; nothing was changed") from None
        raise Unavailable(f"cannot write {directory}: {error.strerror}") from None


def read_file(directory: Path, name: str) -> bytes:
    """The content of a small file.

    Raises:
        NotFound: there is no such file.
        Malformed: it is far larger than any file of a platform.
        Unavailable: it cannot be read.
    """
    path = directory / name
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{directory} holds no simulated platform: {name} is missing") from None
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from None
    if len(content) > MAX_FILE_BYTES:
        raise Malformed(f"larger than {MAX_FILE_BYTES} bytes", where=str(path))
    return content


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
