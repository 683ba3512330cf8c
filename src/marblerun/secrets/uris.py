"""Which URIs a certificate may have as names, as Go's ``net/url`` and ``crypto/x509`` read them.

A certificate with another one cannot be read by the reference: it refuses to make it, and to take it from anybody.
Source: RFC 3986; what Go takes beyond it was found by asking it (``tests/secrets/test_uris.py``).
"""

from __future__ import annotations

import re
from ipaddress import IPv6Address
from typing import Final

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_USER: Final = re.compile(r"[A-Za-z0-9\-._:~!$&'()*+,;=%@]*")
_PORT: Final = re.compile(r"(?::[0-9]*)?")
# Nothing but a percent sign may be escaped, because what else may be is not ASCII, and then it is no domain.
_HOST: Final = re.compile(r"(?:[A-Za-z0-9!\"$&'()*+,\-.:;<=>\[\]_~]|%25)*")
# PostgreSQL's lists of hosts have several ports.
_SEVERAL_PORTS: Final = ("postgres", "postgresql")


def is_uri_name(text: str) -> bool:
    """Whether ``text`` (ASCII) can be a URI among a certificate's names."""
    text, _, fragment = text.partition("#")
    if _CONTROL.search(text) or text.startswith(":"):
        return False
    found = _SCHEME.match(text)
    scheme, rest = (found.group()[:-1].lower(), text[found.end() :]) if found else ("", text)
    rest = rest.partition("?")[0]
    if _BROKEN_ESCAPE.search(fragment):
        return False
    if not rest.startswith("/"):
        # What has a scheme and no path is not looked at; a first segment with a colon would be a scheme.
        return bool(scheme) or (":" not in rest.partition("/")[0] and not _BROKEN_ESCAPE.search(rest))
    if rest.startswith("//") and (scheme or not rest.startswith("///")):
        authority, slash, path = rest[2:].partition("/")
        return _is_authority(scheme, authority) and not _BROKEN_ESCAPE.search(slash + path)
    return not _BROKEN_ESCAPE.search(rest)


def _is_authority(scheme: str, text: str) -> bool:
    user, at, host = text.rpartition("@")
    if at and (not _USER.fullmatch(user) or _BROKEN_ESCAPE.search(user)):
        return False
    if host.rfind("[") == 0:
        return _is_bracketed(host)
    if "[" in host or not _HOST.fullmatch(host):
        return False
    colon = host.rfind(":") if scheme in _SEVERAL_PORTS else host.find(":")
    return (colon < 0 or _PORT.fullmatch(host, colon) is not None) and _is_domain(host)


def _is_bracketed(host: str) -> bool:
    address, closing, port = host[1:].rpartition("]")
    address, zone, name = address.partition("%25")
    if not closing or not _PORT.fullmatch(port) or (zone and not name) or not _HOST.fullmatch(name):
        return False
    try:
        IPv6Address(address)
    except ValueError:
        return False
    return _is_domain(host)


def _is_domain(host: str) -> bool:
    """Whether no label is empty."""
    return not host or "" not in host.split(".")
