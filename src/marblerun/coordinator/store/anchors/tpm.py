"""An anchor in a TPM 2.0: a counter that nobody can turn back, and beside it a record of what its value means.

Two NV indices. The counter (``INDEX``, TPM_NT_COUNTER) only goes up, by one, whoever asks. The record (``INDEX`` + 1)
names the state that belongs to its value, but whoever has the owner's authorization can rewrite it. So the value that
the counter will have is sealed with each state, as its stamp: the record is a hint, and counter and seal decide.

One step is: seal the state with the next value, store it, write the record of both values, count. The counting is the
moment of truth; before it the record says where the history stood, and the state that is stored is the next one.

Removing the counter does not help either: a new one begins above the highest value that any counter of this TPM ever
had (TPM 2.0 Library part 3, TPM2_NV_Increment), and a state that has a stamp is not believed where there is no counter.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from marblerun.coordinator.seal.tpm_device import (
    DEFAULT_TCTI,
    RC_HANDLE,
    RC_NV_UNINITIALIZED,
    Tpm,
    TpmRefusal,
    open_tpm,
    parse_tcti,
    tpm_code,
)
from marblerun.coordinator.store.lineage import Mark
from marblerun.errors import Misconfigured, Unavailable, Untrusted

FIRST_INDEX: Final = 0x0100_0000
LAST_INDEX: Final = 0x01FF_FFFF
# A write that fails leaves a value behind that was sealed but not counted. More than this many in a row share one.
MAX_AHEAD: Final = 16
# Both values, the lower one first; number 0 is no state.
_RECORD: Final = struct.Struct("<QQ32sQQ32s")
_COUNTER_BYTES: Final = 8
_STAMP: Final = struct.Struct("<16sQ")
_NO_HEAD: Final = bytes(32)
_MAX_SEQUENCE: Final = 10**18


@dataclass(frozen=True, slots=True)
class _Entry:
    """The state that belongs to a value of the counter."""

    value: int
    mark: Mark | None


@dataclass(frozen=True, slots=True)
class _Found:
    """What the TPM holds; ``value`` 0 where there is no counter, and no ``mark`` where nothing was recorded."""

    identity: bytes
    value: int = 0
    mark: Mark | None = None


class TpmAnchor:
    """A counter and its record, made when the first state is kept. Both can be read and counted up by anybody."""

    def __init__(self, tcti: str | None, nv_index: int) -> None:
        """Nothing is asked yet; raises Misconfigured for an index or a TPM that cannot be."""
        if not FIRST_INDEX <= nv_index < LAST_INDEX:
            raise Misconfigured(f"NV index {nv_index:#x} has no room for two: give 0x01000000 to 0x01fffffe")
        self._tcti = parse_tcti(tcti) if tcti else DEFAULT_TCTI
        self._index = nv_index
        self._name = f"TPM counter {nv_index:#010x}"
        self._known: _Found | None = None
        self._promised = 0
        """The highest value that may be under the seal of a stored state."""
        self._tried = 0
        """The highest value that this process may have counted up to, as far as it knows."""

    def load(self) -> Mark | None:
        """The state that belongs to the counter's value; ``None`` if there is no counter or no record yet."""
        with self._errand() as tpm:
            self._known = self._read(tpm)
        self._promised = max(self._promised, self._known.value)
        return self._known.mark

    def stamp(self) -> bytes:
        """Which TPM and counter this is, and the value that it will have; makes the counter if there is none."""
        known = self._looked()
        if not known.value:
            with self._errand() as tpm:
                known = self._known = self._made(tpm)
            self._promised = known.value
        self._promised = min(max(self._promised, known.value) + 1, known.value + MAX_AHEAD)
        return _STAMP.pack(known.identity, self._promised)

    def verify_stamp(self, stamp: bytes) -> None:
        """Return if the state is the one that was counted last, or one that was stored but not counted.

        Raises Untrusted (step ``anchor``):

        1. no stamp though the counter has a record: reason ``branched``;
        2. the stamp of another TPM or counter, or a counter that is gone: reason ``other-tpm``;
        3. a lower value than the counter's: reason ``older``; one far above it: reason ``branched``.
        """
        known = self._looked()
        # 1.
        if not stamp:
            if known.mark is None:
                return
            raise _doubt(f"the stored state was written without the {self._name}, which is in use", "branched")
        # 2.
        identity, value = _STAMP.unpack(stamp) if len(stamp) == _STAMP.size else (b"", 0)
        if identity != known.identity or not known.value:
            raise _doubt(
                f"the stored state belongs to a counter that is not here: the {self._name} was removed, the TPM was "
                "cleared or is another one",
                "other-tpm",
            )
        # 3.
        if value < known.value:
            raise _doubt(
                f"the stored state is OLDER than the latest one: it was kept when the {self._name} stood at {value}, "
                f"and now it is {known.value}; somebody may have restored a backup",
                "older",
            )
        if value > known.value + MAX_AHEAD:
            raise _doubt(f"the stored state is far ahead of the {self._name} ({value}, not {known.value})", "branched")
        self._promised = value

    def advance(self, mark: Mark) -> None:
        """Record the state and count up to the value that it was stamped with.

        Raises Untrusted (step ``anchor``, reason ``overtaken``) if somebody else has counted, or the counter is gone.
        """
        if not self._looked().value:
            self.stamp()
        known = self._looked()
        target = max(self._promised, known.value + 1)
        with self._errand() as tpm:
            found = self._read(tpm)
            if found.identity != known.identity or not known.value <= found.value <= max(known.value, self._tried):
                raise _doubt(
                    f"the {self._name} is not where this Coordinator left it: it was counted up or removed by somebody "
                    "else; another Coordinator may use this deployment's state",
                    "overtaken",
                )
            self._write_record(tpm, _Entry(found.value, found.mark), _Entry(target, mark))
            for value in range(found.value + 1, target + 1):
                self._tried = value
                self._count(tpm)
                self._known = _Found(known.identity, value, mark)
        self._promised = target

    def _looked(self) -> _Found:
        if self._known is None:
            self.load()
        if self._known is None:
            raise RuntimeError("reading the TPM left nothing behind")
        return self._known

    # -- the TPM -------------------------------------------------------------------------------------------------

    @contextmanager
    def _errand(self) -> Iterator[Tpm]:
        try:
            with open_tpm(self._tcti) as tpm:
                yield tpm
        except TpmRefusal as error:
            raise Unavailable(f"the TPM refuses what the {self._name} needs: {error}") from error

    def _read(self, tpm: Tpm) -> _Found:
        identity = hashlib.sha256(tpm.root_name + self._index.to_bytes(4, "little")).digest()[:16]
        value = self._value(tpm, self._handle(tpm, self._counter_public(tpm)))
        if not value:
            return _Found(identity)
        handle = self._handle(tpm, self._record_public(tpm))
        encoded = _read_index(tpm, handle, _RECORD.size) if handle is not None else b""
        return _Found(identity, value, self._recorded(encoded, value) if encoded else None)

    def _recorded(self, encoded: bytes, value: int) -> Mark | None:
        """What the record says of a value; between its two, and above them, the later state is meant."""
        lower, number_1, head_1, upper, number_2, head_2 = _RECORD.unpack(encoded)
        if lower > upper or max(number_1, number_2) > _MAX_SEQUENCE:
            raise Misconfigured(
                f"the record beside the {self._name} is damaged; only if you are sure that the state is the latest "
                f"one, remove it (NV index {self._index + 1:#010x})"
            )
        number, head = (number_1, head_1) if value <= lower else (number_2, head_2)
        return Mark(number, head) if number else None

    def _write_record(self, tpm: Tpm, lower: _Entry, upper: _Entry) -> None:
        handle = self._handle(tpm, self._record_public(tpm))
        if handle is None:
            handle = self._define(tpm, self._record_public(tpm))
        numbers = []
        for entry in (lower, upper):
            mark = entry.mark or Mark(0, _NO_HEAD)
            numbers += [entry.value, mark.sequence, mark.head]
        with tpm.hmac_session() as session:
            tpm.esapi.nv_write(handle, _RECORD.pack(*numbers), session1=session)

    def _made(self, tpm: Tpm) -> _Found:
        """The counter with its first value, made unless it is there by now."""
        found = self._read(tpm)
        if found.value:
            return found
        if self._handle(tpm, self._counter_public(tpm)) is None:
            self._define(tpm, self._counter_public(tpm))
        self._count(tpm)
        return self._read(tpm)

    def _count(self, tpm: Tpm) -> None:
        handle = self._handle(tpm, self._counter_public(tpm))
        if handle is None:
            raise Unavailable(f"the {self._name} is gone")
        with tpm.hmac_session() as session:
            tpm.esapi.nv_increment(handle, session1=session)

    def _value(self, tpm: Tpm, handle: Any) -> int:
        """The counter's value; 0 if it has none, which a counter never has."""
        return int.from_bytes(_read_index(tpm, handle, _COUNTER_BYTES), "big") if handle is not None else 0

    def _handle(self, tpm: Tpm, expected: Any) -> Any:
        """The index, if it is there; raises Misconfigured if something else has its place."""
        t = tpm.library
        try:
            handle = tpm.esapi.tr_from_tpmpublic(t.TPM2_HANDLE(expected.nvIndex))
        except t.TSS2_Exception as error:
            if tpm_code(error.rc) == RC_HANDLE:
                return None
            raise
        public = tpm.esapi.nv_read_public(handle)[0].nvPublic
        written = int(t.TPMA_NV.WRITTEN)
        shape = (int(public.nameAlg), int(public.attributes) & ~written, int(public.dataSize))
        if shape != (int(expected.nameAlg), int(expected.attributes), int(expected.dataSize)):
            raise Misconfigured(
                f"NV index {int(expected.nvIndex):#010x} of the TPM is used by something else; choose another one"
            )
        return handle

    def _define(self, tpm: Tpm, public: Any) -> Any:
        return tpm.esapi.nv_define_space(b"", tpm.library.TPM2B_NV_PUBLIC(public))

    def _counter_public(self, tpm: Tpm) -> Any:
        t = tpm.library
        return _public(t, self._index, t.TPM2_NT.COUNTER << t.TPMA_NV.TPM2_NT_SHIFT, _COUNTER_BYTES)

    def _record_public(self, tpm: Tpm) -> Any:
        return _public(tpm.library, self._index + 1, 0, _RECORD.size)


def _public(library: Any, index: int, kind: int, size: int) -> Any:
    """An index that is read and written with an empty password, outside the protection against guessing."""
    attributes = kind | library.TPMA_NV.AUTHREAD | library.TPMA_NV.AUTHWRITE | library.TPMA_NV.NO_DA
    return library.TPMS_NV_PUBLIC(nvIndex=index, nameAlg=library.TPM2_ALG.SHA256, attributes=attributes, dataSize=size)


def _read_index(tpm: Tpm, handle: Any, size: int) -> bytes:
    """The content, under a session that authenticates it; empty if nothing was ever written."""
    with tpm.hmac_session() as session:
        try:
            return bytes(tpm.esapi.nv_read(handle, size, session1=session))
        except tpm.library.TSS2_Exception as error:
            if tpm_code(error.rc) == RC_NV_UNINITIALIZED:
                return b""
            raise


def _doubt(message: str, reason: str) -> Untrusted:
    return Untrusted(message, step="anchor", reason=reason)
