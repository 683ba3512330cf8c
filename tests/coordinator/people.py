"""Users with certificates of their own, the deployment they share, and their HTTP requests."""

from __future__ import annotations

import http.client
import json
import ssl
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from tests.coordinator.running import Address

from marblerun.attestation.simulated.identity import DEFAULT_SIGNER_ID


@dataclass(frozen=True)
class Person:
    """Somebody with a certificate and its key."""

    name: str
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(
            Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    @property
    def key_pkcs8(self) -> bytes:
        return self.key.private_bytes(Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


@cache
def person(name: str) -> Person:
    """A self-signed, expired certificate with empty subject and issuer, as the reference's own users have (E21)."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2021, 1, 1, tzinfo=UTC))
        .sign(key, hashes.SHA256())
    )
    return Person(name, certificate, key)


@cache
def recovery_key(name: str) -> rsa.RSAPrivateKey:
    """Somebody's recovery key."""
    return rsa.generate_private_key(65537, 2048)


def recovery_pem(name: str) -> str:
    """Its public half for the manifest."""
    public = recovery_key(name).public_key()
    return public.public_bytes(Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


ROLES: dict[str, Any] = {
    "updater": {"ResourceType": "Manifest", "Actions": ["UpdateManifest"]},
    "updaterToo": {"ResourceType": "Manifest", "Actions": ["updatemanifest"]},
    "frontend": {"ResourceType": "Packages", "ResourceNames": ["frontend"], "Actions": ["UpdateSecurityVersion"]},
    "reader": {
        "ResourceType": "Secrets",
        "ResourceNames": ["sharedKey", "sharedCert", "userKey", "userPlain", "userCert"],
        "Actions": ["ReadSecret"],
    },
    "writer": {
        "ResourceType": "Secrets",
        "ResourceNames": ["userKey", "userPlain", "userCert"],
        "Actions": ["WriteSecret"],
    },
}

ADMIN = ("updater", "frontend", "reader", "writer")


def office(users: Mapping[str, Iterable[str]] | None = None, **config: object) -> dict[str, Any]:
    """A deployment with every kind of secret; ``users`` are names with their roles, by default one admin."""
    package = {"SignerID": DEFAULT_SIGNER_ID.hex(), "ProductID": 1, "SecurityVersion": 1}
    people = {"admin": ADMIN} if users is None else users
    return {
        "Packages": {"frontend": package, "backend": dict(package), "debugger": {"Debug": True}},
        "Marbles": {
            "front": {
                "Package": "frontend",
                "Parameters": {
                    "Env": {
                        "SHARED": "{{ hex .Secrets.sharedKey }}",
                        "PRIVATE": "{{ hex .Secrets.privateKey }}",
                        "SHARED_BEFORE": "{{ hex .Previous.Secrets.sharedKey }}",
                        "PRIVATE_BEFORE": "{{ hex .Previous.Secrets.privateKey }}",
                        "CERT": "{{ pem .Secrets.sharedCert.Cert }}",
                    },
                    "Files": {"/key": "{{ raw .Secrets.sharedKey }}"},
                },
            },
            "back": {"Package": "backend", "MaxActivations": 2},
            "plain": {"Package": "debugger", "Parameters": {"Env": {"PLAIN": "{{ string .Secrets.userPlain }}"}}},
        },
        "Users": {name: {"Certificate": person(name).pem, "Roles": list(roles)} for name, roles in people.items()},
        "Roles": ROLES,
        "Secrets": {
            "sharedKey": {"Type": "symmetric-key", "Size": 128, "Shared": True},
            "privateKey": {"Type": "symmetric-key", "Size": 256},
            "sharedCert": {"Type": "cert-ecdsa", "Size": 256, "Shared": True, "ValidFor": 7},
            "privateCert": {"Type": "cert-ed25519", "ValidFor": 7},
            "defaultCert": {"Type": "cert-ed25519", "Shared": True},
            "userKey": {"Type": "symmetric-key", "Size": 128, "UserDefined": True},
            "userPlain": {"Type": "plain", "UserDefined": True},
            "userCert": {"Type": "cert-ecdsa", "Size": 256, "UserDefined": True},
        },
        "Config": dict(config),
    }


UPDATERS = {"alice": ADMIN, "bob": ("updaterToo",), "carol": ("updater",)}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def envelope(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.body)
        return document

    @property
    def data(self) -> Any:
        return self.envelope["data"]

    @property
    def message(self) -> str:
        return str(self.envelope.get("message", ""))


def ask(
    server: Address,
    method: str,
    path: str,
    body: bytes | object = None,
    *,
    by: Person | None = None,
    behind: tuple[Person, ...] = (),
) -> Answer:
    """One request on a connection of its own; other than bytes the body is JSON.

    ``behind`` are certificates that are sent after the caller's own.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if by is not None:
        with tempfile.TemporaryDirectory() as folder:
            chain, key = Path(folder, "chain.pem"), Path(folder, "key.pem")
            chain.write_text(by.pem + "".join(other.pem for other in behind))
            key.write_text(by.key_pem)
            context.load_cert_chain(chain, key)
    connection = http.client.HTTPSConnection(*server, context=context, timeout=60)
    try:
        payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, payload)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()
