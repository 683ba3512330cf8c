"""The manifest as a value (protocol, section 5). Immutable; names are those of the document in snake case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from marblerun.secrets.model import SecretDefinition


@dataclass(frozen=True, slots=True)
class TdxIdentity:
    """Which TDs may run: expected values of their report, in hex as written; ``None`` and empty text: not stated."""

    mrtd: str = ""
    """What the TD was built from, its firmware; 48 bytes."""
    rtmrs: tuple[str, str, str, str] = ("", "", "", "")
    """RTMR0 to RTMR3, 48 bytes each."""
    mr_config_id: str = ""
    mr_owner: str = ""
    mr_owner_config: str = ""
    mr_seam: str = ""
    """The TDX module as launched, 48 bytes."""
    mr_service_td: str = ""
    """The service TDs bound to it, 48 bytes; where nothing is stated, there must be none."""
    td_attributes: str = ""
    """8 bytes, as in the report."""
    td_attributes_mask: str = ""
    """Which bits count; all of them if not stated."""
    xfam: str = ""
    """8 bytes, as in the report."""
    xfam_mask: str = ""
    module_svn: int | None = None
    """Lowest security version of the TDX module as launched, the first byte of TEE_TCB_SVN."""


@dataclass(frozen=True, slots=True)
class Package:
    """Which enclaves and TDs may run: expected properties of their evidence. ``None`` and empty text: not stated."""

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
    tdx: TdxIdentity | None = None
    """Which TDs; ``None`` admits none. Not in the reference."""

    @property
    def states_enclave(self) -> bool:
        """Whether anything is said about SGX enclaves."""
        numbers = (self.product_id, self.security_version)
        return bool(self.unique_id or self.signer_id) or any(number is not None for number in numbers)


@dataclass(frozen=True, slots=True)
class Infrastructure:
    """Which platforms may be used; the reference stores the first four and does not enforce them.

    Of the lists, ``None`` is no rule and an empty one admits nothing.
    """

    cpu_svn: bytes = b""
    qe_svn: int | None = None
    pce_svn: int | None = None
    root_ca: bytes = b""
    fmspcs: tuple[str, ...] | None = None
    """Platform families, 6 bytes each, hex as written."""
    ppids: tuple[str, ...] | None = None
    """Processors, 16 bytes each, hex as written."""
    platform_instance_ids: tuple[str, ...] | None = None
    """Machines of several processors, 16 bytes each, hex as written."""
    min_tcb_evaluation_data_number: int | None = None
    """Lowest generation of the vendor's judgement."""


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
    allowed_dns_names: tuple[str, ...] | None = None
    """Names that its certificate may state, ``*.example.com`` for one label; ``None`` means any, ``()`` none.

    Our own addition, as is the next; see :mod:`marblerun.policy.names`.
    """
    allowed_ips: tuple[str, ...] | None = None
    """Addresses, or networks in CIDR notation, likewise."""


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
