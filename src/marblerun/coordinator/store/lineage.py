"""Which state came after which: every durable state has a number and names the one before it. Pure.

Both lie among the sealed entries, where the reference keeps but does not look at them. Somebody outside who remembers
the latest :class:`Mark` can tell an older state that was put back.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from marblerun.errors import Malformed, Untrusted

SEQUENCE: Final = "stateSequence"
PREVIOUS: Final = "statePrevious"
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


class Anchor(Protocol):
    """Remembers the latest state outside the state directory, where whoever restores an old directory cannot reach.

    Both raise :class:`marblerun.errors.Unavailable`, ``load`` also :class:`marblerun.errors.Misconfigured` for a
    memory that cannot be understood.
    """

    def load(self) -> Mark | None:
        """The latest mark, ``None`` if nothing was ever remembered."""

    def advance(self, mark: Mark) -> None:
        """Remember ``mark`` durably; called after its state is durable and before anybody is told of it."""


def stamped(entries: Mapping[str, bytes], last: Mark) -> dict[str, bytes]:
    """The entries of the state that comes after ``last``."""
    return {**entries, SEQUENCE: b"%d" % (last.sequence + 1), PREVIOUS: last.head}


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
    return Link(Mark(int(sequence), hashlib.sha256(sealed_data).digest()), previous)


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
