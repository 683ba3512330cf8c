"""Sealing with the keys of an enclave, in the reference's form of ``sealed_key`` (protocol, section 10.2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Protocol

from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.coordinator.seal import EMPTY_KEY, SealMode
from marblerun.coordinator.seal.tpm_key import is_tpm_sealed
from marblerun.errors import Malformed, Untrusted
from marblerun.pki.issue import Entropy
from marblerun.secrets.box import KEY_INFO_BYTES, NONCE_BYTES, open_key_enclave, seal_key_enclave

_SEAL_KEY_NAME: Final = 4
_POLICY_MRENCLAVE: Final = 1
_POLICY_MRSIGNER: Final = 2
_KEY_ID_BYTES: Final = 32
# key name, key policy, ISVSVN, reserved, CPUSVN, attribute mask, key id (Intel SDM vol. 3D, KEYREQUEST).
_REQUEST: Final = struct.Struct("<HHHH16s16s32s")


@dataclass(frozen=True, slots=True)
class KeyRequest:
    """Which sealing key: what it depends on, for which version, and a random id (``KEYREQUEST`` of EGETKEY)."""

    mode: SealMode
    security_version: int
    key_id: bytes

    def encode(self) -> bytes:
        """512 bytes as they lie in ``sealed_key``."""
        policy = _POLICY_MRENCLAVE if self.mode is SealMode.UNIQUE_KEY else _POLICY_MRSIGNER
        fields = _REQUEST.pack(_SEAL_KEY_NAME, policy, self.security_version, 0, bytes(16), bytes(16), self.key_id)
        return fields.ljust(KEY_INFO_BYTES, b"\0")


def parse_key_request(info: bytes) -> KeyRequest:
    """The request in 512 bytes of key information; Malformed if it does not ask for a seal key of a known policy."""
    name, policy, version, _, _, _, key_id = _REQUEST.unpack_from(info)
    if name != _SEAL_KEY_NAME or policy not in (_POLICY_MRENCLAVE, _POLICY_MRSIGNER):
        raise Malformed("the key information asks for no sealing key", where="sealed_key")
    mode = SealMode.UNIQUE_KEY if policy == _POLICY_MRENCLAVE else SealMode.PRODUCT_KEY
    return KeyRequest(mode, version, key_id)


class EnclaveKeys(Protocol):
    """The sealing keys that this enclave, and only it or its like, can get."""

    @property
    def security_version(self) -> int:
        """Our own ISVSVN; keys of later versions are out of reach."""
        ...

    def derive(self, request: KeyRequest) -> bytes:
        """The 16-byte key for ``request``."""
        ...

    def machine_id(self) -> bytes:
        """16 bytes that name this machine to enclaves of the product."""
        ...


class EnclaveSealer:
    """Seals under two keys with fresh ids."""

    vouches = True
    """The keys never leave enclaves of the product."""

    def __init__(self, name: str, keys: EnclaveKeys, entropy: Entropy) -> None:
        self._name = name
        self._keys = keys
        self._entropy = entropy

    @property
    def name(self) -> str:
        """What holds the keys."""
        return self._name

    def seal(self, key: bytes, mode: SealMode, additional: bytes) -> bytes:
        """The enclave form."""
        if mode is SealMode.DISABLED:
            raise ValueError("with sealing disabled nothing is sealed")
        keys = _ModeKeys(self._keys, mode, self._entropy)
        return seal_key_enclave(keys, key, additional, self._entropy.token(NONCE_BYTES))

    def machine_id(self) -> bytes:
        """That of the keys."""
        return self._keys.machine_id()

    def unseal(self, sealed: bytes, additional: bytes) -> bytes:
        """The key; which mode it was sealed in tells its key information."""
        if not sealed:
            raise Malformed(EMPTY_KEY, where="sealed_key")
        if is_tpm_sealed(sealed):
            raise Malformed("it was sealed by a TPM 2.0; EDG_COORDINATOR_TPM has to name it", where="sealed_key")
        return open_key_enclave(_ModeKeys(self._keys, SealMode.PRODUCT_KEY, self._entropy), sealed, additional)


class _ModeKeys:
    """An enclave's keys as the box format asks for them."""

    def __init__(self, keys: EnclaveKeys, mode: SealMode, entropy: Entropy) -> None:
        self._keys = keys
        self._mode = mode
        self._entropy = entropy

    def new_key(self) -> tuple[bytes, bytes]:
        """Fresh key information and its key."""
        request = KeyRequest(self._mode, self._keys.security_version, self._entropy.token(_KEY_ID_BYTES))
        return request.encode(), self._keys.derive(request)

    def key_for(self, info: bytes) -> bytes:
        """The key for existing key information."""
        request = parse_key_request(info)
        if request.encode() != info:
            # Nothing covers these bytes but the key that they lead to, and ours does not depend on the rest of them.
            raise Malformed("the key information has fields that this Coordinator does not set", where="sealed_key")
        if request.security_version > self._keys.security_version:
            raise Untrusted(
                f"sealed by security version {request.security_version}, this is {self._keys.security_version}",
                step="sealed-key",
                reason="newer-version",
            )
        return self._keys.derive(request)


class SimulatedKeys:
    """The sealing keys of an enclave on a simulated platform."""

    def __init__(self, platform: SimulatedPlatform, identity: EnclaveIdentity) -> None:
        self._platform = platform
        self._identity = identity

    @property
    def security_version(self) -> int:
        """The identity's ISVSVN."""
        return self._identity.security_version

    def derive(self, request: KeyRequest) -> bytes:
        """Depends on MRENCLAVE, or on MRSIGNER and ISVPRODID; on the version asked for and the debug flag in both."""
        own = self._identity
        if request.mode is SealMode.UNIQUE_KEY:
            holder = b"unique" + own.unique_id
        else:
            holder = b"product" + own.signer_id + own.product_id.to_bytes(2, "little")
        identity = holder + bytes([own.debug]) + request.security_version.to_bytes(2, "little")
        return self._platform.sealing_key(identity, request.key_id, 16)

    def machine_id(self) -> bytes:
        """Depends on platform, ISVPRODID and the debug flag, as the reference's does (protocol, section 11.3)."""
        identity = b"machine id" + self._identity.product_id.to_bytes(2, "little") + bytes([self._identity.debug])
        return self._platform.sealing_key(identity, bytes(_KEY_ID_BYTES), 16)
