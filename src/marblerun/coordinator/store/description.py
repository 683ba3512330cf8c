"""What can be known about sealed state without its key. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.seal.platform import parse_key_request
from marblerun.coordinator.seal.tpm_key import is_tpm_sealed, parse_tpm_key
from marblerun.errors import Malformed
from marblerun.secrets.box import (
    KEY_BYTES,
    KEY_INFO_BYTES,
    LEGACY_KEY_BYTES,
    NONCE_BYTES,
    TAG_BYTES,
    is_data_key,
    is_hsm_sealed,
    parse_sealed_data,
)
from marblerun.secrets.recovery import parse_recovery_data

_OVERHEAD: Final = NONCE_BYTES + TAG_BYTES


@dataclass(frozen=True, slots=True)
class DataDescription:
    """``sealed_data`` from outside."""

    sha256: str
    size: int
    state_size: int
    """Of the sealed entries (JSON), in bytes; below 0 if the file is too short to hold any."""
    recovery: str
    """Who can recover it, as far as that is written in the clear."""
    recovery_secrets: int | None
    """How many recovery secrets are listed; ``None`` where no list is there."""


@dataclass(frozen=True, slots=True)
class KeyDescription:
    """``sealed_key`` from outside."""

    form: str
    size: int
    opens: bool | None = None
    """Whether it opens the state; ``None`` where only the machine that sealed it can tell."""


def describe_data(data: bytes) -> DataDescription:
    """The outside of ``sealed_data``; raises Malformed where it has none."""
    parsed = parse_sealed_data(data)
    recovery, count = _describe_recovery(parsed.recovery_data)
    return DataDescription(
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        state_size=len(parsed.box) - _OVERHEAD,
        recovery=recovery,
        recovery_secrets=count,
    )


def _describe_recovery(recovery_data: bytes) -> tuple[str, int | None]:
    if not recovery_data:
        return "the list of recovery secrets is lost; all holders together can recover", None
    try:
        listed = parse_recovery_data(recovery_data)
    except Malformed:
        return "the list of recovery secrets is damaged; all holders together can recover", None
    if listed is None:
        return "the holder of a single recovery key, or nobody", None
    return f"the holders of {len(listed)} recovery secrets; how many are needed is inside the state", len(listed)


def describe_key(key: bytes, data: bytes) -> KeyDescription:
    """The outside of ``sealed_key`` beside its ``sealed_data``."""
    size = len(key)
    if not key:
        return KeyDescription("empty: sealed by a machine without a sealing key; every start needs recovery", 0, False)
    if size in (KEY_BYTES, LEGACY_KEY_BYTES):
        return KeyDescription("in the CLEAR (written in simulation)", size, _opens(key, data))
    if is_hsm_sealed(key):
        return KeyDescription("wrapped by an HSM", size)
    if is_tpm_sealed(key):
        return KeyDescription(_describe_tpm(key), size)
    if size in (_OVERHEAD + KEY_BYTES, _OVERHEAD + LEGACY_KEY_BYTES):
        return KeyDescription("sealed by a key that several Coordinators share", size)
    return KeyDescription(_describe_enclave(key), size)


def _opens(key: bytes, data: bytes) -> bool:
    try:
        return is_data_key(key, data)
    except Malformed:
        return False


def _describe_tpm(key: bytes) -> str:
    try:
        found = parse_tpm_key(key).object
    except Malformed:
        return "sealed to a TPM 2.0, but damaged"
    return f"sealed to the TPM 2.0 of one machine while its PCRs {found.selection} stay as they are ({found.mode})"


def _describe_enclave(key: bytes) -> str:
    count, rest = divmod(int.from_bytes(key[:4], "little"), KEY_INFO_BYTES)
    if rest or count not in (1, 2) or len(key) < 4 + count * KEY_INFO_BYTES + _OVERHEAD:
        return "unknown, or damaged"
    age = "" if count == 2 else ", by an older release"
    try:
        request = parse_key_request(key[4 : 4 + KEY_INFO_BYTES])
    except Malformed:
        return f"sealed to an enclave on one machine{age}"
    policy = "its exact code" if request.mode is SealMode.UNIQUE_KEY else "its signer and product"
    version = request.security_version
    return f"sealed to an enclave on one machine{age}: {policy} ({request.mode}), security version {version} or later"
