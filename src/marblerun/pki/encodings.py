"""Keys and certificates as bytes: PEM, PKCS#8, SEC1 and SubjectPublicKeyInfo.

Source: RFC 7468 (PEM), RFC 5958 (PKCS#8), RFC 5915 (SEC1); protocol, sections 2.8, 11.1 and 16.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from marblerun.errors import Malformed
from marblerun.pki.signatures import PublicKey
from marblerun.wire.pem import encode_pem

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey

CERTIFICATE: Final = "CERTIFICATE"
PRIVATE_KEY: Final = "PRIVATE KEY"

_NO_ENCRYPTION = serialization.NoEncryption()


def certificate_pem(data: bytes) -> str:
    """A certificate's DER as PEM."""
    return encode_pem(data, CERTIFICATE)


def private_key_pem(key: PrivateKey) -> str:
    """A key as PKCS#8 PEM."""
    return encode_pem(pkcs8(key), PRIVATE_KEY)


def pkcs8(key: PrivateKey) -> bytes:
    """PKCS#8 DER: EC with the public key inside and the curve outside, Ed25519 as its 32-byte seed."""
    return key.private_bytes(serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, _NO_ENCRYPTION)


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
