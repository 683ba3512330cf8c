"""The manifest as a value (protocol, section 5). Immutable; names are those of the document in snake case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from marblerun.secrets.model import SecretDefinition


@dataclass(frozen=True, slots=True)
class Package:
    """Which enclaves may run: expected properties of their evidence. ``None`` and empty text mean not stated."""

    debug: bool = False
    unique_id: str = ""
    """MRENCLAVE, hex as written."""
    signer_id: str = ""
    """MRSIGNER, hex as written."""
    product_id: int | None = None
    security_version: int | None = None
    """Lowest ISVSVN admitted."""
    accepted_tcb_statuses: tuple[str, ...] = ()
    accepted_advisories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Infrastructure:
    """Which platforms may be used; the reference stores these and does not enforce them."""

    cpu_svn: bytes = b""
    qe_svn: int | None = None
    pce_svn: int | None = None
    root_ca: bytes = b""


@dataclass(frozen=True, slots=True)
class File:
    """A file or environment variable: decoded data, and how it was spelt (protocol, section 5.4)."""

    data: bytes = b""
    encoding: str = "string"
    """Spelling as written (``string``, ``base64`` or ``hex`` in any case); needed to store it again."""
    no_templates: bool = False


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a Marble gets to run with."""

    files: Mapping[str, File] = field(default_factory=dict)
    env: Mapping[str, File] = field(default_factory=dict)
    argv: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Marble:
    """A service: which package it must be, how often it may start, and its parameters."""

    package: str = ""
    max_activations: int = 0
    """0 means no limit."""
    parameters: Parameters = field(default_factory=Parameters)
    tls: tuple[str, ...] = ()
    disable_secret_binding: bool = False


@dataclass(frozen=True, slots=True)
class TlsEntry:
    """One endpoint of a TLS tag."""

    port: str = ""
    addr: str = ""
    cert: str = ""
    disable_client_auth: bool = False


@dataclass(frozen=True, slots=True)
class TlsTag:
    """Which connections of a Marble are wrapped into TLS."""

    outgoing: tuple[TlsEntry, ...] = ()
    incoming: tuple[TlsEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class User:
    """A person, known by a certificate."""

    certificate: str = ""
    """PEM text as written; only its first block counts."""
    roles: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Role:
    """What holders may do to which resources."""

    resource_type: str = ""
    resource_names: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of the deployment."""

    seal_mode: str = ""
    feature_gates: tuple[str, ...] = ()
    update_threshold: int = 0
    recovery_threshold: int = 0
    rotate_root_secret: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """The whole document. The bytes it was parsed from are kept beside it, never made from it."""

    packages: Mapping[str, Package] = field(default_factory=dict)
    infrastructures: Mapping[str, Infrastructure] = field(default_factory=dict)
    marbles: Mapping[str, Marble] = field(default_factory=dict)
    users: Mapping[str, User] = field(default_factory=dict)
    secrets: Mapping[str, SecretDefinition] = field(default_factory=dict)
    recovery_keys: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, Role] = field(default_factory=dict)
    tls: Mapping[str, TlsTag] = field(default_factory=dict)
    config: Config = field(default_factory=Config)
