"""Splitting a key among people: XOR for all of them, Shamir's scheme for some of them.

Shamir's scheme is the one of HashiCorp Vault: each byte on its own over GF(2^8) with x^8+x^4+x^3+x+1, a share being
the y bytes followed by its x. Source: protocol, sections 10.3 and 10.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Final, Protocol

from marblerun.errors import Malformed

SECRET_BYTES: Final = 32
MAX_SHARES: Final = 255
_POLYNOMIAL: Final = 0x11B


class Entropy(Protocol):
    """Where random bytes come from."""

    def token(self, size: int) -> bytes:
        """``size`` random bytes."""


def _tables() -> tuple[bytes, bytes]:
    """Powers of the generator 3 (twice over, so that exponents need no modulus) and their logarithms."""
    powers, logarithms = bytearray(510), bytearray(256)
    value = 1
    for exponent in range(255):
        powers[exponent] = powers[exponent + 255] = value
        logarithms[value] = exponent
        value ^= value << 1 ^ (_POLYNOMIAL if value & 0x80 else 0)
    return bytes(powers), bytes(logarithms)


_POWERS, _LOGARITHMS = _tables()


def _multiply(left: int, right: int) -> int:
    return _POWERS[_LOGARITHMS[left] + _LOGARITHMS[right]] if left and right else 0


def _divide(left: int, right: int) -> int:
    return _POWERS[_LOGARITHMS[left] + 255 - _LOGARITHMS[right]] if left else 0


def xor(secrets: Sequence[bytes]) -> bytes:
    """The bitwise XOR of at least one byte string, all of the same length; ``Malformed`` otherwise."""
    if not secrets or len({len(secret) for secret in secrets}) != 1:
        raise Malformed("expected secrets of one length")
    value = reduce(lambda total, secret: total ^ int.from_bytes(secret), secrets, 0)
    return value.to_bytes(len(secrets[0]))


def split_xor(count: int, entropy: Entropy) -> tuple[bytes, tuple[bytes, ...]]:
    """A fresh 32-byte key and the ``count`` secrets of which it is the XOR; all of them are needed."""
    if count < 1:
        raise ValueError("at least one share")
    secrets = tuple(entropy.token(SECRET_BYTES) for _ in range(count))
    return xor(secrets), secrets


def split_shamir(secret: bytes, *, count: int, threshold: int, entropy: Entropy) -> tuple[bytes, ...]:
    """``count`` shares of which any ``threshold`` give back ``secret`` and fewer say nothing about it.

    2 <= threshold <= count <= 255, at least one secret byte; ``ValueError`` otherwise. A share is one byte longer.
    """
    if not 2 <= threshold <= count <= MAX_SHARES or not secret:
        raise ValueError("expected a secret and 2 <= threshold <= count <= 255")
    higher = [entropy.token(threshold - 1) for _ in secret]
    return tuple(
        bytes(_evaluate(constant, rest, x) for constant, rest in zip(secret, higher, strict=True)) + bytes((x,))
        for x in range(1, count + 1)
    )


def _evaluate(constant: int, higher: bytes, x: int) -> int:
    """The polynomial ``constant + higher[0]*x + higher[1]*x^2 + ...`` at ``x``."""
    return _multiply(reduce(lambda total, factor: _multiply(total, x) ^ factor, reversed(higher), 0), x) ^ constant


def combine_shamir(shares: Sequence[bytes]) -> bytes:
    """The secret that ``shares`` determine; a wrong one if they are fewer than the threshold or of different secrets.

    ``Malformed`` for fewer than two shares, different lengths, shares of one byte, an x of 0 or the same x twice.
    """
    if len(shares) < 2:
        raise Malformed("at least two shares are needed")
    if len({len(share) for share in shares}) != 1 or len(shares[0]) < 2:
        raise Malformed("expected shares of one length, at least two bytes")
    positions = [share[-1] for share in shares]
    if 0 in positions or len(set(positions)) != len(positions):
        raise Malformed("a share is given twice or its position is not valid")
    weights = [_weight(x, positions) for x in positions]
    return bytes(
        reduce(lambda total, term: total ^ _multiply(*term), zip(weights, column, strict=True), 0)
        for column in zip(*(share[:-1] for share in shares), strict=True)
    )


def _weight(x: int, positions: Sequence[int]) -> int:
    """The Lagrange coefficient of position ``x`` at 0."""
    others = (other for other in positions if other != x)
    return reduce(lambda weight, other: _multiply(weight, _divide(other, other ^ x)), others, 1)
