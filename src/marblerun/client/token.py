"""A recovery key inside a PKCS#11 token (smart card, HSM): it decrypts and signs there and never leaves it.

Needs the extra ``marblerun[pkcs11]``; it is loaded when a token is opened. The configuration is the JSON file that the
reference's command line takes. Source: cli-marble-k8s, section 1.7; PKCS#11 v2.40; RFC 8017, section 7.1.2.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from marblerun.errors import Malformed, Misconfigured, NotFound, Unavailable

_HASH_BYTES: Final = 32


@dataclass(frozen=True, slots=True, repr=False)
class TokenConfig:
    """Which module, which token of it, and how to log in."""

    path: str
    pin: str | None = None
    label: str = ""
    serial: str = ""
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class KeyName:
    """Which key of a token; what is empty is not looked at. IDs are the bytes of the text, as in the reference."""

    id: str = ""
    label: str = ""


def parse_token_config(raw: bytes) -> TokenConfig:
    """The configuration; raises Malformed naming what is missing or of another kind.

    Keys that only concern the reference's session pool are not looked at; case does not matter, as in Go.
    """
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise Malformed("is not JSON", where="PKCS#11 configuration") from None
    if not isinstance(document, dict):
        raise Malformed("is not a JSON object", where="PKCS#11 configuration")
    given = {name.lower(): value for name, value in document.items() if value is not None}
    path, pin, label, serial = (_text(given, name) for name in ("Path", "Pin", "TokenLabel", "TokenSerial"))
    slot = given.get("slotnumber")
    if slot is not None and (isinstance(slot, bool) or not isinstance(slot, int) or slot < 0):
        raise Malformed("SlotNumber is not a number", where="PKCS#11 configuration")
    if not path:
        raise Malformed("Path names no PKCS#11 module", where="PKCS#11 configuration")
    if sum((bool(label), bool(serial), slot is not None)) != 1:
        raise Malformed("needs one of TokenLabel, TokenSerial and SlotNumber", where="PKCS#11 configuration")
    login = given.get("loginnotsupported") is not True
    return TokenConfig(path, pin if login else None, label, serial, slot)


def _text(given: dict[str, Any], name: str) -> str:
    value = given.get(name.lower(), "")
    if not isinstance(value, str) or "\0" in value:
        raise Malformed(f"{name} is not a text", where="PKCS#11 configuration")
    return value


class TokenKey:
    """An RSA private key in an open token. Neither method tells more than that something failed, and where."""

    def __init__(self, key: Any) -> None:
        self._key = key

    def decrypt(self, data: bytes) -> bytes:
        """The plain secret (RSA-OAEP with SHA-256); raises Malformed if it was not encrypted for this key.

        Tokens that know OAEP only with SHA-1 do the private operation alone, and the padding is taken off here.
        """
        import pkcs11
        from pkcs11 import exceptions

        modulus = self._modulus()
        size = len(modulus)
        if len(data) != size or data >= modulus:
            raise Malformed("was not encrypted for this recovery key", where="recovery data")
        parameters = (pkcs11.Mechanism.SHA256, pkcs11.MGF.SHA256, None)
        try:
            return bytes(self._key.decrypt(data, mechanism=pkcs11.Mechanism.RSA_PKCS_OAEP, mechanism_param=parameters))
        except (exceptions.EncryptedDataInvalid, exceptions.EncryptedDataLenRange):
            raise Malformed("was not encrypted for this recovery key", where="recovery data") from None
        except exceptions.PKCS11Error:
            pass  # the mechanism or its parameters are not for this token
        try:
            padded = bytes(self._key.decrypt(data, mechanism=pkcs11.Mechanism.RSA_X_509))
        except (exceptions.EncryptedDataInvalid, exceptions.EncryptedDataLenRange):
            raise Malformed("was not encrypted for this recovery key", where="recovery data") from None
        except exceptions.PKCS11Error as error:
            raise _failed("decrypt", error) from None
        return _without_oaep(padded.rjust(size, b"\0"))

    def sign(self, secret: bytes) -> bytes:
        """The signature over the plain secret (RSA PKCS#1 v1.5, SHA-256)."""
        import pkcs11
        from pkcs11 import exceptions

        try:
            return bytes(self._key.sign(secret, mechanism=pkcs11.Mechanism.SHA256_RSA_PKCS))
        except exceptions.PKCS11Error as error:
            raise _failed("sign", error) from None

    def _modulus(self) -> bytes:
        import pkcs11
        from pkcs11 import exceptions

        try:
            return bytes(self._key[pkcs11.Attribute.MODULUS]).lstrip(b"\0")
        except exceptions.PKCS11Error as error:
            raise _failed("tell the key's modulus", error) from None


@contextmanager
def open_token_key(config: TokenConfig, name: KeyName) -> Iterator[TokenKey]:
    """Logs in and finds the one RSA private key of that name; the session ends with the context.

    Raises:
        Misconfigured: the extra is not installed, the module cannot be loaded, or the PIN is wrong.
        NotFound: there is no such token or key, or several. Unavailable: the token fails.
    """
    try:
        import pkcs11
        from pkcs11 import exceptions
    except ImportError:
        raise Misconfigured("keys in PKCS#11 tokens need the extra: pip install 'marblerun[pkcs11]'") from None
    try:
        library = pkcs11.lib(config.path)
    except (exceptions.PKCS11Error, RuntimeError, OSError) as error:
        raise Misconfigured(f"the PKCS#11 module {config.path} cannot be loaded: {_told(error)}") from None
    try:
        library.reinitialize()  # tokens may have come and gone since this process loaded the module
        token = _find_token(library, config)
        with token.open(user_pin=config.pin) as session:
            yield TokenKey(_find_key(session, name))
    except (exceptions.PinIncorrect, exceptions.PinLenRange, exceptions.PinInvalid, exceptions.PinLocked) as error:
        raise Misconfigured(f"the PKCS#11 token refuses the PIN: {_told(error)}") from None
    except exceptions.PKCS11Error as error:
        raise _failed("be opened", error) from None


def _find_token(library: Any, config: TokenConfig) -> Any:
    found = []
    for slot in library.get_slots(token_present=True):
        token = slot.get_token()
        serial = bytes(token.serial).decode("utf-8", "replace").strip()
        if config.slot is not None:
            matches = slot.slot_id == config.slot
        else:
            matches = token.label.strip() == config.label if config.label else serial == config.serial
        if matches:
            found.append(token)
    if len(found) != 1:
        raise NotFound(f"{len(found)} PKCS#11 tokens are as the configuration says; it has to be one")
    return found[0]


def _find_key(session: Any, name: KeyName) -> Any:
    import pkcs11

    wanted: dict[Any, Any] = {
        pkcs11.Attribute.CLASS: pkcs11.ObjectClass.PRIVATE_KEY,
        pkcs11.Attribute.KEY_TYPE: pkcs11.KeyType.RSA,
    }
    if name.id:
        wanted[pkcs11.Attribute.ID] = name.id.encode()
    if name.label:
        wanted[pkcs11.Attribute.LABEL] = name.label
    found = list(session.get_objects(wanted))
    if len(found) != 1:
        raise NotFound(f"the PKCS#11 token has {len(found)} RSA private keys with that id and label; it has to be one")
    return found[0]


def _failed(what: str, error: Exception) -> Unavailable:
    return Unavailable(f"the PKCS#11 token could not {what}: {_told(error)}")


def _told(error: Exception) -> str:
    """The error's class says most; the bindings' messages are often empty."""
    return f"{type(error).__name__} {error}".strip()


def _without_oaep(padded: bytes) -> bytes:
    """The message in an OAEP block (SHA-256, empty label); raises Malformed. RFC 8017, section 7.1.2, step 3."""
    bad = Malformed("was not encrypted for this recovery key", where="recovery data")
    if len(padded) < 2 * _HASH_BYTES + 2:
        raise bad
    masked_seed, masked = padded[1 : 1 + _HASH_BYTES], padded[1 + _HASH_BYTES :]
    seed = _xor(masked_seed, _mgf1(masked, _HASH_BYTES))
    block = _xor(masked, _mgf1(seed, len(masked)))
    label, rest = block[:_HASH_BYTES], block[_HASH_BYTES:].lstrip(b"\0")
    if padded[0] != 0 or label != hashlib.sha256(b"").digest() or rest[:1] != b"\1":
        raise bad
    return rest[1:]


def _mgf1(seed: bytes, size: int) -> bytes:
    count = -(-size // _HASH_BYTES)
    return b"".join(hashlib.sha256(seed + number.to_bytes(4, "big")).digest() for number in range(count))[:size]


def _xor(one: bytes, other: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, other, strict=True))
