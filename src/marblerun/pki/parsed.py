"""A certificate as it was read: every field its profile decides about, tolerant where Go's parser is.

pyca's own certificate type refuses or hides some of what this project issues and accepts by design (protocol,
section 16), so the fields come from the DER itself. Reading proves nothing; see :mod:`marblerun.pki.chains`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from marblerun.errors import Malformed
from marblerun.pki import der
from marblerun.pki import extensions as ext
from marblerun.pki.extensions import AltNames, Extension
from marblerun.pki.names import decode_name
from marblerun.pki.profiles import CertificateTemplate
from marblerun.pki.signatures import algorithm_name
from marblerun.wire.limits import MAX_CSR_BYTES

# One certificate; the same ceiling as for the request it may come from.
MAX_CERTIFICATE_BYTES = MAX_CSR_BYTES
# RFC 5280 allows 20 bytes; some authorities write more, nobody more than this.
_MAX_SERIAL = (1 << 8 * 64) - 1
_MAX_PATH_LENGTH = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class ParsedCertificate:
    """The fields of an X.509 version 3 certificate; names, keys and algorithm identifiers stay encoded."""

    der: bytes
    tbs: bytes
    serial: int
    issuer: bytes
    """RDNSequence DER."""
    not_before: datetime
    not_after: datetime
    subject: bytes
    """RDNSequence DER."""
    public_key: bytes
    """SubjectPublicKeyInfo DER."""
    extensions: Mapping[str, Extension]
    """By dotted OID, in the order of the certificate."""
    signature_algorithm: bytes
    """AlgorithmIdentifier DER."""
    signature: bytes

    @property
    def key_usage(self) -> int:
        """Go's bit mask; 0 if the extension is absent. ``Malformed`` if it cannot be read."""
        return _key_usage(self.extensions.get(ext.KEY_USAGE))

    @property
    def extended_key_usage(self) -> tuple[str, ...]:
        """Dotted OIDs; empty if the extension is absent."""
        return _oids(self.extensions.get(ext.EXTENDED_KEY_USAGE))

    @property
    def basic_constraints(self) -> tuple[bool, int | None] | None:
        """Whether it is a CA and its path length; ``None`` if the extension is absent."""
        return _basic_constraints(self.extensions.get(ext.BASIC_CONSTRAINTS))

    @property
    def subject_key_id(self) -> bytes:
        """The subject key identifier; empty if absent."""
        found = self.extensions.get(ext.SUBJECT_KEY_ID)
        return der.single(found.value).expect(der.OCTET_STRING, "subject key identifier") if found else b""

    @property
    def authority_key_id(self) -> bytes:
        """The issuer's key identifier; empty if absent or if the issuer is named in another way."""
        found = self.extensions.get(ext.AUTHORITY_KEY_ID)
        what = "authority key identifier"
        parts = der.children(der.single(found.value), der.SEQUENCE, what, limit=3) if found else ()
        return parts[0].content if parts and parts[0].tag == der.context(0, constructed=False) else b""

    @property
    def alt_names(self) -> AltNames:
        """The subject alternative names; empty if absent."""
        found = self.extensions.get(ext.SUBJECT_ALT_NAME)
        return ext.read_alt_names(found.value) if found else AltNames()


def parse_certificate(data: bytes) -> ParsedCertificate:
    """The certificate that ``data`` (DER) is; ``Malformed`` if it is none, has trailing bytes or is too large."""
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise Malformed(f"certificate: more than {MAX_CERTIFICATE_BYTES} bytes")
    what = "certificate"
    outer = der.children(der.single(data), der.SEQUENCE, what, limit=3)
    if len(outer) != 3:
        raise Malformed("certificate: expected body, algorithm and signature")
    body = list(der.children(outer[0], der.SEQUENCE, what, limit=10))
    version = 0
    if body and body[0].tag == der.context(0, constructed=True):
        version = der.single(body.pop(0).content).unsigned(der.INTEGER, what, limit=2)
    if len(body) < 6:
        raise Malformed("certificate: fields are missing")
    serial, algorithm, issuer, validity, subject, public_key, *rest = body
    if algorithm != outer[1]:
        raise Malformed("certificate: inner and outer signature algorithm differ")
    times = der.children(validity, der.SEQUENCE, what, limit=2)
    if len(times) != 2:
        raise Malformed("certificate: validity is two times")
    signature, unused = der.read_bit_string(outer[2], what)
    if unused:
        raise Malformed("certificate: signature is not a whole number of bytes")
    return ParsedCertificate(
        der=data,
        tbs=der.raw(outer[0], der.SEQUENCE, what),
        serial=serial.unsigned(der.INTEGER, "certificate serial number", limit=_MAX_SERIAL),
        issuer=der.raw(issuer, der.SEQUENCE, what),
        not_before=der.read_time(times[0], what),
        not_after=der.read_time(times[1], what),
        subject=der.raw(subject, der.SEQUENCE, what),
        public_key=der.raw(public_key, der.SEQUENCE, what),
        extensions=_extensions(rest, version),
        signature_algorithm=der.raw(algorithm, der.SEQUENCE, what),
        signature=signature,
    )


def _extensions(rest: list[der.Element], version: int) -> dict[str, Extension]:
    last = rest[-1] if rest and rest[-1].tag == der.context(3, constructed=True) else None
    unique_ids = rest if last is None else rest[:-1]
    allowed = [der.context(number, constructed=False) for number in (1, 2)]
    if any(element.tag not in allowed for element in unique_ids) or (last is not None and version != 2):
        raise Malformed("certificate: unexpected field")
    if last is None:
        return {}
    listed = der.single(last.content)
    return {found.oid: found for found in ext.read_extensions(listed, "certificate extensions")}


def _key_usage(found: Extension | None) -> int:
    if found is None:
        return 0
    bits, _ = der.read_bit_string(der.single(found.value), "key usage")
    # Bit 0 is the highest of the first byte; beyond the nine named ones nothing counts.
    return sum(1 << at for at in range(min(9, 8 * len(bits))) if bits[at // 8] & 0x80 >> at % 8)


def _oids(found: Extension | None) -> tuple[str, ...]:
    if found is None:
        return ()
    what = "extended key usage"
    return tuple(entry.oid(what) for entry in der.children(der.single(found.value), der.SEQUENCE, what))


def _basic_constraints(found: Extension | None) -> tuple[bool, int | None] | None:
    if found is None:
        return None
    what = "basic constraints"
    parts = list(der.children(der.single(found.value), der.SEQUENCE, what, limit=2))
    is_ca = bool(parts) and parts[0].tag == der.BOOLEAN and parts.pop(0).boolean(what)
    length = parts.pop(0).unsigned(der.INTEGER, what, limit=_MAX_PATH_LENGTH) if parts else None
    if parts:
        raise Malformed("basic constraints: not as X.509 defines them")
    return is_ca, length


# What a template can state beyond names and usages; kept byte for byte when a certificate is issued again.
_CARRIED_OVER = (
    ext.AUTHORITY_INFO_ACCESS,
    ext.CERTIFICATE_POLICIES,
    ext.NAME_CONSTRAINTS,
    ext.CRL_DISTRIBUTION_POINTS,
)


def carried_over(certificate: ParsedCertificate) -> dict[str, Extension]:
    """The extensions that a certificate made from this one repeats unchanged."""
    return {oid: certificate.extensions[oid] for oid in _CARRIED_OVER if oid in certificate.extensions}


_SIGNATURE_NUMBERS = {
    # Go's SignatureAlgorithm numbers of the only ones our issuer's key can make (protocol, section 5.5).
    "1.2.840.10045.4.3.2": 10,
    "1.2.840.10045.4.3.3": 11,
    "1.2.840.10045.4.3.4": 12,
}
_FOREIGN_SIGNATURE = -1


def template_of(certificate: ParsedCertificate) -> CertificateTemplate:
    """What regenerating from a stored certificate starts from (protocol, section 6.4).

    ``subject`` holds the known attributes only; the encoded subject is to be taken from ``certificate``, and so are
    the extensions of :func:`carried_over`. ``extra_extensions`` are lost, as in the reference.
    """
    known = {dotted: number for number, dotted in enumerate(ext.EXTENDED_KEY_USAGES)}
    usages = certificate.extended_key_usage
    names = certificate.alt_names
    is_ca, length = certificate.basic_constraints or (False, None)
    number = algorithm_name(certificate.signature_algorithm)
    return CertificateTemplate(
        subject=decode_name(certificate.subject),
        dns_names=names.dns_names or None,
        email_addresses=names.email_addresses or None,
        ip_addresses=tuple(str(address) for address in names.ip_addresses) or None,
        uris=names.uris or None,
        not_after=certificate.not_after,
        key_usage=certificate.key_usage,
        ext_key_usage=tuple(known[dotted] for dotted in usages if dotted in known) or None,
        unknown_ext_key_usage=tuple(dotted for dotted in usages if dotted not in known) or None,
        is_ca=is_ca,
        max_path_len=-1 if length is None else length,
        max_path_len_zero=length == 0,
        subject_key_id=certificate.subject_key_id,
        authority_key_id=certificate.authority_key_id,
        signature_algorithm=_SIGNATURE_NUMBERS.get(number, _FOREIGN_SIGNATURE),
    )
