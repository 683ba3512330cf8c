"""Copies of a state directory: what belongs together, read while a Coordinator may be writing, in one file.

A backup is a tar archive of ``sealed_data`` and ``sealed_key``, so any other tool can unpack it. It is as secret as the
directory: sealed, unless the key is in the clear.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Final

from marblerun.coordinator.store import Sealed
from marblerun.coordinator.store.file import DATA, KEY, interim_key_name, read_sealed_file
from marblerun.errors import Malformed, NotFound, Unavailable
from marblerun.secrets.box import parse_sealed_data
from marblerun.wire.limits import MAX_SEALED_STATE_BYTES

# Somebody who writes this often leaves no moment in which data and key fit.
_TRIES: Final = 50
_MAX_MEMBERS: Final = 16


def read_generation(directory: Path, suffix: str = "") -> Sealed:
    """The present state, or an older generation by the suffix of its files; raises NotFound if there is none.

    Takes no lock: the data is read before and after its key, until it has not changed in between.
    """
    ending = f".{suffix}" if suffix else ""
    for _ in range(_TRIES):
        data = read_sealed_file(directory / f"{DATA}{ending}")
        if data is None:
            raise NotFound(f"there is no {DATA}{ending} in {directory}")
        names = (interim_key_name(data), f"{KEY}{ending}") if not suffix else (f"{KEY}{ending}",)
        keys = [key for key in (read_sealed_file(directory / name) for name in names) if key is not None]
        if read_sealed_file(directory / f"{DATA}{ending}") == data:
            return Sealed(data, tuple(keys))
    raise Unavailable(f"the state in {directory} changes all the time; stop the Coordinator or try again")


def pack(sealed: Sealed) -> bytes:
    """The archive; of several keys the first, which is the one that belongs to the data."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in ((DATA, sealed.data), *((KEY, key) for key in sealed.keys[:1])):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o600
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def unpack(content: bytes) -> Sealed:
    """What an archive holds; nothing is written. Raises Malformed for anything but the archive of a state."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for number, member in enumerate(archive):
                if number >= _MAX_MEMBERS:
                    raise Malformed(f"holds more than {_MAX_MEMBERS} files", where="backup")
                name = member.name.removeprefix("./")
                if name not in (DATA, KEY):
                    continue
                file = archive.extractfile(member) if member.isreg() else None
                if file is None or member.size > MAX_SEALED_STATE_BYTES or name in found:
                    raise Malformed(f"{name} is not a single file of a possible size", where="backup")
                found[name] = file.read()
                if len(found[name]) != member.size:
                    raise Malformed(f"{name} is cut off", where="backup")
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise Malformed(f"is not a tar archive: {error}", where="backup") from error
    if DATA not in found:
        raise Malformed(f"holds no {DATA}", where="backup")
    parse_sealed_data(found[DATA])
    return Sealed(found[DATA], (found[KEY],) if KEY in found else ())
