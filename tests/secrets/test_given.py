"""Certificates that are brought along are read where Go reads them, and refused where Go refuses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from tests.go.oracle import Oracle, running

from marblerun.errors import Malformed
from marblerun.secrets.given import read_given_certificate

PublicKey = (
    rsa.RSAPublicKey
    | dsa.DSAPublicKey
    | ec.EllipticCurvePublicKey
    | ed25519.Ed25519PublicKey
    | ed448.Ed448PublicKey
    | x25519.X25519PublicKey
)

ISSUER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
KEYS: dict[str, Callable[[], PublicKey]] = {
    # These three are always the same, so that every run damages the same certificates.
    "rsa": lambda: rsa.RSAPublicNumbers(65537, (1 << 1023) + 1155).public_key(),
    "p224": lambda: ec.generate_private_key(ec.SECP224R1()).public_key(),
    "p256": lambda: ec.derive_private_key(7, ec.SECP256R1()).public_key(),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()).public_key(),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()).public_key(),
    "brainpool": lambda: ec.generate_private_key(ec.BrainpoolP256R1()).public_key(),
    "ed25519": lambda: ISSUER.public_key(),
    "ed448": lambda: ed448.Ed448PrivateKey.generate().public_key(),
    "x25519": lambda: x25519.X25519PrivateKey.generate().public_key(),
    "dsa": lambda: dsa.generate_private_key(1024).public_key(),
}


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    with running("jsondiff", tmp_path_factory.mktemp("go")) as program:
        if program is None:
            pytest.skip("Go is not installed: certificates that are brought along were not compared with crypto/x509")
        yield program


@cache
def certificate(kind: str) -> bytes:
    """One with a key of that kind and the usual extensions, issued by somebody else."""
    # No address: with one bit changed it is a URI, and those are not looked at as closely as Go does it.
    names = [x509.DNSName("a.example"), x509.RFC822Name("a@b")]
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Jörg")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b")]))
        .public_key(KEYS[kind]())
        .serial_number(5)
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2060, 1, 1, tzinfo=UTC))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier(b"abc"), critical=False)
        .sign(ISSUER, None)
    )
    return built.public_bytes(Encoding.DER)


def test_curves_that_are_not_accepted_are_named_as_such() -> None:
    with pytest.raises(Malformed, match="a curve that is not accepted"):
        read_given_certificate(certificate("brainpool"))


def is_read(data: bytes) -> bool:
    try:
        return read_given_certificate(data).der == data
    except Malformed:
        return False


@pytest.mark.parametrize("kind", KEYS)
def test_every_kind_of_key_is_taken_or_refused_as_in_go(oracle: Oracle, kind: str) -> None:
    """Kinds that Go does not know pass, curves that it does not know do not."""
    data = certificate(kind)
    assert is_read(data) == oracle.ask("certificate", data).ok == (kind not in ("secp256k1", "brainpool"))


@pytest.mark.parametrize("kind", ["rsa", "p256", "ed25519"])
def test_no_certificate_with_a_damaged_byte_is_taken_that_go_refuses(oracle: Oracle, kind: str) -> None:
    data = certificate(kind)
    assert is_read(data)
    refused = 0
    for index, octet in enumerate(data):
        for other in {octet ^ 1, octet ^ 0x80, 0x30} - {octet}:
            damaged = data[:index] + bytes([other]) + data[index + 1 :]
            if is_read(damaged):
                assert oracle.ask("certificate", damaged).ok, (index, octet, other)
            else:
                refused += 1
    assert refused > 100
