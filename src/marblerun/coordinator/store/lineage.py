"""Which state came after which: every durable state has a number and names the one before it. Pure.

Both lie among the sealed entries, where the reference keeps but does not look at them. Somebody outside who remembers
the latest :class:`Mark` can tell an older state that was put back. An anchor that only counts gives a stamp, which lies
beside them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from marblerun.errors import Malformed, Untrusted

SEQUENCE: Final = "stateSequence"
PREVIOUS: Final = "statePrevious"
STAMP: Final = "stateStamp"
_MAX_STAMP_BYTES: Final = 64
_DECIMAL: Final = re.compile(rb"[0-9]{1,18}")
HEAD_BYTES: Final = 32


@dataclass(frozen=True, slots=True)
class Mark:
    """A durable state: its number, and the SHA-256 of its ``sealed_data``. Number 0 has no state."""

    sequence: int = 0
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class Link:
    """A stored state with the head of the one before it; number 0 if the reference wrote it."""

    mark: Mark
    previous: bytes
    stamp: bytes = b""
    """What a :class:`StampingAnchor` had sealed with the state; empty if there was none."""


class Anchor(Protocol):
    """Remembers the latest state outside the state directory, where whoever restores an old directory cannot reach.

    Both raise :class:`marblerun.errors.Unavailable`, and :class:`marblerun.errors.Misconfigured` for a memory that
    cannot be understood; ``advance`` may raise :class:`marblerun.errors.Untrusted` (step ``anchor``) if somebody else
    moved it. After a failed ``advance`` the memory holds the old mark or the new one, and ``load`` tells which.
    """

    def load(self) -> Mark | None:
        """The latest mark, ``None`` if nothing was ever remembered."""

    def advance(self, mark: Mark) -> None:
        """Remember ``mark`` durably; called after its state is durable and before anybody is told of it."""


@runtime_checkable
class StampingAnchor(Anchor, Protocol):
    """An anchor whose own memory can be rewritten, but not the counter that it puts under the seal of each state."""

    def stamp(self) -> bytes:
        """What to seal with the next state, 64 bytes at most; :meth:`advance` follows if that becomes durable."""

    def verify_stamp(self, stamp: bytes) -> None:
        """Return if a state with this stamp (empty: none) can be the latest; raises Untrusted (step ``anchor``)."""


def stamped(entries: Mapping[str, bytes], last: Mark, stamp: bytes = b"") -> dict[str, bytes]:
    """The entries of the state that comes after ``last``."""
    numbered = {**entries, SEQUENCE: b"%d" % (last.sequence + 1), PREVIOUS: last.head}
    return {**numbered, STAMP: stamp} if stamp else numbered


def following(last: Mark, sealed_data: bytes) -> Mark:
    """The mark of the state that comes after ``last``."""
    return Mark(last.sequence + 1, hashlib.sha256(sealed_data).digest())


def link_of(entries: Mapping[str, bytes], sealed_data: bytes) -> Link:
    """Where a stored state stands; raises Malformed for a number or head that is none."""
    sequence, previous = entries.get(SEQUENCE, b"0"), entries.get(PREVIOUS, b"")
    if not _DECIMAL.fullmatch(sequence):
        raise Malformed("not a number", where=SEQUENCE)
    if len(previous) not in (0, HEAD_BYTES):
        raise Malformed(f"a head has {HEAD_BYTES} bytes", where=PREVIOUS)
    stamp = entries.get(STAMP, b"")
    if len(stamp) > _MAX_STAMP_BYTES:
        raise Malformed(f"a stamp has {_MAX_STAMP_BYTES} bytes at most", where=STAMP)
    return Link(Mark(int(sequence), hashlib.sha256(sealed_data).digest()), previous, stamp)


def agreed(reached: Mark, recovered: Link) -> Mark:
    """On what the first state after a recovery builds: the recovered one, with a number above all that were reached.

    The holders have agreed to this state, also if it is an older one.
    """
    return Mark(max(reached.sequence, recovered.mark.sequence), recovered.mark.head)


def verify_latest(link: Link, anchored: Mark) -> None:
    """Return if ``link`` is the anchored state, or the one right after it: a crash may come between state and anchor.

    Raises Untrusted (step ``anchor``): ``older`` or, for another history, ``branched``.
    """
    mark = link.mark
    is_next = mark.sequence == anchored.sequence + 1 and link.previous == anchored.head
    if mark == anchored or is_next:
        return
    if mark.sequence < anchored.sequence:
        raise Untrusted(
            f"the stored state is OLDER than the latest one: it is number {mark.sequence}, and number "
            f"{anchored.sequence} was reached; somebody may have restored a backup",
            step="anchor",
            reason="older",
        )
    raise Untrusted(
        f"the stored state (number {mark.sequence}) is not of the history that the anchor knows (number "
        f"{anchored.sequence}); another Coordinator may have used a copy of it",
        step="anchor",
        reason="branched",
    )
