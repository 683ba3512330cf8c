"""Keeping the state: sealed for this machine, stored, opened again, and an older one noticed (protocol, section 10)."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

from marblerun.coordinator.seal import KeySealer, SealMode, is_vouching, seal_mode
from marblerun.coordinator.state import DataKey, Deployment, Phase, State
from marblerun.coordinator.store import Sealed, Store
from marblerun.coordinator.store.entries import decode_state, encode_state
from marblerun.coordinator.store.lineage import (
    Anchor,
    Link,
    Mark,
    StampingAnchor,
    following,
    link_of,
    stamped,
    verify_latest,
)
from marblerun.errors import Malformed, MarbleRunError, Untrusted
from marblerun.pki.issue import Entropy
from marblerun.secrets.box import (
    NONCE_BYTES,
    additional_data,
    build_sealed_data,
    is_data_key,
    open_sealed_data,
    parse_sealed_data,
)

_log = logging.getLogger(__name__)

_WHAT_TO_DO = (
    "nothing was changed. 'marblerun state inspect' shows the older states beside it, 'marblerun state backup "
    "--generation' and 'state restore' bring one back; to begin anew, move the files away"
)

# An anchor that answers but never takes a mark leaves one at every request; only the last ones can still be meant.
_MAX_IN_DOUBT: Final = 16


@dataclass(frozen=True, slots=True)
class Opened:
    """The stored state, opened and believed, with its mark."""

    state: State
    mark: Mark


@dataclass(frozen=True, slots=True)
class Lost:
    """A stored state that needs recovery: it does not open here, or it opens and is not the latest (``doubt``)."""

    sealed_data: bytes
    recovery_data: bytes
    doubt: str = ""


class Keeper:
    """Reads and writes the sealed state of one Coordinator; blocks, so it is called in a thread."""

    def __init__(
        self,
        store: Store,
        sealer: KeySealer,
        anchor: Anchor | None,
        entropy: Entropy,
        timed: Callable[[str], AbstractContextManager[object]],
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._anchor = anchor
        self._entropy = entropy
        self._timed = timed
        self._anchored: Mark | None = None  # what the anchor remembers, as far as is known
        # Marks of which nobody knows whether the anchor took them: states that were stored, but not answered.
        self._in_doubt: deque[Mark] = deque(maxlen=_MAX_IN_DOUBT)
        self._closed_because = ""
        self._not_sealed_because = ""

    @property
    def not_sealed_because(self) -> str:
        """Why the key of the state that was kept last could not be sealed here; empty if it was."""
        return self._not_sealed_because

    def begin(self) -> tuple[Opened | Lost | None, Mark | None]:
        """What is stored at the start, ``None`` if nothing is, and what the anchor remembers."""
        sealed = self._store.load()
        anchored = self.anchored()
        return (self.load(sealed, anchored) if sealed is not None else None), anchored

    def anchored(self) -> Mark | None:
        """The latest state that the anchor remembers, if there is an anchor and it remembers one."""
        self._anchored = self._anchor.load() if self._anchor is not None else None
        return self._anchored

    # -- writing -------------------------------------------------------------------------------------------------

    def keep(self, state: State, *, before: Deployment | None, mark: Mark, lost_data: bytes | None) -> Mark:
        """Seal and store ``state`` on top of the one that ``mark`` names; the new mark comes back once it is durable.

        Nothing happens while there is nothing to keep, or where the manifest says to keep nothing (protocol, section
        10.2). ``before`` is the deployment so far, ``lost_data`` the sealed state that a recovery is about. Raises
        Unavailable if store or anchor fail, and Untrusted if the anchor is not where this Coordinator left it.
        """
        data_key, mode = state.data_key, self._mode(state, before)
        if data_key is None or mode is None:
            return mark
        mark = self._reached(mark)
        # The write that ends a recovery keeps the key that the lost state was sealed with.
        recovered = lost_data is not None and is_data_key(data_key.key, lost_data)
        with self._timed("seal"):
            stamp = self._anchor.stamp() if isinstance(self._anchor, StampingAnchor) else b""
            entries = stamped(encode_state(state), mark, stamp)
            data = build_sealed_data(data_key.key, data_key.recovery_data, entries, self._entropy.token(NONCE_BYTES))
            key = self._sealed_key(data_key, mode, data, recovered=recovered)
        if lost_data is not None and not recovered:
            # A new manifest in the recovery phase must not destroy the state that could still be recovered.
            self._store.set_aside()
            _log.warning("starting over: the state that was not recovered is kept beside the new one")
        with self._timed("store"):
            self._save(data, key, entries, mode)
            new_mark = following(mark, data)
            self._advance(new_mark)
        return new_mark

    def _mode(self, state: State, before: Deployment | None) -> SealMode | None:
        """How to seal the key of ``state``; ``None`` if this state is not to be kept."""
        if state.deployment is None or state.phase is not Phase.ACCEPTING_MARBLES:
            return None
        mode = _mode(state.deployment, before)
        return mode if mode is not SealMode.DISABLED else None

    def _save(self, data: bytes, key: bytes, _entries: Mapping[str, bytes], _mode: SealMode) -> None:
        self._store.save(data, key)

    def _advance(self, mark: Mark) -> None:
        if self._anchor is None:
            return
        try:
            self._anchor.advance(mark)
        except MarbleRunError:
            self._in_doubt.append(mark)
            raise
        self._anchored = mark
        self._in_doubt.clear()

    def _reached(self, mark: Mark) -> Mark:
        """On what the next state builds: on ``mark``, or on a state that the anchor took although its answer was lost.

        After a failure the anchor is asked before anything is written: while it cannot answer, nothing moves on.
        """
        if self._anchor is None or not self._in_doubt:
            return mark
        anchored = self._anchor.load()
        reached = anchored if anchored is not None and anchored in self._in_doubt else mark
        if reached is mark and anchored != self._anchored:
            raise Untrusted(
                "the anchor is not where this Coordinator left it; another one may use this deployment's state",
                step="anchor",
                reason="overtaken",
            )
        self._anchored = anchored
        self._in_doubt.clear()
        return reached

    def _sealed_key(self, data_key: DataKey, mode: SealMode, data: bytes, *, recovered: bool) -> bytes:
        """The data key sealed for this machine; a recovery succeeds also where that fails (protocol, section 10.7)."""
        try:
            key = self._sealer.seal(data_key.key, mode, additional_data(data))
        except MarbleRunError as error:
            if not recovered:
                raise
            self._not_sealed_because = str(error)
            fields = {"reason": str(error)}
            _log.error("the recovered key could not be sealed: every restart needs recovery", extra={"fields": fields})
            return b""
        self._not_sealed_because = ""
        return key

    # -- reading -------------------------------------------------------------------------------------------------

    def load(self, sealed: Sealed, anchored: Mark | None) -> Opened | Lost:
        """Open a stored state (protocol, section 10.5).

        A data key that does not open here, or an older state than the anchor remembers, means recovery. Raises
        Malformed or Untrusted for a state that is damaged.
        """
        try:
            parsed = parse_sealed_data(sealed.data)
        except Malformed as error:
            raise Malformed(f"{error}; {_WHAT_TO_DO}") from error
        key = self._key_of(sealed, parsed.recovery_data)
        if key is None:
            return Lost(sealed.data, parsed.recovery_data)
        try:
            entries = open_sealed_data(key, sealed.data)
            state = self._decode(entries)
            if not is_vouching(self._sealer):
                state = replace(state, provenance=replace(state.provenance, complete=False))
            link = link_of(entries, sealed.data)
        except (Malformed, Untrusted) as error:
            raise Untrusted(f"the sealed state is damaged: {error}", step="sealed-state") from error
        counts = self._is_counted(state)
        doubt = self._doubt(link, anchored) if counts else ""
        if doubt:
            return Lost(sealed.data, parsed.recovery_data, doubt)
        if anchored is not None and anchored != link.mark and counts:
            # A crash came between state and anchor. A second one must find it no further behind than the first did.
            self._advance(link.mark)
        return Opened(replace(state, data_key=DataKey(key, parsed.recovery_data)), link.mark)

    def _key_of(self, sealed: Sealed, _recovery_data: bytes) -> bytes | None:
        return self._unseal(sealed)

    def _decode(self, entries: Mapping[str, bytes]) -> State:
        return decode_state(entries)

    def _is_counted(self, state: State) -> bool:
        """Whether it has a place among the states that were kept; one without a manifest never was."""
        return state.deployment is not None

    def _doubt(self, link: Link, anchored: Mark | None) -> str:
        """Why a state that opens is not the latest one; empty if nothing speaks against it."""
        try:
            if anchored is not None:
                verify_latest(link, anchored)
            if isinstance(self._anchor, StampingAnchor):
                self._anchor.verify_stamp(link.stamp)
        except Untrusted as error:
            _log.error("the stored state is not the latest one", extra={"fields": {"reason": str(error)}})
            return str(error)
        if self._anchor is None and link.stamp:
            _log.warning(
                "the state was kept with a counter of a TPM, which is not configured: going back is not noticed"
            )
        if anchored is None and self._anchor is not None:
            _log.warning("the anchor remembers nothing yet: the present state is believed to be the latest")
        return ""

    def _unseal(self, sealed: Sealed) -> bytes | None:
        """The data key; of several candidates, as a crash may leave them, the one that opens the state."""
        additional = additional_data(sealed.data)
        reason = "there is no sealed key"
        unsealed: bytes | None = None
        for candidate in sealed.keys:
            try:
                unsealed = self._sealer.unseal(candidate, additional)
            except MarbleRunError as error:
                reason = str(error)
                continue
            if is_data_key(unsealed, sealed.data):
                break
        if unsealed is not None:
            self._closed_because = ""
        elif reason != self._closed_because:  # it may be tried every few seconds
            self._closed_because = reason
            _log.warning("the sealed state cannot be opened on this machine", extra={"fields": {"reason": reason}})
        return unsealed


def _mode(deployment: Deployment, before: Deployment | None) -> SealMode:
    """How to seal: as the manifest says, from the very change on that brings it.

    The change to Disabled itself is written once more, as before it. Otherwise a restart would bring the old manifest
    back, with the users and packages that were meant to be gone (protocol, section 12.3, no. 32).
    """
    mode = seal_mode(deployment.config.seal_mode)
    if mode is not SealMode.DISABLED or before is None:
        return mode
    earlier = seal_mode(before.config.seal_mode)
    if earlier is not SealMode.DISABLED:
        _log.warning("sealing is disabled from now on: a restart will return to the present state, not to later ones")
    return earlier
