"""Secrets as JSON: as the store and the client API have them, and as users upload them.

Source: protocol, sections 6.6, 7.6 and 11.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from marblerun.errors import Malformed
from marblerun.secrets.given import read_given_certificate
from marblerun.secrets.model import Secret
from marblerun.secrets.upload import SecretUpload
from marblerun.wire.gojson import (
    History,
    Shape,
    Struct,
    Trail,
    boolean,
    byte_string,
    decode_base64,
    mapping,
    marshal,
    string,
    struct,
    uint,
    unmarshal,
    unmarshal_first,
)
from marblerun.wire.jsontree import Null, Object, String


class _CertificateShape(Shape[bytes]):
    """A certificate's DER; text that is not base64 counts as none, as in the reference (protocol, section 5.5)."""

    def read(self, history: History, trail: Trail) -> bytes:
        value = b""
        for node in history:
            match node:
                case String():
                    try:
                        value = decode_base64(node.text)
                    except ValueError:
                        continue
                case Object(members=[]) | Null():
                    continue
                case _:
                    trail.mismatch(node, "a certificate's DER in base64")
        return value


class _UploadedCertificateShape(Shape[bytes]):
    """A certificate's DER, and nothing else in base64; text that is not base64 and an object count as none.

    The reference decodes ``Cert`` of an upload as that of a manifest, so a broken certificate is a body that cannot
    be read, also where it is not needed. An object has no DER (protocol, sections 5.5 and 6.6).
    """

    def read(self, history: History, trail: Trail) -> bytes:
        value = b""
        for node in history:
            match node:
                case String():
                    try:
                        der = decode_base64(node.text)
                    except ValueError:
                        continue
                    try:
                        value = read_given_certificate(der).der
                    except Malformed as error:
                        trail.fault(node, f"expected base64 of a certificate: {error}")
                case Object() | Null():
                    continue
                case _:
                    trail.mismatch(node, "a certificate's DER in base64")
        return value


_CERTIFICATE: Final = _CertificateShape()
_SECRET: Final = struct(
    Secret,
    ("Type", "type", string),
    ("Size", "size", uint(64)),
    ("Shared", "shared", boolean),
    ("UserDefined", "user_defined", boolean),
    ("Cert", "certificate", _CERTIFICATE),
    ("ValidFor", "valid_for", uint(64)),
    ("Private", "private", byte_string),
    ("Public", "public", byte_string),
)
UPLOAD_MAP: Final = mapping(
    struct(
        SecretUpload,
        ("Cert", "certificate", _UploadedCertificateShape()),
        ("Private", "private", byte_string),
        ("Key", "key", byte_string),
    )
)
"""The entries of an upload by secret name, for JSON that holds them."""


def secret_object(secret: Secret) -> Struct:
    """A secret as the structure to be written into a larger document; empty byte values become null."""
    return Struct(
        (
            ("Type", secret.type),
            ("Size", secret.size),
            ("Shared", secret.shared),
            ("UserDefined", secret.user_defined),
            ("Cert", secret.certificate or None),
            ("ValidFor", secret.valid_for),
            ("Private", secret.private or None),
            ("Public", secret.public or None),
        )
    )


def encode_secret(secret: Secret) -> bytes:
    """The JSON text of a secret."""
    return marshal(secret_object(secret))


def decode_secret(data: bytes) -> Secret:
    """The secret in a JSON text; ``Malformed`` if it is not one."""
    return unmarshal(data, _SECRET)


def encode_secrets(secrets: Mapping[str, Secret]) -> bytes:
    """The JSON text of several secrets by name, as the client API answers."""
    return marshal({name: secret_object(secret) for name, secret in secrets.items()})


def decode_uploads(data: bytes, *, stream: bool = False) -> dict[str, SecretUpload]:
    """The entries of an upload by secret name; ``Malformed`` if there are none.

    ``stream`` ignores what follows the first JSON value, as the reference's v2 endpoint does; without it, as in v1,
    that is an error.
    """
    uploads = unmarshal_first(data, UPLOAD_MAP) if stream else unmarshal(data, UPLOAD_MAP)
    if not uploads:
        raise Malformed("expected at least one secret")
    return uploads
