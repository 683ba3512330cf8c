"""A secret's ``Cert``: the object form with the field names of Go's certificate structure, or base64 of a certificate.

Every field that Go's structure has is checked for its type, also those that the generator overwrites or ignores; what
the object says is handed over as a :class:`CertificateTemplate`, not judged here.
Source: protocol, section 5.5; Go ``crypto/x509.Certificate``, ``net.IP``, ``net/url.URL``, ``time.Time``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final
from urllib.parse import quote, unquote_to_bytes

from marblerun.errors import Malformed
from marblerun.pki.profiles import CertificateTemplate, Name
from marblerun.secrets.given import read_given_certificate
from marblerun.wire.gojson import (
    Field,
    History,
    Inside,
    Shape,
    Trail,
    anything,
    boolean,
    byte_string,
    decode_base64,
    integer,
    list_of,
    nullable_list_of,
    optional,
    record,
    string,
    struct,
)
from marblerun.wire.jsontree import Node, Null, Number, String


@dataclass(frozen=True, slots=True)
class Cert:
    """What ``Cert`` said: an object (``template``), a certificate (``der``), or nothing that counts."""

    template: CertificateTemplate | None = None
    der: bytes | None = None


class _CertShape(Shape[Cert]):
    def inside(self) -> Inside:
        return _TEMPLATE.inside()

    def read(self, history: History, trail: Trail) -> Cert:
        cert = Cert()
        if not history:
            return cert
        objects: list[Node] = []  # objects are merged, unless a certificate comes between
        for node in history:
            if not isinstance(node, String):
                objects.append(node)
            elif der := self._certificate(node, trail):
                _TEMPLATE.read(objects, trail)
                objects, cert = [], Cert(der=der)
        # A null leaves what an earlier occurrence set.
        template = _TEMPLATE.read(objects, trail)
        return cert if all(isinstance(node, Null) for node in objects) else Cert(template=template)

    @staticmethod
    def _certificate(node: String, trail: Trail) -> bytes | None:
        try:
            der = decode_base64(node.text)
        except ValueError:
            return None  # the reference takes this as "no certificate" and so do we; the linter tells
        try:
            return read_given_certificate(der).der
        except Malformed as error:
            trail.fault(node, f"expected base64 of a certificate: {error}")
            return None


class _TimeShape(Shape[datetime | None]):
    """An RFC 3339 time. Go's zero time, year 1, counts as none."""

    def read(self, history: History, trail: Trail) -> datetime | None:
        value = None
        for node in history:
            if isinstance(node, Null):
                continue
            try:
                # Go looks at the text between the quotes without resolving escapes.
                if not isinstance(node, String) or node.escaped:
                    raise ValueError
                value = _parse_time(node.text)
            except ValueError:
                trail.mismatch(node, "a time such as 2030-01-31T12:00:00Z (RFC 3339)")
        return None if value == _ZERO_TIME else value


_ZERO_TIME: Final = datetime(1, 1, 1, tzinfo=UTC)
# Go is laxer than RFC 3339: one digit will do for the hour, a comma for the point, 24 hours and 60 minutes as offset.
_TIME = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})T([0-9]{1,2}):([0-9]{2}):([0-9]{2})(?:[.,]([0-9]+))?"
    r"(?:Z|([+-])([0-9]{2}):([0-9]{2}))"
)


def _parse_time(text: str) -> datetime:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("not RFC 3339")
    year, month, day, hour, minute, second = map(int, match.groups()[:6])
    fraction, sign, offset_hours, offset_minutes = match.groups()[6:]
    hours, minutes = int(offset_hours or 0), int(offset_minutes or 0)
    if hours > 24 or minutes > 60:
        raise ValueError("not a time zone")
    offset = timedelta(hours=hours, minutes=minutes)
    # Year 0 exists in Go and not here: the year 400 has the same calendar, and both are long past.
    when = datetime(year or 400, month, day, hour, minute, second, int((fraction or "")[:6].ljust(6, "0")), tzinfo=UTC)
    try:
        return when + offset if sign == "-" else when - offset
    except OverflowError:
        # A day beyond what a datetime holds is beyond what a certificate holds: as far as possible.
        return datetime.max.replace(tzinfo=UTC) if year == 9999 else _ZERO_TIME + timedelta(microseconds=1)


class _IpShape(Shape[str]):
    """An IP address in canonical text, IPv4 also where it was written mapped into IPv6; empty for null and ``""``."""

    def read(self, history: History, trail: Trail) -> str:
        value = ""
        for node in history:
            match node:
                case Null() | String(text=""):
                    value = ""
                case String():
                    try:
                        value = str(_parse_ip(node.text))
                    except ValueError:
                        trail.fault(node, "expected an IP address, without a zone")
                case _:
                    trail.mismatch(node, "an IP address in a string")
        return value


def _parse_ip(text: str) -> IPv4Address | IPv6Address:
    if "%" in text:
        raise ValueError("zones are not part of an address")
    address = ip_address(text)
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


class _OidTextShape(Shape[str]):
    """A dotted object identifier with leading zeros dropped; empty if never given."""

    def read(self, history: History, trail: Trail) -> str:
        value = ""
        for node in history:
            if isinstance(node, String) and (dotted := _canonical_oid(node.text)):
                value = dotted
            elif not isinstance(node, Null):
                trail.mismatch(node, "a dotted object identifier in a string")
        return value


def _canonical_oid(text: str) -> str | None:
    if not re.fullmatch(r"[0-9]+(?:\.[0-9]+)+", text):
        return None
    arcs = [arc.lstrip("0") or "0" for arc in text.split(".")]
    if arcs[0] not in ("0", "1", "2") or (arcs[0] != "2" and not (len(arcs[1]) < 3 and int(arcs[1]) < 40)):
        return None
    return ".".join(arcs)


class _OidNumbersShape(Shape[str]):
    """An object identifier as an array of numbers, given as dotted text; whether it is a valid one is not asked."""

    def read(self, history: History, trail: Trail) -> str:
        return ".".join(str(arc) for arc in _INTS.read(history, trail))


class _BigIntShape(Shape[None]):
    """A whole number of any size, checked and dropped (the serial number is never taken from a manifest)."""

    def read(self, history: History, trail: Trail) -> None:
        for node in history:
            whole = isinstance(node, Number) and re.fullmatch("-?[0-9]+", node.literal)
            if not whole and not isinstance(node, Null):
                trail.mismatch(node, "a whole number")


class _NameValueShape(Shape[str]):
    """The value of an attribute: Go takes anything, of which text is all that anybody writes."""

    def read(self, history: History, trail: Trail) -> str:
        anything.read(history, trail)
        value = ""
        for node in history:
            if isinstance(node, String):
                value = node.text
            else:
                trail.mismatch(node, "a string (other values of ExtraNames are not supported)")
        return value


_INT: Final = integer(64)
_INTS: Final = list_of(_INT)
_STRINGS: Final = list_of(string)
_NULLABLE_STRINGS: Final = nullable_list_of(string)
_OID: Final = _OidNumbersShape()
_OID_TEXT: Final = _OidTextShape()
_TIME_SHAPE: Final = _TimeShape()
_IP: Final = _IpShape()


# URLs and networks -------------------------------------------------------------------------------------------------

# Bytes that Go leaves alone in a path, a fragment and a host (Go 1.26, found by trying each).
_PATH_SAFE: Final = "$&+,-./:;=@_~"
_FRAGMENT_SAFE: Final = "!$&()*+,-./:;=?@_~"
_HOST_SAFE: Final = "!\"$&'()*+,-.:;<=>[]_~"
_PATH_RAW = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@\[\]/]|%[0-9a-fA-F]{2})*+")
_FRAGMENT_RAW = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@\[\]/?]|%[0-9a-fA-F]{2})*+")


def _is_escaping(raw: str, plain: str, allowed: re.Pattern[str]) -> bool:
    """Whether the author's own escaping says the same as the plain text; Go then keeps it."""
    return bool(raw and allowed.fullmatch(raw)) and unquote_to_bytes(raw) == plain.encode()


def _escaped_path(path: str, raw: str) -> str:
    if _is_escaping(raw, path, _PATH_RAW):
        return raw
    return "*" if path == "*" else quote(path, safe=_PATH_SAFE)


def _url(
    *, scheme: str, opaque: str, user: object, host: str, path: str, fragment: str, raw_query: str, raw_path: str,
    raw_fragment: str, force_query: bool, omit_host: bool,
) -> str:  # fmt: skip
    text = f"{scheme}:" if scheme else ""
    if opaque:
        text += opaque
    else:
        has_user = user is not None
        if (scheme or host or has_user) and not (omit_host and not host and not has_user):
            if host or path or has_user:
                text += "//"
            if has_user:
                text += "@"  # names and passwords have no key in JSON; an empty user remains
            text += quote(host, safe=_HOST_SAFE)
        escaped = _escaped_path(path, raw_path)
        if escaped and not escaped.startswith("/") and host:
            text += "/"
        if not text and ":" in escaped.partition("/")[0]:
            text += "./"  # otherwise the segment would read as a scheme
        text += escaped
    if force_query or raw_query:
        text += f"?{raw_query}"
    if fragment:
        kept = _is_escaping(raw_fragment, fragment, _FRAGMENT_RAW)
        text += "#" + (raw_fragment if kept else quote(fragment, safe=_FRAGMENT_SAFE))
    return text


class _OrEmpty(Shape[str]):
    """A Go pointer whose nil shows as empty text."""

    def __init__(self, of: Shape[str]) -> None:
        self._of = optional(of)

    def inside(self) -> Inside:
        return self._of.inside()

    def read(self, history: History, trail: Trail) -> str:
        return self._of.read(history, trail) or ""


_URL: Final = struct(
    _url,
    ("Scheme", "scheme", string),
    ("Opaque", "opaque", string),
    ("User", "user", optional(record())),
    ("Host", "host", string),
    ("Path", "path", string),
    ("Fragment", "fragment", string),
    ("RawQuery", "raw_query", string),
    ("RawPath", "raw_path", string),
    ("RawFragment", "raw_fragment", string),
    ("ForceQuery", "force_query", boolean),
    ("OmitHost", "omit_host", boolean),
)


def _network(ip: str, mask: bytes) -> str:
    """CIDR text, or text that nothing accepts later for a network that no certificate can hold."""
    bits = int.from_bytes(mask)
    length = bits.bit_count()
    contiguous = bits == (1 << len(mask) * 8) - (1 << len(mask) * 8 - length)
    if not ip or not contiguous or len(mask) not in (4, 16):
        return f"{ip}/mask:{mask.hex()}"
    if len(mask) == 4:
        return f"{ip}/{length}" if "." in ip else f"{ip}/mask:{mask.hex()}"
    return f"::ffff:{ip}/{length}" if "." in ip else f"{ip}/{length}"


_NETWORK: Final = struct(_network, ("IP", "ip", _IP), ("Mask", "mask", byte_string))
_NETWORKS: Final = list_of(_OrEmpty(_NETWORK))


# The structure -----------------------------------------------------------------------------------------------------


def _pair(**parts: Any) -> tuple[Any, ...]:
    return tuple(parts.values())


_ATTRIBUTE: Final = struct(_pair, ("Type", "type", _OID), ("Value", "value", _NameValueShape()))
_ANY_ATTRIBUTE: Final = record(Type=_OID, Value=anything)
_EXTENSION: Final = struct(
    _pair, ("Id", "id", _OID), ("Critical", "critical", boolean), ("Value", "value", byte_string)
)
_NAME: Final = struct(
    Name,
    ("Country", "country", _STRINGS),
    ("Organization", "organization", _STRINGS),
    ("OrganizationalUnit", "organizational_unit", _STRINGS),
    ("Locality", "locality", _STRINGS),
    ("Province", "province", _STRINGS),
    ("StreetAddress", "street_address", _STRINGS),
    ("PostalCode", "postal_code", _STRINGS),
    ("SerialNumber", "serial_number", string),
    ("CommonName", "common_name", string),
    ("Names", "", list_of(_ANY_ATTRIBUTE)),
    ("ExtraNames", "extra_names", list_of(_ATTRIBUTE)),
)
_POLICY_MAPPING: Final = record(IssuerDomainPolicy=_OID_TEXT, SubjectDomainPolicy=_OID_TEXT)

_USED: Final = (
    ("Subject", "subject", _NAME),
    ("DNSNames", "dns_names", _NULLABLE_STRINGS),
    ("EmailAddresses", "email_addresses", _NULLABLE_STRINGS),
    ("IPAddresses", "ip_addresses", nullable_list_of(_IP)),
    ("URIs", "uris", nullable_list_of(_OrEmpty(_URL))),
    ("NotAfter", "not_after", _TIME_SHAPE),
    ("KeyUsage", "key_usage", _INT),
    ("ExtKeyUsage", "ext_key_usage", nullable_list_of(_INT)),
    ("UnknownExtKeyUsage", "unknown_ext_key_usage", nullable_list_of(_OID)),
    ("IsCA", "is_ca", boolean),
    ("MaxPathLen", "max_path_len", _INT),
    ("MaxPathLenZero", "max_path_len_zero", boolean),
    ("SubjectKeyId", "subject_key_id", byte_string),
    ("AuthorityKeyId", "authority_key_id", byte_string),
    ("OCSPServer", "ocsp_server", _STRINGS),
    ("IssuingCertificateURL", "issuing_certificate_url", _STRINGS),
    ("CRLDistributionPoints", "crl_distribution_points", _STRINGS),
    ("PermittedDNSDomainsCritical", "permitted_dns_domains_critical", boolean),
    ("PermittedDNSDomains", "permitted_dns_domains", _STRINGS),
    ("ExcludedDNSDomains", "excluded_dns_domains", _STRINGS),
    ("PermittedIPRanges", "permitted_ip_ranges", _NETWORKS),
    ("ExcludedIPRanges", "excluded_ip_ranges", _NETWORKS),
    ("PermittedEmailAddresses", "permitted_email_addresses", _STRINGS),
    ("ExcludedEmailAddresses", "excluded_email_addresses", _STRINGS),
    ("PermittedURIDomains", "permitted_uri_domains", _STRINGS),
    ("ExcludedURIDomains", "excluded_uri_domains", _STRINGS),
    ("Policies", "policies", list_of(_OID_TEXT)),
    ("ExtraExtensions", "extra_extensions", list_of(_EXTENSION)),
    ("SignatureAlgorithm", "signature_algorithm", _INT),
)
_IGNORED: Final[tuple[tuple[str, Shape[Any]], ...]] = (
    *((name, byte_string) for name in ("Raw", "RawTBSCertificate", "RawSubjectPublicKeyInfo", "RawSubject")),
    *((name, byte_string) for name in ("RawIssuer", "Signature")),
    *((name, _INT) for name in ("PublicKeyAlgorithm", "Version")),
    *((name, _INT) for name in ("InhibitAnyPolicy", "InhibitPolicyMapping", "RequireExplicitPolicy")),
    *((name, boolean) for name in ("BasicConstraintsValid", "InhibitAnyPolicyZero", "InhibitPolicyMappingZero")),
    ("RequireExplicitPolicyZero", boolean),
    ("PublicKey", anything),
    ("SerialNumber", _BigIntShape()),
    ("Issuer", _NAME),
    ("NotBefore", _TIME_SHAPE),
    ("Extensions", list_of(_EXTENSION)),
    ("UnhandledCriticalExtensions", list_of(_OID)),
    ("PolicyIdentifiers", list_of(_OID)),
    ("PolicyMappings", list_of(_POLICY_MAPPING)),
)
_TEMPLATE: Final = struct(
    CertificateTemplate,
    *(Field(*field) for field in _USED),
    *(Field(name, "", shape) for name, shape in _IGNORED),
)
certificate: Final[Shape[Cert]] = _CertShape()
"""The shape of ``Cert``."""

IGNORED_KEYS: Final = tuple(name for name, _ in _IGNORED)
"""Keys of the object form that are accepted and have none."""
