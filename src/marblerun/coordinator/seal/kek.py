"""The key encryption key (KEK): what several Coordinators on one state have in common (protocol, section 11.3).

The state is sealed under the data key, the data key under the KEK, and the KEK on every machine under that machine's
own sealing key, in an entry of its own. So an instance that starts where one has run before needs nobody; any other
one asks its like for the KEK (``server/sharing``) or waits for a recovery.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from hmac import compare_digest
from typing import Final, Protocol

from marblerun.coordinator.seal import MachineSealer, SealMode, is_vouching
from marblerun.errors import Malformed, MarbleRunError, Unavailable, Untrusted
from marblerun.pki.issue import Entropy
from marblerun.secrets.box import KEY_BYTES, NONCE_BYTES, open_key, seal_key

_log = logging.getLogger(__name__)

KEK_BYTES: Final = KEY_BYTES
# States are written several times a second; what could not be kept just now cannot be kept at the next write, either.
RETRY_SECONDS: Final = 30.0
_NOTHING: Final = b""


class KekMap(Protocol):
    """Sealed KEKs by machine, where all instances can read and write them; nobody relies on what it says."""

    def load(self, entry: str) -> bytes | None:
        """What is kept under ``entry``, ``None`` if there is nothing; raises Unavailable."""

    def save(self, entry: str, value: bytes) -> None:
        """Keep ``value`` under ``entry`` and leave all others as they are; raises Unavailable."""


class KekSealer:
    """Seals data keys under the KEK. May be used from several threads.

    The KEK is made once, for the first state of a deployment, and then handed on; it is never shown in texts.
    """

    def __init__(
        self, inner: MachineSealer, kek_map: KekMap, entropy: Entropy, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._inner = inner
        self._map = kek_map
        self._entropy = entropy
        self._clock = clock
        self._kek: bytes | None = None
        self._is_settled = False  # whether a stored state is sealed under it
        self._latest: bytes | None = None  # under which the key is that was sealed or looked at last, if known
        self._offered: bytes | None = None
        self._kept_as: SealMode | None = None  # how the KEK was sealed when it was kept last, if it was
        self._failed_at: float | None = None
        self._outdated = False
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"KekSealer({self._inner.name})"

    @property
    def name(self) -> str:
        """What holds the KEK on this machine."""
        return f"key encryption key under {self._inner.name}"

    @property
    def vouches(self) -> bool:
        """As the sealing key of this machine does: the KEK goes from one enclave to its like and nowhere else."""
        return is_vouching(self._inner)

    @property
    def kek(self) -> bytes | None:
        """The KEK, 32 bytes, once a stored state is sealed under it."""
        return self._kek if self._is_settled else None

    @property
    def outdated(self) -> bool:
        """Whether the latest sealed key that was looked at is under another KEK, which is not known here."""
        return self._outdated

    def is_kept_as(self, mode: SealMode) -> bool:
        """Whether this machine keeps the KEK, sealed as ``mode`` says."""
        return self._kept_as is _sealing(mode)

    # -- data keys -----------------------------------------------------------------------------------------------

    def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
        """The data key under the KEK; makes a KEK if none is known, which counts once the state is stored.

        Every mode, also Disabled, gives the same form: the mode decides how the KEK is kept.
        """
        with self._lock:
            if self._kek is None:
                self._kek = self._entropy.token(KEK_BYTES)
                self._kept_as = self._failed_at = None
                _log.info("a key encryption key was made")
            self._latest = self._kek
            return seal_key(self._kek, key, additional, self._entropy.token(NONCE_BYTES))

    def unseal(self, sealed: bytes, additional: bytes) -> bytes:
        """The data key, by the KEK in memory, the one that was offered, or else the one that this machine keeps.

        The KEK that opens it is the one from now on; but a deployment's own stays until :meth:`settled` says that the
        state behind it is believed, as anybody may have put another one there. Raises Untrusted (step ``sealed-key``)
        if none opens it, Unavailable if none can be had here, Malformed for bytes that are none.
        """
        with self._lock:
            self._latest = None
            for kek in (self._kek, self._offered):
                try:
                    if kek is not None:
                        return self._opened(kek, sealed, additional)
                except Untrusted:
                    continue
            self._outdated = self._is_settled
            return self._opened(self.kept(), sealed, additional)

    def _opened(self, kek: bytes, sealed: bytes, additional: bytes) -> bytes:
        key = open_key(kek, sealed, additional)
        self._latest, self._outdated, self._offered = kek, False, None
        if not self._is_settled:
            self._adopt(kek)
        return key

    def _adopt(self, kek: bytes) -> None:
        if self._kek is None or not compare_digest(self._kek, kek):
            self._kek, self._kept_as, self._failed_at = kek, None, None
        self._is_settled, self._outdated = True, False

    def offer(self, kek: bytes) -> None:
        """Try this one, too, at the next :meth:`unseal`; an earlier offer is forgotten.

        Whoever offers it has been verified to be a Coordinator like this one, but may serve another deployment: only
        the present state shows whether it is the one. Raises Malformed for what is no KEK.
        """
        if len(kek) != KEK_BYTES:
            raise Malformed(f"a key encryption key has {KEK_BYTES} bytes, not {len(kek)}", where="key")
        self._offered = kek  # without the lock: whoever holds it may be waiting for the map

    # -- life of the KEK -----------------------------------------------------------------------------------------

    def settled(self, mode: SealMode) -> None:
        """What was sealed or unsealed last belongs to the stored state, and that is believed; never raises.

        So its KEK is the deployment's: it is kept for this machine as ``mode`` says.
        """
        with self._lock:
            if self._latest is not None:
                self._adopt(self._latest)
            self.keep(mode)

    def keep(self, mode: SealMode) -> None:
        """Keep the deployment's KEK for this machine as ``mode`` says; never raises.

        Nothing happens if it is kept so already. A Coordinator that cannot keep it goes on, but cannot restart alone;
        it tries again at a later call.
        """
        with self._lock:
            if not self._is_settled:
                return
            now = self._clock()
            if self.is_kept_as(mode) or (self._failed_at is not None and now - self._failed_at < RETRY_SECONDS):
                return
            try:
                self.export(mode)
            except MarbleRunError as error:
                self._failed_at = now
                fields = {"reason": str(error)}
                _log.error("the key encryption key could not be kept for this machine", extra={"fields": fields})

    def export(self, mode: SealMode) -> None:
        """Keep the KEK for this machine, sealed as ``mode`` says: with Disabled, too, to exactly this enclave.

        Raises what the sealing key and the map raise; ValueError if there is no KEK.
        """
        with self._lock:
            if self._kek is None:
                raise ValueError("there is no key encryption key to keep")
            entry = self._entry()
            self._map.save(entry, self._inner.seal(self._kek, _sealing(mode), _NOTHING))
            self._kept_as, self._failed_at = _sealing(mode), None
        _log.info("the key encryption key is kept for this machine", extra={"fields": {"entry": entry}})

    def kept(self) -> bytes:
        """The KEK that this machine keeps. Raises Unavailable if it keeps none, Untrusted if it does not open here.

        The form is that of the machine's sealing key, older releases' form with one platform key included (protocol,
        section 10.2).
        """
        entry = self._entry()
        sealed = self._map.load(entry)
        if sealed is None:
            raise Unavailable(f"no key encryption key is kept for this machine (entry {entry})")
        kek = self._inner.unseal(sealed, _NOTHING)
        if len(kek) != KEK_BYTES:
            raise Malformed(f"a key encryption key has {KEK_BYTES} bytes, not {len(kek)}", where=f"entry {entry}")
        return kek

    def _entry(self) -> str:
        return self._inner.machine_id().hex()


def _sealing(mode: SealMode) -> SealMode:
    """How the KEK is sealed: there is always an entry, so Disabled is the stricter of the two."""
    return SealMode.PRODUCT_KEY if mode is SealMode.PRODUCT_KEY else SealMode.UNIQUE_KEY
