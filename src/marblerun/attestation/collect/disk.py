"""Collateral on disk, one nine-field JSON file a platform, so that a restart needs no service.

The files are as untrusted as the network: they are read within limits, and the cache looks at what they say before it
uses them.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from pathlib import Path
from typing import Final

from marblerun.attestation.collect.directory import load_recording
from marblerun.attestation.dcap.collateral import collateral_to_json
from marblerun.attestation.model import Collateral, CollateralKey, Tee
from marblerun.errors import MarbleRunError

_log = logging.getLogger("marblerun.collateral")

MAX_FILES: Final = 256
_KEPT: Final = re.compile(r"(sgx|tdx)-([0-9a-f]{12})-(processor|platform)\.json", re.ASCII)


class DiskShelf:
    """A directory of collateral files, written atomically. A file that cannot be used counts as none."""

    def __init__(self, directory: Path) -> None:
        """The directory is made when the first file is."""
        self._directory = directory

    def load(self, key: CollateralKey) -> Collateral | None:
        """What is kept for ``key``; None if there is nothing, or nothing usable."""
        path = self._path(key)
        try:
            return load_recording(path).collateral
        except FileNotFoundError:
            return None
        except (OSError, MarbleRunError) as error:
            _log.warning("ignoring cached collateral: %s", error)
            return None

    def save(self, key: CollateralKey, collateral: Collateral) -> None:
        """Replace what is kept for ``key``; the oldest file goes when there are too many."""
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._drop_oldest()
            self._write(self._path(key), collateral_to_json(collateral))
        except OSError as error:
            _log.warning("cannot keep collateral in %s: %s", self._directory, error.strerror)

    def keys(self) -> tuple[CollateralKey, ...]:
        """The platforms that there are files for, by their names."""
        try:
            found = [_KEPT.fullmatch(path.name) for path in sorted(self._directory.glob("*.json"))]
        except OSError as error:
            _log.warning("cannot read collateral in %s: %s", self._directory, error.strerror)
            return ()
        ours = [one for one in found if one is not None][:MAX_FILES]
        return tuple(CollateralKey(Tee(one[1]), bytes.fromhex(one[2]), one[3]) for one in ours)

    def _path(self, key: CollateralKey) -> Path:
        ca = "processor" if key.ca == "processor" else "platform"
        return self._directory / f"{key.tee.value}-{key.fmspc.hex()}-{ca}.json"

    def _drop_oldest(self) -> None:
        # Only files of our own: what else is in the directory is somebody's.
        ours = (path for path in self._directory.glob("*.json") if _KEPT.fullmatch(path.name))
        kept = sorted(ours, key=lambda path: path.stat().st_mtime)
        for path in kept[: max(0, len(kept) - MAX_FILES + 1)]:
            path.unlink(missing_ok=True)

    def _write(self, path: Path, content: str) -> None:
        descriptor, name = tempfile.mkstemp(prefix=".collateral-", dir=self._directory)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
