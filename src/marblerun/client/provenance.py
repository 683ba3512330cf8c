"""Whether somebody outside the enclaves may know a deployment's CA keys, asked of the enclave itself.

A quote and a manifest do not tell a deployment that grew up in its enclave from one whose state somebody wrote, had
recovered and then updated to the very manifest: the writer keeps the CA keys (docs/adr/0007-provenance.md). The
statement does: it is under a quote of its own and says by whose recovery keys a state was ever brought in. It also
names the manifest in force, which otherwise only the root key vouches for.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from marblerun.client.replies import a_flag, a_text, an_int, an_object, some_texts
from marblerun.errors import Malformed, Untrusted

# What a Coordinator of this project keeps at most; a longer list is refused.
MAX_GROUPS: Final = 64
UNSTATED: Final = (
    "the Coordinator does not say where its CA comes from (those of the reference never do): somebody may have brought "
    "it in by a recovery and know its keys; compare its root certificate with somebody who knows it"
)


_ACCEPTING: Final = (
    "If you know why and trust who held those keys, for example after an update changed the recovery keys, 'marblerun "
    "manifest verify --allow-recovered' accepts it and remembers the root certificate"
)


class Unstated(Untrusted):
    """The Coordinator offers no statement, or one without a record."""


@dataclass(frozen=True, slots=True)
class RecoveredBy:
    """Recoveries that the same holders stood behind."""

    keys: tuple[str, ...]
    """SHA-256 (hex) of their recovery keys (PKIX DER), sorted."""
    needed: int
    """How many of them had to sign."""
    times: int
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """The enclave's record of where its CA comes from."""

    complete: bool
    """Whether it goes back to the making of the CA."""
    first_manifest: str
    """SHA-256 (hex) of the manifest that the deployment began with."""
    recovered_by: tuple[RecoveredBy, ...] = ()

    @property
    def recoveries(self) -> int:
        """How often the state was brought in from outside."""
        return sum(group.times for group in self.recovered_by)


def parse_provenance(value: object) -> Provenance | None:
    """The record in a statement; ``None`` where there is none. Raises Malformed."""
    if value is None:
        return None
    where = "statement.provenance"
    fields = an_object(value, where)
    listed = fields.get("recoveredBy") or []
    if not isinstance(listed, list) or len(listed) > MAX_GROUPS:
        raise Malformed(f"is not a list of at most {MAX_GROUPS}", where=f"{where}.recoveredBy")
    groups = tuple(_group(an_object(one, f"{where}.recoveredBy")) for one in listed)
    found = Provenance(a_flag(fields, "complete"), a_text(fields, "firstManifest"), groups)
    if an_int(fields, "recoveries") != found.recoveries:
        raise Malformed("is not the sum of what is listed", where=f"{where}.recoveries")
    return found


def _group(fields: dict[str, object]) -> RecoveredBy:
    return RecoveredBy(
        some_texts(fields, "recoveryKeys"),
        an_int(fields, "needed"),
        an_int(fields, "times"),
        a_text(fields, "first"),
        a_text(fields, "last"),
    )


def verify_provenance(provenance: Provenance | None, manifest: bytes, *, allow_recovered: bool = False) -> None:
    """Return if nobody but the holders of ``manifest``'s own recovery keys can have brought the state in.

    ``allow_recovered`` accepts whatever the record says; that there is one is demanded all the same.

    Raises:
        Unstated: 1. there is no record.
        Untrusted: (step ``provenance``) 2. ``unknown``: the record does not go back to the making of the CA.
            3. ``recovered``: other recovery keys, or fewer of them, were enough for a recovery.
    """
    if provenance is None:  # 1
        raise Unstated(UNSTATED, step="provenance", reason="unstated")
    if allow_recovered:
        return
    if not provenance.complete:  # 2
        raise Untrusted(
            "the Coordinator does not know all of its state's past: it was kept by a program without a record of "
            "recoveries, or on a machine without an enclave's sealing key; somebody may know the keys of its CA. "
            f"{_ACCEPTING}",
            step="provenance",
            reason="unknown",
        )
    keys, needed = recovery_keys_of(manifest)
    others = [group for group in provenance.recovered_by if (group.keys, group.needed) != (keys, needed)]
    if others:  # 3
        times = sum(group.times for group in others)
        raise Untrusted(
            f"the Coordinator's state was recovered {times} times, last {max(group.last for group in others)}, with "
            "recovery keys that are not those of the manifest: their holders may know the keys of its CA. "
            f"{_ACCEPTING}",
            step="provenance",
            reason="recovered",
        )


def recovery_keys_of(manifest: bytes) -> tuple[tuple[str, ...], int]:
    """SHA-256 (hex) of a manifest's recovery keys, sorted, and how many of them a recovery needs; raises Malformed."""
    from marblerun.manifest.material import recovery_key
    from marblerun.manifest.parse import parse_manifest

    parsed = parse_manifest(manifest)
    ders = (
        recovery_key(text).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for text in parsed.recovery_keys.values()
    )
    keys = tuple(sorted(hashlib.sha256(der).hexdigest() for der in ders))
    return keys, parsed.config.recovery_threshold or len(keys)
