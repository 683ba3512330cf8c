"""ECDSA P-256 signatures and keys in the raw form of quotes and collateral."""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from marblerun.errors import Untrusted

RAW_SIGNATURE_BYTES: Final = 64
ECDSA_SHA256: Final = ec.ECDSA(hashes.SHA256())
_P256: Final = ec.SECP256R1()


def verify_raw_signature(
    key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes, *, step: str, what: str
) -> None:
    """Untrusted of ``step`` unless ``signature`` (64 bytes ``r || s``, big-endian) by ``key`` covers ``message``."""
    if len(signature) != RAW_SIGNATURE_BYTES:
        raise Untrusted(f"the signature of {what} is {len(signature)} bytes long", step=step, reason="bad-signature")
    encoded = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    try:
        key.verify(encoded, message, ECDSA_SHA256)
    except InvalidSignature as error:
        raise Untrusted(f"the signature of {what} is wrong", step=step, reason="bad-signature") from error


def read_raw_key(raw: bytes, *, step: str) -> ec.EllipticCurvePublicKey:
    """The P-256 key in ``raw`` (64 bytes ``x || y``); Untrusted of ``step`` if that is no point of the curve."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(_P256, b"\x04" + raw)
    except ValueError as error:
        raise Untrusted("the attestation key is not a point of P-256", step=step, reason="bad-key") from error
