"""The certificate cache: the last attested chain, kept in a file for the commands that pin it (cli-marble-k8s, 1.5)."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from marblerun.client.chain import CoordinatorChain, parse_chain
from marblerun.errors import Malformed, NotFound, Unavailable

FILE_NAME: Final = "coordinator-cert.pem"
_MAX_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CertificateCache:
    """One file: PEM, intermediate first, then root; mode 0600."""

    path: Path

    def load(self) -> CoordinatorChain:
        """The cached chain.

        Raises:
            NotFound: there is none yet.
            Malformed: the file holds something else.
        """
        try:
            with self.path.open("rb") as file:
                content = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            raise NotFound(f"no Coordinator certificate is cached in {self.path}") from None
        except OSError as error:
            raise Unavailable(f"cannot read {self.path}: {error.strerror}") from None
        try:
            return parse_chain(content)
        except Malformed as error:
            raise Malformed(error.message, where=str(self.path)) from None

    def store(self, chain: CoordinatorChain) -> None:
        """Replaces the cached chain at once; the folder is made if it is missing.

        Raises:
            Unavailable: the file system does not let us; the message names the path.
        """
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(chain.pem)
                Path(name).replace(self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as error:
            raise Unavailable(f"cannot write {self.path}: {error.strerror}") from None


def default_path(environment: Mapping[str, str], platform: str = sys.platform) -> Path:
    """Where the cache is by default: in the user's configuration folder, or in the working directory without one."""
    home = environment.get("HOME", "")
    if platform == "darwin":
        return Path(home, "Library", "Application Support", "marblerun", FILE_NAME) if home else Path(FILE_NAME)
    folder = environment.get("XDG_CONFIG_HOME") or (f"{home}/.config" if home else "")
    return Path(folder, "marblerun", FILE_NAME) if folder else Path(FILE_NAME)
