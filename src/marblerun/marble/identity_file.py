"""The identity file: the UUID that makes an instance the same one after a restart.

The UUID is not secret, but per-instance secrets are derived from it: a Marble that is led to another file gets
another Marble's keys, so links are not followed.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

from marblerun.errors import Misconfigured

_MAX_FILE_BYTES: Final = 256


def load_or_create_uuid(path: Path) -> tuple[UUID, bool]:
    """Return the instance's UUID and whether it was made just now.

    A missing or empty file (which a crash can leave, and library OSes may demand) gets a random version 4 UUID as 36
    characters, mode 0600, on disk before this returns. Source: cli-marble-k8s, section 3.2, point 3.

    Raises:
        Misconfigured: the file holds anything else, is a symbolic link or no regular file, or cannot be read or
            written.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise Misconfigured(f"cannot open the UUID file {path}: {error.strerror}") from error
    try:
        return _load_or_create(descriptor, path)
    except OSError as error:
        raise Misconfigured(f"cannot use the UUID file {path}: {error.strerror}") from error
    finally:
        os.close(descriptor)


def parse_uuid(text: str) -> UUID:
    """Return the UUID in one of the spellings that the Coordinator accepts (protocol, section 2.4); else ValueError.

    36 characters with dashes, the same behind ``urn:uuid:`` or in braces, or 32 hex digits.
    """
    plain = text[9:] if text[:9].lower() == "urn:uuid:" else text
    if plain[:1] == "{" and plain[-1:] == "}":
        plain = plain[1:-1]
    dashed = len(plain) == 36 and all(plain[i] == "-" for i in (8, 13, 18, 23)) and plain.count("-") == 4
    digits = plain.replace("-", "") if dashed else plain
    if len(digits) != 32 or not digits.isascii() or not digits.isalnum():
        raise ValueError("not a UUID")
    return UUID(hex=digits)


def _load_or_create(descriptor: int, path: Path) -> tuple[UUID, bool]:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise Misconfigured(f"the UUID file {path} is not a regular file")
    content = os.read(descriptor, _MAX_FILE_BYTES + 1)
    if not content.strip():
        created = uuid4()
        os.pwrite(descriptor, str(created).encode(), 0)
        os.ftruncate(descriptor, 36)
        os.fsync(descriptor)
        return created, True
    try:
        return parse_uuid(content.decode("ascii").strip()), False
    except ValueError as error:
        raise Misconfigured(
            f"the UUID file {path} does not hold a UUID; restore it, or remove it to become a new instance"
        ) from error
