"""Where a deployment's CA and secrets come from: made by this enclave, or brought in by recoveries. Pure.

Whoever holds the data key of a sealed state can write any other in its place, CA keys included, and have it recovered
(docs/adr/0007-provenance.md). What such a state says about itself is worth what its recovery keys are worth. So the
enclave adds to the record itself, at the moment of a recovery, by whose keys it was; the record goes on through
restarts, updates and later recoveries, and clients get it under a quote.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from marblerun.errors import Malformed
from marblerun.secrets.shares import MAX_SHARES
from marblerun.wire.gojson import Struct, boolean, list_of, marshal, record, string, uint, unmarshal

PROVENANCE: Final = "stateProvenance"
"""Name of the entry; the reference keeps it and does not look at it."""
# Different sets of recovery keys that a record names; with more it is no longer complete.
MAX_GROUPS: Final = 8
_MAX_ENTRY_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RecoveredBy:
    """Recoveries that the same holders stood behind."""

    keys: tuple[str, ...]
    """SHA-256 (hex) of each recovery key of the manifest then in force (PKIX DER), sorted."""
    needed: int
    """How many of them had to sign."""
    times: int
    first: str
    """RFC 3339, UTC; as far as the machine's clock is right."""
    last: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """The record. The default is that of a state without one: nothing is known about it."""

    complete: bool = False
    """Whether everything since the CA was made is in the record."""
    first_manifest: str = ""
    """SHA-256 (hex) of the manifest that the deployment began with; empty if there is none yet or it is not known."""
    recovered_by: tuple[RecoveredBy, ...] = ()

    @property
    def recoveries(self) -> int:
        """How often a state was brought in, as far as the record goes."""
        return sum(group.times for group in self.recovered_by)

    def after_recovery(self, keys: Iterable[bytes], needed: int, at: datetime) -> Provenance:
        """With one recovery more, by holders of ``keys`` (PKIX DER), of whom ``needed`` have signed."""
        fingerprints = tuple(sorted(hashlib.sha256(key).hexdigest() for key in keys))
        time = f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
        for place, group in enumerate(self.recovered_by):
            if (group.keys, group.needed) == (fingerprints, needed):
                again = replace(group, times=group.times + 1, last=time)
                return replace(self, recovered_by=(*self.recovered_by[:place], again, *self.recovered_by[place + 1 :]))
        if len(self.recovered_by) >= MAX_GROUPS:
            # What was there first says more than what an owner of the state can add at will.
            return replace(self, complete=False)
        return replace(self, recovered_by=(*self.recovered_by, RecoveredBy(fingerprints, needed, 1, time, time)))

    def fields(self) -> Struct:
        """For JSON, as entry and statement tell it."""
        groups = [
            Struct(
                (
                    ("recoveryKeys", group.keys),
                    ("needed", group.needed),
                    ("times", group.times),
                    ("first", group.first),
                    ("last", group.last),
                )
            )
            for group in self.recovered_by
        ]
        return Struct(
            (
                ("complete", self.complete),
                ("firstManifest", self.first_manifest),
                ("recoveries", self.recoveries),
                ("recoveredBy", groups),
            )
        )


UNRECORDED: Final = Provenance()
"""Nothing is known: the state was written by something that keeps no record."""
BEGUN: Final = Provenance(complete=True)
"""The record of a CA that was made just now."""

_GROUP: Final = record(recoveryKeys=list_of(string), needed=uint(16), times=uint(32), first=string, last=string)
_ENTRY: Final = record(
    covers=string, record=record(complete=boolean, firstManifest=string, recoveredBy=list_of(_GROUP))
)
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


def with_provenance(entries: Mapping[str, bytes], provenance: Provenance, *uncovered: str) -> dict[str, bytes]:
    """The entries with the record, which covers all of them but those named.

    Another Coordinator, the reference or an older release, keeps an entry that it does not know and changes the others:
    that it did so is seen from this.
    """
    covers = _digest(entries, uncovered)
    entry = marshal(Struct((("covers", covers), ("record", provenance.fields()))))
    return {**entries, PROVENANCE: entry}


def read_provenance(entries: Mapping[str, bytes], *uncovered: str) -> Provenance:
    """The record among the entries; not complete where it is missing, unreadable, or does not cover the others."""
    entry = entries.get(PROVENANCE, b"")
    if len(entry) > _MAX_ENTRY_BYTES:
        return Provenance()
    try:
        found = unmarshal(entry, _ENTRY)
    except Malformed:
        return Provenance()
    told: dict[str, Any] = found["record"]
    groups = tuple(
        RecoveredBy(tuple(group["recoveryKeys"]), group["needed"], group["times"], group["first"], group["last"])
        for group in told["recoveredBy"][:MAX_GROUPS]
    )
    if len(told["recoveredBy"]) > MAX_GROUPS or not all(map(_is_group, groups)):
        return Provenance()
    first = told["firstManifest"] if _HASH.fullmatch(told["firstManifest"]) else ""
    is_covered = found["covers"] == _digest(entries, uncovered)
    # A state that waits for its first manifest, as several Coordinators share it, cannot name that yet.
    begins = bool(first) or "manifest" not in entries
    return Provenance(told["complete"] and begins and is_covered, first, groups)


def _is_group(group: RecoveredBy) -> bool:
    hashes = all(_HASH.fullmatch(key) for key in group.keys)
    times = all(_TIME.fullmatch(time) for time in (group.first, group.last))
    return hashes and times and len(group.keys) <= MAX_SHARES and group.times > 0


def _digest(entries: Mapping[str, bytes], uncovered: Iterable[str]) -> str:
    """SHA-256 over names and values, each with its length, in the order of the names."""
    skipped = {PROVENANCE, *uncovered}
    digest = hashlib.sha256()
    for name in sorted(entries.keys() - skipped):
        text, value = name.encode("utf-8", "surrogatepass"), entries[name]
        digest.update(b"%d:%d:" % (len(text), len(value)))
        digest.update(text)
        digest.update(value)
    return digest.hexdigest()
