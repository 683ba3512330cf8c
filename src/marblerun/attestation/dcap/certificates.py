"""Certificates of the vendor's hierarchy: read once and whole, then checked link by link.

pyca/cryptography parses lazily and lets errors of many types out when a field is first touched. Everything that we
ever look at is therefore read in :func:`read_certificate`, behind one border that turns any failure into Untrusted.
Source: formats, section 3.1 (Intel SGX PCK Certificate and CRL Profile Specification).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from marblerun.attestation.dcap.validity import Validity
from marblerun.attestation.model import TrustRoot
from marblerun.errors import Malformed, Untrusted
from marblerun.wire import der
from marblerun.wire.pem import decode_pem

# A real chain of three is 3.7 KB; more is not a chain we know.
MAX_CHAIN_BYTES: Final = 16 * 1024
MAX_CHAIN_CERTIFICATES: Final = 3

SGX_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
_MAX_SERIAL: Final = 1 << 160  # RFC 5280, section 4.1.2.2
_E = TypeVar("_E", bound=x509.ExtensionType)
_KNOWN_CRITICAL: Final = (x509.BasicConstraints.oid, x509.KeyUsage.oid)


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """What we look at in a certificate, and the parsed original for checking its signature."""

    parsed: x509.Certificate
    subject: bytes
    """DER of the name."""
    issuer: bytes
    common_name: str
    """Empty unless there is exactly one."""
    issuer_common_name: str
    serial: int
    key: ec.EllipticCurvePublicKey
    spki_sha256: bytes
    is_ca: bool
    path_length: int | None
    signs_certificates: bool
    signs_crls: bool
    signs_data: bool
    sgx_extension: bytes | None
    validity: Validity


@contextmanager
def parsing(step: str, what: str) -> Iterator[None]:
    """Turn whatever a parser raises over ``what`` into Untrusted of ``step``.

    Deliberately broad: which types a parser raises over hostile bytes is no promise of anybody, a verdict is. Its
    warnings stay as they are: silencing them would change the filters of the whole process under other threads.
    """
    try:
        yield
    except Untrusted:
        raise
    except Exception as error:
        raise Untrusted(f"{what} cannot be parsed: {error}", step=step, reason="malformed") from error


def read_certificate(encoded: bytes, step: str, what: str) -> Certificate:
    """The certificate in ``encoded`` (DER), every field read; Untrusted of ``step`` if unreadable or not P-256."""
    with parsing(step, what):
        parsed = x509.load_der_x509_certificate(encoded)
        extensions = parsed.extensions
        identity = _identity(parsed)
        constraints = _optional(extensions, x509.BasicConstraints)
        usage = _optional(extensions, x509.KeyUsage)
        sgx = [e.value for e in extensions if e.oid == SGX_EXTENSION]
        key = parsed.public_key()
        unknown = [e.oid.dotted_string for e in extensions if e.critical and e.oid not in _KNOWN_CRITICAL]
        if unknown:
            raise Malformed(f"unknown critical extension {unknown[0]}")
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise Malformed("the key is not P-256")
        if parsed.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
            raise Malformed("the signature is not ecdsa-with-SHA256")
        return Certificate(
            parsed=parsed,
            subject=identity.subject,
            issuer=identity.issuer,
            common_name=_common_name(identity.subject),
            issuer_common_name=_common_name(identity.issuer),
            serial=identity.serial,
            key=key,
            spki_sha256=spki_sha256(key),
            is_ca=constraints is not None and constraints.ca,
            path_length=constraints.path_length if constraints else None,
            signs_certificates=usage is not None and usage.key_cert_sign,
            signs_crls=usage is not None and usage.crl_sign,
            signs_data=usage is not None and usage.digital_signature,
            sgx_extension=sgx[0].value if sgx and isinstance(sgx[0], x509.UnrecognizedExtension) else None,
            validity=Validity(step, what, parsed.not_valid_before_utc, parsed.not_valid_after_utc),
        )


@dataclass(frozen=True, slots=True)
class _Identity:
    """Serial number and names as they stand in a certificate, so that "the same name" means the same bytes.

    Read here and not by pyca, which compares names as values and warns about odd ones in the peer's words.
    """

    serial: int
    issuer: bytes
    subject: bytes


def _identity(parsed: x509.Certificate) -> _Identity:
    members = der.elements(der.single(parsed.tbs_certificate_bytes).content, limit=10)
    serial = 1 if parsed.version is x509.Version.v3 else 0  # version 1 is implied and not written
    return _Identity(
        serial=members[serial].unsigned(der.INTEGER, "serial number", limit=_MAX_SERIAL),
        issuer=members[serial + 2].encoded,
        subject=members[serial + 4].encoded,
    )


def _common_name(name: bytes) -> str:
    values: list[str] = []
    for part in der.elements(der.single(name).expect(der.SEQUENCE, "name"), limit=16):
        for attribute in der.elements(part.expect(der.SET, "name"), limit=4):
            kind, value = der.elements(attribute.expect(der.SEQUENCE, "name"), limit=2)
            if kind.oid("name") == NameOID.COMMON_NAME.dotted_string:
                values.append(value.content.decode("utf-8"))
    return values[0] if len(values) == 1 else ""


def _optional(extensions: x509.Extensions, kind: type[_E]) -> _E | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def spki_sha256(key: ec.EllipticCurvePublicKey) -> bytes:
    """The pin of a key: SHA-256 of its DER SubjectPublicKeyInfo, 32 bytes."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def read_chain(pem: bytes, step: str, what: str) -> tuple[Certificate, ...]:
    """The certificates in ``pem``, in the order given; Untrusted of ``step`` if there are none or more than three."""
    try:
        ders = decode_pem(pem, "CERTIFICATE", max_blocks=MAX_CHAIN_CERTIFICATES, max_bytes=MAX_CHAIN_BYTES)
    except Malformed as error:
        raise Untrusted(f"{what} cannot be parsed: {error}", step=step, reason="malformed") from error
    if not ders:
        raise Untrusted(f"{what} is missing", step=step, reason="missing")
    return tuple(read_certificate(one, step, f"a certificate of {what}") for one in ders)


def named(chain: Sequence[Certificate], name: str, step: str, what: str) -> Certificate:
    """The one certificate of ``chain`` whose common name contains ``name``.

    By name and not by position: real quotes hold their chain in more than one order (formats, section 1.4).
    """
    found = [c for c in chain if name in c.common_name]
    if len(found) != 1:
        raise Untrusted(f"{what} has {len(found)} certificates named {name!r}, not 1", step=step, reason="mismatch")
    return found[0]


def verify_root(root: Certificate, roots: Sequence[TrustRoot], step: str) -> TrustRoot:
    """The trusted root whose key ``root`` holds and is signed by; Untrusted of ``step`` if there is none."""
    for trusted in roots:
        if trusted.spki_sha256 == root.spki_sha256:
            verify_authority(root, step)
            verify_issued(root, root, step)
            return trusted
    raise Untrusted(
        f"the root {root.common_name!r} with key {root.spki_sha256.hex()[:16]}… is not trusted",
        step=step,
        reason="unknown-root",
    )


def verify_issued(certificate: Certificate, issuer: Certificate, step: str) -> None:
    """Untrusted of ``step`` unless ``issuer`` is named in and has signed ``certificate``."""
    if certificate.issuer != issuer.subject:
        raise Untrusted(
            f"{certificate.common_name!r} was not issued by {issuer.common_name!r}", step=step, reason="mismatch"
        )
    try:
        certificate.parsed.verify_directly_issued_by(issuer.parsed)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise Untrusted(
            f"{certificate.common_name!r} is not signed by {issuer.common_name!r}", step=step, reason="bad-signature"
        ) from error


def verify_intermediate(ca: Certificate, root: Certificate, step: str) -> None:
    """Untrusted of ``step`` unless ``ca`` is an authority under ``root``, which must allow authorities under it."""
    verify_authority(ca, step)
    if root.path_length == 0:
        raise Untrusted(f"{root.common_name!r} allows no authority under it", step=step, reason="mismatch")
    verify_issued(ca, root, step)


def verify_leaf(leaf: Certificate, issuer: Certificate, step: str) -> None:
    """Untrusted of ``step`` unless ``leaf`` signs data, is no authority, and was issued by ``issuer``."""
    if leaf.is_ca or leaf.signs_certificates or not leaf.signs_data:
        raise Untrusted(f"{leaf.common_name!r} must sign data and nothing else", step=step, reason="mismatch")
    verify_issued(leaf, issuer, step)


def verify_authority(certificate: Certificate, step: str) -> None:
    """Untrusted of ``step`` unless ``certificate`` may sign certificates and CRLs."""
    if not (certificate.is_ca and certificate.signs_certificates and certificate.signs_crls):
        raise Untrusted(f"{certificate.common_name!r} is not a certificate authority", step=step, reason="mismatch")
