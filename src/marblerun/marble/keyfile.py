"""Handing a private key to the standard library's ``ssl``, which only reads files, without leaving one behind."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def load_key_pair(context: ssl.SSLContext, chain_pem: bytes, key_pem: bytes) -> None:
    """Make ``context`` present the chain (leaf first) with its private key, both PEM.

    Raises:
        ssl.SSLError: they do not belong together or are not PEM.
    """
    with _memory_file(chain_pem + b"\n" + key_pem) as path:
        context.load_cert_chain(path)


@contextmanager
def _memory_file(content: bytes) -> Iterator[str]:
    """Yield a path under which only this process can read ``content``, for as long as the block lasts.

    An anonymous memory file where the kernel has them, else an unlinked file (a library OS may lack ``memfd_create``).
    """
    try:
        descriptor = os.memfd_create("marblerun-key", os.MFD_CLOEXEC)
    except (OSError, AttributeError):
        descriptor, name = tempfile.mkstemp(prefix="marblerun-")  # 0600, close-on-exec
        os.unlink(name)
    try:
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.ftruncate(descriptor, 0)
        os.close(descriptor)
