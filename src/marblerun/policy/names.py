"""May a Marble's certificate state these names? What the manifest does not allow is refused, all of it at once.

A Marble that may ask for any name can pass for any other, so a manifest may say what each one is reached by. Names are
compared label by label: a dot is a dot, an asterisk is exactly one label, and upper and lower case of ASCII are the
same; nothing is searched for inside a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from ipaddress import IPv6Address
from typing import Final

from marblerun.errors import Denied
from marblerun.manifest.allowed import Network, is_dns_pattern, is_label, parse_network
from marblerun.manifest.model import Marble
from marblerun.pki.profiles import LOOPBACK, IpAddress

LOCAL_NAME: Final = "localhost"
"""Always allowed, as the loopback addresses are: stock Marbles ask for them, and they lead to one's own host only."""
# What fits into a message; a request may hold thousands.
_TOLD: Final = 20
_SHOWN_NAME: Final = 100


def require_names(path: str, marble: Marble, dns_names: Iterable[str], ip_addresses: Iterable[IpAddress]) -> None:
    """Raise Denied with every name that the Marble at ``path`` of the manifest must not have.

    A list that the manifest does not state allows everything, an empty one only the local host.
    """
    found: list[str] = []
    if marble.allowed_dns_names is not None:
        patterns = dns_patterns(marble.allowed_dns_names)
        found += (
            f"{path}.AllowedDNSNames does not allow {name[:_SHOWN_NAME]!a}"
            for name in dns_names
            if not is_dns_name_allowed(name, patterns)
        )
    if marble.allowed_ips is not None:
        networks = [network for network in map(parse_network, marble.allowed_ips) if network is not None]
        found += (
            f"{path}.AllowedIPs does not allow {address}"
            for address in ip_addresses
            if not is_ip_allowed(address, networks)
        )
    if found:
        more = (f"and {len(found) - _TOLD} more",) if len(found) > _TOLD else ()
        raise Denied("marble verification failed: names not allowed", mismatches=(*found[:_TOLD], *more))


def dns_patterns(allowed: Iterable[str]) -> frozenset[str]:
    """The patterns as they are compared; what is none allows nothing."""
    return frozenset(_lower(pattern) for pattern in allowed if is_dns_pattern(pattern))


def is_dns_name_allowed(name: str, patterns: Set[str]) -> bool:
    """Whether a requested name is ``localhost``, or one of the patterns, or fits one of them.

    A request for a wildcard is allowed only where the very same wildcard is: an asterisk is no label that another
    could stand for.
    """
    asked = _lower(name)
    if asked == LOCAL_NAME or asked in patterns:
        return True
    label, _, rest = asked.partition(".")
    return is_label(label) and f"*.{rest}" in patterns


def is_ip_allowed(address: IpAddress, networks: Iterable[Network]) -> bool:
    """Whether an address is one of the two loopback addresses or in one of the networks.

    IPv4 mapped into IPv6 counts as IPv4, as it does for those who will compare the certificate with an address.
    """
    plain = (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address
    return plain in LOOPBACK or any(plain in network for network in networks)


def _lower(name: str) -> str:
    # Not str.lower: that folds letters outside ASCII into it, for example the Kelvin sign into k.
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else c for c in name)
