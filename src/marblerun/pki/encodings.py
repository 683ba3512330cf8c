"""Keys and certificates as bytes: PEM, PKCS#8, SEC1 and SubjectPublicKeyInfo.

Source: RFC 7468 (PEM), RFC 5958 (PKCS#8), RFC 5915 (SEC1); protocol, sections 2.8, 11.1 and 16.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from marblerun.errors import Malformed
from marblerun.pki import der
from marblerun.pki.signatures import PublicKey
from marblerun.wire.pem import encode_pem

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

CERTIFICATE: Final = "CERTIFICATE"
PRIVATE_KEY: Final = "PRIVATE KEY"

_NO_ENCRYPTION = serialization.NoEncryption()

_EC_PUBLIC_KEY: Final = der.oid("1.2.840.10045.2.1")
_CURVES: Final = {
    "secp224r1": ("1.3.132.0.33", 28),
    "secp256r1": ("1.2.840.10045.3.1.7", 32),
    "secp384r1": ("1.3.132.0.34", 48),
    "secp521r1": ("1.3.132.0.35", 66),
}
"""OID and bytes of a coordinate. Source: RFC 5480, section 2.1.1.1."""


def _before_point(curve: str, size: int) -> bytes:
    """What is before the point in a SubjectPublicKeyInfo of this curve."""
    info = der.sequence(der.sequence(_EC_PUBLIC_KEY, der.oid(curve)), der.bit_string(bytes(1 + 2 * size)))
    return info[: -1 - 2 * size]


_BEFORE_POINT: Final = {name: (_before_point(*curve), 1 + 2 * curve[1]) for name, curve in _CURVES.items()}
# No unused bits, then an uncompressed point.
_POINT_BEGINS: Final = b"\x00\x04"


def certificate_pem(data: bytes) -> str:
    """A certificate's DER as PEM."""
    return encode_pem(data, CERTIFICATE)


def private_key_pem(data: bytes) -> str:
    """A key's PKCS#8 DER as PEM."""
    return encode_pem(data, PRIVATE_KEY)


def pkcs8(key: PrivateKey) -> bytes:
    """PKCS#8 DER: EC with the public key inside and the curve outside, Ed25519 as its 32-byte seed."""
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, _NO_ENCRYPTION)


def encoded_pair(key: PrivateKey) -> tuple[bytes, bytes]:
    """PKCS#8 and SubjectPublicKeyInfo DER of a key of our own.

    An EC key's PKCS#8 form ends with its point, and having OpenSSL encode the point once more costs as much as
    encoding the whole key.
    """
    private = pkcs8(key)
    if isinstance(key, ec.EllipticCurvePrivateKey) and (known := _BEFORE_POINT.get(key.curve.name)):
        prefix, size = known
        if private[-size - 1 : -size + 1] == _POINT_BEGINS:
            return private, prefix + private[-size:]
    return private, public_key_info(key.public_key())


def sec1(key: ec.EllipticCurvePrivateKey) -> bytes:
    """SEC1 DER with named curve and public key: the form of keys in the store (protocol, section 11.1)."""
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, _NO_ENCRYPTION)


def load_sec1(data: bytes) -> ec.EllipticCurvePrivateKey:
    """The EC key in SEC1 DER; ``Malformed`` if it is something else."""
    try:
        key = serialization.load_der_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Malformed("stored private key cannot be read") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Malformed("stored private key is not an EC key")
    return key


def public_key_info(key: PublicKey) -> bytes:
    """SubjectPublicKeyInfo (PKIX) DER."""
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
