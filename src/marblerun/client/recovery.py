"""What the holder of a recovery key does with it, away from any Coordinator (protocol, sections 10.3 and 10.9)."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from marblerun.errors import Malformed

_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)


def load_recovery_key(pem: bytes) -> rsa.RSAPrivateKey:
    """An RSA private key from PKCS#8 or PKCS#1 PEM.

    Raises:
        Malformed: it is something else, or encrypted.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        raise Malformed("is not an unencrypted PEM private key", where="recovery key") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise Malformed("is not an RSA key", where="recovery key")
    return key


def decrypt_recovery_data(key: rsa.RSAPrivateKey, data: bytes) -> bytes:
    """The plain recovery secret. Raises :class:`Malformed` if it was made for another key."""
    try:
        return key.decrypt(data, _OAEP)
    except ValueError:
        raise Malformed("was not encrypted for this recovery key", where="recovery data") from None


def sign_recovery_secret(key: rsa.RSAPrivateKey, secret: bytes) -> bytes:
    """The holder's signature over the plain secret (RSA PKCS#1 v1.5, SHA-256)."""
    return key.sign(secret, padding.PKCS1v15(), hashes.SHA256())


def encrypt_recovery_secret(public_key: bytes, secret: bytes) -> bytes:
    """The plain secret for the eyes of the Coordinator whose ephemeral key (PKIX DER) this is."""
    try:
        key = serialization.load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        raise Malformed("is not a public key", where="ephemeral key") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise Malformed("is not an RSA key", where="ephemeral key")
    return key.encrypt(secret, _OAEP)
