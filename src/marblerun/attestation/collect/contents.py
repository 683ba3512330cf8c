"""What a piece of collateral is about and how long it lasts, read without trusting any of it.

For choosing and for caching only. Whether a word of it is true is the verifier's work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from marblerun.attestation.dcap.signed_json import parse_time
from marblerun.attestation.model import Collateral, CollateralKey, Tee
from marblerun.errors import Malformed

_TEE_OF_TCB_INFO: Final = {"SGX": Tee.SGX, "TDX": Tee.TDX}
_TEE_OF_IDENTITY: Final = {"QE": Tee.SGX, "TD_QE": Tee.TDX}
_CA_NAMES: Final = {"Processor CA": "processor", "Platform CA": "platform"}


@dataclass(frozen=True, slots=True)
class Contents:
    """Which platforms collateral speaks of, and when it does."""

    key: CollateralKey
    issued: datetime
    """The latest of all issue dates: before it, not everything is valid yet."""
    expires: datetime
    """The earliest of all next updates."""


@dataclass(frozen=True, slots=True)
class Part:
    """One dated part: TCB Info, QE identity, a CRL."""

    issued: datetime
    next_update: datetime
    evaluation_number: int | None = None
    """TCB evaluation data number; CRLs have none."""


@dataclass(frozen=True, slots=True)
class Details:
    """The same, part by part: ``tcb_info``, ``qe_identity``, ``root_ca_crl``, ``pck_crl``."""

    contents: Contents
    parts: Mapping[str, Part]


@dataclass(frozen=True, slots=True)
class _Statement:
    tee: Tee
    part: Part


def read_contents(collateral: Collateral) -> Contents:
    """What ``collateral`` says it is.

    Raises:
        Malformed: a part cannot be read, or parts are of different technologies; the message names the part.
    """
    return read_details(collateral).contents


def read_key(collateral: Collateral) -> CollateralKey:
    """Which platforms TCB Info and PCK CRL speak of, whatever the other parts are. Raises Malformed."""
    tcb, document = _statement(collateral.tcb_info, "TCB Info", _TEE_OF_TCB_INFO)
    return CollateralKey(tcb.tee, _fmspc(document), _ca(_crl(collateral.pck_crl, "PCK CRL")))


def read_details(collateral: Collateral) -> Details:
    """What each part says. Raises Malformed as :func:`read_contents`."""
    tcb, document = _statement(collateral.tcb_info, "TCB Info", _TEE_OF_TCB_INFO)
    identity, _ = _statement(collateral.qe_identity, "QE identity", _TEE_OF_IDENTITY)
    if tcb.tee is not identity.tee:
        raise Malformed(f"TCB Info is for {tcb.tee}, QE identity for {identity.tee}")
    root_crl, pck_crl = _crl(collateral.root_ca_crl, "root CRL"), _crl(collateral.pck_crl, "PCK CRL")
    parts = {
        "tcb_info": tcb.part,
        "qe_identity": identity.part,
        "root_ca_crl": Part(root_crl.last_update_utc, _next_update(root_crl, "root CRL")),
        "pck_crl": Part(pck_crl.last_update_utc, _next_update(pck_crl, "PCK CRL")),
    }
    contents = Contents(
        key=CollateralKey(tcb.tee, _fmspc(document), _ca(pck_crl)),
        issued=max(part.issued for part in parts.values()),
        expires=min(part.next_update for part in parts.values()),
    )
    return Details(contents, parts)


def _statement(text: str, what: str, tees: dict[str, Tee]) -> tuple[_Statement, dict[str, Any]]:
    try:
        document = json.loads(text)
        tee = tees[document["id"]]
        number = document.get("tcbEvaluationDataNumber")
        part = Part(
            parse_time(document["issueDate"]),
            parse_time(document["nextUpdate"]),
            number if type(number) is int else None,
        )
        return _Statement(tee, part), document
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
        raise Malformed(f"{what} cannot be read: {type(error).__name__}") from None


def _fmspc(document: dict[str, Any]) -> bytes:
    try:
        fmspc = bytes.fromhex(document["fmspc"])
    except (KeyError, TypeError, ValueError):
        fmspc = b""
    if len(fmspc) != 6:
        raise Malformed("TCB Info names no FMSPC of 6 bytes")
    return fmspc


def _crl(encoded: bytes, what: str) -> x509.CertificateRevocationList:
    try:
        crl = x509.load_der_x509_crl(encoded)
        _ = crl.issuer, crl.last_update_utc, crl.next_update_utc
        return crl
    except (ValueError, TypeError, x509.InvalidVersion):
        raise Malformed(f"{what} is not a DER certificate revocation list") from None


def _next_update(crl: x509.CertificateRevocationList, what: str) -> datetime:
    if crl.next_update_utc is None:
        raise Malformed(f"{what} has no next update")
    return crl.next_update_utc


def _ca(pck_crl: x509.CertificateRevocationList) -> str:
    names = [str(name.value) for name in pck_crl.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)]
    for ending, ca in _CA_NAMES.items():
        if len(names) == 1 and names[0].endswith(ending):
            return ca
    raise Malformed(f"PCK CRL is issued by {', '.join(names) or 'nobody'}, which is no PCK CA")
