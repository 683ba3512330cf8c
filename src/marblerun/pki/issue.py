"""Issuing: a profile and a request become a certificate. Nothing in this project signs a certificate anywhere else.

Every profile says what the reference's certificates say, extension by extension, so that its clients and Marbles
cannot tell the difference. Source: protocol, sections 2.2, 2.7, 3.1 and 6.4.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, Protocol
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from marblerun.errors import Malformed
from marblerun.pki import der
from marblerun.pki import extensions as ext
from marblerun.pki.csr import ParsedCsr, parse_csr
from marblerun.pki.ecdsa import SigningKey
from marblerun.pki.encodings import public_key_info
from marblerun.pki.extensions import AltNames, Extension
from marblerun.pki.names import encode_name
from marblerun.pki.parsed import ParsedCertificate, carried_over, parse_certificate, template_of
from marblerun.pki.profiles import LOOPBACK, CertificateTemplate, Name, SubjectNames
from marblerun.pki.signatures import ECDSA_SHA256, ECDSA_SHA384, ECDSA_SHA512, PublicKey

ROOT_NAME: Final = "MarbleRun Coordinator"
INTERMEDIATE_NAME: Final = "MarbleRun Coordinator - Intermediate CA"
MARBLE_TLS_NAME: Final = "MarbleRun Marble"
KEY_SERVER_NAME: Final = "EGo"
"""As EGo calls the certificates that carry evidence (protocol, section 11.4)."""
DEFAULT_COMMON_NAME: Final = "MarbleRun Generated Certificate"

# The longest duration Go can express, about 292 years (protocol, section 2.7).
FOREVER: Final = timedelta(microseconds=(2**63 - 1) // 1000)
KEY_SERVER_LIFETIME: Final = timedelta(days=365)
# So much may the clocks of two machines differ before a certificate made just now is one of the future.
CLOCK_SKEW: Final = timedelta(minutes=10)
_SERIAL_BYTES: Final = 16
_KEY_ID_BYTES: Final = 20
_KEY_ID_STAND_IN: Final = bytes(_KEY_ID_BYTES)

_SERVER_AND_CLIENT = ext.extended_key_usage(
    (ext.EXTENDED_KEY_USAGES[ext.SERVER_AUTH], ext.EXTENDED_KEY_USAGES[ext.CLIENT_AUTH])
).encode()
_CA_USAGE = ext.key_usage(ext.DIGITAL_SIGNATURE | ext.CERT_SIGN).encode()
_LEAF_USAGE = ext.key_usage(ext.DIGITAL_SIGNATURE | ext.KEY_AGREEMENT).encode()
_IS_CA = ext.basic_constraints(is_ca=True).encode()
_IS_LEAF = ext.basic_constraints(is_ca=False).encode()
_VERSION_3 = der.tlv(der.context(0, constructed=True), der.integer(2))

# By Go's number: AlgorithmIdentifier and hash (protocol, section 5.5).
_ALGORITHMS: Final = {
    10: (ECDSA_SHA256, ec.ECDSA(hashes.SHA256())),
    11: (ECDSA_SHA384, ec.ECDSA(hashes.SHA384())),
    12: (ECDSA_SHA512, ec.ECDSA(hashes.SHA512())),
}
_DEFAULT_ALGORITHM: Final = {"secp224r1": 10, "secp256r1": 10, "secp384r1": 11, "secp521r1": 12}


class Entropy(Protocol):
    """Where randomness comes from; the only implementation that is not a test's lives in the coordinator."""

    def token(self, size: int) -> bytes:
        """``size`` random bytes."""

    def ec_key(self, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
        """A fresh EC key."""

    def ec_pair(self, curve: ec.EllipticCurve) -> tuple[bytes, bytes]:
        """PKCS#8 and SubjectPublicKeyInfo DER of a fresh EC key; cheaper, where it need not be used here."""

    def rsa_key(self, bits: int) -> rsa.RSAPrivateKey:
        """A fresh RSA key; takes a tenth of a second and more."""

    def ed25519_key(self) -> ed25519.Ed25519PrivateKey:
        """A fresh Ed25519 key."""


@dataclass(frozen=True, slots=True, repr=False)
class Issuer:
    """A CA certificate with its key, taken apart once for all certificates it will sign."""

    certificate: bytes
    """DER."""
    name: bytes
    key_id: bytes
    key: ec.EllipticCurvePrivateKey | SigningKey

    @classmethod
    def of(cls, certificate: x509.Certificate | bytes, key: ec.EllipticCurvePrivateKey) -> Issuer:
        """The issuer for ``certificate``; ``ValueError`` if ``key`` is not its key."""
        parsed = parse_certificate(_der(certificate))
        if parsed.public_key != public_key_info(key.public_key()):
            raise ValueError("the private key is not the certificate's")
        return cls(parsed.der, parsed.subject, parsed.subject_key_id, key)

    @classmethod
    def of_many(cls, certificate: x509.Certificate | bytes, key: ec.EllipticCurvePrivateKey) -> Issuer:
        """The same, for an issuer of many certificates: it takes longer to make, and signs faster."""
        return replace(cls.of(certificate, key), key=SigningKey.of(key) or key)


def _der(certificate: x509.Certificate | bytes) -> bytes:
    return certificate if isinstance(certificate, bytes) else certificate.public_bytes(Encoding.DER)


def issue_root(
    names: SubjectNames, key: ec.EllipticCurvePrivateKey, at: datetime, entropy: Entropy
) -> x509.Certificate:
    """The Coordinator's self-signed root CA certificate."""
    return _issue_ca(ROOT_NAME, names, key, None, at, entropy)


def issue_intermediate(
    names: SubjectNames, key: ec.EllipticCurvePrivateKey, root: Issuer, at: datetime, entropy: Entropy
) -> x509.Certificate:
    """The intermediate CA certificate for ``key``, signed by the root."""
    return _issue_ca(INTERMEDIATE_NAME, names, key, root, at, entropy)


def issue_marble_root(
    names: SubjectNames, key: ec.EllipticCurvePrivateKey, at: datetime, entropy: Entropy
) -> x509.Certificate:
    """The self-signed twin of the intermediate: same name and key, the anchor that Marbles trust."""
    return _issue_ca(INTERMEDIATE_NAME, names, key, None, at, entropy)


def names_of_ca(certificate: x509.Certificate | bytes) -> SubjectNames:
    """The configured names of a CA certificate: its alternative names without the loopback addresses."""
    names = parse_certificate(_der(certificate)).alt_names
    return SubjectNames(names.dns_names, tuple(ip for ip in names.ip_addresses if ip not in LOOPBACK))


def _issue_ca(
    common_name: str,
    names: SubjectNames,
    key: ec.EllipticCurvePrivateKey,
    parent: Issuer | None,
    at: datetime,
    entropy: Entropy,
) -> x509.Certificate:
    subject = encode_name(Name(common_name=common_name))
    public_key = public_key_info(key.public_key())
    extensions = [_CA_USAGE, _SERVER_AND_CLIENT, _IS_CA, ext.subject_key_id(_key_id(public_key)).encode()]
    if parent is not None:
        extensions.append(ext.authority_key_id(parent.key_id).encode())
    extensions.append(_server_names(names))
    data = _sign(
        parent.key if parent else key,
        issuer=parent.name if parent else subject,
        subject=subject,
        public_key=public_key,
        validity=(at, at + FOREVER),
        extensions=extensions,
        entropy=entropy,
    )
    return x509.load_der_x509_certificate(data)


def _server_names(names: SubjectNames) -> bytes:
    return ext.subject_alt_name(
        AltNames(dns_names=names.dns_names, ip_addresses=LOOPBACK + names.ip_addresses)
    ).encode()


def issue_marble_certificate(
    csr: ParsedCsr | bytes,
    *,
    marble_type: str,
    uuid: UUID,
    issuer: Issuer,
    public_key: PublicKey | bytes,
    at: datetime,
    entropy: Entropy,
) -> bytes:
    """DER of the certificate of one Marble instance, for a key (or its PKIX DER) that the Coordinator made for it.

    Of the CSR count the subject's attributes and the DNS names and addresses; nothing else it asks for has an effect,
    its own key included. ``Malformed`` or ``Untrusted`` if it is given as bytes and :func:`parse_csr` refuses it.
    """
    request = parse_csr(csr) if isinstance(csr, bytes) else csr
    subject = encode_name(replace(request.subject, organization=(), common_name=str(uuid), extra_names=()))
    extensions = [_LEAF_USAGE, _SERVER_AND_CLIENT, _IS_LEAF, _authority_key_id(issuer.key_id)]
    if request.dns_names or request.ip_addresses:
        names = AltNames(dns_names=request.dns_names, ip_addresses=request.ip_addresses)
        extensions.append(ext.subject_alt_name(names).encode())
    extensions.append(_marble_type(marble_type))
    return _sign(
        issuer.key,
        issuer=issuer.name,
        subject=subject,
        public_key=_info(public_key),
        validity=(at, at + FOREVER),
        extensions=extensions,
        entropy=entropy,
    )


@lru_cache(maxsize=8)
def _authority_key_id(key_id: bytes) -> bytes:
    return ext.authority_key_id(key_id).encode()


@lru_cache(maxsize=256)
def _marble_type(name: str) -> bytes:
    return Extension(ext.MARBLE_TYPE, False, name.encode()).encode()


def issue_secret_certificate(
    request: CertificateTemplate | ParsedCertificate,
    *,
    public_key: PublicKey | bytes,
    issuer: Issuer,
    not_after: datetime,
    at: datetime,
    entropy: Entropy,
) -> bytes:
    """DER of the certificate of a secret, from the manifest's template or from the certificate it replaces.

    ``Malformed`` for everything in the template that Go refuses: see :func:`extensions.from_template`; also a
    signature algorithm that the issuer's key cannot make and a lifetime that X.509 cannot express.
    """
    info = _info(public_key)
    if isinstance(request, ParsedCertificate):
        profile = _stored_profile(request.der, issuer.name, issuer.key_id)
    else:
        profile = _profile(request, None, issuer.name, issuer.key_id)
    extensions = profile.before_key_id
    if profile.needs_key_id:
        extensions = (*extensions, ext.subject_key_id(_key_id(info)).encode())
    return _sign(
        issuer.key,
        issuer=issuer.name,
        subject=profile.subject,
        public_key=info,
        validity=(at, not_after),
        extensions=(*extensions, *profile.after_key_id),
        entropy=entropy,
        algorithm=profile.algorithm,
    )


def _info(key: PublicKey | bytes) -> bytes:
    return key if isinstance(key, bytes) else public_key_info(key)


@dataclass(frozen=True, slots=True)
class _SecretProfile:
    """What does not change between two certificates of one secret: everything but key, times and serial."""

    subject: bytes
    before_key_id: tuple[bytes, ...]
    """Encoded extensions; the subject key id of a CA, which depends on its key, goes between the two parts."""
    needs_key_id: bool
    after_key_id: tuple[bytes, ...]
    algorithm: int


@lru_cache(maxsize=512)
def _stored_profile(stored: bytes, issuer_name: bytes, issuer_key_id: bytes) -> _SecretProfile:
    """The profile of a stored certificate (DER), which is the same at every activation that makes it anew."""
    parsed = parse_certificate(stored)
    return _profile(template_of(parsed), parsed, issuer_name, issuer_key_id)


def _profile(
    request: CertificateTemplate, stored: ParsedCertificate | None, issuer_name: bytes, issuer_key_id: bytes
) -> _SecretProfile:
    template = _with_defaults(request)
    subject = stored.subject if stored else encode_name(template.subject)
    if template.signature_algorithm not in (0, *_ALGORITHMS):
        raise Malformed(
            f"{template.signature_algorithm} cannot be made with the issuer's ECDSA key", where="SignatureAlgorithm"
        )
    needs_key_id = template.is_ca and not template.subject_key_id
    extensions = ext.from_template(
        template,
        critical_names=subject == encode_name(Name()),
        key_id=_KEY_ID_STAND_IN if needs_key_id else template.subject_key_id,
        authority_id=issuer_key_id if subject != issuer_name else template.authority_key_id,
        carried=carried_over(stored) if stored else {},
    )
    encoded = tuple(extension.encode() for extension in extensions)
    if stored or template.extra_extensions:
        _check_readable(encoded)
    cut = encoded.index(ext.subject_key_id(_KEY_ID_STAND_IN).encode()) if needs_key_id else len(encoded)
    return _SecretProfile(
        subject, encoded[:cut], needs_key_id, encoded[cut + 1 :] if needs_key_id else (), template.signature_algorithm
    )


def _with_defaults(template: CertificateTemplate) -> CertificateTemplate:
    """The template with what the Coordinator fills in; ``None`` means not given, an empty list is left alone."""
    dns_names = ("localhost",) if template.dns_names is None else template.dns_names
    fallback = dns_names[0] if len(dns_names) == 1 else DEFAULT_COMMON_NAME
    ip_addresses = template.ip_addresses
    return replace(
        template,
        subject=replace(template.subject, common_name=template.subject.common_name or fallback),
        dns_names=dns_names,
        ip_addresses=tuple(str(ip) for ip in LOOPBACK) if ip_addresses is None else ip_addresses,
        key_usage=template.key_usage or ext.DIGITAL_SIGNATURE | ext.CERT_SIGN,
        ext_key_usage=template.ext_key_usage
        if template.ext_key_usage is not None
        else (ext.SERVER_AUTH, ext.CLIENT_AUTH),
    )


def _check_readable(extensions: tuple[bytes, ...]) -> None:
    """Refuse what nobody could read back: raw extensions of a template are the only way to such a certificate."""
    parsed = parse_certificate(_unsigned(extensions))
    try:
        _ = parsed.key_usage, parsed.extended_key_usage, parsed.basic_constraints
        _ = parsed.subject_key_id, parsed.authority_key_id, parsed.alt_names
    except Malformed as error:
        raise Malformed(f"the certificate could not be read: {error.message}", where="ExtraExtensions") from error


def _unsigned(extensions: tuple[bytes, ...]) -> bytes:
    """A certificate with these extensions and nothing else in it, for reading only."""
    identifier, _ = _ALGORITHMS[_DEFAULT_ALGORITHM["secp384r1"]]
    nobody, moment = encode_name(Name()), der.time(datetime(2000, 1, 1, tzinfo=UTC))
    body = der.sequence(
        _VERSION_3,
        der.integer(0),
        identifier,
        nobody,
        der.sequence(moment, moment),
        nobody,
        der.sequence(),
        der.tlv(der.context(3, constructed=True), der.sequence(*extensions)),
    )
    return der.sequence(body, identifier, der.bit_string(b""))


def issue_self_signed_marble(
    names: SubjectNames, key: ec.EllipticCurvePrivateKey, at: datetime, entropy: Entropy
) -> bytes:
    """DER of the certificate that a Marble presents in TLS before it has one; its evidence vouches for it."""
    subject = encode_name(Name(common_name=MARBLE_TLS_NAME))
    return _sign(
        key,
        issuer=subject,
        subject=subject,
        public_key=public_key_info(key.public_key()),
        validity=(at, at + FOREVER),
        extensions=[_LEAF_USAGE, _SERVER_AND_CLIENT, _IS_LEAF, _server_names(names)],
        entropy=entropy,
    )


def issue_key_server(key: ec.EllipticCurvePrivateKey, quote: bytes, at: datetime, entropy: Entropy) -> bytes:
    """DER of the self-signed certificate with which a Coordinator offers the key exchange; good for a year.

    ``quote`` is an SGX quote with the Open Enclave header over the key; it goes into an extension of the certificate.
    Source: protocol, sections 3.5 and 11.4.
    """
    evidence = Extension(ext.OE_EVIDENCE, False, quote)
    return _issue_peer(KEY_SERVER_NAME, key, (at - CLOCK_SKEW, at + KEY_SERVER_LIFETIME), entropy, evidence)


def issue_key_client(key: ec.EllipticCurvePrivateKey, at: datetime, entropy: Entropy) -> bytes:
    """DER of the self-signed certificate with which a Coordinator asks for the key (protocol, section 11.4)."""
    return _issue_peer(ROOT_NAME, key, (at, at + FOREVER), entropy)


def _issue_peer(
    common_name: str,
    key: ec.EllipticCurvePrivateKey,
    validity: tuple[datetime, datetime],
    entropy: Entropy,
    *evidence: Extension,
) -> bytes:
    subject = encode_name(Name(common_name=common_name))
    return _sign(
        key,
        issuer=subject,
        subject=subject,
        public_key=public_key_info(key.public_key()),
        validity=validity,
        extensions=[_LEAF_USAGE, _SERVER_AND_CLIENT, _IS_LEAF, *(extension.encode() for extension in evidence)],
        entropy=entropy,
    )


def _key_id(public_key: bytes) -> bytes:
    """First 20 bytes of SHA-256 over the key's bit string, as Go does from 1.25 on (protocol, section 13.3)."""
    parts = der.children(der.single(public_key), der.SEQUENCE, "public key", limit=2)
    bits, _ = der.read_bit_string(parts[1], "public key")
    return hashlib.sha256(bits).digest()[:_KEY_ID_BYTES]


def _sign(
    key: ec.EllipticCurvePrivateKey | SigningKey,
    *,
    issuer: bytes,
    subject: bytes,
    public_key: bytes,
    validity: tuple[datetime, datetime],
    extensions: Iterable[bytes],
    entropy: Entropy,
    algorithm: int = 0,
) -> bytes:
    """The signed certificate; ``algorithm`` is Go's number, 0 the one that fits the key's curve."""
    identifier, scheme = _ALGORITHMS[algorithm or _DEFAULT_ALGORITHM[key.curve.name]]
    tbs = der.sequence(
        _VERSION_3,
        der.integer(int.from_bytes(entropy.token(_SERIAL_BYTES))),
        identifier,
        issuer,
        der.sequence(*(der.time(time) for time in validity)),
        subject,
        public_key,
        der.tlv(der.context(3, constructed=True), der.sequence(*extensions)),
    )
    return der.sequence(tbs, identifier, der.bit_string(key.sign(tbs, scheme)))
