"""A PKCS#11 token in software for tests: SoftHSM with its tokens in a folder of the test."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

PIN = "1234"
_MODULES = (
    *("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
    *("/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so"),
)
MODULE = next((path for path in _MODULES if Path(path).exists()), "")
_MISSING = [
    name
    for name, there in (
        ("libsofthsm2.so", bool(MODULE)),
        ("softhsm2-util", shutil.which("softhsm2-util") is not None),
        ("python-pkcs11", importlib.util.find_spec("pkcs11") is not None),
    )
    if not there
]
needs_softhsm = pytest.mark.skipif(bool(_MISSING), reason=f"SKIPPED: there is no {', '.join(_MISSING)} here")


@dataclass
class SoftHsm:
    """Tokens in a folder; ``SOFTHSM2_CONF`` names it for everybody in this process."""

    folder: Path

    def add_token(self, label: str) -> None:
        self._run("--init-token", "--free", "--label", label, "--so-pin", "so-pin", "--pin", PIN)

    def add_key(self, token: str, label: str, key_id: str, key: rsa.RSAPrivateKey) -> None:
        path = self.folder / "import.pem"
        path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        names = ("--label", label, "--id", key_id.encode().hex())
        self._run("--import", str(path), "--token", token, *names, "--pin", PIN)

    def config(self, **changes: object) -> bytes:
        document = {"Path": MODULE, "Pin": PIN, "TokenLabel": "parties", "MaxSessions": 4} | changes
        return json.dumps({name: value for name, value in document.items() if value is not None}).encode()

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(["softhsm2-util", *arguments], capture_output=True, text=True, env=dict(os.environ))
        assert done.returncode == 0, done.stderr


def start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SoftHsm:
    (folder / "tokens").mkdir(parents=True)
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(folder / "softhsm2.conf"))
    return SoftHsm(folder)
