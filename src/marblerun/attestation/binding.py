"""What report data must equal: the one place where evidence is tied to a message, such as a TLS certificate.

Source: protocol, sections 2.3 and 4.2.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

from marblerun.errors import Untrusted
from marblerun.wire.pem import encode_pem

REPORT_DATA_BYTES: Final = 64
_DIGEST_BYTES: Final = 32
STEP: Final = "report-data"


def report_data_for(message: bytes) -> bytes:
    """The 64 bytes of report data that stand for ``message``: its SHA-256, then 32 zero bytes."""
    if not message:
        raise ValueError("an empty message binds nothing")
    return hashlib.sha256(message).digest() + bytes(REPORT_DATA_BYTES - _DIGEST_BYTES)


def verify_binding(report_data: bytes, message: bytes, *, strict: bool) -> None:
    """Untrusted (step ``report-data``) unless ``report_data`` was made for ``message``.

    ``strict`` compares all 64 bytes. Otherwise the second half is ignored, as the reference does for Marbles and
    relying parties (protocol, section 2.3). An empty message and report data of another size are refused: nothing
    passes by being empty, short or a prefix. Compares in constant time.
    """
    if not message:
        raise Untrusted("there is nothing that the report data could be bound to", step=STEP, reason="missing")
    if len(report_data) != REPORT_DATA_BYTES:
        raise Untrusted(f"report data has {len(report_data)} bytes, not 64", step=STEP, reason="malformed")
    compared = REPORT_DATA_BYTES if strict else _DIGEST_BYTES
    if not hmac.compare_digest(report_data[:compared], report_data_for(message)[:compared]):
        raise Untrusted("the report data is not bound to this message", step=STEP, reason="mismatch")


def verify_key_binding(report_data: bytes, public_key: bytes) -> None:
    """Untrusted (step ``report-data``) unless ``report_data`` was made for a key (SubjectPublicKeyInfo DER).

    For certificates that carry evidence about their own key. The first half is SHA-256 of the DER, as EGo has it, or of
    the PEM text with a zero byte behind it, as Open Enclave has it (protocol, section 11.4). Rules as of
    :func:`verify_binding`, which compares.
    """
    if public_key and len(report_data) == REPORT_DATA_BYTES:
        text = encode_pem(public_key, "PUBLIC KEY").encode("ascii") + b"\x00"
        if hmac.compare_digest(report_data[:_DIGEST_BYTES], hashlib.sha256(text).digest()):
            return
    verify_binding(report_data, public_key, strict=False)
