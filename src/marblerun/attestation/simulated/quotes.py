"""Quotes, bit-exact: SGX version 3, TDX versions 4 and 5.

A quote is kept as its parts until the last moment, so that a test can exchange one part and nothing else.

Source: formats, sections 1 and 2; Intel SGX ECDSA QuoteLibReference DCAP API, appendix A; Intel TDX DCAP Quoting
Library API, appendix A.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import astuple, dataclass, field
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.attestation.model import SgxReport, TdReport, Tee
from marblerun.attestation.simulated.collateral import QE_MRSIGNER, QE_SVN, TD_QE_MRSIGNER
from marblerun.attestation.simulated.hierarchy import Hierarchy, public_point, sign

INTEL_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
SGX_ATTRIBUTES: Final = bytes.fromhex("0500000000000000e700000000000000")
"""INIT and MODE64BIT, the usual XFRM."""
QE_ATTRIBUTES: Final = bytes.fromhex("1500000000000000e700000000000000")
"""As above and PROVISIONKEY, which a quoting enclave has."""
DEBUG: Final = 0x02
TD_ATTRIBUTES: Final = bytes.fromhex("0000001000000000")
"""SEPT_VE_DISABLE (bit 28)."""
XFAM: Final = bytes.fromhex("e702060000000000")
TEE_TCB_SVN: Final = bytes((5, 1, 2, *bytes(13)))
"""Module SVN 5 of module version 1, SEAM loader SVN 2."""
QE_AUTHENTICATION_DATA: Final = bytes(range(32))

_ECDSA_P256: Final = 2
_TEE_TYPES: Final = {Tee.SGX: 0, Tee.TDX: 0x81}
_PEM_CHAIN: Final = 5
_QE_REPORT_CERTIFICATION: Final = 6


@dataclass(frozen=True, slots=True)
class QuoteParts:
    """The fields of a quote in the order of the wire."""

    header: bytes
    """48 bytes."""
    body: bytes
    """The report body; in version 5 with its type and size in front."""
    quote_signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    certification_data: bytes
    qe_authentication_data: bytes = QE_AUTHENTICATION_DATA
    certification_type: int = _PEM_CHAIN
    outer_certification_type: int = _QE_REPORT_CERTIFICATION
    """Versions 4 and 5 only."""

    @property
    def signed(self) -> bytes:
        """What the attestation key signs."""
        return self.header + self.body

    def encode(self) -> bytes:
        """The quote's bytes."""
        certified = (
            self.qe_report
            + self.qe_report_signature
            + struct.pack("<H", len(self.qe_authentication_data))
            + self.qe_authentication_data
            + struct.pack("<HI", self.certification_type, len(self.certification_data))
            + self.certification_data
        )
        if struct.unpack_from("<H", self.header)[0] >= 4:
            certified = struct.pack("<HI", self.outer_certification_type, len(certified)) + certified
        signature_data = self.quote_signature + self.attestation_key + certified
        return self.signed + struct.pack("<I", len(signature_data)) + signature_data


@dataclass(frozen=True, slots=True)
class QuotingEnclave:
    """A quoting enclave's key and the report with which the platform vouches for that key."""

    key: ec.EllipticCurvePrivateKey = field(repr=False)
    report: bytes
    """384 bytes."""
    report_signature: bytes
    """64 bytes, by the PCK key."""


def header(version: int, tee: Tee, *, qe_svn: int = QE_SVN, pce_svn: int = 13, qe_id: bytes = bytes(16)) -> bytes:
    """A quote header, 48 bytes. ``qe_id`` tells platforms apart (16 bytes). Source: formats, section 1.2."""
    svns = (qe_svn, pce_svn) if version == 3 else (0, 0)
    return struct.pack("<HHI HH 16s 16s4x", version, _ECDSA_P256, _TEE_TYPES[tee], *svns, INTEL_VENDOR_ID, qe_id)


def encode_sgx_report(report: SgxReport) -> bytes:
    """An SGX report body, 384 bytes. Source: formats, section 1.3."""
    return struct.pack(
        "<16s4s12x16s16s32s32x32s32x64sHHH42x16s64s",
        report.cpusvn,
        report.miscselect,
        report.isv_ext_prod_id,
        report.attributes,
        report.mrenclave,
        report.mrsigner,
        report.config_id,
        report.isv_prod_id,
        report.isv_svn,
        report.config_svn,
        report.isv_family_id,
        report.report_data,
    )


def encode_td_report(report: TdReport) -> bytes:
    """A TD report body: 584 bytes, 648 (TDX 1.5) if TEE_TCB_SVN2 is there, 885 if it is extended.

    Source: formats, section 2.3.
    """
    body = b"".join(
        (
            report.tee_tcb_svn,
            report.mrseam,
            report.mrsignerseam,
            report.seam_attributes,
            report.td_attributes,
            report.xfam,
            report.mrtd,
            report.mrconfigid,
            report.mrowner,
            report.mrownerconfig,
            *report.rtmrs,
            report.report_data,
        )
    )
    if report.tee_tcb_svn2 is not None:
        body += report.tee_tcb_svn2 + (report.mrservicetd or bytes(48))
    if report.extended is not None:
        number, *fields = astuple(report.extended)
        body += bytes((number, *b"".join(fields)))
    return body


def sgx_report(
    report_data: bytes,
    *,
    mrenclave: bytes,
    mrsigner: bytes,
    isv_prod_id: int,
    isv_svn: int,
    attributes: bytes = SGX_ATTRIBUTES,
    cpusvn: bytes = bytes(16),
) -> SgxReport:
    """An enclave's report without KSS fields; ``report_data`` up to 64 bytes, zero padded."""
    if len(report_data) > 64:
        raise ValueError("report data has at most 64 bytes")
    return SgxReport(
        cpusvn=cpusvn,
        miscselect=bytes(4),
        isv_ext_prod_id=bytes(16),
        attributes=attributes,
        mrenclave=mrenclave,
        mrsigner=mrsigner,
        config_id=bytes(64),
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        config_svn=0,
        isv_family_id=bytes(16),
        report_data=report_data.ljust(64, b"\x00"),
    )


def qe_report(
    tee: Tee, key: ec.EllipticCurvePrivateKey, *, isv_svn: int = QE_SVN, cpusvn: bytes = bytes(16)
) -> SgxReport:
    """The report of a quoting enclave that owns ``key``; its report data binds the key. Source: formats, 1.4."""
    tdx = tee is Tee.TDX
    return sgx_report(
        hashlib.sha256(public_point(key) + QE_AUTHENTICATION_DATA).digest(),
        mrenclave=hashlib.sha256(b"simulated quoting enclave " + tee.value.encode()).digest(),
        mrsigner=TD_QE_MRSIGNER if tdx else QE_MRSIGNER,
        isv_prod_id=2 if tdx else 1,
        isv_svn=isv_svn,
        attributes=QE_ATTRIBUTES,
        cpusvn=cpusvn,
    )


def certify(hierarchy: Hierarchy, key: ec.EllipticCurvePrivateKey, report: SgxReport) -> QuotingEnclave:
    """The quoting enclave with ``report`` signed by the platform's PCK key."""
    encoded = encode_sgx_report(report)
    return QuotingEnclave(key, encoded, sign(hierarchy.pck.key, encoded))


def sign_quote(quote_header: bytes, body: bytes, qe: QuotingEnclave, pck_chain: str) -> QuoteParts:
    """A quote over header and body; ``body`` as in :class:`QuoteParts`, ``pck_chain`` PEM text."""
    return QuoteParts(
        header=quote_header,
        body=body,
        quote_signature=sign(qe.key, quote_header + body),
        attestation_key=public_point(qe.key),
        qe_report=qe.report,
        qe_report_signature=qe.report_signature,
        certification_data=pck_chain.encode("ascii") + b"\x00",
    )


def v5_body(body: bytes) -> bytes:
    """A report body with the type and size that version 5 puts in front. Source: formats, section 2.2."""
    kind = {384: 1, 584: 2, 648: 3, 885: 4}[len(body)]
    return struct.pack("<HI", kind, len(body)) + body


def quote(hierarchy: Hierarchy, qe: QuotingEnclave, report: SgxReport | TdReport, *, version: int) -> QuoteParts:
    """A quote of ``report`` by ``hierarchy``'s platform: version 3 for SGX, 4 or 5 for TDX."""
    sgx = isinstance(report, SgxReport)
    body = encode_sgx_report(report) if isinstance(report, SgxReport) else encode_td_report(report)
    return sign_quote(
        header(
            version,
            Tee.SGX if sgx else Tee.TDX,
            pce_svn=hierarchy.platform.pce_svn,
            qe_id=hashlib.sha256(b"QE ID" + hierarchy.platform.ppid).digest()[:16],
        ),
        v5_body(body) if version == 5 else body,
        qe,
        hierarchy.pck_chain,
    )
