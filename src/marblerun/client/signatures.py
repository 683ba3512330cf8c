"""Statements that the Coordinator's root key signs for use offline (protocol, sections 5.9 and 7.8)."""

from __future__ import annotations

import base64
import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from marblerun.errors import Untrusted


def verify_manifest_signature(root: x509.Certificate, manifest: bytes, signature: bytes) -> None:
    """Raises :class:`Untrusted` unless the root key signed exactly these manifest bytes (ECDSA over SHA-256, DER)."""
    _verify(root, hashlib.sha256(manifest).digest(), signature, "manifest-signature")


def verify_signed_quote(root: x509.Certificate, quote: bytes, signature: bytes, tcb_status: str) -> None:
    """Raises :class:`Untrusted` unless the root key signed this TCB status for exactly these quote bytes.

    The digest is SHA-256 over the base64 text of the quote, directly followed by the status.
    """
    digest = hashlib.sha256(base64.b64encode(quote) + tcb_status.encode()).digest()
    _verify(root, digest, signature, "quote-signature")


def _verify(root: x509.Certificate, digest: bytes, signature: bytes, step: str) -> None:
    key = root.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Untrusted("the root certificate does not hold an elliptic curve key", step=step, reason="wrong-key")
    try:
        key.verify(signature, digest, ec.ECDSA(utils.Prehashed(hashes.SHA256())))
    except InvalidSignature:
        raise Untrusted("the root key did not sign this", step=step, reason="bad-signature") from None
