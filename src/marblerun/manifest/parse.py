"""Manifest text to values, and the same for the single entities that the sealed state keeps.

What comes out is what the document says; whether it makes sense is asked in :mod:`marblerun.manifest.check`. Keys,
nulls, duplicates and numbers are read as Go reads them (:mod:`marblerun.wire.gojson`). Everything here raises
:class:`~marblerun.wire.gojson.BadJson` (a Malformed) that lists all faults with path, line and column.
Source: protocol, sections 5.1 to 5.5 and 11.1.
"""

from __future__ import annotations

from typing import Final

from marblerun.errors import Malformed
from marblerun.manifest.certificate import Cert, certificate
from marblerun.manifest.model import (
    Config,
    File,
    Infrastructure,
    Manifest,
    Marble,
    Package,
    Parameters,
    Role,
    TdxIdentity,
    TlsEntry,
    TlsTag,
    User,
)
from marblerun.secrets.model import SecretDefinition
from marblerun.wire import limits
from marblerun.wire.gojson import (
    History,
    Inside,
    Shape,
    Trail,
    boolean,
    byte_string,
    decode_base64,
    list_of,
    lower,
    mapping,
    nullable_list_of,
    optional,
    string,
    struct,
    uint,
    unmarshal,
)
from marblerun.wire.jsontree import Object, String


class _FileShape(Shape[File]):
    """Both spellings of a file: a string, or an object that names its encoding (protocol, section 5.4)."""

    def inside(self) -> Inside:
        return _FILE_OBJECT.inside()

    def read(self, history: History, trail: Trail) -> File:
        file = File()
        for node in history:
            match node:
                case String():
                    file = File(node.text.encode(), "string", False)
                case Object():
                    try:
                        file = _FILE_OBJECT.read([node], trail)
                    except ValueError as error:
                        trail.fault(node, str(error))
                case _:
                    trail.mismatch(node, "a string, or an object with Data, Encoding and NoTemplates")
        return file


def _file(*, data: str, encoding: str, no_templates: bool) -> File:
    """A file with its data decoded. Raises ValueError."""
    return File(decode_file_data(data, encoding), encoding, no_templates)


def decode_file_data(data: str, encoding: str) -> bytes:
    """The bytes of a file written in an encoding of any case; empty means ``string``. Raises ValueError."""
    match lower(encoding):
        case "" | "string":
            return data.encode()
        case "base64":
            try:
                return decode_base64(data)
            except ValueError as error:
                raise ValueError(f"Data is not in the encoding it names: {error}") from error
        case "hex":
            if not data.isascii() or len(data) % 2 or any(digit.isspace() for digit in data):
                raise ValueError("Data is not in the encoding it names: not pairs of hex digits")
            try:
                return bytes.fromhex(data)
            except ValueError as error:
                raise ValueError("Data is not in the encoding it names: not pairs of hex digits") from error
    raise ValueError(f"unknown Encoding {encoding[:40]!r}, expected string, base64 or hex")


def _tdx(*, rtmr0: str, rtmr1: str, rtmr2: str, rtmr3: str, **rest: object) -> TdxIdentity:
    return TdxIdentity(rtmrs=(rtmr0, rtmr1, rtmr2, rtmr3), **rest)  # type: ignore[arg-type]


def _secret(*, cert: Cert, **rest: object) -> SecretDefinition:
    return SecretDefinition(template=cert.template, certificate=cert.der, **rest)  # type: ignore[arg-type]


_FILE_OBJECT: Final = struct(
    _file, ("Data", "data", string), ("Encoding", "encoding", string), ("NoTemplates", "no_templates", boolean)
)
_STRINGS: Final = list_of(string)
_NULLABLE_STRINGS: Final = nullable_list_of(string)
_UINT: Final = uint(64)

_TDX: Final = struct(
    _tdx,
    ("MRTD", "mrtd", string),
    ("RTMR0", "rtmr0", string),
    ("RTMR1", "rtmr1", string),
    ("RTMR2", "rtmr2", string),
    ("RTMR3", "rtmr3", string),
    ("MRCONFIGID", "mr_config_id", string),
    ("MROWNER", "mr_owner", string),
    ("MROWNERCONFIG", "mr_owner_config", string),
    ("MRSEAM", "mr_seam", string),
    ("MRSERVICETD", "mr_service_td", string),
    ("TDAttributes", "td_attributes", string),
    ("TDAttributesMask", "td_attributes_mask", string),
    ("XFAM", "xfam", string),
    ("XFAMMask", "xfam_mask", string),
    ("ModuleSVN", "module_svn", optional(uint(8))),
)
package: Final = struct(
    Package,
    ("Debug", "debug", boolean),
    ("UniqueID", "unique_id", string),
    ("SignerID", "signer_id", string),
    ("ProductID", "product_id", optional(_UINT)),
    ("SecurityVersion", "security_version", optional(_UINT)),
    ("AcceptedTCBStatuses", "accepted_tcb_statuses", _STRINGS),
    ("AcceptedAdvisories", "accepted_advisories", _STRINGS),
    ("TDX", "tdx", optional(_TDX)),
)
infrastructure: Final = struct(
    Infrastructure,
    ("CPUSVN", "cpu_svn", byte_string),
    ("QESVN", "qe_svn", optional(uint(16))),
    ("PCESVN", "pce_svn", optional(uint(16))),
    ("RootCA", "root_ca", byte_string),
    ("FMSPCs", "fmspcs", nullable_list_of(string)),
    ("PPIDs", "ppids", nullable_list_of(string)),
    ("PlatformInstanceIDs", "platform_instance_ids", nullable_list_of(string)),
    ("MinTCBEvaluationDataNumber", "min_tcb_evaluation_data_number", optional(uint(32))),
)
_FILES: Final = mapping(_FileShape())
_PARAMETERS: Final = struct(Parameters, ("Files", "files", _FILES), ("Env", "env", _FILES), ("Argv", "argv", _STRINGS))
marble: Final = struct(
    Marble,
    ("Package", "package", string),
    ("MaxActivations", "max_activations", _UINT),
    ("Parameters", "parameters", _PARAMETERS),
    ("TLS", "tls", _STRINGS),
    ("DisableSecretBinding", "disable_secret_binding", boolean),
    ("AllowedDNSNames", "allowed_dns_names", _NULLABLE_STRINGS),
    ("AllowedIPs", "allowed_ips", _NULLABLE_STRINGS),
)
_TLS_ENTRY: Final = struct(
    TlsEntry,
    ("Port", "port", string),
    ("Addr", "addr", string),
    ("Cert", "cert", string),
    ("DisableClientAuth", "disable_client_auth", boolean),
)
tls_tag: Final = struct(
    TlsTag, ("Outgoing", "outgoing", list_of(_TLS_ENTRY)), ("Incoming", "incoming", list_of(_TLS_ENTRY))
)
secret: Final = struct(
    _secret,
    ("Type", "type", string),
    ("Size", "size", _UINT),
    ("Shared", "shared", boolean),
    ("UserDefined", "user_defined", boolean),
    ("Cert", "cert", certificate),
    ("ValidFor", "valid_for", _UINT),
    ("Private", "private", byte_string),
    ("Public", "public", byte_string),
)
_USER: Final = struct(User, ("Certificate", "certificate", string), ("Roles", "roles", _STRINGS))
_ROLE: Final = struct(
    Role,
    ("ResourceType", "resource_type", string),
    ("ResourceNames", "resource_names", _STRINGS),
    ("Actions", "actions", _STRINGS),
)
_CONFIG: Final = struct(
    Config,
    ("SealMode", "seal_mode", string),
    ("FeatureGates", "feature_gates", _STRINGS),
    ("UpdateThreshold", "update_threshold", _UINT),
    ("RecoveryThreshold", "recovery_threshold", _UINT),
    ("RotateRootSecret", "rotate_root_secret", boolean),
)
manifest: Final = struct(
    Manifest,
    ("Packages", "packages", mapping(package)),
    ("Infrastructures", "infrastructures", mapping(infrastructure)),
    ("Marbles", "marbles", mapping(marble)),
    ("Users", "users", mapping(_USER)),
    ("Secrets", "secrets", mapping(secret)),
    ("RecoveryKeys", "recovery_keys", mapping(string)),
    ("Roles", "roles", mapping(_ROLE)),
    ("TLS", "tls", mapping(tls_tag)),
    ("Config", "config", _CONFIG),
)


def parse_manifest(raw: bytes) -> Manifest:
    """The manifest in ``raw``, the whole of which must be one JSON value. Raises BadJson, Malformed if too large."""
    if len(raw) > limits.MAX_MANIFEST_BYTES:
        raise Malformed(f"manifest of {len(raw)} bytes is larger than {limits.MAX_MANIFEST_BYTES} bytes")
    return unmarshal(raw, manifest)


def parse_package(raw: bytes) -> Package:
    """A package as stored under ``package:<name>``."""
    return unmarshal(raw, package)


def parse_infrastructure(raw: bytes) -> Infrastructure:
    """An infrastructure as stored under ``infrastructure:<name>``."""
    return unmarshal(raw, infrastructure)


def parse_marble(raw: bytes) -> Marble:
    """A Marble as stored under ``marble:<name>``."""
    return unmarshal(raw, marble)


def parse_tls_tag(raw: bytes) -> TlsTag:
    """A TLS tag as stored under ``TLS:<tag>``."""
    return unmarshal(raw, tls_tag)


def parse_secret_definition(raw: bytes) -> SecretDefinition:
    """A secret as stored under ``secret:<name>`` or written in a manifest, with what values it carries."""
    return unmarshal(raw, secret)
