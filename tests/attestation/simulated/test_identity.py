"""The identity that EDG_SIMULATED_* ask for."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marblerun.attestation.simulated import EnclaveIdentity, identity_from_environment
from marblerun.errors import Misconfigured


def test_without_variables_the_documented_defaults_are_used() -> None:
    assert identity_from_environment({}) == EnclaveIdentity(
        hashlib.sha256(b"simulated enclave").digest(), hashlib.sha256(b"simulated signer").digest(), 1, 1, False
    )


def test_empty_variables_count_as_not_set() -> None:
    names = ("UNIQUE_ID", "SIGNER_ID", "PRODUCT_ID", "SECURITY_VERSION", "DEBUG")
    assert identity_from_environment({f"EDG_SIMULATED_{name}": "" for name in names}) == EnclaveIdentity()


@given(
    st.builds(
        EnclaveIdentity,
        st.binary(min_size=32, max_size=32),
        st.binary(min_size=32, max_size=32),
        st.integers(0, 0xFFFF),
        st.integers(0, 0xFFFF),
        st.booleans(),
    )
)
def test_every_identity_can_be_asked_for(identity: EnclaveIdentity) -> None:
    environment = {
        "EDG_SIMULATED_UNIQUE_ID": identity.unique_id.hex().upper(),
        "EDG_SIMULATED_SIGNER_ID": identity.signer_id.hex(),
        "EDG_SIMULATED_PRODUCT_ID": str(identity.product_id),
        "EDG_SIMULATED_SECURITY_VERSION": str(identity.security_version),
        "EDG_SIMULATED_DEBUG": "true" if identity.debug else "0",
    }
    assert identity_from_environment(environment) == identity


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("EDG_SIMULATED_UNIQUE_ID", "00"),
        ("EDG_SIMULATED_UNIQUE_ID", "zz" * 32),
        ("EDG_SIMULATED_UNIQUE_ID", "00 " * 21 + "0"),
        ("EDG_SIMULATED_SIGNER_ID", "00" * 33),
        ("EDG_SIMULATED_PRODUCT_ID", "65536"),
        ("EDG_SIMULATED_PRODUCT_ID", "-1"),
        ("EDG_SIMULATED_PRODUCT_ID", "٣"),
        ("EDG_SIMULATED_SECURITY_VERSION", "1" * 5000),
        ("EDG_SIMULATED_DEBUG", "maybe"),
    ],
)
def test_a_value_that_does_not_read_is_refused_by_the_variables_name(name: str, value: str) -> None:
    with pytest.raises(Misconfigured, match=name):
        identity_from_environment({name: value})


def test_an_identity_of_the_wrong_size_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        EnclaveIdentity(unique_id=b"short")
    with pytest.raises(ValueError, match="16 bits"):
        EnclaveIdentity(product_id=65536)
