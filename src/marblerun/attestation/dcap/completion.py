"""Quotes that do not carry their whole PCK certificate chain: how to ask for the rest, and how to put it in place.

Nothing of this is trusted. The completed chain is verified as an embedded one is, and the QE report is signed by its
leaf or the quote is refused; what the quote itself says about its platform must fit the leaf as well.
Source: formats, section 1.4 (Intel SGX ECDSA QuoteLib API, certification data types) and section 4 (``pckcert``).
"""

from __future__ import annotations

from typing import Final

from marblerun.attestation.dcap.certificates import Certificate, CertificateMemory, read_certificate
from marblerun.attestation.dcap.quote import (
    ENCRYPTED_PPID_RSA_3072,
    PCK_CHAIN,
    PCK_LEAF,
    PLAIN_PPID,
    CertificationData,
    Quote,
    ppid_certification,
)
from marblerun.attestation.model import Collateral, PckQuery, Platform
from marblerun.errors import Malformed, Untrusted
from marblerun.wire.pem import decode_pem, encode_pem

STEP: Final = "certification-data"
_MAX_LEAF_BYTES: Final = 8 * 1024
_DER_SEQUENCE: Final = b"\x30"


def pck_query(quote: Quote) -> PckQuery | None:
    """How to ask for the quote's PCK certificate (types 1 to 3); ``None`` for the other types.

    Services know PPIDs encrypted for RSA-3072 only; without one they may know the platform by its QE ID.
    """
    stated = ppid_certification(quote.certification)
    if stated is None:
        return None
    return PckQuery(
        qe_id=quote.header.user_data[:16],
        cpusvn=stated.cpusvn,
        pce_svn=stated.pce_svn,
        pce_id=stated.pce_id,
        encrypted_ppid=stated.ppid if quote.certification.type == ENCRYPTED_PPID_RSA_3072 else b"",
    )


def read_lone_leaf(certification: CertificationData, memory: CertificateMemory | None = None) -> Certificate:
    """The PCK certificate of certification data type 4, PEM or DER; Untrusted (``certification-data``) for else."""
    return read_certificate(_leaf_der(certification.data), STEP, "the PCK certificate", memory)


def complete(certification: CertificationData, collateral: Collateral) -> CertificationData:
    """The certification data as type 5, with what is missing taken from ``collateral``.

    Type 5 stays as it is. Type 4 gets CA and root from the issuer chain of the PCK CRL. Types 1 to 3 are replaced by
    the collateral's PCK certificate chain. Untrusted (``certification-data``) if there is none, or nothing that could
    help: a platform manifest (type 7) is for registering a platform and leads to no certificate.
    """
    if certification.type == PCK_CHAIN:
        return certification
    if certification.type == PCK_LEAF:
        leaf = encode_pem(_leaf_der(certification.data), "CERTIFICATE")
        return _chain(leaf + collateral.pck_crl_issuer_chain)
    if ppid_certification(certification) is None:
        raise unsupported(certification)
    if not collateral.pck_certificate_chain:
        raise Untrusted(
            f"certification data of type {certification.type} names the platform only, and its PCK certificate is not "
            "among the collateral; name a collateral service that has it (EDG_PCCS_URL), or configure the platform's "
            "quote provider to embed the chain (type 5)",
            step=STEP,
            reason="missing",
        )
    return _chain(collateral.pck_certificate_chain)


def verify_stated_platform(certification: CertificationData, platform: Platform) -> None:
    """Untrusted (``certification-data``) unless ``platform``, of a verified PCK certificate, is the one that the quote
    names by certification data of types 1 to 3.

    A PPID in the clear must be the certificate's. PCEIDs must be equal, and the certificate's PCESVN not above the
    platform's own. CPUSVN is raw in a quote and taken apart in a certificate, so these two cannot be compared (formats,
    section 1.3); neither can an encrypted PPID. Whose certificate it is, the QE report's signature decides.
    """
    stated = ppid_certification(certification)
    if stated is None:
        return
    if certification.type == PLAIN_PPID and stated.ppid != platform.ppid:
        raise _other_platform("PPID")
    if stated.pce_id != platform.pce_id:
        raise _other_platform("PCEID")
    if stated.pce_svn < platform.pce_svn:
        raise _other_platform("PCESVN")


def unsupported(certification: CertificationData) -> Untrusted:
    """The refusal of certification data that leads to no PCK certificate."""
    return Untrusted(
        f"certification data of type {certification.type} does not lead to a PCK certificate; configure the "
        "platform's quote provider to embed the chain (type 5)",
        step=STEP,
        reason="unsupported",
    )


def _other_platform(field: str) -> Untrusted:
    return Untrusted(
        f"the PCK certificate that was found is not for the quote's platform: {field}", step=STEP, reason="mismatch"
    )


def _leaf_der(data: bytes) -> bytes:
    if data.startswith(_DER_SEQUENCE):
        return data
    try:
        (leaf,) = decode_pem(data.rstrip(b"\x00"), "CERTIFICATE", max_blocks=1, max_bytes=_MAX_LEAF_BYTES)
    except (Malformed, ValueError) as error:
        raise Untrusted(
            "certification data of type 4 is not one certificate in PEM or DER", step=STEP, reason="malformed"
        ) from error
    return leaf


def _chain(pem: str) -> CertificationData:
    # What is not ASCII becomes something that no PEM reader takes.
    return CertificationData(PCK_CHAIN, pem.encode("ascii", "replace"))
