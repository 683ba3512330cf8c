"""Recovery material: what the holders of recovery keys get, and how their signatures are checked.

Source: protocol, sections 10.3, 10.7 and 10.9; RFC 8017 (RSA-OAEP, RSASSA-PKCS1-v1_5).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from marblerun.errors import Untrusted
from marblerun.secrets.shares import MAX_SHARES, SECRET_BYTES, Entropy, split_shamir, split_xor
from marblerun.wire.gojson import boolean, mapping, marshal, optional, unmarshal

# A Shamir share of a 32-byte secret; the length tells it from the others (protocol, section 10.7).
SHARE_BYTES: Final = SECRET_BYTES + 1
NO_RECOVERY_DATA: Final = b"null"

_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
_MAP = optional(mapping(boolean))


@dataclass(frozen=True, slots=True, repr=False)
class RecoveryMaterial:
    """A new data key with what makes it recoverable."""

    key: bytes
    """The data key, 32 bytes."""
    shares: Mapping[str, bytes]
    """By the name of the recovery key: its share, encrypted for it. Empty if there are no recovery keys."""
    recovery_data: bytes
    """R, which lies in the clear beside the state."""


def make_recovery(keys: Mapping[str, rsa.RSAPublicKey], threshold: int, entropy: Entropy) -> RecoveryMaterial:
    """A fresh data key and the encrypted shares from which it can be recovered.

    ``threshold`` 0 means all; 1 and more than there are keys are ``ValueError``, because the manifest's checks refuse
    them. One key gets the data key itself, several get XOR secrets or, below "all", Shamir shares.
    """
    count = len(keys)
    if threshold == 1 or not 0 <= threshold <= count <= MAX_SHARES:
        raise ValueError(f"a threshold of {threshold} with {count} recovery keys")
    shares: tuple[bytes, ...]
    if count <= 1:
        key = entropy.token(SECRET_BYTES)
        shares = (key,) * count
    elif threshold in (0, count):
        key, shares = split_xor(count, entropy)
    else:
        key = entropy.token(SECRET_BYTES)
        shares = split_shamir(key, count=count, threshold=threshold, entropy=entropy)
    encrypted = {
        name: public_key.encrypt(share, _OAEP) for (name, public_key), share in zip(keys.items(), shares, strict=True)
    }
    return RecoveryMaterial(key, encrypted, build_recovery_data(shares) if count > 1 else NO_RECOVERY_DATA)


def build_recovery_data(shares: tuple[bytes, ...]) -> bytes:
    """R for several shares: a JSON object with the hash of each as a key."""
    return marshal({share_id(share): True for share in shares})


def share_id(share: bytes) -> str:
    """How a share is named in R: its SHA-256, lower-case hex."""
    return hashlib.sha256(share).hexdigest()


def parse_recovery_data(data: bytes) -> frozenset[str] | None:
    """The hashes of the shares in R, or ``None`` if the data key is with a single holder, with nobody, or R is lost.

    ``Malformed`` if there is something else.
    """
    found = unmarshal(data, _MAP) if data else None
    return None if found is None else frozenset(found)


def verify_recovery_signatures(
    signatures: Mapping[bytes, bytes], keys: Mapping[str, rsa.RSAPublicKey], threshold: int
) -> None:
    """Return if as many of the recovery keys as are needed signed the secrets that led to the state.

    ``signatures`` maps each plain secret that was used to the signature given with it; ``keys`` and ``threshold`` are
    those of the manifest *inside* the recovered state. Steps, each ``Untrusted`` when it fails:

    1. ``recovery-keys``: the manifest names recovery keys at all.
    2. ``recovery-secrets``: exactly as many secrets were used as are needed.
    3. ``recovery-signature``: each signature is by a recovery key, and no two by the same one.
    """
    # 1
    if not keys:
        raise Untrusted("the state names no recovery keys", step="recovery-keys", reason="missing")
    # 2
    needed = threshold or len(keys)
    if len(signatures) != needed:
        found = f"{len(signatures)} secrets were given where exactly {needed} are needed"
        raise Untrusted(found, step="recovery-secrets", reason="mismatch")
    # 3
    unused = dict(keys)
    for secret, signature in signatures.items():
        signer = signer_of(secret, signature, unused)
        if signer is None:
            raise Untrusted(
                f"the signature of the secret {share_id(secret)[:16]} is by none of the recovery keys, or by one that "
                "was already used",
                step="recovery-signature",
                reason="bad-signature",
            )
        del unused[signer]


def signer_of(secret: bytes, signature: bytes, keys: Mapping[str, rsa.RSAPublicKey]) -> str | None:
    """By which of ``keys`` the plain secret was signed; the first of several, ``None`` if it is none."""
    return next((name for name, key in keys.items() if _is_signature(key, secret, signature)), None)


def _is_signature(key: rsa.RSAPublicKey, secret: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, secret, padding.PKCS1v15(), hashes.SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True
