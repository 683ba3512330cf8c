"""An anchor in a file: on another volume, so that restoring the state directory does not restore it too."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from marblerun.coordinator.store.anchors import encode_mark, parse_mark
from marblerun.coordinator.store.lineage import Mark
from marblerun.errors import Unavailable

_MAX_BYTES: Final = 1024


class FileAnchor:
    """One line: the number and the head (hex) of the latest state."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> Mark | None:
        """What the file says; raises Misconfigured if it says nothing that can be understood."""
        try:
            with self._path.open("rb") as file:
                text = file.read(_MAX_BYTES).decode("ascii", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"the anchor {self._path} cannot be read: {error.strerror}") from error
        return parse_mark(text, str(self._path))

    def advance(self, mark: Mark) -> None:
        """Replace the file in one durable step."""
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(encode_mark(mark).encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._path)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise Unavailable(f"the anchor {self._path} could not be written: {error.strerror}") from error
