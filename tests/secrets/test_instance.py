"""One Marble instance's secrets are made when they are looked at, and only then (protocol, sections 6.1 and 6.7)."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from tests.pki.authority import AT, CountingEntropy, marble_issuer

from marblerun.errors import Malformed
from marblerun.secrets import generate
from marblerun.secrets.generate import Inputs
from marblerun.secrets.instance import InstanceSecrets
from marblerun.secrets.model import Secret, SecretDefinition

UUID_1 = UUID("02030400-0000-0000-0000-000000000000")
DEFINITIONS = {
    "sharedKey": SecretDefinition(type="symmetric-key", size=128, shared=True),
    "privateKey": SecretDefinition(type="symmetric-key", size=128),
    "privateCert": SecretDefinition(type="cert-ed25519"),
    "privateRsa": SecretDefinition(type="cert-rsa", size=1024),
    "sharedRsa": SecretDefinition(type="cert-rsa", size=1024, shared=True),
    "userPlain": SecretDefinition(type="plain", user_defined=True),
}


class Counted(CountingEntropy):
    """Counts the keys that were asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def rsa_key(self, bits: int) -> rsa.RSAPrivateKey:
        self.made.append("rsa")
        return super().rsa_key(bits)

    def ed25519_key(self) -> ed25519.Ed25519PrivateKey:
        self.made.append("ed25519")
        return super().ed25519_key()


def inputs(entropy: CountingEntropy, root_secret: bytes = bytes(32)) -> Inputs:
    return Inputs(root_secret, marble_issuer(), AT, entropy)


def stored() -> dict[str, Secret]:
    given = inputs(CountingEntropy())
    return {
        **generate.shared_secrets(DEFINITIONS, given),
        **generate.placeholder_secrets(DEFINITIONS, given),
        **generate.unset_secrets(DEFINITIONS),
    }


STORED = stored()


def instance(entropy: CountingEntropy, root_secret: bytes = bytes(32), marble_name: str = "m") -> InstanceSecrets:
    return InstanceSecrets(STORED, uuid=UUID_1, marble_name=marble_name, inputs=inputs(entropy, root_secret))


def test_shared_and_user_defined_secrets_are_the_stored_ones() -> None:
    """A12: shared certificate is the same in different Marbles; private certificate of the same name differs."""
    first, second = instance(CountingEntropy()), instance(CountingEntropy())
    for name in ("sharedKey", "sharedRsa", "userPlain"):
        assert first[name] is second[name] is STORED[name]
    assert first["privateCert"].certificate != second["privateCert"].certificate


def test_only_what_is_looked_at_is_made_and_it_is_made_once() -> None:
    entropy = Counted()
    secrets = instance(entropy)
    assert (len(secrets), "privateRsa" in secrets, list(secrets)) == (6, True, list(STORED))
    assert entropy.made == []
    assert secrets["privateCert"] is secrets["privateCert"]
    assert entropy.made == ["ed25519"]


def test_rsa_is_announced_until_it_is_made() -> None:
    secrets = instance(CountingEntropy())
    assert not secrets.needs_rsa(["sharedRsa", "privateCert", "privateKey", "unknown"])
    assert secrets.needs_rsa(["privateKey", "privateRsa"])
    assert secrets["privateRsa"].certificate
    assert not secrets.needs_rsa(["privateRsa"])


def test_a_private_key_is_that_of_the_instance_and_not_the_placeholder() -> None:
    """A19: same UUID, two types with DisableSecretBinding: same private key; with a bound type: different."""
    unbound, other_unbound = (instance(CountingEntropy(), marble_name="")["privateKey"] for _ in range(2))
    assert unbound == other_unbound
    bound = instance(CountingEntropy())["privateKey"]
    assert len({unbound.private, bound.private, STORED["privateKey"].private}) == 3


def test_the_previous_secrets_follow_from_the_previous_root_secret() -> None:
    current, previous = instance(CountingEntropy()), instance(CountingEntropy(), root_secret=bytes([1]) * 32)
    assert current["privateKey"].private != previous["privateKey"].private


def test_a_secret_that_cannot_be_made_fails_when_it_is_looked_at() -> None:
    broken = {"bad": replace(STORED["privateKey"], size=1), "good": STORED["privateKey"]}
    secrets = InstanceSecrets(broken, uuid=UUID_1, marble_name="m", inputs=inputs(CountingEntropy()))
    assert len(secrets["good"].private) == 16
    with pytest.raises(Malformed):
        secrets["bad"]
    with pytest.raises(KeyError):
        secrets["missing"]
