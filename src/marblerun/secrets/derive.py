"""Keys that follow from the root secret: the same for a Marble instance on any host, after any restart.

Source: protocol, sections 6.2 and 6.3; RFC 5869 (HKDF).
"""

from __future__ import annotations

from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from marblerun.errors import Malformed

ROOT_SECRET_BYTES: Final = 32
# RFC 5869, section 2.3: at most 255 outputs of the hash.
MAX_DERIVED_BYTES: Final = 255 * 32
_P384_SCALAR_BYTES: Final = 48


def derive_symmetric_key(root_secret: bytes, *, uuid: UUID, name: str, marble_name: str, size: int) -> bytes:
    """``size`` key bytes for the secret ``name`` of one Marble instance.

    HKDF-SHA256 with the root secret as input key, salt = canonical UUID text immediately followed by the secret's
    name, info = ``marble_name``, which is the Marble's type, or empty where secret binding is disabled.
    ``Malformed`` above 8160 bytes, which HKDF cannot give.
    """
    if not 0 < size <= MAX_DERIVED_BYTES:
        raise Malformed(f"a derived key has 1 to {MAX_DERIVED_BYTES} bytes, not {size}", where=f"Secrets.{name}.Size")
    salt = f"{uuid}{name}".encode()
    return HKDF(hashes.SHA256(), size, salt, marble_name.encode()).derive(root_secret)


def legacy_root_secret(root_key: ec.EllipticCurvePrivateKey) -> bytes:
    """The root secret of a state that stores none: the root key's private scalar, 48 bytes, big-endian."""
    return root_key.private_numbers().private_value.to_bytes(_P384_SCALAR_BYTES)
