"""The text of ``MARBLE_TTLS_CONFIG``: which connections a Marble's runtime wraps into TLS (protocol, section 2.9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from marblerun.errors import NotFound
from marblerun.manifest.model import TlsEntry, TlsTag
from marblerun.pki.encodings import CERTIFICATE, PRIVATE_KEY
from marblerun.secrets.model import Secret
from marblerun.wire import gojson
from marblerun.wire.pem import encode_pem


@dataclass(frozen=True, slots=True, repr=False)
class MarbleCredentials:
    """What a Marble shows by default: its own certificate and key, and the root it accepts, all PEM."""

    marble_root: str
    certificate: str
    private_key: str


def ttls_config(
    tags: tuple[str, ...],
    definitions: Mapping[str, TlsTag],
    secrets: Mapping[str, Secret],
    credentials: MarbleCredentials,
) -> str:
    """The configuration for a Marble that lists ``tags``; raises NotFound for a tag or secret that does not exist."""
    incoming: dict[str, object] = {}
    outgoing: dict[str, object] = {}
    for tag in tags:
        definition = definitions.get(tag)
        if definition is None:
            raise NotFound(f"the manifest defines no TLS tag {tag!r}")
        for entry in definition.outgoing:
            outgoing[f"{entry.addr}:{entry.port}"] = _own(credentials)
        for entry in definition.incoming:
            incoming[f"*:{entry.port}"] = _incoming(entry, secrets, credentials)
    return gojson.marshal({"tls": {"Incoming": incoming, "Outgoing": outgoing}}).decode()


def _own(credentials: MarbleCredentials) -> dict[str, object]:
    return {
        "cacrt": credentials.marble_root,
        "clicrt": credentials.certificate,
        "clikey": credentials.private_key,
    }


def _incoming(entry: TlsEntry, secrets: Mapping[str, Secret], credentials: MarbleCredentials) -> dict[str, object]:
    if not entry.cert:
        return {**_own(credentials), "clientAuth": True}
    if entry.cert not in secrets:
        raise NotFound(f"the TLS section names the secret {entry.cert!r}, which does not exist")
    secret = secrets[entry.cert]
    return {
        "cacrt": credentials.marble_root,
        "clicrt": encode_pem(secret.certificate, CERTIFICATE),
        "clikey": encode_pem(secret.private, PRIVATE_KEY),
        "clientAuth": not entry.disable_client_auth,
    }
