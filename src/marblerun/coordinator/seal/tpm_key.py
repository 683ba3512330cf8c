"""The form of ``sealed_key`` that a TPM 2.0 seals, and which PCRs it is bound to. Pure.

Integers are little-endian::

    "TPM2SEAL"  version u8 = 1  mode u8 (1 ProductKey, 2 UniqueKey)  hash u16 (TPM_ALG_ID)  PCR bitmap 3
    root name u16 + n   public u16 + n   private u16 + n   nonce 12   ciphertext 16 or 32   tag 16

``public`` and ``private`` are the areas of a TPM object (without their own size fields) that holds a key encryption
key; the data key lies under that key by AES-256-GCM, with everything before the nonce as part of the additional data.
So no byte can be changed unnoticed. ``root name`` is the name of the storage root key: it tells another TPM.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from marblerun.coordinator.seal import EMPTY_KEY, SealMode
from marblerun.errors import Malformed, Misconfigured
from marblerun.secrets.box import KEY_BYTES, LEGACY_KEY_BYTES, NONCE_BYTES, TAG_BYTES
from marblerun.wire.reader import Reader

MAGIC: Final = b"TPM2SEAL"
_VERSION: Final = 1
_MODES: Final = {SealMode.PRODUCT_KEY: 1, SealMode.UNIQUE_KEY: 2}
_WHERE: Final = "sealed_key"
# Largest sizes of a name (SHA-512), and of the areas of an object with 32 bytes inside, with room to spare.
_MAX_NAME: Final = 2 + 64
_MAX_PUBLIC: Final = 256
_MAX_PRIVATE: Final = 512
_BOX_SIZES: Final = tuple(NONCE_BYTES + size + TAG_BYTES for size in (LEGACY_KEY_BYTES, KEY_BYTES))

BANKS: Final = {"sha256": 0x000B, "sha384": 0x000C}
"""Hash algorithms of PCR banks and their TPM_ALG_ID; SHA-1 is not good enough, others are not found in practice."""
PCRS: Final = 24
_BITMAP_BYTES: Final = 3
# 16 (debug) and 23 (application) go back to zero whenever software asks for it.
_RESETTABLE: Final = frozenset({16, 23})
_SELECTION: Final = re.compile(r"(sha256|sha384):([0-9]{1,2}(?:,[0-9]{1,2})*)")


@dataclass(frozen=True, slots=True)
class PcrSelection:
    """PCRs of one bank."""

    bank: str
    pcrs: tuple[int, ...]
    """Ascending, each once."""

    def __str__(self) -> str:
        """As the setting and the TPM's tools write it."""
        return f"{self.bank}:{','.join(map(str, self.pcrs))}"

    def bitmap(self) -> bytes:
        """Three bytes; PCR 0 is the lowest bit of the first."""
        return sum(1 << pcr for pcr in self.pcrs).to_bytes(_BITMAP_BYTES, "little")

    def encode(self) -> bytes:
        """``TPML_PCR_SELECTION`` as the TPM marshals it (big-endian; TPM 2.0 Library part 2)."""
        return b"\0\0\0\1" + BANKS[self.bank].to_bytes(2, "big") + bytes([_BITMAP_BYTES]) + self.bitmap()


DEFAULT_PCRS: Final = PcrSelection("sha256", (0, 2, 4, 7))
"""Firmware, option ROMs, boot loader (or the unified kernel), and Secure Boot's keys and state.

Not 1, 3 and 5: they change with harmless settings and partitions. Not 10 to 15: they change while a system runs.
"""
UNIQUE_PCRS: Final = (8, 9, 12)
"""What ``UniqueKey`` adds: the kernel's command line, the kernel and initial file system that GRUB or the kernel's EFI
stub loads, and what systemd's stub is handed beside the unified kernel."""


def parse_pcrs(text: str) -> PcrSelection:
    """The selection in a setting; raises Misconfigured saying how it has to look."""
    match = _SELECTION.fullmatch(text)
    pcrs = tuple(sorted({int(number) for number in match[2].split(",")})) if match else ()
    if match is None or pcrs[-1] >= PCRS:
        raise Misconfigured(
            f"EDG_COORDINATOR_TPM_PCRS is {text!r}; give a bank, sha256 or sha384, and numbers below {PCRS}: "
            f"{DEFAULT_PCRS}"
        )
    if _RESETTABLE.intersection(pcrs):
        raise Misconfigured("EDG_COORDINATOR_TPM_PCRS names PCR 16 or 23, which any program can set back to zero")
    return PcrSelection(match[1], pcrs)


def pcrs_for(mode: SealMode, selection: PcrSelection) -> PcrSelection:
    """What a seal mode binds to: ``ProductKey`` to the selection, ``UniqueKey`` also to the exact system behind it."""
    if mode is SealMode.DISABLED:
        raise ValueError("with sealing disabled nothing is sealed")
    if mode is SealMode.PRODUCT_KEY:
        return selection
    return PcrSelection(selection.bank, tuple(sorted({*selection.pcrs, *UNIQUE_PCRS})))


@dataclass(frozen=True, slots=True)
class TpmObject:
    """A key encryption key as the TPM gave it out, with what it is bound to."""

    mode: SealMode
    selection: PcrSelection
    root_name: bytes
    public: bytes
    private: bytes

    def encode(self) -> bytes:
        """Everything before the nonce."""
        fixed = MAGIC + bytes([_VERSION, _MODES[self.mode]])
        selected = BANKS[self.selection.bank].to_bytes(2, "little") + self.selection.bitmap()
        parts = (self.root_name, self.public, self.private)
        return fixed + selected + b"".join(len(part).to_bytes(2, "little") + part for part in parts)


@dataclass(frozen=True, slots=True)
class TpmSealedKey:
    """A sealed data key taken apart; nothing is opened or trusted yet."""

    object: TpmObject
    box: bytes
    """Nonce, ciphertext and tag."""


def is_tpm_sealed(sealed: bytes) -> bool:
    """Whether a sealed key says that a TPM sealed it."""
    return sealed.startswith(MAGIC)


def parse_tpm_key(sealed: bytes) -> TpmSealedKey:
    """The parts of a key that a TPM sealed; Malformed for anything else, a byte too many included."""
    reader = Reader(sealed, _WHERE)
    if not sealed:
        raise Malformed(EMPTY_KEY, where=_WHERE)
    if not is_tpm_sealed(sealed):
        raise Malformed("it was not sealed by a TPM", where=_WHERE)
    reader.take(len(MAGIC), "magic")
    version, mode = reader.take(2, "version and mode")
    modes = [name for name, number in _MODES.items() if number == mode]
    if version != _VERSION or not modes:
        raise Malformed(f"version {version} with mode {mode} is unknown", where=_WHERE)
    selection = _selection(reader.u16("hash"), reader.take(_BITMAP_BYTES, "PCRs"))
    name = _part(reader, _MAX_NAME, "root name")
    public = _part(reader, _MAX_PUBLIC, "public")
    private = _part(reader, _MAX_PRIVATE, "private")
    if reader.remaining not in _BOX_SIZES:
        raise Malformed(f"{reader.remaining} bytes are left for the key", where=_WHERE)
    return TpmSealedKey(TpmObject(modes[0], selection, name, public, private), reader.take(reader.remaining, "key"))


def _selection(bank: int, bitmap: bytes) -> PcrSelection:
    names = [name for name, number in BANKS.items() if number == bank]
    bits = int.from_bytes(bitmap, "little")
    if not names or not bits:
        raise Malformed("no PCR of a known bank is selected", where=_WHERE)
    return PcrSelection(names[0], tuple(pcr for pcr in range(PCRS) if bits >> pcr & 1))


def _part(reader: Reader, most: int, field: str) -> bytes:
    size = reader.u16(f"size of {field}")
    if not 0 < size <= most:
        raise Malformed(f"{field} has {size} bytes; 1 to {most} are possible", where=_WHERE)
    return reader.take(size, field)
