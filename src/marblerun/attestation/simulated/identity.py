"""Which enclave a process on a simulated platform claims to be."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from marblerun.errors import Misconfigured

DEFAULT_UNIQUE_ID: Final = hashlib.sha256(b"simulated enclave").digest()
"""SHA-256 of the text ``simulated enclave``."""
DEFAULT_SIGNER_ID: Final = hashlib.sha256(b"simulated signer").digest()
"""SHA-256 of the text ``simulated signer``."""
DEFAULT_PRODUCT_ID: Final = 1
DEFAULT_SECURITY_VERSION: Final = 1

MAX_16_BIT: Final = 0xFFFF
"""ISVPRODID and ISVSVN have 16 bits. Source: formats, section 1.3."""


@dataclass(frozen=True, slots=True)
class EnclaveIdentity:
    """What a measurement and a signature would say about a real enclave, in the manifest's words."""

    unique_id: bytes = DEFAULT_UNIQUE_ID
    """MRENCLAVE, 32 bytes."""
    signer_id: bytes = DEFAULT_SIGNER_ID
    """MRSIGNER, 32 bytes."""
    product_id: int = DEFAULT_PRODUCT_ID
    """ISVPRODID, 16 bits."""
    security_version: int = DEFAULT_SECURITY_VERSION
    """ISVSVN, 16 bits."""
    debug: bool = False

    def __post_init__(self) -> None:
        if len(self.unique_id) != 32 or len(self.signer_id) != 32:
            raise ValueError("unique id and signer id have 32 bytes")
        if not (0 <= self.product_id <= MAX_16_BIT and 0 <= self.security_version <= MAX_16_BIT):
            raise ValueError("product id and security version have 16 bits")


def identity_from_environment(environment: Mapping[str, str]) -> EnclaveIdentity:
    """The identity that ``EDG_SIMULATED_*`` ask for; what is not set, or empty, has its default.

    ``EDG_SIMULATED_UNIQUE_ID`` and ``EDG_SIMULATED_SIGNER_ID`` are 64 hex digits,
    ``EDG_SIMULATED_PRODUCT_ID`` and ``EDG_SIMULATED_SECURITY_VERSION`` decimal numbers up to 65535,
    ``EDG_SIMULATED_DEBUG`` is 1, true, 0 or false.

    Raises:
        Misconfigured: a value does not read like that; the message names the variable.
    """
    return EnclaveIdentity(
        unique_id=_digest(environment, "EDG_SIMULATED_UNIQUE_ID", DEFAULT_UNIQUE_ID),
        signer_id=_digest(environment, "EDG_SIMULATED_SIGNER_ID", DEFAULT_SIGNER_ID),
        product_id=_number(environment, "EDG_SIMULATED_PRODUCT_ID", DEFAULT_PRODUCT_ID),
        security_version=_number(environment, "EDG_SIMULATED_SECURITY_VERSION", DEFAULT_SECURITY_VERSION),
        debug=_flag(environment, "EDG_SIMULATED_DEBUG"),
    )


def parse_digest(text: str) -> bytes:
    """32 bytes from 64 hex digits in either case; ValueError for anything else."""
    if len(text) != 64 or not all(digit in "0123456789abcdefABCDEF" for digit in text):
        raise ValueError("must be 64 hex digits")
    return bytes.fromhex(text)


def _digest(environment: Mapping[str, str], name: str, default: bytes) -> bytes:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        return parse_digest(text)
    except ValueError as error:
        raise Misconfigured(f"{name} {error}") from None


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    # Five digits before int(): a very long number is not worth converting.
    if len(text) > 5 or not (text.isascii() and text.isdigit()) or int(text) > MAX_16_BIT:
        raise Misconfigured(f"{name} must be a number from 0 to {MAX_16_BIT}")
    return int(text)


def _flag(environment: Mapping[str, str], name: str) -> bool:
    text = environment.get(name, "").strip().lower()
    if text not in ("", "0", "1", "true", "false"):
        raise Misconfigured(f"{name} must be 1, true, 0 or false")
    return text in ("1", "true")
