"""The quoting enclave: the vendor's signed description of it, and whether a QE report fits that.

Source: formats, sections 4.2 and 5.2 (Intel PCS API v4, enclave identity version 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from marblerun.attestation.dcap.signed_json import ENCLAVE_STATUSES, parse_object
from marblerun.attestation.dcap.validity import Validity
from marblerun.attestation.model import PartStatus, SgxReport, TcbStatus, Tee
from marblerun.errors import Malformed, Untrusted

STEP: Final = "qe-identity"
MATCH_STEP: Final = "qe-match"
_IDS: Final = {"QE": Tee.SGX, "TD_QE": Tee.TDX}
_VERSION: Final = 2


@dataclass(frozen=True, slots=True)
class IsvLevel:
    """A level of an enclave or module: it applies from this ISVSVN on."""

    isv_svn: int
    part: PartStatus


@dataclass(frozen=True, slots=True, eq=False)
class EnclaveIdentity:
    """What the vendor says a quoting enclave must be. Levels are sorted, highest first."""

    tee: Tee
    validity: Validity
    evaluation_number: int
    miscselect: int
    miscselect_mask: int
    attributes: int
    attributes_mask: int
    mrsigner: bytes
    isv_prod_id: int
    levels: tuple[IsvLevel, ...]


def parse_identity(text: str) -> EnclaveIdentity:
    """The identity in ``text``, whose signature was verified; Malformed for another id, version or shape.

    Rules 4.2.1 (id, version) and 4.2.2 (an enclave is up to date, out of date or revoked, nothing else).
    """
    fields = parse_object(text, "enclaveIdentity")
    identity, version = fields.text("id"), fields.number("version")
    if identity not in _IDS or version != _VERSION:
        raise Malformed(f"identity {identity!r} version {version} is not of a quoting enclave", where="enclaveIdentity")
    levels = [
        IsvLevel(level.object("tcb").number("isvsvn", limit=0xFFFF), level.status(ENCLAVE_STATUSES))
        for level in fields.objects("tcbLevels")
    ]
    return EnclaveIdentity(
        tee=_IDS[identity],
        validity=Validity(STEP, "the QE identity", fields.time("issueDate"), fields.time("nextUpdate")),
        evaluation_number=fields.number("tcbEvaluationDataNumber"),
        miscselect=int.from_bytes(fields.hex("miscselect", 4), "big"),
        miscselect_mask=int.from_bytes(fields.hex("miscselectMask", 4), "big"),
        attributes=int.from_bytes(fields.hex("attributes", 16), "big"),
        attributes_mask=int.from_bytes(fields.hex("attributesMask", 16), "big"),
        mrsigner=fields.hex("mrsigner", 32),
        isv_prod_id=fields.number("isvprodid", limit=0xFFFF),
        levels=tuple(sorted(levels, key=lambda level: level.isv_svn, reverse=True)),
    )


def verify_identity(report: SgxReport, identity: EnclaveIdentity) -> None:
    """Untrusted of step ``qe-match`` unless the QE's report is of the enclave that ``identity`` describes."""
    if report.debug:  # 7.9.5
        raise Untrusted("the quoting enclave runs in debug mode", step=MATCH_STEP, reason="debug")
    if int.from_bytes(report.miscselect, "big") & identity.miscselect_mask != identity.miscselect:  # 7.9.1
        raise _mismatch("MISCSELECT")
    if int.from_bytes(report.attributes, "big") & identity.attributes_mask != identity.attributes:  # 7.9.2
        raise _mismatch("ATTRIBUTES")
    if report.mrsigner != identity.mrsigner:  # 7.9.3
        raise _mismatch("MRSIGNER")
    if report.isv_prod_id != identity.isv_prod_id:  # 7.9.4
        raise _mismatch("ISVPRODID")


def _mismatch(field: str) -> Untrusted:
    return Untrusted(f"{field} of the QE is not that of its identity", step=MATCH_STEP, reason="mismatch")


def matching_level(levels: tuple[IsvLevel, ...], isv_svn: int, *, step: str, what: str) -> PartStatus:
    """The first level that ``isv_svn`` reaches; Untrusted of ``step`` if there is none or it is revoked."""
    for level in levels:
        if isv_svn >= level.isv_svn:  # 5.2.1
            if level.part.status is TcbStatus.REVOKED:  # 5.2.3
                raise Untrusted(f"{what} with ISVSVN {isv_svn} is revoked", step=step, reason="revoked")
            return level.part
    # 5.2.2
    raise Untrusted(f"{what} with ISVSVN {isv_svn} is below every TCB level", step=step, reason="not-supported")
