"""How ``AllowedDNSNames`` and ``AllowedIPs`` are written: names with an asterisk for one label, addresses, networks.

What they admit is decided in :mod:`marblerun.policy.names`.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

Network = IPv4Network | IPv6Network

# RFC 1035, section 2.3.4: a name of 253 characters is 255 bytes on the wire.
_MAX_NAME: Final = 253
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
_WILDCARD: Final = "*."
_MAPPED_BITS: Final = 96


def is_label(text: str) -> bool:
    """Whether this is one label of a host name: letters, digits, dashes and underscores of ASCII, at most 63."""
    return _LABEL.fullmatch(text) is not None


def is_dns_pattern(text: str) -> bool:
    """Whether this is a host name, or ``*.`` before one. No dot at the end, no asterisk elsewhere, not ``*`` alone."""
    return len(text) <= _MAX_NAME and all(is_label(label) for label in text.removeprefix(_WILDCARD).split("."))


def parse_network(text: str) -> Network | None:
    """The network written in CIDR notation, an address being one of a single member; ``None`` for anything else.

    What is written as IPv4 mapped into IPv6 becomes IPv4, as in certificates.
    """
    try:
        network = ip_network(text, strict=True)
    except ValueError:
        return None
    if isinstance(network, IPv4Network):
        # The library also takes masks, 10.0.0.0/255.0.0.0, of which it guesses whether they are inverted.
        return network if "/" not in text or text.rpartition("/")[2].isdecimal() else None
    if network.network_address.scope_id:
        return None
    mapped = network.network_address.ipv4_mapped
    if mapped is not None and network.prefixlen >= _MAPPED_BITS:
        return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))
    return network
