"""Where the Coordinator's randomness comes from: the operating system, through audited libraries."""

from __future__ import annotations

import os

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from marblerun.pki.ecdsa import new_pair
from marblerun.pki.encodings import encoded_pair


class SystemEntropy:
    """Fresh random bytes and keys."""

    def token(self, size: int) -> bytes:
        """``size`` random bytes."""
        return os.urandom(size)

    def ec_key(self, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
        """A new key on ``curve``."""
        return ec.generate_private_key(curve)

    def ec_pair(self, curve: ec.EllipticCurve) -> tuple[bytes, bytes]:
        """A new key on ``curve``, in PKCS#8 and SubjectPublicKeyInfo DER."""
        return new_pair(curve) or encoded_pair(self.ec_key(curve))

    def rsa_key(self, bits: int) -> rsa.RSAPrivateKey:
        """A new RSA key with the usual exponent; slow, so callers on an event loop use a thread."""
        return rsa.generate_private_key(public_exponent=65537, key_size=bits)

    def ed25519_key(self) -> ed25519.Ed25519PrivateKey:
        """A new Ed25519 key."""
        return ed25519.Ed25519PrivateKey.generate()
