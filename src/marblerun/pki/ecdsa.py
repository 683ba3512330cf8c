"""ECDSA on P-256 and P-384 by AWS-LC, where the Coordinator does it often. The one place that knows the library.

pyca's OpenSSL has no assembler for P-384 and needs two to three times as long (ADR 9). Everything is as with pyca:
pyca says what a key is, and this only whether such a key made a signature. The library is loaded at the first use, so
that clients, Marbles and commands do without it.

Source: RFC 5480 (SubjectPublicKeyInfo), RFC 5958 and RFC 5915 (private keys); NIST FIPS 186-5.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.pki import der

_EC_PUBLIC_KEY: Final = der.oid("1.2.840.10045.2.1")
_UNCOMPRESSED: Final = b"\x04"
# AWS-LC's names of curves and forms, as the binding numbers them.
_P256, _P384 = 0, 1
_PKCS8: Final = 1
# So many leading zeros nobody sees in a lifetime, and the lengths before them would be shorter.
_MISSING_ZEROS: Final = 8


class _Key(Protocol):
    """What we use of a key of the binding."""

    def sign(self, digest: bytes) -> bytes: ...
    def verify(self, digest: bytes, signature: bytes) -> bool: ...
    def export_key(self, export_format: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class _Curve:
    """How keys on one curve are encoded: what is the same in all of them, with the parts that differ cut out."""

    number: int
    size: int
    """Bytes of a coordinate and of a private key."""
    before_point: bytes
    """A SubjectPublicKeyInfo up to its uncompressed point."""
    before_secret: bytes
    """PKCS#8 up to the private key."""
    after_secret: bytes
    """What is between that and the point, with which PKCS#8 ends."""

    @property
    def point_bytes(self) -> int:
        """Of an uncompressed point."""
        return 1 + 2 * self.size


def _curve(number: int, oid: str, size: int) -> _Curve:
    algorithm = der.sequence(_EC_PUBLIC_KEY, der.oid(oid))
    secret, point = bytes(size), bytes(1 + 2 * size)
    in_context = der.tlv(der.context(1, constructed=True), der.bit_string(point))
    inner = der.sequence(der.integer(1), der.tlv(der.OCTET_STRING, secret), in_context)
    private = der.sequence(der.integer(0), algorithm, der.tlv(der.OCTET_STRING, inner))
    before_secret = private[: -len(in_context) - size]
    after_secret = private[-len(in_context) : -len(point)]
    info = der.sequence(algorithm, der.bit_string(point))
    return _Curve(number, size, info[: -len(point)], before_secret, after_secret)


_CURVES: Final = {
    "secp256r1": _curve(_P256, "1.2.840.10045.3.1.7", 32),
    "secp384r1": _curve(_P384, "1.3.132.0.34", 48),
}


@cache
def load() -> Any:
    """The library's EC keys. The first call takes tens of milliseconds: a server makes it before it listens."""
    from awscrt.crypto import EC  # type: ignore[import-untyped]

    return EC


class VerifyingKey:
    """A public key that signatures are checked with."""

    __slots__ = ("_key",)

    def __init__(self, key: _Key) -> None:
        self._key = key

    @classmethod
    def of(cls, info: bytes) -> VerifyingKey | None:
        """The key in ``info``, a SubjectPublicKeyInfo that pyca has accepted.

        ``None`` unless it has a curve that is faster here, by name, and an uncompressed point: the usual form, of
        which there is only one reading.
        """
        for curve in _CURVES.values():
            if info.startswith(curve.before_point + _UNCOMPRESSED):
                if len(info) != len(curve.before_point) + curve.point_bytes:
                    return None
                try:
                    return cls(load().new_key_from_der_data(info))
                except (RuntimeError, ValueError):
                    return None
        return None

    def is_signed(self, signature: bytes, signed: bytes, algorithm: hashes.HashAlgorithm) -> bool:
        """Whether ``signature`` (DER, strictly) over ``signed`` hashed with ``algorithm`` is by this key."""
        try:
            return self._key.verify(_digest(algorithm, signed), signature)
        except (RuntimeError, ValueError):  # how the binding says that something else than the signature is wrong
            return False


class SigningKey:
    """A private key that signs often; stands where pyca's key stands for those who only sign."""

    __slots__ = ("_key", "curve")

    def __init__(self, key: _Key, curve: ec.EllipticCurve) -> None:
        self._key = key
        self.curve = curve

    @classmethod
    def of(cls, key: ec.EllipticCurvePrivateKey) -> SigningKey | None:
        """The same key; ``None`` if its curve is no faster here. Takes as long as three signatures.

        ``RuntimeError`` if pyca does not find that the first signature is by ``key``: nobody shall get a certificate
        that does not verify.
        """
        if key.curve.name not in _CURVES:
            return None
        encoded = key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        made = cls(load().new_key_from_der_data(encoded), key.curve)
        scheme = ec.ECDSA(hashes.SHA384())
        try:
            key.public_key().verify(made.sign(b"", scheme), b"", scheme)
        except Exception as error:
            raise RuntimeError("a signing key does not sign as it should") from error
        return made

    def sign(self, data: bytes, signature_algorithm: ec.ECDSA) -> bytes:
        """The signature over ``data``, DER, with a nonce of its own."""
        algorithm = signature_algorithm.algorithm
        if not isinstance(algorithm, hashes.HashAlgorithm):
            raise ValueError("data that is hashed already")
        return self._key.sign(_digest(algorithm, data))


def _digest(algorithm: hashes.HashAlgorithm, data: bytes) -> bytes:
    return hashlib.new(algorithm.name, data, usedforsecurity=False).digest()


def new_pair(curve: ec.EllipticCurve) -> tuple[bytes, bytes] | None:
    """PKCS#8 and SubjectPublicKeyInfo DER of a fresh key; ``None`` if the curve is no faster here.

    Not pure, as nothing else in this room: only for an ``Entropy`` that is really one.
    """
    known = _CURVES.get(curve.name)
    if known is None:
        return None
    return _whole_pair(load().new_generate(known.number).export_key(_PKCS8), known)


def _whole_pair(private: bytes, curve: _Curve) -> tuple[bytes, bytes]:
    """Both forms from the library's PKCS#8, which leaves leading zeros of the private key out.

    One key in 256 is so, and others, pyca among them, refuse to read it (RFC 5915, section 3: as many bytes as the
    order has).
    """
    start, after = len(curve.before_secret), curve.after_secret
    rest, point = private[: -curve.point_bytes], private[-curve.point_bytes :]
    secret = rest[start : -len(after)]
    if (
        not rest.endswith(after)
        or not curve.size - _MISSING_ZEROS < len(secret) <= curve.size
        or rest[start - 1] != len(secret)
        or not point.startswith(_UNCOMPRESSED)
    ):
        raise RuntimeError("a new key is encoded in a way that is not known")
    return curve.before_secret + secret.rjust(curve.size, b"\x00") + after + point, curve.before_point + point
