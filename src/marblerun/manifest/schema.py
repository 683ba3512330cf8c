"""A JSON Schema (2020-12) of the manifest, for editors: it accepts every valid manifest and rejects what it can.

It is made from the same shapes that read manifests, so it cannot forget a key. Two things a schema cannot say: keys
match ignoring case (it knows the usual spelling only and lets others pass), and whether names that refer to each
other exist (that is what the linter is for).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from marblerun.manifest import parse
from marblerun.manifest.certificate import certificate
from marblerun.manifest.check import ACTIONS, FEATURE_GATES, SEAL_MODES
from marblerun.manifest.model import TdxIdentity
from marblerun.manifest.platforms import (
    ATTRIBUTE_BYTES,
    FMSPC_BYTES,
    MEASUREMENT_BYTES,
    PLATFORM_ID_BYTES,
    measurements,
)
from marblerun.secrets.model import SecretType
from marblerun.wire.gojson import Shape, boolean, byte_string, string

SCHEMA_ID: Final = "https://json-schema.org/draft/2020-12/schema"

_BASE64: Final = "^[A-Za-z0-9+/\r\n]*=?[\r\n]*=?[\r\n]*$"


def manifest_schema() -> dict[str, Any]:
    """The schema as plain dicts and lists, ready for ``json.dumps``."""
    schema = _schema(parse.manifest, "")
    return {"$schema": SCHEMA_ID, "title": "MarbleRun manifest", **schema}


def _schema(shape: Shape[Any], path: str) -> dict[str, Any]:
    if special := _SPECIAL.get(path):
        return special | _described(path)
    return _plain(shape, path) | _FURTHER.get(path, {}) | _described(path)


def _plain(shape: Shape[Any], path: str) -> dict[str, Any]:
    inside = shape.inside()
    if inside.fields:
        properties = {field.name: _schema(field.shape, _below(path, field.name)) for field in inside.fields}
        return {"type": ["object", "null"], "properties": properties}
    if inside.entries is not None:
        entry = _schema(inside.entries, f"{path}.*")
        return {"type": ["object", "null"], "additionalProperties": entry}
    if inside.elements is not None:
        return {"type": ["array", "null"], "items": _schema(inside.elements, f"{path}[]")}
    return _scalar(shape.pointee())


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _scalar(shape: Shape[Any]) -> dict[str, Any]:
    if shape is string:
        return {"type": ["string", "null"]}
    if shape is boolean:
        return {"type": ["boolean", "null"]}
    if shape is byte_string:
        octet = {"type": ["integer", "null"], "minimum": 0, "maximum": 255}
        return {"anyOf": [{"type": ["string", "null"], "pattern": _BASE64}, {"type": "array", "items": octet}]}
    if limits := getattr(shape, "limits", None):
        return {"type": ["integer", "null"], "minimum": limits[0], "maximum": limits[1]}
    return {}


# Two letters outside ASCII become these in lower case.
_CASES: Final = {"i": "[Ii\u0130]", "k": "[Kk\u212a]"}


def _any_case(words: Iterable[str]) -> dict[str, Any]:
    """One of the words in any case, with the usual spelling offered for completion."""
    listed = list(words)
    patterns = (
        "".join(_CASES.get(c, f"[{c.upper()}{c}]") if c.isalpha() else c for c in word.lower()) for word in listed
    )
    return {"anyOf": [{"enum": listed}, {"type": "string", "pattern": f"^(?:{'|'.join(patterns)})$"}]}


def _file() -> dict[str, Any]:
    properties = {
        "Data": {"type": ["string", "null"]},
        "Encoding": {"anyOf": [{"type": "null"}, {"const": ""}, _any_case(("string", "base64", "hex"))]},
        "NoTemplates": {"type": ["boolean", "null"]},
    }
    return {"anyOf": [{"type": "string"}, {"type": "object", "properties": properties}]}


def _cert() -> dict[str, Any]:
    template = _schema(certificate, "Cert") | {"description": _DESCRIPTIONS["Secrets.*.Cert"]}
    # A string is the base64 of a whole certificate.
    return {"anyOf": [{"type": "string"}, template]}


_DESCRIPTIONS: Final[Mapping[str, str]] = {
    "Packages": "Which enclaves may run, by name.",
    "Packages.*.Debug": "Whether the enclave is a debug build. Never in production.",
    "Packages.*.UniqueID": "MRENCLAVE, 64 hex digits: exactly one build. Instead of the three below.",
    "Packages.*.SignerID": "MRSIGNER, 64 hex digits.",
    "Packages.*.ProductID": "ISVPRODID of the enclave.",
    "Packages.*.SecurityVersion": "Lowest ISVSVN that is admitted.",
    "Packages.*.AcceptedTCBStatuses": "Standings of a platform that are accepted beside UpToDate.",
    "Packages.*.AcceptedAdvisories": "Advisories that are accepted with SWHardeningNeeded; empty accepts all.",
    "Packages.*.TDX": "Which TDs may run this package, beside or instead of SGX enclaves. All values in hex.",
    "Packages.*.TDX.MRTD": "The TD's initial contents: its firmware. 96 hex digits.",
    "Packages.*.TDX.RTMR0": "Firmware configuration, on Linux guests. 96 hex digits, as the others.",
    "Packages.*.TDX.RTMR1": "Kernel and boot loader, on Linux guests.",
    "Packages.*.TDX.RTMR2": "Command line and initrd, on Linux guests.",
    "Packages.*.TDX.RTMR3": "Free for applications.",
    "Packages.*.TDX.MRCONFIGID": "Configuration that whoever started the TD gave it, not part of MRTD.",
    "Packages.*.TDX.MROWNER": "The TD's owner, as stated by whoever started it.",
    "Packages.*.TDX.MROWNERCONFIG": "Configuration by the owner, as stated by whoever started the TD.",
    "Packages.*.TDX.MRSEAM": "Exactly one build of the TDX module.",
    "Packages.*.TDX.MRSERVICETD": "Service TDs that may be bound to it; absent or empty admits none.",
    "Packages.*.TDX.TDAttributes": "TDATTRIBUTES as in the report, 16 hex digits; bits outside the mask are zero. "
    "ICSSD, SERVTD_EXT, MIGRATABLE, TPA and PERFMON are refused unless they are set here.",
    "Packages.*.TDX.TDAttributesMask": "Which bits of TDAttributes count; all if absent.",
    "Packages.*.TDX.XFAM": "XFAM as in the report, 16 hex digits; bits outside the mask are zero.",
    "Packages.*.TDX.XFAMMask": "Which bits of XFAM count; all if absent.",
    "Packages.*.TDX.ModuleSVN": "Lowest security version of the TDX module.",
    "Infrastructures": "Which platforms may be used, by name.",
    "Infrastructures.*.CPUSVN": "Lowest SVN of each of the 16 TCB components, in the order of the PCK certificate.",
    "Infrastructures.*.QESVN": "Lowest security version of the quoting enclave.",
    "Infrastructures.*.PCESVN": "Lowest security version of the provisioning certification enclave.",
    "Infrastructures.*.RootCA": "The certificate whose key must be the root of the evidence.",
    "Infrastructures.*.FMSPCs": "Platform families, 12 hex digits each. An empty list admits none.",
    "Infrastructures.*.PPIDs": "Processors, 32 hex digits each. An empty list admits none.",
    "Infrastructures.*.PlatformInstanceIDs": "Machines, 32 hex digits each. An empty list admits none.",
    "Infrastructures.*.MinTCBEvaluationDataNumber": "Lowest TCB evaluation data number of the collateral.",
    "Marbles": "The services, by type.",
    "Marbles.*.Package": "Name of the package this Marble runs.",
    "Marbles.*.MaxActivations": "How often it may start; 0 or absent means no limit.",
    "Marbles.*.Parameters": "Files, environment and arguments. Files and variables may hold templates.",
    "Marbles.*.TLS": "Tags under TLS.",
    "Marbles.*.DisableSecretBinding": "Do not bind private secrets to the Marble's type.",
    "Marbles.*.AllowedDNSNames": "DNS names its certificate may have; *.example.com stands for one label. Absent: any.",
    "Marbles.*.AllowedIPs": "IP addresses or networks (10.0.0.0/8) its certificate may have. Absent: any.",
    "Users": "People, each known by a certificate.",
    "Users.*.Certificate": "A certificate in PEM.",
    "Users.*.Roles": "Names under Roles.",
    "Secrets": "Keys, certificates and uploaded data, by name.",
    "Secrets.*.Size": "Bits.",
    "Secrets.*.Shared": "One value for all Marbles instead of one per instance.",
    "Secrets.*.UserDefined": "Uploaded by a user, never generated.",
    "Secrets.*.ValidFor": "Days; 365 if nothing is stated.",
    "Secrets.*.Cert": "What the certificate shall say, in the names of Go's x509.Certificate.",
    "RecoveryKeys": "RSA public keys in PEM that recovery shares are encrypted to, by owner.",
    "Roles": "What holders may do to which resources.",
    "Roles.*.ResourceNames": "Names under Packages or Secrets; empty for Manifest.",
    "TLS": "Connections that are wrapped into TLS, by tag.",
    "Config": "Settings of the deployment.",
    "Config.UpdateThreshold": "How many users must acknowledge an update; 0 means all of them.",
    "Config.RecoveryThreshold": "How many recovery keys are needed; 0 means all of them.",
    "Config.RotateRootSecret": "Make a new root secret with every update to this manifest.",
}


def _described(path: str) -> dict[str, str]:
    return {"description": _DESCRIPTIONS[path]} if path in _DESCRIPTIONS else {}


def _hex(size: int, *, required: bool = False) -> dict[str, Any]:
    """``size`` bytes in hex; where they are not required, nothing stands for "not stated"."""
    digits = f"[0-9a-fA-F]{{{2 * size}}}"
    if required:
        return {"type": "string", "pattern": f"^{digits}$"}
    return {"type": ["string", "null"], "pattern": f"^(?:{digits})?$"}


_MEASURED: Final = tuple(key for key, _ in measurements(TdxIdentity()))
_MASKED: Final = ("TDAttributes", "TDAttributesMask", "XFAM", "XFAMMask")

_SPECIAL: Final[dict[str, dict[str, Any]]] = {
    **{f"Packages.*.TDX.{key}": _hex(MEASUREMENT_BYTES) for key in _MEASURED},
    **{f"Packages.*.TDX.{key}": _hex(ATTRIBUTE_BYTES) for key in _MASKED},
    "Infrastructures.*.FMSPCs[]": _hex(FMSPC_BYTES, required=True),
    "Infrastructures.*.PPIDs[]": _hex(PLATFORM_ID_BYTES, required=True),
    "Infrastructures.*.PlatformInstanceIDs[]": _hex(PLATFORM_ID_BYTES, required=True),
    "Marbles.*.Parameters.Files.*": _file(),
    "Marbles.*.Parameters.Env.*": _file(),
    "Secrets.*.Type": {"enum": [kind.value for kind in SecretType]},
    "Secrets.*.Cert": {},
    "Roles.*.ResourceType": {"enum": list(ACTIONS)},
    "Roles.*.Actions[]": _any_case(sorted(action for actions in ACTIONS.values() for action in actions.values())),
    "Config.SealMode": {"enum": [*SEAL_MODES, None]},
    "Config.FeatureGates[]": _any_case(FEATURE_GATES),
}

# The years 0 and 1 are left out: Go's zero time, however it is written, counts as no time.
_NOT_AFTER: Final = {
    "properties": {"NotAfter": {"type": "string", "pattern": "^(?!000[01])"}},
    "required": ["NotAfter"],
}
_TWO_ENDS: Final = {
    "properties": {
        "Type": {"enum": [kind.value for kind in SecretType if kind.is_certificate]},
        "ValidFor": {"type": "integer", "minimum": 1},
        "Cert": {"type": "object", **_NOT_AFTER},
    },
    "required": ["Type", "ValidFor", "Cert"],
}
# What the checks of a Coordinator refuse beyond types.
_FURTHER: Final[dict[str, dict[str, Any]]] = {
    "Packages": {"minProperties": 1},
    "Secrets.*": {"not": {"type": "object", **_TWO_ENDS}},
    "Config.RecoveryThreshold": {"not": {"const": 1}},
}
_SPECIAL["Secrets.*.Cert"] = _cert()
