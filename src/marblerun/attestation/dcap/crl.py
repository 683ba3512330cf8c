"""Certificate revocation lists: read whole, signature checked, asked for serial numbers.

A list that is missing, unreadable, by somebody else or stale is a refusal, never a pass.
Source: formats, section 6.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from marblerun.attestation.dcap.certificates import ECDSA_WITH_SHA256, Certificate, parsing, split_signed
from marblerun.attestation.dcap.signatures import ECDSA_SHA256
from marblerun.attestation.dcap.validity import Validity
from marblerun.errors import Malformed, Untrusted
from marblerun.wire import der
from marblerun.wire.limits import MAX_COLLATERAL_FIELD_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class RevocationList:
    """An authentic CRL: who made it, when it holds, and which serial numbers are revoked."""

    step: str
    issuer: bytes
    """DER of the issuer's name."""
    issuer_spki_sha256: bytes
    validity: Validity
    serials: frozenset[int]

    def verify_not_revoked(self, certificate: Certificate) -> None:
        """Untrusted if the certificate's serial number is in the list."""
        if certificate.serial in self.serials:
            raise Untrusted(
                f"{certificate.common_name!r} with serial number {certificate.serial:x} is revoked",
                step=self.step,
                reason="revoked",
            )


def read_crl(encoded: bytes, issuer: Certificate, step: str, what: str) -> RevocationList:
    """The CRL in ``encoded`` (DER), which ``issuer`` must have signed; Untrusted of ``step`` otherwise.

    Rules 6.1.1 and 6.2.2 (by its issuer, by name and signature), 6.3.1 (missing or unreadable is a failure). The
    entries are walked only after the signature was found good, so that nobody but the issuer decides how many.
    """
    if not encoded:
        raise Untrusted(f"{what} is missing", step=step, reason="missing")
    if len(encoded) > MAX_COLLATERAL_FIELD_BYTES:
        raise Untrusted(f"{what} has {len(encoded)} bytes", step=step, reason="malformed")
    with parsing(step, what):
        parsed = x509.load_der_x509_crl(encoded)
        signed = split_signed(encoded)
        members = der.elements(der.single(signed.tbs).content, limit=10)
        # version (an INTEGER that version 1 lists lack), algorithm, issuer
        first = 1 if members[0].tag == der.INTEGER else 0
        algorithm, issuer_name = members[first].encoded, members[first + 1].encoded
    if issuer_name != issuer.subject:
        raise Untrusted(f"{what} is not by {issuer.common_name!r}", step=step, reason="mismatch")
    if not algorithm == signed.algorithm == ECDSA_WITH_SHA256:
        raise Untrusted(f"{what} is not signed with ecdsa-with-SHA256", step=step, reason="bad-signature")
    try:
        issuer.key.verify(signed.signature, signed.tbs, ECDSA_SHA256)
    except InvalidSignature as error:
        raise Untrusted(f"{what} is not signed by {issuer.common_name!r}", step=step, reason="bad-signature") from error
    with parsing(step, what):
        return RevocationList(
            step=step,
            issuer=issuer_name,
            issuer_spki_sha256=issuer.spki_sha256,
            validity=_validity(parsed, step, what),
            serials=_serials(parsed, members[first + 2 :]),
        )


def _validity(parsed: x509.CertificateRevocationList, step: str, what: str) -> Validity:
    next_update = parsed.next_update_utc
    if next_update is None:
        raise Malformed("no nextUpdate")
    return Validity(step, what, parsed.last_update_utc, next_update)


def _serials(parsed: x509.CertificateRevocationList, members: tuple[der.Element, ...]) -> frozenset[int]:
    # Rule 6.3.2. A critical extension changes what the list means: a part of the certificates, a difference, other
    # issuers.
    if any(extension.critical for extension in parsed.extensions):
        raise Malformed("unknown critical extension")
    usual = _usual_serials(members)
    if usual is not None:
        return usual
    serials: set[int] = set()
    for entry in parsed:
        if any(extension.critical for extension in entry.extensions):
            raise Malformed("unknown critical extension of an entry")
        serials.add(entry.serial_number)
    return frozenset(serials)


# An entry as all of the vendor's are: a serial number of 19 to 21 bytes that begin as DER has them, a UTCTime, and a
# reason code that is not critical (formats, section 6; RFC 5280, section 5.1). Lengths and what they count agree.
_TIME_AND_REASON: Final = rb"\x17\x0d[0-9]{12}Z\x30\x0c\x30\x0a\x06\x03\x55\x1d\x15\x04\x03\x0a\x01[\x01-\x06\x09\x0a]"
_USUAL: Final = (
    rb"\x30(?:\x32\x02\x13([^\x80-\xff].{18})|\x33\x02\x14([^\x80-\xff].{19})|\x34\x02\x15([^\x80-\xff].{20}))"
    + _TIME_AND_REASON
)
_ENTRY: Final = re.compile(_USUAL, re.DOTALL)
_ENTRIES: Final = re.compile(rb"(?:" + _USUAL + rb")*+", re.DOTALL)


def _usual_serials(members: tuple[der.Element, ...]) -> frozenset[int] | None:
    """The serial numbers if all entries look as the vendor's do; ``None`` if any looks different.

    ``members`` begin with thisUpdate and nextUpdate. pyca reads the same entries, but makes objects of all their parts.
    """
    entries = members[2].content if len(members) > 2 and members[2].tag == der.SEQUENCE else b""
    if not _ENTRIES.fullmatch(entries):
        return None
    serials = (match[1] or match[2] or match[3] for match in _ENTRY.finditer(entries))
    return frozenset(int.from_bytes(serial, "big") for serial in serials)
