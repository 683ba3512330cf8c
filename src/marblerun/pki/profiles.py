"""What a certificate shall say, before anybody signs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

IpAddress = IPv4Address | IPv6Address

# Every CA and Marble certificate is good for the local host (protocol, section 3.1).
LOOPBACK: Final[tuple[IpAddress, ...]] = (IPv4Address("127.0.0.1"), IPv6Address("::1"))


def parse_ip(text: str) -> IpAddress | None:
    """The address that ``text`` writes, ``None`` if it is none; an IPv4-mapped one becomes IPv4, zones are refused."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    return None if address.scope_id else address.ipv4_mapped or address


@dataclass(frozen=True, slots=True)
class SubjectNames:
    """Under which names a server can be reached; ``ip_addresses`` come on top of the loopback ones."""

    dns_names: tuple[str, ...] = ("localhost",)
    ip_addresses: tuple[IpAddress, ...] = ()

    @classmethod
    def parse(cls, text: str) -> SubjectNames:
        """The names in a comma-separated list, not trimmed; entries that are IP literals become addresses.

        Source: protocol, section 1.2 (``EDG_COORDINATOR_DNS_NAMES``) and 2.7 (``EDG_MARBLE_DNS_NAMES``).
        """
        entries = [(entry, parse_ip(entry)) for entry in text.split(",")]
        return cls(
            dns_names=tuple(entry for entry, address in entries if address is None),
            ip_addresses=tuple(address for _, address in entries if address is not None),
        )


@dataclass(frozen=True, slots=True)
class Name:
    """A distinguished name in the shape of Go's ``pkix.Name``; empty parts are left out of the DER."""

    country: tuple[str, ...] = ()
    organization: tuple[str, ...] = ()
    organizational_unit: tuple[str, ...] = ()
    locality: tuple[str, ...] = ()
    province: tuple[str, ...] = ()
    street_address: tuple[str, ...] = ()
    postal_code: tuple[str, ...] = ()
    serial_number: str = ""
    common_name: str = ""
    extra_names: tuple[tuple[str, str], ...] = ()
    """Dotted OID and text value; they override a standard attribute of the same OID, as in Go."""


@dataclass(frozen=True, slots=True)
class CertificateTemplate:
    """A manifest's ``Cert`` object: the fields of Go's ``x509.Certificate`` that its generator uses.

    ``None`` for a list means the key was absent or null; an explicit empty list is ``()``. The difference matters
    (protocol, section 6.4). Key usage is Go's bit mask, extended key usages are Go's numbers (protocol, section 5.5).
    """

    subject: Name = field(default_factory=Name)
    dns_names: tuple[str, ...] | None = None
    email_addresses: tuple[str, ...] | None = None
    ip_addresses: tuple[str, ...] | None = None
    uris: tuple[str, ...] | None = None
    not_after: datetime | None = None
    key_usage: int = 0
    ext_key_usage: tuple[int, ...] | None = None
    unknown_ext_key_usage: tuple[str, ...] | None = None
    is_ca: bool = False
    max_path_len: int = 0
    max_path_len_zero: bool = False
    subject_key_id: bytes = b""
    authority_key_id: bytes = b""
    ocsp_server: tuple[str, ...] = ()
    issuing_certificate_url: tuple[str, ...] = ()
    crl_distribution_points: tuple[str, ...] = ()
    permitted_dns_domains_critical: bool = False
    permitted_dns_domains: tuple[str, ...] = ()
    excluded_dns_domains: tuple[str, ...] = ()
    permitted_ip_ranges: tuple[str, ...] = ()
    """CIDR text."""
    excluded_ip_ranges: tuple[str, ...] = ()
    permitted_email_addresses: tuple[str, ...] = ()
    excluded_email_addresses: tuple[str, ...] = ()
    permitted_uri_domains: tuple[str, ...] = ()
    excluded_uri_domains: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    extra_extensions: tuple[tuple[str, bool, bytes], ...] = ()
    """Dotted OID, critical, DER value."""
    signature_algorithm: int = 0
