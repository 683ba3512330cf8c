"""The formats of sealed state: the data with its recovery header, and the data key sealed beside it.

``sealed_data`` is ``LE32(len(R)) || R || nonce(12) || AES-GCM ciphertext || tag(16)``; R, the recovery data, is
readable without a key and is not authenticated by this layer. ``sealed_key`` is bound to the complete ``sealed_data``
by its additional data. Source: protocol, sections 10.1, 10.2 and 11.3.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from marblerun.errors import Malformed, Untrusted
from marblerun.wire.gojson import byte_string, mapping, marshal, unmarshal
from marblerun.wire.limits import MAX_SEALED_STATE_BYTES, MAX_STATE_ENTRIES

KEY_BYTES: Final = 32
# Releases of the reference before 1.9.0 (protocol, section 10.1).
LEGACY_KEY_BYTES: Final = 16
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
# sgx_key_request_t (Intel SGX SDK); the enclave form of the sealed key holds two of them.
KEY_INFO_BYTES: Final = 512
HSM_PREFIX: Final = b"HSM_SEALED"
_LENGTH_BYTES: Final = 4
_OBJECT_START: Final = b'{"'
_ENTRIES = mapping(byte_string)


class SealKeys(Protocol):
    """A platform's sealing keys: each belongs to a piece of public key information."""

    def new_key(self) -> tuple[bytes, bytes]:
        """512 bytes of key information with a fresh random key id, and its 16-byte key."""

    def key_for(self, info: bytes) -> bytes:
        """The 16-byte key for 512 bytes of key information; ``Untrusted`` or ``Unavailable`` if there is none here."""


@dataclass(frozen=True, slots=True)
class SealedData:
    """``sealed_data`` taken apart; nothing is decrypted or trusted yet."""

    recovery_data: bytes
    """R as it lies there: JSON text, ``null``, or empty, which means lost."""
    box: bytes
    """Nonce, ciphertext and tag."""


def parse_sealed_data(data: bytes) -> SealedData:
    """The parts of ``sealed_data``.

    ``Malformed`` for 4 bytes or fewer, for a length that points past the end, and above 256 MiB. Whether the rest can
    be opened shows only with the key.
    """
    if len(data) <= _LENGTH_BYTES:
        raise Malformed(f"sealed data has only {len(data)} bytes", where="sealed_data")
    if len(data) > MAX_SEALED_STATE_BYTES:
        raise Malformed(f"sealed data has more than {MAX_SEALED_STATE_BYTES} bytes", where="sealed_data")
    start = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little")
    if start > len(data):
        raise Malformed("the recovery data's length points past the end", where="sealed_data")
    return SealedData(data[_LENGTH_BYTES:start], data[start:])


def open_sealed_data(key: bytes, data: bytes) -> dict[str, bytes]:
    """The entries of the state in ``sealed_data``, by store key; empty if there is no state.

    ``key`` is the data key, 32 bytes or 16 from old releases. ``Malformed`` if the bytes cannot be taken apart,
    ``Untrusted`` (step ``sealed-data``) if the key does not open them or is of another size.
    """
    plaintext = _open(key, parse_sealed_data(data).box, None, step="sealed-data", where="sealed_data")
    return unmarshal(plaintext, _ENTRIES, max_values=MAX_STATE_ENTRIES) if plaintext else {}


def is_data_key(key: bytes, data: bytes) -> bool:
    """Whether ``key`` opens ``sealed_data``; cheap for a wrong one, however large the state is.

    What is inside begins like any JSON object, and GCM is counter mode underneath, so two bytes decide nearly always.
    Only the tag says yes.
    """
    if len(key) not in (KEY_BYTES, LEGACY_KEY_BYTES):
        return False
    box = parse_sealed_data(data).box
    nonce, ciphertext = box[:NONCE_BYTES], box[NONCE_BYTES:-TAG_BYTES]
    if len(box) < NONCE_BYTES + TAG_BYTES:
        return False
    # The first block is encrypted under counter 2 (NIST SP 800-38D, section 7.1).
    counter = modes.CTR(nonce + (2).to_bytes(4, "big"))
    beginning = Cipher(algorithms.AES(key), counter).decryptor().update(ciphertext[: len(_OBJECT_START)])
    if ciphertext and beginning != _OBJECT_START:
        return False
    try:
        AESGCM(key).decrypt(nonce, box[NONCE_BYTES:], None)
    except InvalidTag:
        return False
    return True


def build_sealed_data(key: bytes, recovery_data: bytes, entries: Mapping[str, bytes], nonce: bytes) -> bytes:
    """``sealed_data`` for the entries of a state, under a 12-byte nonce that is used only once with this key.

    ``Malformed`` above 256 MiB: it could be written, but not read again.
    """
    box = _seal(key, marshal(entries), nonce, None)
    data = len(recovery_data).to_bytes(_LENGTH_BYTES, "little") + recovery_data + box
    if len(data) > MAX_SEALED_STATE_BYTES:
        raise Malformed(f"the state would have more than {MAX_SEALED_STATE_BYTES} bytes", where="sealed_data")
    return data


def replace_recovery_data(data: bytes, recovery_data: bytes) -> bytes:
    """``sealed_data`` with another recovery header; possible without the key, which is why nobody trusts it."""
    box = parse_sealed_data(data).box
    return len(recovery_data).to_bytes(_LENGTH_BYTES, "little") + recovery_data + box


def additional_data(sealed_data: bytes) -> bytes:
    """What binds a sealed key to the state it belongs to: SHA-256 of the complete ``sealed_data``."""
    return hashlib.sha256(sealed_data).digest()


def seal_key(kek: bytes, key: bytes, additional: bytes, nonce: bytes) -> bytes:
    """The data key under a key encryption key, as in distributed mode."""
    return _seal(kek, key, nonce, additional)


def open_key(kek: bytes, sealed: bytes, additional: bytes) -> bytes:
    """The data key in the distributed form; ``Untrusted`` (step ``sealed-key``) if it does not open."""
    return _data_key(_open(kek, sealed, additional, step="sealed-key", where="sealed_key"))


def seal_key_enclave(keys: SealKeys, key: bytes, additional: bytes, nonce: bytes) -> bytes:
    """The data key under two fresh platform keys, whose key information goes in front."""
    (info_1, part_1), (info_2, part_2) = keys.new_key(), keys.new_key()
    if len(info_1) != KEY_INFO_BYTES or len(info_2) != KEY_INFO_BYTES:
        raise ValueError(f"key information has {KEY_INFO_BYTES} bytes")
    header = (2 * KEY_INFO_BYTES).to_bytes(_LENGTH_BYTES, "little")
    return header + info_1 + info_2 + _seal(part_1 + part_2, key, nonce, additional)


def open_key_enclave(keys: SealKeys, sealed: bytes, additional: bytes) -> bytes:
    """The data key in the enclave form, or in the form with one platform key that older releases wrote.

    ``Malformed`` if the bytes cannot be taken apart; ``Untrusted`` (step ``sealed-key``) if this platform's keys do
    not open it or it belongs to another state. What ``keys`` raises is passed on.
    """
    size = int.from_bytes(sealed[:_LENGTH_BYTES], "little")
    if size not in (KEY_INFO_BYTES, 2 * KEY_INFO_BYTES) or len(sealed) < _LENGTH_BYTES + size:
        raise Malformed("key information is missing or of unknown size", where="sealed_key")
    ends = range(_LENGTH_BYTES, _LENGTH_BYTES + size, KEY_INFO_BYTES)
    kek = b"".join(keys.key_for(sealed[at : at + KEY_INFO_BYTES]) for at in ends)
    box = sealed[_LENGTH_BYTES + size :]
    return _data_key(_open(kek, box, additional, step="sealed-key", where="sealed_key"))


def is_hsm_sealed(sealed: bytes) -> bool:
    """Whether a sealed key is wrapped once more by an HSM's key."""
    return sealed.startswith(HSM_PREFIX)


def wrap_hsm(hsm_key: bytes, sealed: bytes, nonce: bytes) -> bytes:
    """A sealed key of any form, wrapped under the HSM's key."""
    return HSM_PREFIX + _seal(hsm_key, sealed, nonce, None)


def unwrap_hsm(hsm_key: bytes, wrapped: bytes) -> bytes:
    """The sealed key inside; ``Untrusted`` (step ``hsm-seal``) if the HSM's key does not open it."""
    if not is_hsm_sealed(wrapped):
        raise Malformed("not sealed by an HSM", where="sealed_key")
    return _open(hsm_key, wrapped[len(HSM_PREFIX) :], None, step="hsm-seal", where="sealed_key")


def _data_key(key: bytes) -> bytes:
    if len(key) not in (KEY_BYTES, LEGACY_KEY_BYTES):
        raise Malformed(f"a data key has {KEY_BYTES} or {LEGACY_KEY_BYTES} bytes, not {len(key)}", where="sealed_key")
    return key


def _seal(key: bytes, plaintext: bytes, nonce: bytes, additional: bytes | None) -> bytes:
    if len(nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
    return nonce + AESGCM(key).encrypt(nonce, plaintext, additional)


def _open(key: bytes, box: bytes, additional: bytes | None, *, step: str, where: str) -> bytes:
    if len(box) < NONCE_BYTES + TAG_BYTES:
        raise Malformed("truncated", where=where)
    if len(key) not in (KEY_BYTES, LEGACY_KEY_BYTES):
        raise Untrusted("the key has a size that AES does not know", step=step, reason="bad-key")
    try:
        return AESGCM(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], additional)
    except InvalidTag as error:
        raise Untrusted("the key does not open it, or it was changed", step=step, reason="bad-seal") from error
