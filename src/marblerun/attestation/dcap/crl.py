"""Certificate revocation lists: read whole, signature checked, asked for serial numbers.

A list that is missing, unreadable, by somebody else or stale is a refusal, never a pass.
Source: formats, section 6.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.x509.oid import SignatureAlgorithmOID

from marblerun.attestation.dcap.certificates import Certificate, parsing
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

    The entries are walked only after the signature was found good, so that nobody but the issuer decides how many.
    """
    if not encoded:
        raise Untrusted(f"{what} is missing", step=step, reason="missing")
    if len(encoded) > MAX_COLLATERAL_FIELD_BYTES:
        raise Untrusted(f"{what} has {len(encoded)} bytes", step=step, reason="malformed")
    with parsing(step, what):
        parsed = x509.load_der_x509_crl(encoded)
        issuer_name = _encoded_issuer(parsed)
        algorithm = parsed.signature_algorithm_oid
    if issuer_name != issuer.subject:
        raise Untrusted(f"{what} is not by {issuer.common_name!r}", step=step, reason="mismatch")
    with parsing(step, what):
        genuine = algorithm == SignatureAlgorithmOID.ECDSA_WITH_SHA256 and parsed.is_signature_valid(issuer.key)
    if not genuine:
        raise Untrusted(f"{what} is not signed by {issuer.common_name!r}", step=step, reason="bad-signature")
    with parsing(step, what):
        return RevocationList(
            step=step,
            issuer=issuer_name,
            issuer_spki_sha256=issuer.spki_sha256,
            validity=_validity(parsed, step, what),
            serials=_serials(parsed),
        )


def _encoded_issuer(parsed: x509.CertificateRevocationList) -> bytes:
    # version (an INTEGER that version 1 lists lack), algorithm, issuer
    members = der.elements(der.single(parsed.tbs_certlist_bytes).content, limit=10)
    return members[2 if members[0].tag == der.INTEGER else 1].encoded


def _validity(parsed: x509.CertificateRevocationList, step: str, what: str) -> Validity:
    next_update = parsed.next_update_utc
    if next_update is None:
        raise Malformed("no nextUpdate")
    return Validity(step, what, parsed.last_update_utc, next_update)


def _serials(parsed: x509.CertificateRevocationList) -> frozenset[int]:
    # A critical extension changes what the list means (a part of the certificates, a difference, other issuers).
    if any(extension.critical for extension in parsed.extensions):
        raise Malformed("unknown critical extension")
    serials: set[int] = set()
    for entry in parsed:
        if any(extension.critical for extension in entry.extensions):
            raise Malformed("unknown critical extension of an entry")
        serials.add(entry.serial_number)
    return frozenset(serials)
