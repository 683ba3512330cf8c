"""Signed JSON of the certification service: TCB Info and enclave identities.

The signature covers the exact text, so the text is verified first and parsed after; nothing is re-serialised.
Source: formats, sections 4.1 to 4.3 (Intel PCS API v4).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn

from marblerun.attestation.model import PartStatus, TcbStatus
from marblerun.errors import Malformed

MAX_LEVELS: Final = 256
MAX_ADVISORIES: Final = 256
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z", re.ASCII)
# Relaunch statuses are a verifier's conclusion, never in a level. Source: Intel PCS API v4, tcbStatus.
PLATFORM_STATUSES: Final = frozenset(TcbStatus) - {
    TcbStatus.UNKNOWN,
    TcbStatus.TD_RELAUNCH_ADVISED,
    TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED,
}
ENCLAVE_STATUSES: Final = frozenset({TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE, TcbStatus.REVOKED})


def parse_time(text: str) -> datetime:
    """A time of signed JSON, RFC 3339 with ``Z``; ValueError for anything else.

    The service writes whole seconds. Fractions are read as well, to microseconds.
    """
    if not _TIME.fullmatch(text):
        raise ValueError("not a time in UTC")
    return datetime.fromisoformat(text)  # the Z makes it UTC


class Fields:
    """A JSON object read field by field; every getter raises Malformed naming the path if type or range is wrong."""

    __slots__ = ("_members", "_path")

    def __init__(self, members: Mapping[str, Any], path: str) -> None:
        self._members = members
        self._path = path

    def _get(self, name: str, kind: type) -> Any:
        value = self._members.get(name)
        # bool is an int in Python, but not here.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self._refuse(name, f"is not of type {kind.__name__}")
        return value

    def _refuse(self, name: str, why: str) -> NoReturn:
        raise Malformed(why, where=f"{self._path}.{name}")

    def text(self, name: str) -> str:
        """A string."""
        return str(self._get(name, str))

    def number(self, name: str, *, limit: int = 0xFFFF_FFFF) -> int:
        """An integer from 0 to ``limit``."""
        value = int(self._get(name, int))
        if not 0 <= value <= limit:
            self._refuse(name, f"{value} is not between 0 and {limit}")
        return value

    def hex(self, name: str, size: int) -> bytes:
        """A string of ``2 * size`` hexadecimal digits of either case."""
        text = self.text(name)
        try:
            value = bytes.fromhex(text)
        except ValueError:
            self._refuse(name, "is not hexadecimal")
        if len(value) != size or len(text) != 2 * size:
            self._refuse(name, f"is not {size} bytes")
        return value

    def time(self, name: str) -> datetime:
        """A time in UTC, as :func:`parse_time` reads it."""
        text = self.text(name)
        try:
            return parse_time(text)
        except ValueError:
            self._refuse(name, f"{text!r} is not a time")

    def has(self, name: str) -> bool:
        """Whether the object has a member of that name."""
        return name in self._members

    def object(self, name: str) -> Fields:
        """An object."""
        return Fields(self._get(name, dict), f"{self._path}.{name}")

    def objects(self, name: str, *, limit: int = MAX_LEVELS) -> tuple[Fields, ...]:
        """A list of objects, at most ``limit``."""
        members: Sequence[Any] = self._get(name, list)
        if len(members) > limit:
            self._refuse(name, f"has more than {limit} members")
        if not all(isinstance(member, dict) for member in members):
            self._refuse(name, "has a member that is not an object")
        return tuple(Fields(member, f"{self._path}.{name}[{i}]") for i, member in enumerate(members))

    def svns(self, name: str, count: int) -> bytes:
        """A list of exactly ``count`` objects that each have an ``svn`` from 0 to 255, one byte each (rule 4.1.4)."""
        components: Sequence[Any] = self._get(name, list)
        svns = _svns(components)
        if svns is None or len(svns) != count:
            self._refuse(name, f"is not a list of {count} SVNs from 0 to 255")
        return svns

    def texts(self, name: str, *, limit: int) -> tuple[str, ...]:
        """A list of strings, at most ``limit``; empty if the member is absent."""
        if not self.has(name):
            return ()
        members: Sequence[Any] = self._get(name, list)
        if len(members) > limit or not all(isinstance(member, str) for member in members):
            self._refuse(name, f"is not a list of at most {limit} strings")
        return tuple(members)

    def status(self, allowed: frozenset[TcbStatus]) -> PartStatus:
        """``tcbStatus``, ``tcbDate`` and ``advisoryIDs`` of a TCB level; the status one of ``allowed`` (rule 4.1.6)."""
        text = self.text("tcbStatus")
        if text not in allowed:
            self._refuse("tcbStatus", f"{text!r} is unknown")
        return PartStatus(
            status=TcbStatus(text),
            tcb_date=self.time("tcbDate"),
            advisories=self.texts("advisoryIDs", limit=MAX_ADVISORIES),
        )


def _svns(components: Sequence[Any]) -> bytes | None:
    try:
        svns = [component["svn"] for component in components]
        # A bool is an int in Python, but not here. bytes() itself takes 0 to 255 only.
        return bytes(svns) if set(map(type, svns)) <= {int} else None
    except (KeyError, TypeError, ValueError):
        return None


def parse_object(text: str, path: str) -> Fields:
    """The JSON object in ``text``; Malformed for else and for a name given twice (rule 4.3.2).

    A fraction is of no type that a field has; in members that nobody asks for it does not matter.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_fraction, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}", where=path) from error
    if not isinstance(value, dict):
        raise Malformed("not a JSON object", where=path)
    return Fields(value, path)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name is there twice")
    return members


def _fraction(text: str) -> None:
    """Nothing: no field is a fraction, and a long one is not worth reading."""
    del text


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]!r} is no JSON")
