"""A small authority for the tests of certificates and secrets: fixed time, fixed keys, entropy that can be foreseen."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from marblerun.pki.encodings import encoded_pair
from marblerun.pki.issue import Issuer, issue_intermediate, issue_marble_root, issue_root
from marblerun.pki.profiles import SubjectNames

AT = datetime(2026, 11, 22, 13, 5, 7, 250_000, tzinfo=UTC)
NAMES = SubjectNames.parse("localhost,coordinator.example,10.1.2.3,fd00::7")


class CountingEntropy:
    """Bytes that count up from ``first``, so that no two tokens are the same; keys are really random."""

    def __init__(self, first: int = 1) -> None:
        self._next = first

    def token(self, size: int) -> bytes:
        self._next += 1
        return (self._next - 1).to_bytes(16)[-size:].rjust(size, b"\x5a")

    def ec_key(self, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(curve)

    def ec_pair(self, curve: ec.EllipticCurve) -> tuple[bytes, bytes]:
        return encoded_pair(self.ec_key(curve))

    def rsa_key(self, bits: int) -> rsa.RSAPrivateKey:
        return rsa.generate_private_key(65537, bits)

    def ed25519_key(self) -> ed25519.Ed25519PrivateKey:
        return ed25519.Ed25519PrivateKey.generate()


@cache
def key(name: str) -> ec.EllipticCurvePrivateKey:
    """A P-384 key that is the same for the same name within one run."""
    assert name
    return ec.generate_private_key(ec.SECP384R1())


@cache
def root() -> x509.Certificate:
    return issue_root(NAMES, key("root"), AT, CountingEntropy(100))


@cache
def intermediate(name: str = "intermediate") -> x509.Certificate:
    return issue_intermediate(NAMES, key(name), Issuer.of(root(), key("root")), AT, CountingEntropy(200))


@cache
def marble_root(name: str = "intermediate") -> x509.Certificate:
    return issue_marble_root(NAMES, key(name), AT, CountingEntropy(300))


@cache
def marble_issuer(name: str = "intermediate") -> Issuer:
    return Issuer.of(marble_root(name), key(name))


def der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)
