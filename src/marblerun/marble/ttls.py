"""The transparent TLS configuration that a Coordinator sends, as far as this side must understand it.

Source: protocol, section 2.9; cli-marble-k8s, section 3.4.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

from marblerun.errors import Malformed, Misconfigured

TTLS_VARIABLE: Final = "MARBLE_TTLS_CONFIG"


@dataclass(frozen=True, slots=True)
class TtlsAddresses:
    """Which connections the manifest wants wrapped; the keys and certificates are left out."""

    incoming: tuple[str, ...]
    """``*:PORT``."""
    outgoing: tuple[str, ...]
    """``ADDRESS:PORT``."""

    def __bool__(self) -> bool:
        return bool(self.incoming or self.outgoing)


def parse_ttls_addresses(config: bytes) -> TtlsAddresses:
    """Return the addresses in a configuration; raises Malformed for any other form, so that nothing is overlooked."""
    try:
        document = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise Malformed("not JSON", where=TTLS_VARIABLE) from error
    tls = document.get("tls") if isinstance(document, dict) and len(document) == 1 else None
    if not isinstance(tls, dict):
        raise Malformed('is not one "tls" object', where=TTLS_VARIABLE)
    incoming, outgoing = tls.get("Incoming"), tls.get("Outgoing")
    if set(tls) - {"Incoming", "Outgoing"} or (incoming is None and outgoing is None):
        raise Malformed('"tls" must hold "Incoming" and "Outgoing"', where=TTLS_VARIABLE)
    return TtlsAddresses(_keys(incoming), _keys(outgoing))


def verify_no_ttls_needed(addresses: TtlsAddresses) -> None:
    """Refuse (Misconfigured) to go on where connections should be wrapped: they would carry plain text.

    An operating system process has no runtime under its sockets that could do it, as under Gramine and Occlum.
    """
    if addresses:
        wanted = ", ".join((*addresses.incoming, *addresses.outgoing))
        raise Misconfigured(
            f"the manifest wants transparent TLS for {wanted}, but this runner does not wrap sockets and will not let "
            "them go in clear: remove TLS from the Marble, and use the credentials in its environment "
            "(marblerun.marble makes TLS contexts from them)"
        )


def _keys(section: object) -> tuple[str, ...]:
    if section is None:
        return ()
    if not isinstance(section, dict):
        raise Malformed("a section is not an object", where=TTLS_VARIABLE)
    return tuple(section)
