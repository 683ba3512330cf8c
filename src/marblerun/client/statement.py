"""How far a Coordinator's history has come, and a memory that notices when it went back.

A restored backup opens, attests and runs like the latest state. Only somebody who remembers can tell: here a file
keeps, by root certificate, the highest number that was seen.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from marblerun.client.certcache import default_path
from marblerun.client.provenance import Provenance, parse_provenance
from marblerun.client.replies import a_text, an_int, an_object
from marblerun.errors import Malformed, Unavailable, Untrusted, WrongPhase

MAX_MEMORY_BYTES: Final = 4 * 1024 * 1024
_HEAD_DIGITS: Final = 64
# Of ``status`` (protocol, section 1.4).
_RECOVERY: Final = 1
_ACCEPTING_MANIFEST: Final = 2


@dataclass(frozen=True, slots=True)
class Statement:
    """What the Coordinator says; believed as far as the connection it came over is."""

    text: str
    """As it was sent: a quote covers the SHA-256 of exactly this."""
    sequence: int
    """Number of the latest durable state, 0 if nothing is stored."""
    head: str
    """SHA-256 of its sealed form, hex."""
    root_certificate: str
    """PEM."""
    manifest_fingerprint: str
    update_log_hash: str
    evidence: str
    nonce: str
    state: int = 0
    """Which state of its life the Coordinator is in, by the numbers of ``status``; 0 if it does not say."""
    provenance: Provenance | None = None
    """Where the CA comes from; ``None`` from Coordinators that keep no record."""


def parse_statement(text: str) -> Statement:
    """The statement in its JSON; raises Malformed."""
    try:
        fields = an_object(json.loads(text), "statement")
    except (ValueError, RecursionError):
        raise Malformed("is not JSON", where="statement") from None
    if an_int(fields, "statement") != 1:
        raise Malformed("is of another version than 1", where="statement")
    head = a_text(fields, "head")
    if len(head) not in (0, _HEAD_DIGITS) or not set(head) <= set("0123456789abcdef"):
        raise Malformed("is not a SHA-256", where="statement.head")
    return Statement(
        text=text,
        sequence=an_int(fields, "sequence"),
        head=head,
        root_certificate=a_text(fields, "rootCertificate"),
        manifest_fingerprint=a_text(fields, "manifestFingerprint"),
        update_log_hash=a_text(fields, "updateLogHash"),
        evidence=a_text(fields, "evidence"),
        nonce=a_text(fields, "nonce"),
        state=an_int(fields, "state"),
        provenance=parse_provenance(fields.get("provenance")),
    )


def _require_running(statement: Statement) -> None:
    """In recovery, or where its state was removed, a Coordinator may still know a number: that of its anchor."""
    if statement.state == _RECOVERY or (statement.state == _ACCEPTING_MANIFEST and statement.sequence > 0):
        raise WrongPhase(
            "the Coordinator does not run its latest state"
            + (f", number {statement.sequence}" if statement.sequence else "")
            + ": its stored state is missing, older or cannot be opened; 'marblerun status' and its log say more"
        )


def default_memory_path(environment: Mapping[str, str]) -> Path:
    """``sequences.json`` beside the certificate cache."""
    return default_path(environment).with_name("sequences.json")


class SequenceMemory:
    """The highest number and its head by root certificate, in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self, root_der: bytes, statement: Statement, *, accept_older: bool = False) -> None:
        """Compare with what was seen before and remember it.

        ``accept_older`` begins anew from this statement: whatever happened since the remembered one (activation
        budgets, counters, removed users, rotated secrets) may be undone, and is accepted.

        Raises:
            WrongPhase: the Coordinator does not run the state whose number it tells; nothing is remembered.
            Untrusted: (step ``sequence``) an older state, or another one of the same number; it is not remembered.
            Malformed, Unavailable: the file.
        """
        _require_running(statement)
        known = self._load()
        key = hashlib.sha256(root_der).hexdigest()
        before = an_object(known.get(key), key)
        highest, head = an_int(before, "sequence"), a_text(before, "head")
        if not accept_older:
            if statement.sequence < highest:
                raise Untrusted(
                    f"the Coordinator has gone BACK: its state is number {statement.sequence}, number {highest} was "
                    "seen before; what happened in between is undone",
                    step="sequence",
                    reason="older",
                )
            if statement.sequence == highest and head and statement.head != head:
                raise Untrusted(
                    f"the Coordinator's state number {highest} is another one than the one seen before: its history "
                    "was forked",
                    step="sequence",
                    reason="branched",
                )
        self._save({**known, key: {"sequence": statement.sequence, "head": statement.head}})

    def _load(self) -> dict[str, object]:
        try:
            with self._path.open("rb") as file:
                raw = file.read(MAX_MEMORY_BYTES + 1)
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be read: {error.strerror}") from None
        try:
            return an_object(json.loads(raw[:MAX_MEMORY_BYTES]), str(self._path))
        except (ValueError, RecursionError):
            raise Malformed("is damaged; what was seen before is not known", where=str(self._path)) from None

    def _save(self, known: Mapping[str, object]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=".sequences", dir=self._path.parent)
            with os.fdopen(descriptor, "w") as file:
                json.dump(known, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except OSError as error:
            raise Unavailable(f"{self._path} cannot be written: {error.strerror}") from None
