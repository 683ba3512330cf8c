"""X.509 extensions: values to DER in the order and form that Go writes them, and back.

Source: RFC 5280, section 4.2; order, criticality and Go's numbers: protocol, sections 3.1, 5.5 and 6.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_network
from types import MappingProxyType
from typing import Final

from marblerun.errors import Malformed
from marblerun.pki import der
from marblerun.pki.profiles import CertificateTemplate, IpAddress, parse_ip

SUBJECT_KEY_ID: Final = "2.5.29.14"
KEY_USAGE: Final = "2.5.29.15"
SUBJECT_ALT_NAME: Final = "2.5.29.17"
BASIC_CONSTRAINTS: Final = "2.5.29.19"
NAME_CONSTRAINTS: Final = "2.5.29.30"
CRL_DISTRIBUTION_POINTS: Final = "2.5.29.31"
CERTIFICATE_POLICIES: Final = "2.5.29.32"
AUTHORITY_KEY_ID: Final = "2.5.29.35"
EXTENDED_KEY_USAGE: Final = "2.5.29.37"
AUTHORITY_INFO_ACCESS: Final = "1.3.6.1.5.5.7.1.1"
# The Marble's type, as raw bytes (protocol, section 2.7).
MARBLE_TYPE: Final = "1.3.9903.2.1"
OE_EVIDENCE: Final = "1.3.6.1.4.1.311.105.1"
"""An Open Enclave report about the certificate's key. Source: protocol, section 11.4."""

_OCSP: Final = "1.3.6.1.5.5.7.48.1"
_CA_ISSUERS: Final = "1.3.6.1.5.5.7.48.2"

# Go's KeyUsage bits.
DIGITAL_SIGNATURE: Final = 1
KEY_AGREEMENT: Final = 16
CERT_SIGN: Final = 32

# Go's ExtKeyUsage numbers; the index is the number (protocol, section 5.5).
EXTENDED_KEY_USAGES: Final = (
    "2.5.29.37.0",
    "1.3.6.1.5.5.7.3.1",
    "1.3.6.1.5.5.7.3.2",
    "1.3.6.1.5.5.7.3.3",
    "1.3.6.1.5.5.7.3.4",
    "1.3.6.1.5.5.7.3.5",
    "1.3.6.1.5.5.7.3.6",
    "1.3.6.1.5.5.7.3.7",
    "1.3.6.1.5.5.7.3.8",
    "1.3.6.1.5.5.7.3.9",
    "1.3.6.1.4.1.311.10.3.3",
    "2.16.840.1.113730.4.1",
    "1.3.6.1.4.1.311.2.1.22",
    "1.3.6.1.4.1.311.61.1.1",
)
ANY_USAGE: Final = 0
SERVER_AUTH: Final = 1
CLIENT_AUTH: Final = 2

_EMAIL = der.context(1, constructed=False)
_DNS = der.context(2, constructed=False)
_URI = der.context(6, constructed=False)
_IP = der.context(7, constructed=False)


@dataclass(frozen=True, slots=True)
class Extension:
    """One extension: dotted OID, whether it is critical, and the bytes inside its OCTET STRING."""

    oid: str
    critical: bool
    value: bytes

    def encode(self) -> bytes:
        """The Extension SEQUENCE; ``Malformed`` if the OID is none."""
        critical = der.boolean(True) if self.critical else b""
        return der.sequence(der.oid(self.oid), critical, der.octet_string(self.value))


@dataclass(frozen=True, slots=True)
class AltNames:
    """A subject alternative name extension, taken apart by kind; order within a kind is kept."""

    dns_names: tuple[str, ...] = ()
    email_addresses: tuple[str, ...] = ()
    ip_addresses: tuple[IpAddress, ...] = ()
    uris: tuple[str, ...] = ()


def key_usage(bits: int) -> Extension:
    """The key usage extension for Go's bit mask, of which the lowest 16 bits count."""
    mask = bytes(int(f"{octet:08b}"[::-1], 2) for octet in (bits & 0xFF, bits >> 8 & 0xFF))
    used = mask if mask[1] else mask[:1]
    length = len(used) * 8 - _trailing_zero_bits(used)
    return Extension(KEY_USAGE, True, der.bit_string(used, -length % 8))


def _trailing_zero_bits(value: bytes) -> int:
    number = int.from_bytes(value)
    return (number & -number).bit_length() - 1 if number else len(value) * 8


def extended_key_usage(oids: Iterable[str]) -> Extension:
    """The extended key usage extension naming these OIDs."""
    return Extension(EXTENDED_KEY_USAGE, False, der.sequence(*(der.oid(dotted) for dotted in oids)))


def basic_constraints(*, is_ca: bool, path_length: int | None = None) -> Extension:
    """The basic constraints extension, always critical."""
    parts = (der.boolean(True) if is_ca else b"", b"" if path_length is None else der.integer(path_length))
    return Extension(BASIC_CONSTRAINTS, True, der.sequence(*parts))


def subject_key_id(value: bytes) -> Extension:
    """The subject key identifier extension."""
    return Extension(SUBJECT_KEY_ID, False, der.octet_string(value))


def authority_key_id(value: bytes) -> Extension:
    """The authority key identifier extension with nothing but the key id."""
    return Extension(AUTHORITY_KEY_ID, False, der.sequence(der.tlv(der.context(0, constructed=False), value)))


def subject_alt_name(names: AltNames, *, critical: bool = False) -> Extension:
    """The alternative names in Go's order: DNS, e-mail, IP, URI. ``Malformed`` for text that is not ASCII."""
    entries = [der.ia5(name, _DNS, where="DNSNames") for name in names.dns_names]
    entries += [der.ia5(name, _EMAIL, where="EmailAddresses") for name in names.email_addresses]
    entries += [der.tlv(_IP, address.packed) for address in names.ip_addresses]
    entries += [der.ia5(name, _URI, where="URIs") for name in names.uris]
    return Extension(SUBJECT_ALT_NAME, critical, der.sequence(*entries))


def from_template(
    template: CertificateTemplate,
    *,
    critical_names: bool,
    key_id: bytes,
    authority_id: bytes,
    carried: Mapping[str, Extension] = MappingProxyType({}),
) -> list[Extension]:
    """The extensions of a certificate made from ``template``, in the order Go writes them.

    ``carried`` are kept in their place; an extension of ``extra_extensions`` replaces the generated one of its type.
    ``Malformed`` for what Go refuses: unknown usage numbers, a path length on a certificate that is no CA, text that
    is not ASCII, bad OIDs, networks or constraint domains, two extensions of the same type.
    """
    found = _usages_and_ids(template, key_id=key_id, authority_id=authority_id)
    if template.ocsp_server or template.issuing_certificate_url:
        found.append(_information_access(template))
    found += _carried(carried, AUTHORITY_INFO_ACCESS)
    names = AltNames(
        template.dns_names or (),
        template.email_addresses or (),
        tuple(_address(text) for text in template.ip_addresses or ()),
        template.uris or (),
    )
    if names != AltNames():
        found.append(subject_alt_name(names, critical=critical_names))
    if template.policies:
        policies = (der.sequence(der.oid(dotted)) for dotted in template.policies)
        found.append(Extension(CERTIFICATE_POLICIES, False, der.sequence(*policies)))
    found += _carried(carried, CERTIFICATE_POLICIES)
    if constraints := _name_constraints(template):
        found.append(constraints)
    found += _carried(carried, NAME_CONSTRAINTS)
    if template.crl_distribution_points:
        found.append(_distribution_points(template.crl_distribution_points))
    found += _carried(carried, CRL_DISTRIBUTION_POINTS)
    extra = [Extension(*parts) for parts in template.extra_extensions]
    replaced = {extension.oid for extension in extra}
    if len(replaced) < len(extra):
        raise Malformed("two extensions of the same type", where="ExtraExtensions")
    return [extension for extension in found if extension.oid not in replaced] + extra


def _carried(carried: Mapping[str, Extension], oid: str) -> list[Extension]:
    return [carried[oid]] if oid in carried else []


def _usages_and_ids(template: CertificateTemplate, *, key_id: bytes, authority_id: bytes) -> list[Extension]:
    found: list[Extension] = []
    if template.key_usage:
        found.append(key_usage(template.key_usage))
    if template.ext_key_usage or template.unknown_ext_key_usage:
        known = (_usage_oid(number) for number in template.ext_key_usage or ())
        found.append(extended_key_usage((*known, *(template.unknown_ext_key_usage or ()))))
    found.append(basic_constraints(is_ca=template.is_ca, path_length=_path_length(template)))
    if key_id:
        found.append(subject_key_id(key_id))
    if authority_id:
        found.append(authority_key_id(authority_id))
    return found


def _usage_oid(number: int) -> str:
    if not 0 <= number < len(EXTENDED_KEY_USAGES):
        raise Malformed(f"unknown extended key usage {number}", where="ExtKeyUsage")
    return EXTENDED_KEY_USAGES[number]


def _path_length(template: CertificateTemplate) -> int | None:
    length = template.max_path_len
    if length < -1:
        raise Malformed(f"{length} is below -1", where="MaxPathLen")
    stated = length > 0 or (length == 0 and template.max_path_len_zero)
    if stated and not template.is_ca:
        raise Malformed("only a CA (IsCA) can have a path length", where="MaxPathLen")
    return length if stated else None


def _address(text: str) -> IpAddress:
    address = parse_ip(text)
    if address is None:
        raise Malformed(f"not an IP address: {text[:80]!r}", where="IPAddresses")
    return address


def _location(url: str) -> bytes:
    # Written as given: unlike alternative names, Go does not insist on ASCII here.
    try:
        return der.tlv(_URI, url.encode())
    except UnicodeEncodeError as error:
        raise Malformed("a URL is not valid Unicode") from error


def _information_access(template: CertificateTemplate) -> Extension:
    methods = [(_OCSP, url) for url in template.ocsp_server]
    methods += [(_CA_ISSUERS, url) for url in template.issuing_certificate_url]
    entries = (der.sequence(der.oid(method), _location(url)) for method, url in methods)
    return Extension(AUTHORITY_INFO_ACCESS, False, der.sequence(*entries))


def _distribution_points(urls: Sequence[str]) -> Extension:
    outer = der.context(0, constructed=True)
    points = (der.sequence(der.tlv(outer, der.tlv(outer, _location(url)))) for url in urls)
    return Extension(CRL_DISTRIBUTION_POINTS, False, der.sequence(*points))


def _name_constraints(template: CertificateTemplate) -> Extension | None:
    permitted = _subtrees(
        template.permitted_dns_domains,
        template.permitted_ip_ranges,
        template.permitted_email_addresses,
        template.permitted_uri_domains,
    )
    excluded = _subtrees(
        template.excluded_dns_domains,
        template.excluded_ip_ranges,
        template.excluded_email_addresses,
        template.excluded_uri_domains,
    )
    if not permitted and not excluded:
        return None
    parts = ((number, body) for number, body in enumerate((permitted, excluded)) if body)
    value = der.sequence(*(der.tlv(der.context(number, constructed=True), body) for number, body in parts))
    return Extension(NAME_CONSTRAINTS, template.permitted_dns_domains_critical, value)


def _subtrees(dns: Sequence[str], networks: Sequence[str], emails: Sequence[str], uris: Sequence[str]) -> bytes:
    entries = [der.ia5(_constraint(domain), _DNS, where="name constraints") for domain in dns]
    entries += [der.tlv(_IP, _network(text)) for text in networks]
    for email in emails:
        mailbox, _, domain = email.rpartition("@")
        if "@" in email and not (mailbox and domain):
            raise Malformed(f"not a mailbox: {email[:80]!r}", where="name constraints")
        _constraint(domain)
        entries.append(der.ia5(email, _EMAIL, where="name constraints"))
    for domain in uris:
        if parse_ip(domain) is not None:
            raise Malformed(f"an IP address cannot constrain URIs: {domain!r}", where="name constraints")
        entries.append(der.ia5(_constraint(domain), _URI, where="name constraints"))
    return b"".join(der.sequence(entry) for entry in entries)


def _constraint(domain: str) -> str:
    # A leading dot means subdomains only; the empty domain means all.
    labels = domain.removeprefix(".").split(".")
    visible = all(33 <= ord(character) <= 126 for character in domain)
    if domain and not (visible and all(labels)):
        raise Malformed(f"not a domain: {domain[:80]!r}", where="name constraints")
    return domain


def _network(text: str) -> bytes:
    try:
        network = ip_network(text, strict=False)
    except ValueError as error:
        raise Malformed(f"not an IP network: {text[:80]!r}", where="name constraints") from error
    return network.network_address.packed + network.netmask.packed


def read_extensions(element: der.Element, what: str) -> tuple[Extension, ...]:
    """The extensions in an Extensions SEQUENCE; ``Malformed`` if a type occurs twice."""
    found: dict[str, Extension] = {}
    for entry in der.children(element, der.SEQUENCE, what, limit=256):
        parts = der.children(entry, der.SEQUENCE, what, limit=3)
        if len(parts) not in (2, 3):
            raise Malformed(f"{what}: an extension has two or three parts")
        dotted = parts[0].oid(what)
        critical = len(parts) == 3 and parts[1].boolean(what)
        if dotted in found:
            raise Malformed(f"{what}: two extensions of type {dotted}")
        found[dotted] = Extension(dotted, critical, parts[-1].expect(der.OCTET_STRING, what))
    return tuple(found.values())


def read_alt_names(value: bytes) -> AltNames:
    """The names in a subject alternative name extension; kinds other than the four are left out."""
    what = "subject alternative name"
    texts: dict[int, list[str]] = {_DNS: [], _EMAIL: [], _URI: []}
    addresses: list[IpAddress] = []
    for entry in der.children(der.single(value), der.SEQUENCE, what):
        if entry.tag in texts:
            texts[entry.tag].append(_ascii(entry.content, what))
        elif entry.tag == _IP:
            addresses.append(_packed_address(entry.content))
    return AltNames(tuple(texts[_DNS]), tuple(texts[_EMAIL]), tuple(addresses), tuple(texts[_URI]))


def _ascii(body: bytes, what: str) -> str:
    try:
        return body.decode("ascii")
    except UnicodeDecodeError as error:
        raise Malformed(f"{what}: only ASCII is possible") from error


def _packed_address(body: bytes) -> IpAddress:
    if len(body) == 4:
        return IPv4Address(body)
    if len(body) == 16:
        address = IPv6Address(body)
        return address.ipv4_mapped or address
    raise Malformed(f"an IP address has 4 or 16 bytes, not {len(body)}")
