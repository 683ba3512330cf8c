"""Splitting a key: every sufficient subset gives it back, every smaller one says nothing (protocol, section 10.4)."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pki.authority import CountingEntropy

from marblerun.errors import Malformed
from marblerun.secrets.shares import combine_shamir, split_shamir, split_xor, xor

SECRET = bytes(range(32))
VECTOR = [bytes.fromhex(share) for share in ("7901", "8c02", "2bca")]


class Fixed:
    """Entropy whose tokens are all the same byte."""

    def __init__(self, value: int) -> None:
        self._value = value

    def token(self, size: int) -> bytes:
        return bytes([self._value]) * size


def test_the_published_shares_combine_in_every_pair() -> None:
    for pair in combinations(VECTOR, 2):
        assert combine_shamir(pair) == b"\x2a"
    assert combine_shamir(VECTOR) == b"\x2a"


def test_the_published_polynomial_gives_the_published_shares() -> None:
    """Secret 2a with the polynomial 2a + 53*x."""
    shares = split_shamir(b"\x2a", count=0xCA, threshold=2, entropy=Fixed(0x53))
    assert [shares[x - 1] for x in (0x01, 0x02, 0xCA)] == VECTOR


@pytest.mark.parametrize(("count", "threshold"), [(n, t) for n in range(2, 7) for t in range(2, n + 1)])
def test_any_k_of_n_shares_give_the_secret_and_no_fewer_do(count: int, threshold: int) -> None:
    shares = split_shamir(SECRET, count=count, threshold=threshold, entropy=CountingEntropy(0x1234567890))
    assert {len(share) for share in shares} == {33}
    for size in range(2, count + 1):
        for chosen in combinations(shares, size):
            assert (combine_shamir(chosen) == SECRET) == (size >= threshold)


def test_one_share_fewer_leaves_every_secret_equally_likely() -> None:
    """Over all polynomials, a share of a 2-of-n secret takes each value once, whatever the secret byte is."""
    for secret in (b"\x00", b"\x2a", b"\xff"):
        seen = Counter(split_shamir(secret, count=5, threshold=2, entropy=Fixed(a))[4] for a in range(256))
        assert seen == Counter({bytes([y, 5]): 1 for y in range(256)})


@given(st.binary(min_size=1, max_size=40), st.data())
def test_shares_in_any_order_and_number_from_the_threshold_on_combine(secret: bytes, data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 255))
    threshold = data.draw(st.integers(2, min(count, 8)))
    shares = split_shamir(secret, count=count, threshold=threshold, entropy=CountingEntropy(data.draw(st.integers(1))))
    chosen = data.draw(
        st.lists(st.sampled_from(shares), min_size=threshold, max_size=12, unique_by=lambda share: share[-1])
    )
    assert combine_shamir(chosen) == secret


@pytest.mark.parametrize(
    "shares",
    [
        [],
        [b"\x01\x01"],
        [b"\x01", b"\x02"],
        [b"\x01\x01", b"\x01\x02\x02"],
        [b"\x01\x01", b"\x02\x01"],
        [b"\x01\x00", b"\x02\x01"],
    ],
)
def test_shares_that_do_not_fit_together_are_malformed(shares: list[bytes]) -> None:
    with pytest.raises(Malformed):
        combine_shamir(shares)


@given(st.lists(st.binary(max_size=4), max_size=5))
def test_combining_anything_raises_only_our_errors(shares: list[bytes]) -> None:
    try:
        combined = combine_shamir(shares)
    except Malformed:
        return
    assert len(combined) == len(shares[0]) - 1


@pytest.mark.parametrize(("count", "threshold"), [(1, 1), (2, 1), (2, 3), (256, 2), (0, 0)])
def test_an_impossible_split_is_our_own_error(count: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        split_shamir(SECRET, count=count, threshold=threshold, entropy=CountingEntropy())


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_the_xor_of_all_secrets_is_the_key_and_of_fewer_is_not(count: int) -> None:
    """R1: single and three secrets; the result is the XOR."""
    key, secrets = split_xor(count, CountingEntropy(0xABCDEF))
    assert (len(key), [len(secret) for secret in secrets]) == (32, [32] * count)
    assert xor(secrets) == key
    for left_out in combinations(secrets, count - 1):
        assert not left_out or xor(left_out) != key


@given(st.binary(min_size=8, max_size=8), st.binary(min_size=8, max_size=8))
def test_xor_is_byte_by_byte(left: bytes, right: bytes) -> None:
    """F10: XOR of equal-length byte strings."""
    assert xor([left, right]) == bytes(a ^ b for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("secrets", [[], [b"\x01", b"\x01\x02"]])
def test_xor_of_different_lengths_is_malformed(secrets: list[bytes]) -> None:
    with pytest.raises(Malformed):
        xor(secrets)


def test_the_field_is_that_of_aes() -> None:
    """Multiplication, seen through shares: the share at x of a polynomial a*x is a times x, checked bit by bit."""

    def slow(left: int, right: int) -> int:
        total = 0
        for bit in range(8):
            if right >> bit & 1:
                total ^= left << bit
        for bit in range(14, 7, -1):
            if total >> bit & 1:
                total ^= 0x11B << (bit - 8)
        return total

    for a in range(0, 256, 5):
        shares = split_shamir(b"\x00", count=255, threshold=2, entropy=Fixed(a))
        assert [share[0] for share in shares] == [slow(a, x) for x in range(1, 256)]
