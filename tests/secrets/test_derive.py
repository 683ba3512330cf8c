"""Derived keys are those of the reference, bit for bit (protocol, sections 6.2, 6.3 and 15)."""

from __future__ import annotations

from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from marblerun.errors import Malformed
from marblerun.secrets.derive import derive_symmetric_key, legacy_root_secret

ROOT_SECRET = bytes(range(32))
SOME_UUID = UUID("02030400-0000-0000-0000-000000000000")
NAME = "symmetricKeyPrivate"


@pytest.mark.parametrize(
    ("marble_name", "size", "expected"),
    [
        ("backendFirst", 32, "f31a5cd6e5aa4e8d54af554be683c7f5bec1c7b893717f0a46678d0e90cd287e"),
        ("", 16, "e9b8c1b8d26d688bb891bb74a4624e9c"),
    ],
)
def test_the_published_vectors_match(marble_name: str, size: int, expected: str) -> None:
    key = derive_symmetric_key(ROOT_SECRET, uuid=SOME_UUID, name=NAME, marble_name=marble_name, size=size)
    assert key.hex() == expected


def test_keys_differ_by_each_of_their_inputs() -> None:
    other = UUID(int=1)
    keys = {
        derive_symmetric_key(root, uuid=uuid, name=name, marble_name=marble_name, size=32)
        for root in (ROOT_SECRET, bytes(32))
        for uuid in (SOME_UUID, other)
        for name in ("a", "b")
        for marble_name in ("", "a", "b")
    }
    assert len(keys) == 24


@given(st.integers(1, 8160))
def test_a_shorter_key_is_the_start_of_a_longer_one(size: int) -> None:
    longest = derive_symmetric_key(ROOT_SECRET, uuid=SOME_UUID, name=NAME, marble_name="", size=8160)
    assert derive_symmetric_key(ROOT_SECRET, uuid=SOME_UUID, name=NAME, marble_name="", size=size) == longest[:size]


@pytest.mark.parametrize("size", [0, -1, 8161, 2**40])
def test_a_size_hkdf_cannot_give_is_malformed(size: int) -> None:
    with pytest.raises(Malformed):
        derive_symmetric_key(ROOT_SECRET, uuid=SOME_UUID, name=NAME, marble_name="", size=size)


@given(st.integers(1, 2**200))
def test_the_legacy_root_secret_is_the_scalar_in_48_bytes(scalar: int) -> None:
    """A21: activation works when no root secret is stored (derived from the root key)."""
    assert legacy_root_secret(ec.derive_private_key(scalar, ec.SECP384R1())) == scalar.to_bytes(48, "big")
