"""Reading and writing attestation devices: one write, one bounded read, errors of our tree."""

from __future__ import annotations

import os
from pathlib import Path

from marblerun.errors import Unavailable


def write_device(path: Path, data: bytes) -> None:
    """Write ``data`` in a single call, without creating or truncating; raises Unavailable.

    A second ``write`` would be a second request to the platform, so a short one is an error.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(descriptor, data)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error
    if written != len(data):
        raise Unavailable(f"{path} took {written} of {len(data)} bytes")


def read_device(path: Path, limit: int) -> bytes:
    """Return everything in ``path``; raises Unavailable if it fails, is empty or has more than ``limit`` bytes."""
    content = bytearray()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while len(content) <= limit and (chunk := os.read(descriptor, limit + 1 - len(content))):
                content += chunk
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    if not content:
        raise Unavailable(f"{path} is empty")
    if len(content) > limit:
        raise Unavailable(f"{path} has more than {limit} bytes")
    return bytes(content)
