"""Collateral from a directory: recorded as nine-field JSON files, or of a simulated platform."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from marblerun.attestation.collect.contents import Contents, read_contents, read_key
from marblerun.attestation.collect.pck import describe_query, family_key, query_name
from marblerun.attestation.collect.source import describe_key
from marblerun.attestation.dcap.certificates import MAX_CHAIN_BYTES
from marblerun.attestation.dcap.collateral import parse_collateral_json
from marblerun.attestation.model import Collateral, CollateralKey, PckQuery, Tee
from marblerun.attestation.simulated.platform import SimulatedPlatform, is_simulated_platform
from marblerun.errors import Malformed, Unavailable
from marblerun.wire.limits import MAX_COLLATERAL_FIELD_BYTES

_log = logging.getLogger("marblerun.collateral")

MAX_RECORDING_BYTES: Final = 4 * MAX_COLLATERAL_FIELD_BYTES
MAX_RECORDINGS: Final = 1000
_NAME: Final = re.compile(r"(sgx|tdx)-([0-9a-f]{12})-(processor|platform)\.json", re.ASCII)


@dataclass(frozen=True, slots=True)
class Recording:
    """One file of recorded collateral."""

    path: Path
    contents: Contents
    collateral: Collateral


@dataclass(frozen=True, slots=True)
class BrokenFile:
    """A file that is no collateral, and what it is about if that can be told."""

    key: CollateralKey | None
    problem: Malformed


class DirectorySource:
    """Collateral without a network; read again on every fetch, so a new file is used at once.

    Of several recordings for one platform the newest that is valid now is taken, else the newest. A broken file may
    have been newer than all of them: for the platform that it is about, by its name or by what can be read of it,
    nothing is taken until it is mended. Other platforms get theirs, with a warning that names the file.
    """

    def __init__(self, directory: Path, clock: Callable[[], datetime]) -> None:
        """``clock`` gives the time now, in UTC."""
        self._directory = directory
        self._clock = clock
        self._platform: SimulatedPlatform | None = None
        self._told: frozenset[str] = frozenset()

    async def fetch(self, key: CollateralKey) -> Collateral:
        """The collateral for ``key``.

        Raises:
            Unavailable: the directory has none for it.
            Malformed: a file about it is broken; or one of which nobody knows what it is about, and there is no other.
        """
        if key.pck is None:
            return await asyncio.to_thread(self._find, key)
        chain = await self.fetch_pck(key.pck)
        found = await asyncio.to_thread(self._find, family_key(key.tee, chain))
        return replace(found, pck_certificate_chain=chain)

    async def fetch_pck(self, query: PckQuery) -> str:
        """The PCK certificate chain for ``query``: the simulated platform's own, or in a file named by the query.

        Raises:
            Unavailable: the directory has none for it.
        """
        return await asyncio.to_thread(self._find_pck, query)

    def _find_pck(self, query: PckQuery) -> str:
        if is_simulated_platform(self._directory):
            platform = self._load_platform()
            if query.qe_id == platform.qe_id:
                return platform.pck_chain
            raise Unavailable(f"{self._directory} is a simulated platform and not {describe_query(query)}")
        try:
            with (self._directory / pck_file(query)).open("rb") as file:
                return file.read(MAX_CHAIN_BYTES + 1).decode("ascii")
        except (OSError, UnicodeDecodeError):
            raise Unavailable(f"{self._directory} holds no PCK certificate for {describe_query(query)}") from None

    def _find(self, key: CollateralKey) -> Collateral:
        if is_simulated_platform(self._directory):
            return self._simulated(key)
        found, broken = sorted_recordings(self._directory)
        chosen = newest(found, self._clock(), lambda contents: contents.key == key)
        for one in broken:
            if one.key == key or (one.key is None and chosen is None):
                raise one.problem
        if chosen is None:
            raise Unavailable(f"{self._directory} holds no collateral for {describe_key(key)}")
        self._warn(broken)
        return chosen.collateral

    def _warn(self, broken: Sequence[BrokenFile]) -> None:
        """Say once of every broken file what is wrong with it."""
        told, self._told = self._told, frozenset(str(one.problem) for one in broken)
        for text in sorted(self._told - told):
            _log.warning("a file of collateral is broken and left out: %s", text)

    def _simulated(self, key: CollateralKey) -> Collateral:
        simulated = self._load_platform()
        platform = simulated.platform
        if (key.fmspc, key.ca) != (platform.fmspc, platform.ca):
            raise Unavailable(f"{self._directory} is a simulated platform and not {describe_key(key)}")
        return simulated.collateral(self._clock(), key.tee)

    def _load_platform(self) -> SimulatedPlatform:
        if self._platform is None:
            self._platform = SimulatedPlatform.load(self._directory)
        return self._platform


def pck_file(query: PckQuery) -> str:
    """The name of the file that holds the PCK certificate chain for ``query``."""
    return f"pck-{query_name(query)}.pem"


def newest(recordings: Iterable[Recording], at: datetime, wanted: Callable[[Contents], bool]) -> Recording | None:
    """The newest of the wanted recordings that is valid at ``at``; if none is, the newest; None if none is wanted."""

    def rank(recording: Recording) -> tuple[bool, datetime]:
        contents = recording.contents
        return contents.issued <= at <= contents.expires, contents.issued

    return max((r for r in recordings if wanted(r.contents)), key=rank, default=None)


def load_recordings(directory: Path) -> tuple[Recording, ...]:
    """All ``*.json`` files of ``directory``, by name.

    Raises:
        Malformed: one of them is not collateral; the path is named.
        Unavailable: there is no such directory, or it cannot be read.
    """
    try:
        return tuple(load_recording(path) for path in _recordings(directory))
    except OSError as error:
        raise Unavailable(f"cannot read collateral in {directory}: {error.strerror}") from None


def sorted_recordings(directory: Path) -> tuple[tuple[Recording, ...], tuple[BrokenFile, ...]]:
    """What of :func:`load_recordings` can be read, and what cannot. Raises Unavailable for a directory that cannot."""
    found: list[Recording] = []
    broken: list[BrokenFile] = []
    for path in _recordings(directory):
        try:
            found.append(load_recording(path))
        except FileNotFoundError:
            continue  # it was replaced just now
        except OSError as error:
            problem = Malformed(f"cannot be read: {error.strerror}", where=str(path))
            broken.append(BrokenFile(_key_of_name(path), problem))
        except Malformed as error:
            broken.append(BrokenFile(_key_of_name(path) or _key_in(path), error))
    return tuple(found), tuple(broken)


def _recordings(directory: Path) -> list[Path]:
    try:
        if not directory.is_dir():
            raise Unavailable(f"there is no directory {directory} to take collateral from")
        return sorted(directory.glob("*.json"))[:MAX_RECORDINGS]
    except OSError as error:
        raise Unavailable(f"cannot read collateral in {directory}: {error.strerror}") from None


def _key_of_name(path: Path) -> CollateralKey | None:
    """The platform that a file is about by its name, as ``marblerun evidence collateral fetch --dir`` gives it."""
    named = _NAME.fullmatch(path.name)
    return CollateralKey(Tee(named[1]), bytes.fromhex(named[2]), named[3]) if named else None


def _key_in(path: Path) -> CollateralKey | None:
    """The platform that a broken file of any name is about, as far as TCB Info and PCK CRL can be read."""
    try:
        with path.open("rb") as file:
            return read_key(parse_collateral_json(file.read(MAX_RECORDING_BYTES)))
    except (OSError, Malformed):
        return None


def load_recording(path: Path) -> Recording:
    """One file of recorded collateral; OSError if it cannot be read, Malformed, naming it, if it is something else."""
    with path.open("rb") as file:
        data = file.read(MAX_RECORDING_BYTES + 1)
    if len(data) > MAX_RECORDING_BYTES:
        raise Malformed(f"larger than {MAX_RECORDING_BYTES} bytes", where=str(path))
    try:
        collateral = parse_collateral_json(data)
        return Recording(path, read_contents(collateral), collateral)
    except Malformed as error:
        raise Malformed(str(error), where=str(path)) from error
