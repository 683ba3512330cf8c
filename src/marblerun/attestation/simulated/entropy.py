"""Where the simulated platform's random bytes and keys come from."""

from __future__ import annotations

import os
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec


class Entropy(Protocol):
    """The part of the project's entropy source that minting a hierarchy needs."""

    def token(self, size: int) -> bytes:
        """``size`` unpredictable bytes."""
        ...

    def ec_key(self, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
        """A new private key on ``curve``."""
        ...


class SystemEntropy:
    """The operating system's generator."""

    def token(self, size: int) -> bytes:
        """``size`` unpredictable bytes."""
        return os.urandom(size)

    def ec_key(self, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
        """A new private key on ``curve``."""
        return ec.generate_private_key(curve)
