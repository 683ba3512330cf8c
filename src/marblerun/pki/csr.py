"""Certificate requests: reading one with its self-signature checked, and making the one a Marble sends.

Source: RFC 2986; which parts count: protocol, section 2.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.errors import Malformed
from marblerun.pki import der
from marblerun.pki import extensions as ext
from marblerun.pki.ecdsa import VerifyingKey
from marblerun.pki.encodings import public_key_info
from marblerun.pki.extensions import AltNames
from marblerun.pki.names import EMPTY_NAME, decode_name
from marblerun.pki.profiles import LOOPBACK, IpAddress, Name, SubjectNames
from marblerun.pki.signatures import ECDSA_SHA256, ECDSA_SHA384, ECDSA_SHA512, load_public_key, verify_signature
from marblerun.wire.limits import MAX_CSR_BYTES

_EXTENSION_REQUEST: Final = "1.2.840.113549.1.9.14"
_ATTRIBUTES: Final = der.context(0, constructed=True)
# Nobody looks at the version; RFC 2986 knows only 0.
_MAX_VERSION: Final = 255
# Longest attributes whose meaning is remembered.
_REMEMBERED_BYTES: Final = 1024
_SCHEMES: Final = {
    "secp224r1": (ECDSA_SHA256, hashes.SHA256()),
    "secp256r1": (ECDSA_SHA256, hashes.SHA256()),
    "secp384r1": (ECDSA_SHA384, hashes.SHA384()),
    "secp521r1": (ECDSA_SHA512, hashes.SHA512()),
}


@dataclass(frozen=True, slots=True)
class ParsedCsr:
    """What a certificate request asks for, as far as it can have an effect; its signature by its key was checked."""

    subject: Name
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[IpAddress, ...] = ()


def parse_csr(data: bytes) -> ParsedCsr:
    """The request in ``data`` (PKCS#10 DER) after checking that its own key signed it.

    ``Malformed`` if it is too large, not DER, has an unusable key or names that cannot be encoded again; ``Untrusted``
    (step ``csr-signature``) if the signature is wrong or of an algorithm that is not accepted. Requested extensions
    other than alternative names are not looked at.
    """
    if len(data) > MAX_CSR_BYTES:
        raise Malformed(f"certificate request: more than {MAX_CSR_BYTES} bytes")
    what = "certificate request"
    outer = der.children(der.single(data), der.SEQUENCE, what, limit=3)
    if len(outer) != 3:
        raise Malformed(f"{what}: expected body, algorithm and signature")
    body = der.children(outer[0], der.SEQUENCE, what, limit=4)
    if len(body) not in (3, 4):
        raise Malformed(f"{what}: expected version, subject, key and attributes")
    body[0].unsigned(der.INTEGER, what, limit=_MAX_VERSION)
    subject = decode_name(der.raw(body[1], der.SEQUENCE, what))
    names = _names_asked_for(body[3]) if len(body) == 4 else AltNames()
    signature, unused = der.read_bit_string(outer[2], what)
    if unused:
        raise Malformed(f"{what}: signature is not a whole number of bytes")
    info = der.raw(body[2], der.SEQUENCE, what)
    key = load_public_key(info)
    algorithm, signed = der.raw(outer[1], der.SEQUENCE, what), der.raw(outer[0], der.SEQUENCE, what)
    verify_signature(algorithm, VerifyingKey.of(info) or key, signed, signature, step="csr-signature", allow_sha1=True)
    return ParsedCsr(subject, names.dns_names, names.ip_addresses)


def _names_asked_for(attributes: der.Element) -> AltNames:
    """Marbles of one kind ask for the same names; what they mean is found once."""
    if len(attributes.encoded) > _REMEMBERED_BYTES:
        return _requested_names(attributes)
    return _remembered_names(attributes.encoded)


@lru_cache(maxsize=128)
def _remembered_names(attributes: bytes) -> AltNames:
    return _requested_names(der.single(attributes))


def _requested_names(attributes: der.Element) -> AltNames:
    what = "certificate request attributes"
    found: AltNames | None = None
    for attribute in der.children(attributes, _ATTRIBUTES, what, limit=64):
        parts = der.children(attribute, der.SEQUENCE, what, limit=2)
        if len(parts) != 2:
            raise Malformed(f"{what}: an attribute is a type and a set of values")
        if parts[0].oid(what) != _EXTENSION_REQUEST:
            continue
        values = der.children(parts[1], der.SET, what, limit=64)
        for extension in ext.read_extensions(values[0], what) if values else ():
            if extension.oid == ext.SUBJECT_ALT_NAME:
                if found is not None:
                    raise Malformed(f"{what}: two requests for alternative names")
                found = ext.read_alt_names(extension.value)
    return found or AltNames()


def build_csr(names: SubjectNames, key: ec.EllipticCurvePrivateKey) -> bytes:
    """DER of the request a Marble sends: empty subject, its names, the loopback addresses, signed with ``key``."""
    identifier, digest = _SCHEMES[key.curve.name]
    alt_names = AltNames(dns_names=names.dns_names, ip_addresses=LOOPBACK + names.ip_addresses)
    wanted = der.sequence(ext.subject_alt_name(alt_names).encode())
    attribute = der.sequence(der.oid(_EXTENSION_REQUEST), der.set_of([wanted]))
    body = der.sequence(der.integer(0), EMPTY_NAME, public_key_info(key.public_key()), der.tlv(_ATTRIBUTES, attribute))
    return der.sequence(body, identifier, der.bit_string(key.sign(body, ec.ECDSA(digest))))
