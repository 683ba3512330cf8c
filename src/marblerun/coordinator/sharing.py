"""Keeping a state that other Coordinators write as well (protocol, section 11.3; docs/adr/0010-kubernetes.md).

A version of the store is the one that our state is, or our state is not the present one. Nothing is written but in
place of that version; what others have written is opened, and believed only if it came after ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Final

from marblerun.coordinator.keeping import Keeper, Lost, Opened
from marblerun.coordinator.seal import KeySealer, SealMode, SharedKeySealer, seal_mode
from marblerun.coordinator.state import Deployment, Phase, State
from marblerun.coordinator.store import Sealed, SharedStore, Versioned
from marblerun.coordinator.store.entries import decode_following, decode_state
from marblerun.coordinator.store.lineage import Anchor, Link, Mark, link_of, verify_latest
from marblerun.errors import Malformed, Unavailable, Untrusted
from marblerun.pki.issue import Entropy
from marblerun.secrets.box import is_data_key, open_sealed_data, parse_sealed_data

# Others may write between a look at the store and one at the anchor; so often in a row they do not.
_MAX_LOOKS: Final = 20
_STEP: Final = "shared-state"


class SharedKeeper(Keeper):
    """A keeper for one of several Coordinators; its calls come one after the other."""

    def __init__(
        self,
        store: SharedStore,
        sealer: KeySealer,
        anchor: Anchor | None,
        entropy: Entropy,
        timed: Callable[[str], AbstractContextManager[object]],
    ) -> None:
        super().__init__(_Reading(store), sealer, anchor, entropy, timed)
        self._shared = store
        self._version = ""  # the stored version that the present state is, or that the present recovery is about
        self._entries: Mapping[str, bytes] = {}  # what was sealed in it
        self._written: list[tuple[str, Mapping[str, bytes]]] = []  # what the present call of keep has made durable
        self._stored: State | None = None  # a state that was read and need not be written
        self._present: State | None = None  # the running state, on top of which others may have written
        self._present_mark = Mark()
        self._read_entries: Mapping[str, bytes] = {}

    # -- reading -------------------------------------------------------------------------------------------------

    def begin(self) -> tuple[Opened | Lost | None, Mark | None]:
        """What is stored now, and what the anchor remembers."""
        self._present = None
        found = self._look()
        return found, self._anchored

    def follow(self, present: State, mark: Mark, *, anew: bool = False) -> Opened | Lost | None:
        """What is stored now, ``None`` if that is ``present`` (with ``mark``) or, in recovery, as closed as it was.

        ``anew`` tries a closed state again, as its key may have come meanwhile. Raises Untrusted, and keeps raising it,
        if the state of a running deployment was removed, does not open or is not later than ``present``.
        """
        if not anew and self._shared.version() == self._version:
            return None
        self._present, self._present_mark = (present, mark) if present.phase is not Phase.RECOVERY else (None, mark)
        before = self._version
        found = self._look()
        if found is None:
            self._version = before
            raise Untrusted("the stored state was removed while this Coordinator ran; restore it", step=_STEP)
        if isinstance(found, Lost) and present.deployment is not None:
            self._version = before
            raise Untrusted(
                f"the stored state is not the one of this Coordinator any more ({found.doubt or 'its key is another'});"
                " put the latest one back, or restart this Coordinator to begin with the one that is there",
                step=_STEP,
            )
        return found

    def _look(self) -> Opened | Lost | None:
        """What is stored, of a moment in which store and anchor were looked at both."""
        for _ in range(_MAX_LOOKS):
            stored = self._shared.read()
            anchored = self.anchored()
            found = self._open(stored, anchored)
            is_doubted = isinstance(found, Lost) and found.doubt
            if not is_doubted or self._shared.version() == stored.version:
                self._version = stored.version
                return found
        raise Unavailable("the stored state changes all the time; try again")

    def _open(self, stored: Versioned, anchored: Mark | None) -> Opened | Lost | None:
        if stored.sealed is None:
            return None
        try:
            parse_sealed_data(stored.sealed.data)
        except Malformed as error:
            raise Untrusted(f"the stored state is damaged: {error}; put the latest one back", step=_STEP) from error
        found = self.load(stored.sealed, anchored)
        if isinstance(found, Lost):
            return found
        state = self._same_objects(found.state)
        if state.deployment is None and state.phase is not Phase.ACCEPTING_MANIFEST:
            raise Untrusted("the sealed state is damaged: it has no manifest", step="sealed-state")
        self._entries, self._stored = self._read_entries, state
        self._settled(state)
        return Opened(state, found.mark)

    def _same_objects(self, state: State) -> State:
        """The state with key and record of the present one where they are equal; see :func:`decode_following`."""
        present = self._present
        if present is None:
            return state
        record = present.provenance if state.provenance == present.provenance else state.provenance
        key = present.data_key if state.data_key == present.data_key else state.data_key
        return replace(state, provenance=record, data_key=key)

    def _key_of(self, sealed: Sealed, recovery_data: bytes) -> bytes | None:
        """The key unsealed, else the one from memory: who writes may have lost the key that all had in common.

        Recovery data is covered by nothing but the sealed key. So where it changed, the key in memory does not do.
        """
        key = self._unseal(sealed)
        known = self._present.data_key if self._present is not None else None
        if key is None and known is not None and known.recovery_data == recovery_data:
            key = known.key if is_data_key(known.key, sealed.data) else None
        return key

    def _decode(self, entries: Mapping[str, bytes]) -> State:
        self._read_entries = entries
        if self._present is None:
            return decode_state(entries)
        return decode_following(entries, self._entries, self._present)

    def _is_counted(self, state: State) -> bool:
        return True

    def _doubt(self, link: Link, anchored: Mark | None) -> str:
        return self._turned_back(link.mark, link.previous) or super()._doubt(link, anchored)

    def _turned_back(self, mark: Mark, previous: bytes) -> str:
        """Why a state cannot have come after the running one; empty if it can, or is the same."""
        ours = self._present_mark
        if self._present is None or mark == ours:
            return ""  # nothing to compare with, or this very state
        if mark.sequence <= ours.sequence:
            return f"it is number {mark.sequence} of another history or an OLDER one, and ours is {ours.sequence}"
        if mark.sequence == ours.sequence + 1 and previous != ours.head:
            return f"number {mark.sequence} does not build on our number {ours.sequence}"
        return ""

    # -- writing -------------------------------------------------------------------------------------------------

    def keep(self, state: State, *, before: Deployment | None, mark: Mark, lost_data: bytes | None) -> Mark:
        """As for one Coordinator, also before there is a manifest and also where the manifest says Disabled.

        Raises Conflict, and has changed nothing, if another Coordinator was faster.
        """
        self._written.clear()
        new_mark = super().keep(state, before=before, mark=mark, lost_data=lost_data)
        if self._written:
            self._version, self._entries = self._written.pop()
        return new_mark

    def _mode(self, state: State, before: Deployment | None) -> SealMode | None:
        """As the manifest says at once: a change to Disabled does not end the keeping here (protocol, section 11.3)."""
        return None if state.phase is Phase.RECOVERY or state is self._stored else _mode_of(state)

    def _reached(self, mark: Mark) -> Mark:
        """What is in doubt shows at the next write: the version is another one then, and everything is read anew."""
        self._in_doubt.clear()
        return mark

    def _save(self, data: bytes, key: bytes, entries: Mapping[str, bytes], mode: SealMode) -> None:
        self._written.append((self._shared.replace(self._version, data, key), entries))
        if isinstance(self._sealer, SharedKeySealer):
            self._sealer.settled(mode)

    def _settled(self, state: State) -> None:
        if isinstance(self._sealer, SharedKeySealer):
            self._sealer.settled(_mode_of(state))

    def _advance(self, mark: Mark) -> None:
        """Move the anchor, unless a Coordinator that builds on this state has moved it further already."""
        try:
            super()._advance(mark)
        except Untrusted:
            if not self._is_overtaken_by_followers(mark):
                raise
            self._in_doubt.clear()

    def _is_overtaken_by_followers(self, mark: Mark) -> bool:
        """Whether the anchor knows a state after ``mark`` that is the stored one, or the one right before that."""
        assert self._anchor is not None
        for _ in range(_MAX_LOOKS):
            stored = self._shared.read()
            anchored = self._anchor.load()
            if stored.sealed is None or anchored is None:
                return False
            key = self._unseal(stored.sealed)
            if key is None:
                return False
            try:
                link = link_of(open_sealed_data(key, stored.sealed.data), stored.sealed.data)
                verify_latest(link, anchored)
            except (Malformed, Untrusted):
                if self._shared.version() == stored.version:
                    return False
                continue
            return link.mark.sequence > mark.sequence
        return False


def _mode_of(state: State) -> SealMode:
    """In which mode the key of a state is sealed; before there is a manifest nothing is allowed but Disabled."""
    return seal_mode(state.deployment.config.seal_mode) if state.deployment is not None else SealMode.DISABLED


class _Reading:
    """The part of a shared store that a :class:`Keeper` knows; it never writes by itself."""

    def __init__(self, store: SharedStore) -> None:
        self._store = store

    def load(self) -> Sealed | None:
        """The stored state."""
        return self._store.read().sealed

    def save(self, data: bytes, key: bytes) -> None:
        """Not without a version."""
        raise RuntimeError("a shared state is replaced, not saved")

    def set_aside(self) -> None:
        """Keep a copy."""
        self._store.set_aside()
