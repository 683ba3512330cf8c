"""The recovery data of a deployment: shown once by the Coordinator, so it is never put at risk by a file.

The place is taken before the manifest is sent, so that a missing folder or a file of an earlier deployment stops the
command while nothing has happened yet. If writing fails nevertheless, the data goes to standard output.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from marblerun.cli.output import emit, emit_json, warn
from marblerun.errors import Conflict, Unavailable


class RecoveryFile:
    """Where recovery data will go: a file that is open and ready, or standard output without one."""

    def __init__(self, path: Path | None, descriptor: int | None) -> None:
        self._path = path
        self._descriptor = descriptor
        self.written = False

    def save(self, secrets: Mapping[str, bytes]) -> Path | None:
        """Writes the data; what comes back is the file, ``None`` if it went to standard output.

        Raises:
            Unavailable: the file could not be written; the data was printed instead.
        """
        document = recovery_document(secrets)
        if self._path is None or self._descriptor is None:
            return None
        self.written = True
        try:
            os.ftruncate(self._descriptor, 0)
            with os.fdopen(os.dup(self._descriptor), "w") as file:
                file.write(json.dumps(document, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            warn(f"the recovery data could not be saved to {self._path}; keep what is printed here instead")
            emit_json(document)
            raise Unavailable(
                f"the Coordinator accepted the manifest, but {self._path} could not be written ({error.strerror}); "
                "the recovery data was printed to standard output"
            ) from None
        return self._path


@contextmanager
def reserve(path: str, *, force: bool) -> Iterator[RecoveryFile]:
    """Takes the place for recovery data; an empty path means standard output. Gives it back if nothing was saved.

    Raises:
        Conflict: the file exists and ``force`` is off. Unavailable: it cannot be made.
    """
    if not path:
        yield RecoveryFile(None, None)
        return
    target = Path(path)
    descriptor, made = _open(target, force)
    file = RecoveryFile(target, descriptor)
    try:
        yield file
    finally:
        os.close(descriptor)
        if made and not file.written:
            with suppress(OSError):
                target.unlink()


def recovery_document(secrets: Mapping[str, bytes]) -> dict[str, object]:
    """The JSON form of the reference: base64 by the name of the recovery key."""
    return {"RecoverySecrets": {name: base64.b64encode(secret).decode() for name, secret in secrets.items()}}


def show(secrets: Mapping[str, bytes]) -> None:
    """Prints recovery data."""
    emit(json.dumps(recovery_document(secrets)))


def _open(target: Path, force: bool) -> tuple[int, bool]:
    """The open file, and whether it was made just now. What an existing one holds stays until the data is there."""
    try:
        return os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), True
    except FileExistsError:
        if not force and (not target.exists() or target.is_file()):
            raise Conflict(
                f"{target} exists and may hold the recovery data of another deployment; "
                "choose another file, or --force to overwrite it"
            ) from None
    except OSError as error:
        raise Unavailable(f"cannot write {target}: {error.strerror}; nothing was sent") from None
    try:
        return os.open(target, os.O_WRONLY | os.O_CLOEXEC), False
    except OSError as error:
        raise Unavailable(f"cannot write {target}: {error.strerror}; nothing was sent") from None
