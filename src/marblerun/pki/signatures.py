"""Signatures over encoded bytes: which algorithms we make, and checking those that Go's ``crypto/x509`` accepts.

Source: RFC 5758 (ECDSA), RFC 8017 (RSA), RFC 8410 (Ed25519); Go's restrictions on RSA-PSS parameters.
"""

from __future__ import annotations

from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from marblerun.errors import Malformed, Untrusted
from marblerun.pki import der
from marblerun.pki.ecdsa import VerifyingKey

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey

ECDSA_SHA256: Final = der.sequence(der.oid("1.2.840.10045.4.3.2"))
ECDSA_SHA384: Final = der.sequence(der.oid("1.2.840.10045.4.3.3"))
ECDSA_SHA512: Final = der.sequence(der.oid("1.2.840.10045.4.3.4"))
ED25519: Final = der.sequence(der.oid("1.3.101.112"))

_SHA1_NAMES: Final = ("1.2.840.10045.4.1", "1.2.840.113549.1.1.5", "1.3.14.3.2.29")
_ECDSA: Final[dict[str, hashes.HashAlgorithm]] = {
    "1.2.840.10045.4.1": hashes.SHA1(),  # noqa: S303 - Go accepts it on requests; the caller decides
    "1.2.840.10045.4.3.2": hashes.SHA256(),
    "1.2.840.10045.4.3.3": hashes.SHA384(),
    "1.2.840.10045.4.3.4": hashes.SHA512(),
}
_RSA: Final[dict[str, hashes.HashAlgorithm]] = {
    "1.2.840.113549.1.1.5": hashes.SHA1(),  # noqa: S303 - as above
    "1.3.14.3.2.29": hashes.SHA1(),  # noqa: S303 - as above
    "1.2.840.113549.1.1.11": hashes.SHA256(),
    "1.2.840.113549.1.1.12": hashes.SHA384(),
    "1.2.840.113549.1.1.13": hashes.SHA512(),
}
_ED25519_NAME: Final = "1.3.101.112"
_PSS_NAME: Final = "1.2.840.113549.1.1.10"
_MGF1_NAME: Final = "1.2.840.113549.1.1.8"
_PSS_HASHES: Final[dict[str, hashes.HashAlgorithm]] = {
    "2.16.840.1.101.3.4.2.1": hashes.SHA256(),
    "2.16.840.1.101.3.4.2.2": hashes.SHA384(),
    "2.16.840.1.101.3.4.2.3": hashes.SHA512(),
}
# Checking is cheap for honest keys; a huge modulus or exponent is only ever an attack.
_MAX_SALT: Final = 1024
_MAX_RSA_BITS: Final = 16384
_MIN_RSA_BITS: Final = 1024
_MAX_RSA_EXPONENT: Final = 2**31 - 1
_CURVES: Final = ("secp224r1", "secp256r1", "secp384r1", "secp521r1")


def load_public_key(info: bytes) -> PublicKey:
    """The key in a SubjectPublicKeyInfo; ``Malformed`` if it is broken, weak or of a kind Go does not verify with."""
    try:
        key = serialization.load_der_public_key(info)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Malformed("public key cannot be read") from error
    match key:
        case ec.EllipticCurvePublicKey() if key.curve.name in _CURVES:
            return key
        case rsa.RSAPublicKey() if (
            _MIN_RSA_BITS <= key.key_size <= _MAX_RSA_BITS and key.public_numbers().e <= _MAX_RSA_EXPONENT
        ):
            return key
        case ed25519.Ed25519PublicKey():
            return key
    raise Malformed("public key is of a kind or size that is not accepted")


def verify_signature(
    algorithm: bytes,
    key: PublicKey | VerifyingKey,
    signed: bytes,
    signature: bytes,
    *,
    step: str,
    allow_sha1: bool = False,
) -> None:
    """Return if ``signature`` over ``signed`` is by ``key``; else ``Untrusted`` with ``step``.

    ``algorithm`` is an AlgorithmIdentifier DER. MD5 is never accepted, SHA-1 only with ``allow_sha1``; RSA-PSS only
    with one hash throughout and a salt of its length.
    """
    name, parameters = _algorithm(algorithm)
    if name in _SHA1_NAMES and not allow_sha1:
        raise Untrusted("SHA-1 is not accepted", step=step, reason="bad-algorithm")
    try:
        match key:
            case VerifyingKey() if name in _ECDSA:
                if not key.is_signed(signature, signed, _ECDSA[name]):
                    raise InvalidSignature
            case ec.EllipticCurvePublicKey() if name in _ECDSA:
                key.verify(signature, signed, ec.ECDSA(_ECDSA[name]))
            case rsa.RSAPublicKey() if name in _RSA:
                key.verify(signature, signed, padding.PKCS1v15(), _RSA[name])
            case rsa.RSAPublicKey() if name == _PSS_NAME:
                digest = _pss_hash(parameters)
                key.verify(signature, signed, padding.PSS(padding.MGF1(digest), digest.digest_size), digest)
            case ed25519.Ed25519PublicKey() if name == _ED25519_NAME and parameters is None:
                key.verify(signature, signed)
            case _:
                raise Untrusted("algorithm and key do not fit, or are not accepted", step=step, reason="bad-algorithm")
    except (InvalidSignature, ValueError, UnsupportedAlgorithm) as error:
        raise Untrusted("signature does not verify", step=step, reason="bad-signature") from error


def algorithm_name(data: bytes) -> str:
    """Dotted OID of an AlgorithmIdentifier."""
    return _algorithm(data)[0]


def _algorithm(data: bytes) -> tuple[str, der.Element | None]:
    what = "algorithm identifier"
    parts = der.children(der.single(data), der.SEQUENCE, what, limit=2)
    if not parts:
        raise Malformed(f"{what}: empty")
    return parts[0].oid(what), parts[1] if len(parts) == 2 else None


def _pss_hash(parameters: der.Element | None) -> hashes.HashAlgorithm:
    """The one hash of RSASSA-PSS parameters that also names MGF1's hash and has the salt's length."""
    what = "RSA-PSS parameters"
    if parameters is None:
        raise Malformed(f"{what}: absent")
    fields = {field.tag ^ 0xA0: field for field in der.children(parameters, der.SEQUENCE, what, limit=4)}
    if not {0, 1, 2} <= set(fields):
        raise Malformed(f"{what}: hash, mask and salt length are needed")
    hash_name, hash_parameters = _algorithm(fields[0].content)
    mask_name, mask_hash = _algorithm(fields[1].content)
    salt = der.single(fields[2].content).unsigned(der.INTEGER, what, limit=_MAX_SALT)
    trailer = der.single(fields[3].content).unsigned(der.INTEGER, what, limit=_MAX_SALT) if 3 in fields else 1
    digest = _PSS_HASHES.get(hash_name)
    if mask_hash is None or digest is None:
        raise Malformed(f"{what}: hash is not accepted")
    inner_name, inner_parameters = _algorithm(der.raw(mask_hash, der.SEQUENCE, what))
    nulls = all(found is None or found.encoded == der.NULL for found in (hash_parameters, inner_parameters))
    if (mask_name, inner_name, salt, trailer) != (_MGF1_NAME, hash_name, digest.digest_size, 1) or not nulls:
        raise Malformed(f"{what}: one hash throughout is needed")
    return digest
