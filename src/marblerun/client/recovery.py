"""What the holder of a recovery key does with it, away from any Coordinator (protocol, sections 10.3 and 10.9)."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from marblerun.client.replies import an_object, bytes_by_name
from marblerun.client.token import TokenKey
from marblerun.errors import Malformed, NotFound

RecoveryPrivateKey = rsa.RSAPrivateKey | TokenKey
"""A recovery key in memory, or one that stays in its token."""
_OAEP = padding.OAEP(mgf=padding.MGF1(hashes.SHA256()), algorithm=hashes.SHA256(), label=None)
PLAIN_SIZES: Final = (16, 32, 33)
"""A secret of one of these lengths is plain; 33 bytes is a Shamir share (protocol, section 10.7)."""


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


def decrypt_recovery_data(key: RecoveryPrivateKey, data: bytes) -> bytes:
    """The plain recovery secret. Raises :class:`Malformed` if it was made for another key."""
    if isinstance(key, TokenKey):
        return key.decrypt(data)
    try:
        return key.decrypt(data, _OAEP)
    except ValueError:
        raise Malformed("was not encrypted for this recovery key", where="recovery data") from None


def sign_recovery_secret(key: RecoveryPrivateKey, secret: bytes) -> bytes:
    """The holder's signature over the plain secret (RSA PKCS#1 v1.5, SHA-256)."""
    if isinstance(key, TokenKey):
        return key.sign(secret)
    return key.sign(secret, padding.PKCS1v15(), hashes.SHA256())


def encrypt_recovery_secret(public_key: bytes, secret: bytes) -> bytes:
    """The plain secret for the eyes of the Coordinator whose ephemeral key (PKIX DER) this is."""
    return verify_public_key(public_key).encrypt(secret, _OAEP)


def verify_public_key(public_key: bytes) -> rsa.RSAPublicKey:
    """The RSA key in PKIX DER; raises :class:`Malformed` for anything else."""
    try:
        key = serialization.load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm):
        raise Malformed("is not a public key", where="ephemeral key") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise Malformed("is not an RSA key", where="ephemeral key")
    return key


def recovery_secret(raw: bytes, key: RecoveryPrivateKey, name: str = "") -> bytes:
    """The plain secret in what a party has kept.

    That is the encrypted or plain secret as bytes or in base64, or the recovery data that the Coordinator gave
    (``{"RecoverySecrets": {NAME: BASE64}}``); of several secrets in there ``name`` says which, otherwise it is the one
    that ``key`` decrypts.

    Raises:
        Malformed: it is nothing of this, or was not encrypted for ``key``. NotFound: no secret has that name.
    """
    if _is_json(raw):
        return _named_secret(_secrets_by_name(raw), key, name)
    return _plain(_without_base64(raw), key)


def _is_json(raw: bytes) -> bool:
    """Whether it is meant to be JSON. Of random secrets one in 256 begins with a brace, but none is text as a whole."""
    if len(raw) in PLAIN_SIZES or raw.lstrip()[:1] != b"{":
        return False
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _secrets_by_name(raw: bytes) -> Mapping[str, bytes]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise Malformed("is not JSON", where="recovery data") from None
    secrets = bytes_by_name(an_object(document, "recovery data"), "RecoverySecrets")
    if not secrets:
        raise Malformed("holds no RecoverySecrets", where="recovery data")
    return secrets


def _named_secret(secrets: Mapping[str, bytes], key: RecoveryPrivateKey, name: str) -> bytes:
    if name:
        if name not in secrets:
            raise NotFound(f"there is no recovery secret {name!r}; there are: {', '.join(sorted(secrets))}")
        return _plain(secrets[name], key)
    for secret in secrets.values():
        with suppress(Malformed):
            return _plain(secret, key)
    raise Malformed("none of its secrets was encrypted for this recovery key", where="recovery data")


def _plain(secret: bytes, key: RecoveryPrivateKey) -> bytes:
    return secret if len(secret) in PLAIN_SIZES else decrypt_recovery_data(key, secret)


def plain_secret(raw: bytes) -> bytes | None:
    """The secret in a file that holds nothing but a plain one, as bytes or in base64; ``None`` for anything else."""
    plain = _without_base64(raw)
    return plain if len(plain) in PLAIN_SIZES else None


def _without_base64(raw: bytes) -> bytes:
    if len(raw) in PLAIN_SIZES:
        return raw
    try:
        return base64.b64decode(b"".join(raw.split()), validate=True)
    except binascii.Error:
        return raw
