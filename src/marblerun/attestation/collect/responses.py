"""What a provisioning service sends, taken apart: signed text cut out as it is, chains and CRLs decoded.

Nothing is verified here. What is checked is that the answer belongs to the question, so that a service that answers
for other platforms is found out before its answer is kept.

Source: formats, sections 4 and 4.3; Intel PCS API version 4.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final
from urllib.parse import unquote

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from marblerun.errors import Malformed
from marblerun.wire.limits import MAX_HEADER_BYTES
from marblerun.wire.pem import decode_pem, encode_pem

_WHITESPACE: Final = " \t\r\n"
_DER_SEQUENCE: Final = b"\x30"
_PEM: Final = b"-----BEGIN"
_SIGNATURE_BYTES: Final = 64
# The service's answer has two members; a few more may come one day, thousands not.
_MAX_MEMBERS: Final = 16

PCK_CRL_CHAIN: Final = ("SGX-PCK-CRL-Issuer-Chain",)
PCK_CERTIFICATE_CHAIN: Final = ("SGX-PCK-Certificate-Issuer-Chain",)
TCB_INFO_CHAIN: Final = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")
"""The second is API version 3's, which some services still send."""
IDENTITY_CHAIN: Final = ("SGX-Enclave-Identity-Issuer-Chain",)


def cut_signed_text(body: bytes, name: str) -> tuple[str, bytes]:
    """The exact text of member ``name`` of a JSON object, and the 64 bytes of its ``signature``.

    The text is what was signed (formats, section 4.3): it is cut out from its first to its last character and never
    written again.

    Raises:
        Malformed: the body is not such an object, or a member is there twice.
    """
    try:
        members = _members(body.decode("utf-8"))
        text, signature = members[name], json.loads(members["signature"])
    except KeyError as error:
        raise Malformed(f"has no member {error}") from None
    except (ValueError, RecursionError) as error:
        raise Malformed(f"is not a JSON object: {error}") from None
    if not text.startswith("{"):
        raise Malformed(f"{name} is not an object")
    try:
        encoded = bytes.fromhex(signature) if isinstance(signature, str) else b""
    except ValueError:
        encoded = b""
    if len(encoded) != _SIGNATURE_BYTES:
        raise Malformed("signature is not 128 hex digits")
    return text, encoded


def _members(text: str) -> dict[str, str]:
    """The members of a JSON object as name and exact text of the value."""
    decoder = json.JSONDecoder()
    members: dict[str, str] = {}
    at = _expect(text, 0, "{")
    while len(members) < _MAX_MEMBERS:
        name, at = decoder.raw_decode(text, at)
        if not isinstance(name, str) or name in members:
            raise ValueError(f"member {name!r} is no name or there twice")
        start = _expect(text, at, ":")
        _, end = decoder.raw_decode(text, start)
        members[name] = text[start:end]
        at = _skip(text, end)
        if text[at : at + 1] != ",":
            if _expect(text, at, "}") != len(text):
                raise ValueError("text after the object")
            return members
        at = _skip(text, at + 1)
    raise ValueError("too many members")


def _expect(text: str, at: int, character: str) -> int:
    at = _skip(text, at)
    if text[at : at + 1] != character:
        raise ValueError(f"expected {character!r} at character {at}")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in _WHITESPACE:
        at += 1
    return at


def issuer_chain(headers: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The PEM chain in the first of the headers ``names`` that is there; ``headers`` ignores case.

    Raises:
        Malformed: none is there, or it is not URL-encoded PEM text.
    """
    value = next((headers[name] for name in names if name in headers), None)
    if value is None:
        raise Malformed(f"has no header {names[0]}")
    if len(value) > MAX_HEADER_BYTES:
        raise Malformed(f"header {names[0]} is larger than {MAX_HEADER_BYTES} bytes")
    try:
        chain = unquote(value, errors="strict")
    except UnicodeDecodeError:
        chain = ""
    if not (chain.isascii() and "-----BEGIN CERTIFICATE-----" in chain):
        raise Malformed(f"header {names[0]} is not a URL-encoded PEM chain")
    return chain


def pem_certificate(body: bytes) -> str:
    """The one certificate in ``body``, as PEM text with a line end.

    Raises:
        Malformed: it is something else.
    """
    try:
        (encoded,) = decode_pem(body.rstrip(b"\x00"), "CERTIFICATE", max_blocks=1, max_bytes=MAX_HEADER_BYTES)
    except (Malformed, ValueError):
        raise Malformed("is not one certificate in PEM") from None
    return encode_pem(encoded, "CERTIFICATE")


def decode_crl(body: bytes) -> bytes:
    """A CRL in DER from DER, PEM, or hex text, as services of different make send it.

    Raises:
        Malformed: it is none of them.
    """
    try:
        if body.startswith(_PEM):
            return x509.load_pem_x509_crl(body).public_bytes(serialization.Encoding.DER)
        encoded = body if body.startswith(_DER_SEQUENCE) and not _is_hex(body) else bytes.fromhex(body.decode("ascii"))
        x509.load_der_x509_crl(encoded)
        return encoded
    except (ValueError, x509.InvalidVersion):
        raise Malformed("is not a certificate revocation list in DER, PEM or hex") from None


def _is_hex(body: bytes) -> bool:
    # DER's first byte 0x30 is also the digit "0", and hex of DER begins with the digit "3".
    return all(byte in b"0123456789abcdefABCDEF\r\n" for byte in body[:64])
