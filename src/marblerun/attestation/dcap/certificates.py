"""Certificates of the vendor's hierarchy: read once and whole, then checked link by link.

pyca/cryptography parses lazily and lets errors of many types out when a field is first touched. Everything that we
ever look at is therefore read in :func:`parse_certificate`, behind one border that turns any failure into Untrusted.
Source: formats, section 3.1 (Intel SGX PCK Certificate and CRL Profile Specification).
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from marblerun.attestation.dcap.signatures import ECDSA_SHA256
from marblerun.attestation.dcap.validity import Validity
from marblerun.attestation.model import TrustRoot
from marblerun.errors import Malformed, Untrusted
from marblerun.wire import der
from marblerun.wire.pem import decode_pem

# A real chain of three is 3.7 KB; more is not a chain we know.
MAX_CHAIN_BYTES: Final = 16 * 1024
MAX_CHAIN_CERTIFICATES: Final = 3
# What a verifier remembers; a certificate is some 4 KB, at most MAX_CHAIN_BYTES.
MAX_VOUCHED: Final = 256
MAX_RECENT: Final = 64
MAX_LINKS: Final = 1024

SGX_EXTENSION: Final = x509.ObjectIdentifier("1.2.840.113741.1.13.1")
ECDSA_WITH_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")
"""The one signature algorithm of the hierarchy, as it stands in certificates and CRLs. Source: RFC 5758, 3.2."""
_COMMON_NAME: Final = bytes.fromhex("550403")
_MAX_SERIAL: Final = 1 << 160  # RFC 5280, section 4.1.2.2


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """What we look at in a certificate. Two of them are the same only if they are the same object."""

    encoded: bytes
    """The whole of it, DER."""
    tbs: bytes
    """What the issuer signed."""
    signature: bytes
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
    not_before: datetime
    not_after: datetime

    def validity(self, step: str, what: str) -> Validity:
        """When it is valid, to be asked at ``step``."""
        return Validity(step, what, self.not_before, self.not_after)


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


class CertificateMemory:
    """Certificates read and links found good before, so that shared ones are not read and checked again and again.

    Changes speed, never a verdict: reading and checking a signature depend on bytes alone, and what failed raises and
    is not kept. Dates, names, purposes and revocation are not remembered here. Bounded. What a trusted root vouches for
    (authorities, signers) is kept apart from what anybody may send, so that nobody can push it out.
    """

    def __init__(self) -> None:
        self._vouched: OrderedDict[bytes, Certificate] = OrderedDict()
        # A quote's chain is read to ask for its collateral, and again to be verified.
        self._recent = lru_cache(MAX_RECENT)(parse_certificate)
        self.verify_signature: Callable[[Certificate, Certificate], None] = lru_cache(MAX_LINKS)(_verify_signature)

    def parse(self, encoded: bytes) -> Certificate:
        """:func:`parse_certificate`; the same object for the same bytes as long as it is remembered."""
        return self._vouched.get(encoded) or self._recent(encoded)

    def keep(self, certificate: Certificate) -> None:
        """Remember a certificate that was verified up to a trusted root; the oldest goes when there are too many."""
        self._vouched[certificate.encoded] = certificate
        while len(self._vouched) > MAX_VOUCHED:
            self._vouched.popitem(last=False)

    def forget_recent(self) -> None:
        """Forget what no trusted root vouches for."""
        self._recent.cache_clear()


def read_certificate(encoded: bytes, step: str, what: str, memory: CertificateMemory | None = None) -> Certificate:
    """The certificate in ``encoded`` (DER), every field read; Untrusted of ``step`` if unreadable or not P-256."""
    with parsing(step, what):
        return parse_certificate(encoded) if memory is None else memory.parse(encoded)


def parse_certificate(encoded: bytes) -> Certificate:
    """The same, but whatever goes wrong comes out as the parser raised it: for :func:`parsing` to catch.

    Rules 3.1.2 (P-256 and ecdsa-with-SHA256) and 3.1.9 (no critical extension without a meaning here).
    """
    parsed = x509.load_der_x509_certificate(encoded)
    signed = split_signed(encoded)
    members = der.elements(der.single(signed.tbs).content, limit=10)
    first = 1 if parsed.version is x509.Version.v3 else 0  # version 1 is implied and not written
    serial, algorithm, issuer, _, subject = members[first : first + 5]
    if not algorithm.encoded == signed.algorithm == ECDSA_WITH_SHA256:
        raise Malformed("the signature is not ecdsa-with-SHA256")
    constraints: x509.BasicConstraints | None = None
    usage: x509.KeyUsage | None = None
    sgx: bytes | None = None
    for extension in parsed.extensions:
        value = extension.value
        if isinstance(value, x509.BasicConstraints):
            constraints = value
        elif isinstance(value, x509.KeyUsage):
            usage = value
        elif extension.critical:
            raise Malformed(f"unknown critical extension {extension.oid.dotted_string}")
        elif isinstance(value, x509.UnrecognizedExtension) and extension.oid == SGX_EXTENSION:
            sgx = value.value
    key = parsed.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Malformed("the key is not P-256")
    common_name = _common_name(subject.encoded)
    return Certificate(
        encoded=encoded,
        tbs=signed.tbs,
        signature=signed.signature,
        subject=subject.encoded,
        issuer=issuer.encoded,
        common_name=common_name,
        issuer_common_name=common_name if issuer.encoded == subject.encoded else _common_name(issuer.encoded),
        serial=serial.unsigned(der.INTEGER, "serial number", limit=_MAX_SERIAL),
        key=key,
        spki_sha256=spki_sha256(key),
        is_ca=constraints is not None and constraints.ca,
        path_length=constraints.path_length if constraints else None,
        signs_certificates=usage is not None and usage.key_cert_sign,
        signs_crls=usage is not None and usage.crl_sign,
        signs_data=usage is not None and usage.digital_signature,
        sgx_extension=sgx,
        not_before=parsed.not_valid_before_utc,
        not_after=parsed.not_valid_after_utc,
    )


@dataclass(frozen=True, slots=True)
class Signed:
    """The three parts of a certificate or CRL, as they stand in it: nothing is encoded again to be checked."""

    tbs: bytes
    algorithm: bytes
    signature: bytes


def split_signed(encoded: bytes) -> Signed:
    """``encoded`` (DER) in its three parts; Malformed if it has others. Source: RFC 5280, sections 4.1 and 5.1."""
    members = der.elements(der.single(encoded).expect(der.SEQUENCE, "signed object"), limit=3)
    if len(members) != 3:
        raise Malformed(f"{len(members)} parts, not 3", where="signed object")
    bits = members[2].expect(der.BIT_STRING, "signature")
    if not bits or bits[0]:
        raise Malformed("the signature is not whole bytes", where="signed object")
    return Signed(members[0].encoded, members[1].encoded, bits[1:])


def _common_name(name: bytes) -> str:
    values = _usual_common_names(name)
    if values is None:
        values = _common_names(name)
    return values[0].decode("utf-8") if len(values) == 1 else ""


def _usual_common_names(name: bytes) -> list[bytes] | None:
    """The common names in a name of parts with one attribute and short lengths each, ``None`` for any other name.

    The vendor's names all are like that (formats, section 3.1).
    """
    values: list[bytes] = []
    size = len(name)
    if size < 2 or size > 129 or name[0] != der.SEQUENCE or name[1] != size - 2:
        return None
    offset = 2
    while offset + 6 <= size:
        kind, part, attribute, oid = name[offset], name[offset + 1], name[offset + 2], name[offset + 4]
        value = offset + 6 + name[offset + 5]
        end = offset + 2 + part
        if (kind, attribute, oid) != (der.SET, der.SEQUENCE, der.OBJECT_IDENTIFIER) or value + 2 > end or end > size:
            return None
        if name[offset + 3] != part - 2 or name[value + 1] != end - value - 2:
            return None
        if name[value] & 0x1F == 0x1F:  # a tag of several bytes
            return None
        if name[offset + 6 : value] == _COMMON_NAME:
            values.append(name[value + 2 : end])
        offset = end
    return values if offset == size else None


def _common_names(name: bytes) -> list[bytes]:
    values: list[bytes] = []
    for part in der.elements(der.single(name).expect(der.SEQUENCE, "name"), limit=16):
        for attribute in der.elements(part.expect(der.SET, "name"), limit=4):
            kind, value = der.elements(attribute.expect(der.SEQUENCE, "name"), limit=2)
            if kind.expect(der.OBJECT_IDENTIFIER, "name") == _COMMON_NAME:
                values.append(value.content)
    return values


def spki_sha256(key: ec.EllipticCurvePublicKey) -> bytes:
    """The pin of a key: SHA-256 of its DER SubjectPublicKeyInfo, 32 bytes."""
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def read_chain(pem: bytes, step: str, what: str, memory: CertificateMemory | None = None) -> tuple[Certificate, ...]:
    """The certificates in ``pem``, in the order given; Untrusted of ``step`` if there are none or more than three."""
    try:
        ders = decode_pem(pem, "CERTIFICATE", max_blocks=MAX_CHAIN_CERTIFICATES, max_bytes=MAX_CHAIN_BYTES)
    except Malformed as error:
        raise Untrusted(f"{what} cannot be parsed: {error}", step=step, reason="malformed") from error
    if not ders:
        raise Untrusted(f"{what} is missing", step=step, reason="missing")
    return tuple(read_certificate(one, step, f"a certificate of {what}", memory) for one in ders)


def named(chain: Sequence[Certificate], name: str, step: str, what: str) -> Certificate:
    """The one certificate of ``chain`` whose common name contains ``name`` (rule 3.1.1).

    By name and not by position: real quotes hold their chain in more than one order (formats, section 1.4).
    """
    found = [c for c in chain if name in c.common_name]
    if len(found) != 1:
        raise Untrusted(f"{what} has {len(found)} certificates named {name!r}, not 1", step=step, reason="mismatch")
    return found[0]


def verify_root(
    root: Certificate, roots: Sequence[TrustRoot], step: str, memory: CertificateMemory | None = None
) -> TrustRoot:
    """The trusted root whose key ``root`` holds and is signed by; Untrusted of ``step`` if there is none.

    Rules 3.1.7 and 7.3.1: the key is pinned, not the certificate.
    """
    for trusted in roots:
        if trusted.spki_sha256 == root.spki_sha256:
            verify_authority(root, step)
            verify_issued(root, root, step, memory)
            _keep(root, memory)
            return trusted
    raise Untrusted(
        f"the root {root.common_name!r} with key {root.spki_sha256.hex()[:16]}… is not trusted",
        step=step,
        reason="unknown-root",
    )


def verify_issued(
    certificate: Certificate, issuer: Certificate, step: str, memory: CertificateMemory | None = None
) -> None:
    """Untrusted of ``step`` unless ``issuer`` is named in and has signed ``certificate`` (rule 3.1.6)."""
    if certificate.issuer != issuer.subject:
        raise Untrusted(
            f"{certificate.common_name!r} was not issued by {issuer.common_name!r}", step=step, reason="mismatch"
        )
    try:
        (_verify_signature if memory is None else memory.verify_signature)(certificate, issuer)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise Untrusted(
            f"{certificate.common_name!r} is not signed by {issuer.common_name!r}", step=step, reason="bad-signature"
        ) from error


def _verify_signature(certificate: Certificate, issuer: Certificate) -> None:
    issuer.key.verify(certificate.signature, certificate.tbs, ECDSA_SHA256)


def _keep(certificate: Certificate, memory: CertificateMemory | None) -> None:
    if memory is not None:
        memory.keep(certificate)


def verify_intermediate(ca: Certificate, root: Certificate, step: str, memory: CertificateMemory | None = None) -> None:
    """Untrusted of ``step`` unless ``ca`` is an authority under ``root``, which must allow such (rule 3.1.4)."""
    verify_authority(ca, step)
    if root.path_length == 0:
        raise Untrusted(f"{root.common_name!r} allows no authority under it", step=step, reason="mismatch")
    verify_issued(ca, root, step, memory)
    _keep(ca, memory)


def verify_leaf(leaf: Certificate, issuer: Certificate, step: str, memory: CertificateMemory | None = None) -> None:
    """Untrusted of ``step`` unless ``leaf`` signs data, is no authority (rule 3.1.5), and ``issuer`` issued it."""
    if leaf.is_ca or leaf.signs_certificates or not leaf.signs_data:
        raise Untrusted(f"{leaf.common_name!r} must sign data and nothing else", step=step, reason="mismatch")
    verify_issued(leaf, issuer, step, memory)


def verify_authority(certificate: Certificate, step: str) -> None:
    """Untrusted of ``step`` unless ``certificate`` may sign certificates and CRLs (rule 3.1.3)."""
    if not (certificate.is_ca and certificate.signs_certificates and certificate.signs_crls):
        raise Untrusted(f"{certificate.common_name!r} is not a certificate authority", step=step, reason="mismatch")
