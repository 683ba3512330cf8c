"""What remembers the latest state outside the state directory: a file, a TPM or etcd, as one setting names it.

The setting is ``file:PATH``, ``tpm:INDEX`` (``tpm:INDEX?tcti=TCTI``) or ``etcd:URL/KEY``; several URLs of one etcd
cluster are separated by commas, the key follows the last one. The contract is :class:`marblerun.coordinator.store.
lineage.Anchor`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from marblerun.coordinator.store.lineage import Anchor, Mark
from marblerun.errors import Misconfigured

_ENDPOINT: Final = re.compile(r"(https?)://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")
_KEY: Final = re.compile(r"[A-Za-z0-9._/-]{1,255}")
_INDEX: Final = re.compile(r"0x0*1[0-9A-Fa-f]{6}")
_MARK: Final = re.compile(r"([0-9]{1,18}) ([0-9a-f]{64})\n")
MAX_ENDPOINTS: Final = 9


@dataclass(frozen=True, slots=True)
class FilePlace:
    """A file on another volume."""

    path: Path


@dataclass(frozen=True, slots=True)
class TpmPlace:
    """An NV index of a TPM 2.0; without ``tcti`` the one that the machine offers."""

    nv_index: int
    tcti: str | None = None


@dataclass(frozen=True, slots=True)
class EtcdPlace:
    """A key in etcd; every endpoint is a member of the same cluster, without a slash at the end."""

    endpoints: tuple[str, ...]
    key: str


AnchorPlace = FilePlace | TpmPlace | EtcdPlace


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Who vouches for the peer, and as whom we come (PEM files); without a CA those of the system vouch."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@runtime_checkable
class ClosingAnchor(Anchor, Protocol):
    """An anchor that holds connections."""

    def close(self) -> None:
        """Give them back; nothing may be asked afterwards."""


def parse_anchor(text: str) -> AnchorPlace:
    """The place that a setting names; raises Misconfigured saying how it has to look."""
    kind, _, rest = text.partition(":")
    if kind == "file" and rest:
        return FilePlace(Path(rest))
    if kind == "tpm":
        return _parse_tpm(rest)
    if kind == "etcd":
        return _parse_etcd(rest)
    raise Misconfigured(
        f"the anchor {text!r} is none that is known; give file:/PATH, tpm:0x01500100 or etcd:https://HOST:2379/KEY"
    )


def _parse_tpm(rest: str) -> TpmPlace:
    index, _, query = rest.partition("?")
    name, _, tcti = query.partition("=")
    if not _INDEX.fullmatch(index) or (query and (name != "tcti" or not tcti)):
        raise Misconfigured(
            f"the anchor 'tpm:{rest}' needs an NV index from 0x01000000 to 0x01fffffe and nothing more than a TCTI: "
            "tpm:0x01500100 or tpm:0x01500100?tcti=device:/dev/tpmrm0"
        )
    return TpmPlace(int(index, 16), tcti or None)


def _parse_etcd(rest: str) -> EtcdPlace:
    *others, last = rest.split(",")
    scheme, separator, path = last.partition("://")
    host, _, key = path.partition("/")
    endpoints = (*others, f"{scheme}{separator}{host}")
    if not 0 < len(endpoints) <= MAX_ENDPOINTS or not _KEY.fullmatch(key) or not all(map(_is_endpoint, endpoints)):
        raise Misconfigured(
            f"the anchor 'etcd:{rest}' has to look like etcd:https://HOST:2379/KEY, where KEY has letters, digits and "
            "._/- and is this deployment's own; http only to this very machine"
        )
    return EtcdPlace(endpoints, key)


def _is_endpoint(url: str) -> bool:
    """Whether it is the URL of a host; in the clear nothing leaves the machine, since anybody could answer there."""
    match = _ENDPOINT.fullmatch(url)
    if match is None or not 0 < int(match[3] or 2379) < 65536:
        return False
    return match[1] == "https" or _is_loopback(match[2].strip("[]"))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def open_anchor(place: AnchorPlace, tls: TlsFiles) -> Anchor:
    """The anchor at a place; what it needs is loaded only now. Raises Misconfigured."""
    match place:
        case FilePlace():
            from marblerun.coordinator.store.anchors.file import FileAnchor

            return FileAnchor(place.path)
        case EtcdPlace():
            from marblerun.coordinator.store.anchors.etcd import EtcdAnchor

            return EtcdAnchor(place, tls)
        case TpmPlace():
            from marblerun.coordinator.store.anchors.tpm import TpmAnchor

            return TpmAnchor(place.tcti, place.nv_index)


def encode_mark(mark: Mark) -> str:
    """A mark as text: one line with number and head (hex)."""
    return f"{mark.sequence} {mark.head.hex()}\n"


def parse_mark(text: str, where: str) -> Mark:
    """The mark in a text; raises Misconfigured if it says nothing that can be understood."""
    match = _MARK.fullmatch(text)
    if match is None:
        raise Misconfigured(
            f"the anchor {where} is damaged; only if you are sure that the state is the latest one, remove it"
        )
    return Mark(int(match[1]), bytes.fromhex(match[2]))
