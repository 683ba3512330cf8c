"""A command line in a folder of its own: policy, manifest, user and cache are there, as a user would have them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from tests.client.coordinators import FakeCoordinator, Identity, mint
from tests.client.fixtures import PRODUCT, SIGNER_ID

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.cli.main import cli

MANIFEST = b'{"Packages": {}}\n'
PENDING = b'{"Packages": {"p": {"SecurityVersion": 2}}}'


@cache
def recovery_key() -> rsa.RSAPrivateKey:
    """Somebody's recovery key; ``recovery.pem`` holds it."""
    return rsa.generate_private_key(65537, 2048)


def recovery_public_key() -> bytes:
    """Its public half, PKIX DER."""
    return recovery_key().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass
class Session:
    """Runs commands in ``folder``; standard output, standard error and the exit code are in the result."""

    folder: Path
    user: Identity

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(cli, list(arguments), prog_name="marblerun", catch_exceptions=False)

    def cache(self, root: Identity) -> None:
        """What 'manifest verify' would have left."""
        path = self.folder / "config" / "marblerun" / "coordinator-cert.pem"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mint("i", root).pem + root.pem)

    @property
    def cached(self) -> bytes | None:
        path = self.folder / "config" / "marblerun" / "coordinator-cert.pem"
        return path.read_bytes() if path.exists() else None


def start(folder: Path, platform: SimulatedPlatform, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Fills the folder and makes it the working directory; nothing else of the environment is left."""
    monkeypatch.chdir(folder)
    for name in ("EDG_PCCS_URL", "EDG_PCCS_CA_FILE", "EDG_COLLATERAL_CACHE_DIR", "EDG_PCCS_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    monkeypatch.setenv("EDG_SIMULATED_PLATFORM", str(platform.directory))
    user = mint("alice")
    policy = {"SecurityVersion": 1, "ProductID": PRODUCT, "SignerID": SIGNER_ID}
    for name, content in {
        "era.json": json.dumps(policy).encode(),
        "m.json": MANIFEST,
        "new.json": PENDING,
        "secrets.json": b'{"s": {"Key": "canary+canary+canary+aaa"}}',
        "c.pem": user.pem,
        "k.pem": user.key_pem,
        "secret.bin": b"canary, a secret of 33 bytes, abc",
        "recovery.pem": recovery_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    }.items():
        (folder / name).write_bytes(content)
    return Session(folder, user)


def everything_sent(fake: FakeCoordinator) -> bytes:
    """All bytes that the Coordinator got inside TLS."""
    return b"".join(fake.received)
