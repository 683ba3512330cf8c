"""Certificates and public keys that authors and users bring along, refused where Go would not read them.

``parse_certificate`` takes a certificate apart and leaves names, key and extensions for whoever needs them. What is
kept for later must be readable as a whole, as it is in the reference: a manifest with a damaged user certificate is
refused there, not set with a user who can never come. Extensions that nothing here looks at are not taken apart.
Source: protocol, sections 5.5, 5.6 and 6.6; Go's ``crypto/x509``, compared in ``tests/secrets/test_given.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.errors import Malformed
from marblerun.pki import der
from marblerun.pki.names import decode_name
from marblerun.pki.parsed import ParsedCertificate, parse_certificate
from marblerun.secrets.uris import is_uri_name

RSA: Final = "1.2.840.113549.1.1.1"
"""The algorithm of a plain RSA key; one that is only for RSA-PSS has another."""
_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {
    "1.3.132.0.33": ec.SECP224R1(),
    "1.2.840.10045.3.1.7": ec.SECP256R1(),
    "1.3.132.0.34": ec.SECP384R1(),
    "1.3.132.0.35": ec.SECP521R1(),
}
_STRING_TYPES: Final = (
    der.UTF8_STRING,
    der.NUMERIC_STRING,
    der.PRINTABLE_STRING,
    der.T61_STRING,
    der.IA5_STRING,
    der.BMP_STRING,
)
_UNCOMPRESSED: Final = 0x04
_ED25519_BYTES: Final = 32
# Nobody's modulus is longer than this; a certificate is not either.
_MAX_MODULUS: Final = 1 << 8 * 65536
_MAX_EXPONENT: Final = (1 << 63) - 1


def read_given_certificate(data: bytes) -> ParsedCertificate:
    """The certificate in ``data`` (DER), all parts of which can be read. Raises Malformed.

    1. its structure  2. issuer and subject  3. its public key, if of a kind that Go knows; other kinds pass as there
    4. the usual extensions
    """
    certificate = parse_certificate(data)  # 1
    for name in (certificate.issuer, certificate.subject):  # 2
        _check_name(name)
    read_given_public_key(certificate.public_key)  # 3
    _check_extensions(certificate)  # 4
    return certificate


def read_given_public_key(info: bytes) -> str:
    """The algorithm (dotted OID) of a SubjectPublicKeyInfo whose key can be read, or is of a kind unknown to Go.

    Raises Malformed, also for a key without the structure around it (PKCS#1).
    """
    what = "public key"
    parts = der.children(der.single(info), der.SEQUENCE, what, limit=2)
    if len(parts) != 2:
        raise Malformed(f"{what}: expected algorithm and key")
    algorithm = der.children(parts[0], der.SEQUENCE, what, limit=2)
    if not algorithm:
        raise Malformed(f"{what}: no algorithm")
    name = algorithm[0].oid(what)
    key, unused = der.read_bit_string(parts[1], what)
    check = _KEY_CHECKS.get(name)
    if check is not None:
        if unused:
            raise Malformed(f"{what}: not a whole number of bytes")
        check(key, algorithm[1].encoded if len(algorithm) > 1 else b"")
    return name


def _check_name(name: bytes) -> None:
    for rdn in der.children(der.single(name), der.SEQUENCE, "name"):
        for attribute in der.children(rdn, der.SET, "name"):
            parts = der.children(attribute, der.SEQUENCE, "name", limit=2)
            if len(parts) != 2 or parts[1].tag not in _STRING_TYPES:
                raise Malformed("name: an attribute is a type and a text")
    decode_name(name)


def _check_rsa(key: bytes, parameters: bytes) -> None:
    what = "RSA key"
    if parameters != der.NULL:
        raise Malformed(f"{what}: parameters that are not NULL")
    numbers = der.children(der.single(key), der.SEQUENCE, what, limit=2)
    if len(numbers) != 2:
        raise Malformed(f"{what}: expected modulus and exponent")
    modulus = numbers[0].unsigned(der.INTEGER, what, limit=_MAX_MODULUS)
    exponent = numbers[1].unsigned(der.INTEGER, what, limit=_MAX_EXPONENT)
    if not modulus or not exponent:
        raise Malformed(f"{what}: modulus or exponent is zero")


def _check_ec(key: bytes, parameters: bytes) -> None:
    what = "elliptic curve key"
    curve = _CURVES.get(der.single(parameters).oid(what))
    if curve is None:
        raise Malformed(f"{what}: a curve that is not accepted (P-224, P-256, P-384 and P-521 are)")
    if not key or key[0] != _UNCOMPRESSED:
        raise Malformed(f"{what}: not an uncompressed point")
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(curve, key)
    except ValueError as error:
        raise Malformed(f"{what}: not a point of the curve") from error


def _check_ed25519(key: bytes, parameters: bytes) -> None:
    if parameters or len(key) != _ED25519_BYTES:
        raise Malformed(f"Ed25519 key: expected {_ED25519_BYTES} bytes and no parameters")


_KEY_CHECKS: Final[Mapping[str, Callable[[bytes, bytes], None]]] = {
    RSA: _check_rsa,
    "1.2.840.10045.2.1": _check_ec,
    "1.3.101.112": _check_ed25519,
}


def _check_extensions(certificate: ParsedCertificate) -> None:
    # Each of these raises Malformed if its extension cannot be read.
    _ = (
        certificate.key_usage,
        certificate.extended_key_usage,
        certificate.basic_constraints,
        certificate.subject_key_id,
        certificate.authority_key_id,
    )
    for uri in certificate.alt_names.uris:
        if not is_uri_name(uri):
            raise Malformed(f"subject alternative name: not a URI: {uri[:80]!r}")
