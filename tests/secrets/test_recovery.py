"""Recovery material and signatures are those of the reference (protocol, sections 10.3, 10.7 and 10.9)."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from itertools import combinations

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from hypothesis import given
from hypothesis import strategies as st
from tests.pki.authority import CountingEntropy

from marblerun.errors import Malformed, Untrusted
from marblerun.secrets.recovery import (
    RecoveryMaterial,
    build_recovery_data,
    make_recovery,
    parse_recovery_data,
    share_id,
    verify_recovery_signatures,
)
from marblerun.secrets.shares import combine_shamir, xor


@cache
def key(name: str) -> rsa.RSAPrivateKey:
    assert name
    return rsa.generate_private_key(65537, 2048)


def public(count: int) -> dict[str, rsa.RSAPublicKey]:
    return {f"party{number}": key(f"party{number}").public_key() for number in range(count)}


def decrypted(made: RecoveryMaterial) -> list[bytes]:
    """SM5: the answer holds data decryptable with the private key (OAEP SHA-256)."""
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    return [key(name).decrypt(share, oaep) for name, share in made.shares.items()]


def make(count: int, threshold: int) -> RecoveryMaterial:
    return make_recovery(public(count), threshold, CountingEntropy(0x9876543210))


def test_without_recovery_keys_there_is_a_key_and_nothing_to_recover_it() -> None:
    made = make(0, 0)
    assert (len(made.key), made.shares, made.recovery_data) == (32, {}, b"null")


def test_a_single_recovery_key_gets_the_data_key() -> None:
    made = make(1, 0)
    assert (decrypted(made), made.recovery_data) == ([made.key], b"null")


@pytest.mark.parametrize(("count", "threshold"), [(2, 0), (2, 2), (3, 0), (3, 3)])
def test_without_a_lower_threshold_all_secrets_are_needed(count: int, threshold: int) -> None:
    made = make(count, threshold)
    secrets = decrypted(made)
    assert [len(secret) for secret in secrets] == [32] * count
    assert xor(secrets) == made.key
    assert all(xor(chosen) != made.key for size in range(1, count) for chosen in combinations(secrets, size))


@pytest.mark.parametrize(("count", "threshold"), [(3, 2), (4, 3)])
def test_with_a_lower_threshold_each_gets_a_share(count: int, threshold: int) -> None:
    made = make(count, threshold)
    shares = decrypted(made)
    assert [len(share) for share in shares] == [33] * count
    for size in range(2, count + 1):
        for chosen in combinations(shares, size):
            assert (combine_shamir(chosen) == made.key) == (size >= threshold)


def test_recovery_data_names_each_share_by_its_hash() -> None:
    for made in (make(2, 0), make(3, 2)):
        hashed = sorted(hashlib.sha256(share).hexdigest() for share in decrypted(made))
        assert made.recovery_data == json.dumps(dict.fromkeys(hashed, True), separators=(",", ":")).encode()
        assert parse_recovery_data(made.recovery_data) == frozenset(hashed)
    assert len(make(2, 0).recovery_data) == 145


def test_the_published_share_id_matches() -> None:
    share = bytes(range(32))
    assert share_id(share) == "630dcd2966c4336691125448bbb25b4ff412a49c732db2c8abc1b8581bd710dd"
    assert build_recovery_data((share,)) == f'{{"{share_id(share)}":true}}'.encode()


@pytest.mark.parametrize("data", [b"", b"null"])
def test_no_or_lost_recovery_data_names_nobody(data: bytes) -> None:
    assert parse_recovery_data(data) is None


@given(st.binary())
def test_other_recovery_data_is_malformed(data: bytes) -> None:
    try:
        found = parse_recovery_data(data)
    except Malformed:
        return
    assert found is None or isinstance(json.loads(data), dict)


@pytest.mark.parametrize(("count", "threshold"), [(1, 1), (2, 1), (2, 3), (0, 2), (2, -1)])
def test_an_impossible_threshold_is_our_own_error(count: int, threshold: int) -> None:
    with pytest.raises(ValueError, match="threshold"):
        make(count, threshold)


def sign(name: str, secret: bytes) -> bytes:
    return key(name).sign(secret, padding.PKCS1v15(), hashes.SHA256())


def signed(*pairs: tuple[str, bytes]) -> dict[bytes, bytes]:
    return {secret: sign(name, secret) for name, secret in pairs}


@pytest.mark.parametrize("threshold", [0, 2])
def test_signatures_by_all_keys_are_accepted_in_any_order(threshold: int) -> None:
    pairs = [("party0", b"x"), ("party1", b"y")]
    for given_pairs in (pairs, pairs[::-1]):
        verify_recovery_signatures(signed(*given_pairs), public(2), threshold)


def test_a_single_party_signs_its_secret() -> None:
    verify_recovery_signatures(signed(("party0", b"x")), public(1), 0)


def test_any_threshold_of_keys_is_enough() -> None:
    for first, second in combinations(range(3), 2):
        verify_recovery_signatures(signed((f"party{first}", b"x"), (f"party{second}", b"y")), public(3), 2)


REFUSED: list[tuple[str, dict[bytes, bytes], int, int]] = [
    ("recovery-keys", {}, 0, 0),
    ("recovery-keys", {b"x": b"y"}, 0, 0),
    ("recovery-secrets", signed(("party0", b"x")), 2, 0),
    ("recovery-secrets", signed(("party0", b"x")), 3, 2),
    ("recovery-secrets", signed(("party0", b"x"), ("party1", b"y"), ("party2", b"z")), 3, 2),
    ("recovery-secrets", signed(("party0", b"x"), ("party1", b"y")), 1, 0),
    ("recovery-signature", signed(("party0", b"x"), ("party0", b"y")), 2, 0),
    ("recovery-signature", signed(("party0", b"x"), ("party0", b"y")), 3, 2),
    ("recovery-signature", signed(("party0", b"x"), ("attacker", b"y")), 2, 0),
    ("recovery-signature", {b"x": b""}, 1, 0),
    ("recovery-signature", {b"x": sign("party0", b"other")}, 1, 0),
]


@pytest.mark.parametrize(("step", "signatures", "count", "threshold"), REFUSED)
def test_anything_else_is_untrusted(step: str, signatures: dict[bytes, bytes], count: int, threshold: int) -> None:
    with pytest.raises(Untrusted) as caught:
        verify_recovery_signatures(signatures, public(count), threshold)
    assert caught.value.step == step


def test_material_does_not_show_in_its_representation() -> None:
    made = make(2, 0)
    assert repr(made.key) not in repr(made)
    assert made.key.hex() not in repr(made)
