"""Certificates and keys as PEM text for manifests, made once."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


@cache
def certificate(name: str) -> x509.Certificate:
    """A self-signed certificate, as users of a mesh have it; another one for each name."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2021, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )


def certificate_der(name: str) -> bytes:
    """The certificate in DER."""
    return certificate(name).public_bytes(Encoding.DER)


def certificate_pem(name: str) -> str:
    """The certificate in PEM."""
    return certificate(name).public_bytes(Encoding.PEM).decode()


@cache
def rsa_pem(bits: int = 2048) -> str:
    """An RSA public key in PEM."""
    key = rsa.generate_private_key(65537, bits).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@cache
def ec_pem() -> str:
    """An EC public key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
