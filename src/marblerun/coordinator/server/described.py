"""What each endpoint of the client API takes and gives, for the OpenAPI document (protocol, sections 7.4 to 7.9)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

Schema = dict[str, Any]

BYTES: Final[Schema] = {"type": "string", "contentEncoding": "base64"}
TEXT: Final[Schema] = {"type": "string"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
NULL: Final[Schema] = {"type": "null"}
ORIGIN: Final[Schema] = {
    "type": "string",
    "enum": ["none", "simulated"],
    "description": "Only there if no hardware stands behind this Coordinator.",
}


@dataclass(frozen=True, slots=True)
class Description:
    """One endpoint; statuses that follow from its route are not repeated here."""

    summary: str
    data: Schema | None = None
    """Schema of ``data`` on success; ``None`` if there never is one."""
    body: Schema | None = None
    media_type: str = "application/json"
    query: tuple[Schema, ...] = ()
    errors: tuple[int, ...] = ()
    """Statuses beside those of the route, told as ``error``."""
    by_marble: bool = False
    detail: str = ""
    bare: bool = False
    """Whether ``data`` is the whole answer, without an envelope."""


def _object(optional: Mapping[str, Schema] | None = None, /, **required: Schema) -> Schema:
    properties = {**required, **(optional or {})}
    return {"type": "object", "required": list(required), "properties": properties}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def _map_of(schema: Schema) -> Schema:
    return {"type": "object", "additionalProperties": schema}


def _list_of(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


_MANIFEST_BODY: Final = _object(manifest=BYTES)
_RAW: Final[Schema] = {"type": "string", "description": "The manifest, JSON."}
_RAW_TYPE: Final = "application/octet-stream"
_SECRET: Final = _object(
    Type=TEXT,
    Size=COUNT,
    Shared={"type": "boolean"},
    UserDefined={"type": "boolean"},
    Cert=_or_null(BYTES),
    ValidFor=COUNT,
    Private=_or_null(BYTES),
    Public=_or_null(BYTES),
)
_UPLOAD: Final = _object({"Cert": TEXT, "Private": BYTES, "Key": BYTES})
_NAMES: Final[Schema] = {
    "name": "s",
    "in": "query",
    "required": True,
    "description": "Name of a secret; repeated for several.",
    "schema": _list_of({"type": "string", "minLength": 1}) | {"minItems": 1},
    "explode": True,
}
_NONCE: Final[Schema] = {
    "name": "nonce",
    "in": "query",
    "description": "base64url with padding; the quote then covers root certificate and nonce.",
    "schema": {"type": "string", "maxLength": 1024},
}
_NEW_RECOVERY: Final = {"recoverySecrets": _map_of(BYTES)}
_UPDATE: Final = _object(_NEW_RECOVERY, missingUsers=_or_null(_list_of(TEXT)), missingAcknowledgments=COUNT)
_ACKNOWLEDGED: Final = _object(
    _NEW_RECOVERY, message=TEXT, missingUsers=_or_null(_list_of(TEXT)), missingAcknowledgments=COUNT
)
_PENDING: Final = _object(manifest=BYTES, message=TEXT, missingUsers=_list_of(TEXT))

_V2: Final[Mapping[tuple[str, str], Description]] = {
    ("GET", "status"): Description("State of the Coordinator", _object({"evidence": ORIGIN}, code=COUNT, message=TEXT)),
    ("GET", "manifest"): Description(
        "The manifest in force",
        _object(manifestSignatureRootECDSA=BYTES, manifestFingerprint=TEXT, manifest=BYTES),
        detail="The signature is ECDSA by the root key over the SHA-256 of the manifest's bytes, ASN.1 DER.",
    ),
    ("POST", "manifest"): Description(
        "Set the first manifest", _object(RecoverySecrets=_map_of(BYTES)), _MANIFEST_BODY
    ),
    ("GET", "quote"): Description(
        "CA certificates, and a quote over the root certificate",
        _object({"evidence": ORIGIN}, cert=TEXT, quote=_or_null(BYTES)),
        query=(_NONCE,),
    ),
    ("GET", "statement"): Description(
        "Which deployment this is, and how far its history has come",
        _object(statement=TEXT, quote=_or_null(BYTES)),
        query=(_NONCE,),
        detail="The statement is JSON in a string: state, rootCertificate, manifestFingerprint, updateLogHash, "
        "sequence and head of the latest durable state, provenance (where the CA comes from: complete, firstManifest, "
        "recoveries, recoveredBy), evidence, nonce. "
        "With a nonce a quote covers the SHA-256 of it.",
    ),
    ("GET", "update"): Description("The update log", _object(updateLog=_list_of(TEXT))),
    ("POST", "update"): Description("Start an update", _UPDATE, _MANIFEST_BODY),
    ("GET", "update-manifest"): Description("The pending update", _PENDING),
    ("POST", "update-manifest"): Description(
        "Acknowledge the pending update", _ACKNOWLEDGED, _MANIFEST_BODY, errors=(404,)
    ),
    ("POST", "update-cancel"): Description("Drop the pending update", _object(message=TEXT), errors=(404,)),
    ("GET", "secrets"): Description("Read secrets", _object(secrets=_map_of(_SECRET)), query=(_NAMES,)),
    ("POST", "secrets"): Description("Set user-defined secrets", NULL, _object(secrets=_map_of(_UPLOAD))),
    ("POST", "recover"): Description(
        "Hand in a recovery secret",
        _object(remaining=COUNT, message=TEXT),
        _object(recoverySecret=BYTES, recoverySecretSignature=BYTES),
    ),
    ("GET", "recover/public-key"): Description(
        "A key that recovery secrets may be encrypted for",
        _object(algorithm={"const": "RSA"}, ephemeralPublicKey=BYTES),
    ),
    ("POST", "recover/rehearse"): Description(
        "Find out whether recovery secrets would recover; changes nothing",
        _object(
            holder=TEXT,
            given=COUNT,
            needed=COUNT,
            recoverable=_or_null({"type": "boolean"}),
            message=TEXT,
        ),
        _object(recoverySecret=BYTES, recoverySecretSignature=BYTES),
        errors=(403, 404, 429),
        detail="In state 3 only. A secret counts only with the signature of a recovery key of the manifest in force. "
        "recoverable is null until as many as are needed were given; then all of them are forgotten.",
    ),
    ("GET", "recover/rehearse/public-key"): Description(
        "A key that secrets of a rehearsal may be encrypted for",
        _object(algorithm={"const": "RSA"}, ephemeralPublicKey=BYTES),
    ),
    ("POST", "sign-quote"): Description(
        "Verify an SGX quote and sign the TCB status found",
        _object(tcbStatus=TEXT, verificationSignature=BYTES),
        _object(sgxQuote=BYTES),
        errors=(403,),
        detail="Needs the feature gate SignQuoteEndpoint. The signature is ECDSA by the root key over the SHA-256 of "
        "the quote's base64 text directly followed by the status, ASN.1 DER.",
    ),
    ("POST", "monotonic-counter"): Description(
        "Raise a counter of the calling Marble; its value before comes back",
        _object(value=COUNT),
        _object(name=TEXT, value={"type": "integer", "minimum": 0, "maximum": 2**64 - 1}),
        errors=(403,),
        by_marble=True,
        detail="Needs the feature gate MonotonicCounter. Values go up to 2^64 - 1, beyond what a double holds.",
    ),
    ("GET", "openapi.json"): Description("This document", {"type": "object"}, bare=True),
}

_V1: Final[Mapping[tuple[str, str], Description]] = {
    ("GET", "status"): Description("State of the Coordinator", _object(StatusCode=COUNT, StatusMessage=TEXT)),
    ("GET", "manifest"): Description(
        "The manifest in force, or nulls",
        _object(ManifestSignatureRootECDSA=_or_null(BYTES), ManifestSignature=TEXT, Manifest=_or_null(BYTES)),
        detail="ManifestSignature is the fingerprint.",
    ),
    ("POST", "manifest"): Description(
        "Set the first manifest", _or_null(_object(RecoverySecrets=_map_of(BYTES))), _RAW, _RAW_TYPE
    ),
    ("GET", "quote"): Description(
        "CA certificates, and a quote over the root certificate", _object(Cert=TEXT, Quote=_or_null(BYTES))
    ),
    ("POST", "recover"): Description("Gone; see version 2", errors=(410,)),
    ("GET", "update"): Description("The update log", TEXT),
    ("POST", "update"): Description("Start an update", NULL, _RAW, _RAW_TYPE),
    ("GET", "update-manifest"): Description("The pending update", _PENDING),
    ("POST", "update-manifest"): Description("Acknowledge the pending update", TEXT, _RAW, _RAW_TYPE, errors=(404,)),
    ("POST", "update-cancel"): Description("Drop the pending update", TEXT, errors=(404,)),
    ("GET", "secrets"): Description("Read secrets", _map_of(_SECRET), query=(_NAMES,)),
    ("POST", "secrets"): Description("Set user-defined secrets", NULL, _map_of(_UPLOAD)),
}

DESCRIPTIONS: Final[Mapping[tuple[str, str], Description]] = {
    **{(method, f"/{name}"): description for (method, name), description in _V1.items()},
    **{(method, f"/api/v2/{name}"): description for (method, name), description in _V2.items()},
}
