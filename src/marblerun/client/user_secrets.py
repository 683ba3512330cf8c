"""Files of user-defined secrets as values to upload: the JSON of the API, and PEM (cli-marble-k8s, section 1.8)."""

from __future__ import annotations

import re
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from marblerun.client.replies import UserSecret, decode_base64
from marblerun.errors import Malformed
from marblerun.wire import jsontree

_BLOCK: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----[^-]*-----END \1-----")
_PARTS: Final = {"key": "key", "cert": "certificate", "private": "private"}
_IGNORED: Final = (b"EC PARAMETERS",)


def parse_user_secrets(raw: bytes) -> dict[str, UserSecret]:
    """Reads ``{"name": {"Key": base64} | {"Cert": base64, "Private": base64}}``.

    Raises:
        Malformed: with the path of what is wrong; messages never show values.
    """
    root = jsontree.parse(raw).root
    if not isinstance(root, jsontree.Object) or not root.members:
        raise Malformed("expected a JSON object with at least one secret", where="secrets")
    secrets: dict[str, UserSecret] = {}
    for member in root.members:
        if member.key in secrets:
            raise Malformed("is there twice", where=member.key)
        secrets[member.key] = _user_secret(member.value, member.key)
    return secrets


def _user_secret(node: jsontree.Node, name: str) -> UserSecret:
    if not isinstance(node, jsontree.Object):
        raise Malformed("expected an object with Key, or with Cert and Private", where=name)
    parts: dict[str, bytes] = {}
    for member in node.members:
        part = _PARTS.get(member.key.casefold())
        where = f"{name}.{member.key}"
        if part is None:
            raise Malformed("is not part of a secret; there are Key, Cert and Private", where=where)
        if part in parts:
            raise Malformed("is there twice", where=where)
        if isinstance(member.value, jsontree.Null):
            continue
        if not isinstance(member.value, jsontree.String):
            raise Malformed("expected base64", where=where)
        parts[part] = decode_base64(member.value.text, where)
    return UserSecret(**parts)


def user_secret_from_pem(raw: bytes) -> tuple[UserSecret, tuple[str, ...]]:
    """The first certificate and the first private key of a PEM file, and remarks about what was left out.

    PKCS#1 and SEC1 keys become PKCS#8, which is what the Coordinator passes on.

    Raises:
        Malformed: a block of another kind, no certificate, no key, or a key of another certificate.
    """
    certificates: list[bytes] = []
    keys: list[bytes] = []
    for match in _BLOCK.finditer(raw):
        label = match[1]
        if label == b"CERTIFICATE":
            certificates.append(match[0])
        elif b"PRIVATE KEY" in label:
            keys.append(match[0])
        elif label not in _IGNORED:
            raise Malformed(f"holds a block {label.decode()}, only a certificate and its key are used", where="PEM")
    if not certificates or not keys:
        raise Malformed(f"holds no {'private key' if certificates else 'certificate'}", where="PEM")
    try:
        certificate = x509.load_pem_x509_certificate(certificates[0])
        key = serialization.load_pem_private_key(keys[0], password=None)
        same = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == (
            certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )
    except TypeError:
        raise Malformed("the private key is encrypted; decrypt it first", where="PEM") from None
    except (ValueError, UnsupportedAlgorithm):
        raise Malformed("the certificate or the private key cannot be read", where="PEM") from None
    if not same:
        raise Malformed("the private key does not belong to the first certificate", where="PEM")
    private = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    value = UserSecret(certificate=certificate.public_bytes(Encoding.DER), private=private)
    return value, tuple(_left_out("certificate", certificates) + _left_out("private key", keys))


def _left_out(what: str, blocks: list[bytes]) -> list[str]:
    more = len(blocks) - 1
    return [f"the first {what} is used, {more} more left out"] if more else []
