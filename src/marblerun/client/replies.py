"""What the calls return, and the reading of it from decoded JSON.

The readers are strict about types and raise :class:`~marblerun.errors.Malformed` with the path of the field, so that a
Coordinator that answers nonsense is a clear error and never a ``KeyError`` somewhere later.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from marblerun.errors import Malformed
from marblerun.secrets.model import Secret


@dataclass(frozen=True, slots=True)
class Status:
    """The Coordinator's state: 1 recovery, 2 accepting a manifest, 3 accepting Marbles (protocol, section 1.4)."""

    code: int
    message: str
    evidence: str = ""
    """Who stands behind the Coordinator's own evidence (``hardware``, ``simulated``, ``none``); empty if unstated."""


@dataclass(frozen=True, slots=True)
class QuoteReply:
    """The PEM chain (intermediate, then root) and the quote, empty where the Coordinator has none."""

    chain: bytes
    quote: bytes


@dataclass(frozen=True, slots=True)
class ManifestView:
    """The active manifest byte for byte, its SHA-256 (hex) and the root key's ECDSA signature over it (DER)."""

    manifest: bytes
    fingerprint: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class UpdateReply:
    """What is left to do after an update was started or acknowledged.

    ``missing`` is the number of acknowledgments still needed, 0 when the update is in force; ``users`` are those who
    may give them. ``recovery_secrets`` is ``None`` when no new ones were made.
    """

    missing: int = 0
    users: tuple[str, ...] = ()
    recovery_secrets: Mapping[str, bytes] | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class PendingUpdate:
    """The update that waits for acknowledgments, and who may still give one."""

    manifest: bytes
    users: tuple[str, ...]
    message: str = ""


@dataclass(frozen=True, slots=True)
class RecoveryReply:
    """Secrets still needed (0: recovered) and what the Coordinator says about it."""

    remaining: int
    message: str


@dataclass(frozen=True, slots=True)
class RehearsalReply:
    """Whose secret was accepted, how many were given of how many, and at the end whether they would recover."""

    holder: str
    given: int
    needed: int
    recoverable: bool | None
    message: str


@dataclass(frozen=True, slots=True)
class RecoveryKey:
    """The Coordinator's ephemeral public key of this recovery, PKIX DER."""

    algorithm: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class SignedQuote:
    """A quote's TCB status under the root key's signature."""

    tcb_status: str
    signature: bytes


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """The secrets asked for, by name; ``document`` is the JSON object as the Coordinator sent it."""

    values: Mapping[str, Secret]
    document: Mapping[str, object] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(sorted(self.values))})"


@dataclass(frozen=True, slots=True, repr=False)
class UserSecret:
    """A value to upload: ``key`` for symmetric and plain ones, certificate (DER) and PKCS#8 key for the others."""

    key: bytes | None = None
    certificate: bytes | None = None
    private: bytes | None = None

    def document(self) -> dict[str, str]:
        """The JSON object of the API (protocol, section 6.6); absent parts are left out."""
        parts = {"Key": self.key, "Cert": self.certificate, "Private": self.private}
        return {name: base64.b64encode(value).decode() for name, value in parts.items() if value is not None}

    def __repr__(self) -> str:
        return "UserSecret(...)"


def an_object(data: object, where: str) -> dict[str, object]:
    """The value as an object; ``null`` is an empty one."""
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise _not("an object", data, where)
    return cast("dict[str, object]", data)


def a_text(data: Mapping[str, object], name: str, default: str = "") -> str:
    """A string field; absent and ``null`` give the default."""
    value = data.get(name)
    if value is None:
        return default
    if not isinstance(value, str):
        raise _not("a string", value, name)
    return value


def an_int(data: Mapping[str, object], name: str, default: int = 0) -> int:
    """An integer field that is not negative; absent and ``null`` give the default."""
    value = data.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _not("a number that is not negative", value, name)
    return value


def a_flag(data: Mapping[str, object], name: str) -> bool:
    """A boolean field; absent and ``null`` give false."""
    value = data.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _not("true or false", value, name)
    return value


def some_bytes(data: Mapping[str, object], name: str) -> bytes:
    """A base64 field; absent and ``null`` give no bytes."""
    return decode_base64(a_text(data, name), name)


def some_texts(data: Mapping[str, object], name: str) -> tuple[str, ...]:
    """A list of strings; absent and ``null`` give an empty one."""
    value = data.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise _not("a list of strings", value, name)
    return tuple(value)


def bytes_by_name(data: Mapping[str, object], name: str) -> dict[str, bytes] | None:
    """An object of base64 values; absent and ``null`` give ``None``."""
    value = data.get(name)
    if value is None:
        return None
    entries = an_object(value, name)
    return {key: some_bytes(entries, key) for key in entries}


def decode_base64(text: str, where: str) -> bytes:
    """Standard base64 with padding, strictly."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("is not base64", where=where) from None


def a_secret(data: Mapping[str, object]) -> Secret:
    """One secret in the JSON of protocol, section 7.6; unset parts are empty."""
    return Secret(
        type=a_text(data, "Type"),
        size=an_int(data, "Size"),
        shared=a_flag(data, "Shared"),
        user_defined=a_flag(data, "UserDefined"),
        valid_for=an_int(data, "ValidFor"),
        certificate=some_bytes(data, "Cert"),
        private=some_bytes(data, "Private"),
        public=some_bytes(data, "Public"),
    )


def _not(expected: str, found: object, where: str) -> Malformed:
    return Malformed(f"expected {expected}, found {type(found).__name__}", where=where)
