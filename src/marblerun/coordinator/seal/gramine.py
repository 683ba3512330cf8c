"""Gramine's sealing keys: pseudo-files that give SGX seal keys of 16 bytes (formats, section 9)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from marblerun.coordinator.seal import SealMode
from marblerun.coordinator.seal.platform import KeyRequest
from marblerun.errors import Unavailable

KEYS_DIRECTORY: Final = Path("dev/attestation/keys")
_FILES: Final = {SealMode.UNIQUE_KEY: "_sgx_mrenclave", SealMode.PRODUCT_KEY: "_sgx_mrsigner"}
_KEY_BYTES: Final = 16


class GramineKeys:
    """Gramine gives one key per policy without a key id; a key per id is derived from it.

    Gramine's keys already depend on the security version of the running enclave; its own request is not ours to
    choose, so the version in our key information is always 0 and does not tell versions apart.
    """

    security_version = 0

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def derive(self, request: KeyRequest) -> bytes:
        """HKDF-SHA256 over Gramine's key with the key id as salt; raises Unavailable if Gramine gives none."""
        return self._derived(request.mode, request.key_id, b"marblerun sealing")

    def machine_id(self) -> bytes:
        """HKDF-SHA256 over the product's key: another one after a change of what that key depends on.

        Gramine does not give out SGX's own id. What this id depends on beyond that one, the sealing keys do, too: an
        entry under an earlier id could not be opened any more.
        """
        return self._derived(SealMode.PRODUCT_KEY, b"", b"marblerun machine id")

    def _derived(self, mode: SealMode, salt: bytes, purpose: bytes) -> bytes:
        path = self._directory / _FILES[mode]
        try:
            base = path.read_bytes()
        except OSError as error:
            raise Unavailable(f"Gramine's sealing key {path} cannot be read: {error.strerror}") from error
        if len(base) != _KEY_BYTES or not any(base):
            raise Unavailable(f"Gramine's sealing key {path} has no usable value")
        return HKDF(hashes.SHA256(), _KEY_BYTES, salt=salt, info=purpose).derive(base)
