"""Mints a deployment's certificate authorities and its Marbles, as a Coordinator would."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from marblerun.coordinator.entropy import SystemEntropy
from marblerun.marble.tls import Identity
from marblerun.pki.csr import build_csr
from marblerun.pki.issue import (
    Issuer,
    issue_intermediate,
    issue_marble_certificate,
    issue_marble_root,
    issue_root,
    issue_secret_certificate,
)
from marblerun.pki.profiles import CertificateTemplate, SubjectNames

ENTROPY = SystemEntropy()
SOME_UUID = UUID("d3b07384-d113-4ec6-8f2a-1c2d3e4f5a6b")


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pem(*certificates: bytes) -> bytes:
    return b"".join(x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM) for der in certificates)


@dataclass(frozen=True)
class Mesh:
    """One deployment's authorities."""

    root_key: ec.EllipticCurvePrivateKey
    key: ec.EllipticCurvePrivateKey
    """Of the intermediate and of the Marble root."""
    root: x509.Certificate
    intermediate: x509.Certificate
    marble_root: x509.Certificate

    @classmethod
    def mint(cls) -> Mesh:
        at, names = datetime.now(UTC) - timedelta(minutes=1), SubjectNames()
        root_key, key = ENTROPY.ec_key(ec.SECP384R1()), ENTROPY.ec_key(ec.SECP384R1())
        root = issue_root(names, root_key, at, ENTROPY)
        return cls(
            root_key,
            key,
            root,
            issue_intermediate(names, key, Issuer.of(root, root_key), at, ENTROPY),
            issue_marble_root(names, key, at, ENTROPY),
        )

    @property
    def issuer(self) -> Issuer:
        return Issuer.of(self.marble_root, self.key)

    def identity(self, marble_type: str, uuid: UUID = SOME_UUID, names: str = "localhost") -> Identity:
        """A member of this mesh."""
        key = ENTROPY.ec_key(ec.SECP384R1())
        leaf = issue_marble_certificate(
            build_csr(SubjectNames.parse(names), key),
            marble_type=marble_type,
            uuid=uuid,
            issuer=self.issuer,
            public_key=key.public_key(),
            at=datetime.now(UTC) - timedelta(minutes=1),
            entropy=ENTROPY,
        )
        return self._with_leaf(leaf, key)

    def secret(self) -> Identity:
        """Somebody with a certificate that is a secret of the manifest: same root, but no Marble."""
        key = ENTROPY.ec_key(ec.SECP256R1())
        at = datetime.now(UTC) - timedelta(minutes=1)
        leaf = issue_secret_certificate(
            CertificateTemplate(),
            public_key=key.public_key(),
            issuer=self.issuer,
            not_after=at + timedelta(days=30),
            at=at,
            entropy=ENTROPY,
        )
        return self._with_leaf(leaf, key)

    def coordinator(self) -> Identity:
        """The Coordinator's own mesh listener: the Marble root with its key."""
        return self._with_leaf(self.marble_root.public_bytes(Encoding.DER), self.key)

    def _with_leaf(self, leaf: bytes, key: ec.EllipticCurvePrivateKey) -> Identity:
        return Identity(
            marble_root=self.marble_root.public_bytes(Encoding.PEM),
            chain=pem(leaf) + self.intermediate.public_bytes(Encoding.PEM),
            private_key=key_pem(key),
            coordinator_root=self.root.public_bytes(Encoding.PEM),
        )
