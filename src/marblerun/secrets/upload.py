"""Values that users upload for user-defined secrets. Source: protocol, section 6.6."""

from __future__ import annotations

from dataclasses import dataclass, replace

from marblerun.errors import Malformed
from marblerun.pki.encodings import public_key_info
from marblerun.pki.parsed import parse_certificate
from marblerun.pki.signatures import load_public_key
from marblerun.secrets.model import Secret, SecretType

# The reference's clients and tests look for exactly this text (protocol, section 14).
WRONG_SIZE = "declared size and actual size don't match"


@dataclass(frozen=True, slots=True, repr=False)
class SecretUpload:
    """One entry of an upload; absent parts are empty."""

    certificate: bytes = b""
    """DER."""
    private: bytes = b""
    """PKCS#8 DER."""
    key: bytes = b""


def apply_upload(name: str, current: Secret, upload: SecretUpload) -> Secret:
    """The secret with its new value.

    ``Malformed`` with the path if the secret is not user-defined, if the upload has parts that its type does not
    take or lacks the one it needs, or if a key's size is not the declared one. A certificate's private key is taken
    unchecked and may be missing, and its algorithm is not compared with the type, as in the reference.
    """
    if not current.user_defined:
        raise Malformed("only secrets with UserDefined set can be uploaded", where=name)
    match current.type:
        case SecretType.SYMMETRIC_KEY:
            _refuse(name, "a symmetric key takes only Key", upload.certificate, upload.private)
            _check_size(name, current.size, upload.key)
            return replace(current, private=upload.key, public=upload.key)
        case SecretType.PLAIN:
            _refuse(name, "a plain secret takes only Key", upload.certificate, upload.private)
            return replace(current, private=upload.key, public=upload.key)
        case SecretType.CERT_RSA | SecretType.CERT_ECDSA | SecretType.CERT_ED25519:
            _refuse(name, "a certificate takes only Cert and Private", upload.key)
            return _certificate(name, current, upload)
    raise Malformed(f"unknown type {current.type[:80]!r}", where=name)


def _refuse(name: str, rule: str, *parts: bytes) -> None:
    if any(parts):
        raise Malformed(rule, where=name)


def _check_size(name: str, bits: int, key: bytes) -> None:
    if bits <= 0 or bits % 8:
        raise Malformed(f"declared size {bits} is not a positive multiple of 8", where=name)
    if len(key) * 8 != bits:
        raise Malformed(WRONG_SIZE, where=name)


def _certificate(name: str, current: Secret, upload: SecretUpload) -> Secret:
    if not upload.certificate:
        raise Malformed("Cert is missing", where=name)
    try:
        key = load_public_key(parse_certificate(upload.certificate).public_key)
    except Malformed as error:
        raise Malformed(f"Cert is not usable: {error}", where=name) from error
    return replace(current, certificate=upload.certificate, private=upload.private, public=public_key_info(key))
