"""TDX reports: TD report bodies 1.0, 1.5 and 1.5 extended to :class:`TdReport`, and what their attributes may say."""

from __future__ import annotations

import struct
from typing import Final

from marblerun.attestation.model import TdExtension, TdReport
from marblerun.errors import Malformed, Untrusted

TD_REPORT_10_BYTES: Final = 584
TD_REPORT_15_BYTES: Final = 648
TD_REPORT_15_EXTENDED_BYTES: Final = 885

# Source: formats, section 2.3 (Intel TDX DCAP Quoting Library API, TD Quote Body).
_BODY_10: Final = struct.Struct("<16s 48s 48s 8s 8s 8s 48s 48s 48s 48s 48s 48s 48s 48s 64s")
_ADDED_15: Final = struct.Struct("<16s 48s")
_ADDED_EXTENDED: Final = struct.Struct("<B 32s 48s 48s 8s 16s 16s 12s 48s 8s")

# DEBUG and the profiling bits, ICSSD, SERVTD_EXT, LASS, SEPT_VE_DISABLE, MIGRATABLE, PKS, KL, TPA, PERFMON.
# Source: formats, section 2.3 (Intel TDX Module base specification, TDATTRIBUTES).
_KNOWN_TD_ATTRIBUTES: Final = sum(1 << bit for bit in (0, 4, 5, 6, 16, 17, 27, 28, 29, 30, 31, 62, 63))


def parse_td_report(body: bytes) -> TdReport:
    """The report in ``body``, told apart by its size (584, 648 or 885 bytes); Malformed for any other size."""
    if len(body) not in (TD_REPORT_10_BYTES, TD_REPORT_15_BYTES, TD_REPORT_15_EXTENDED_BYTES):
        raise Malformed(f"no TD report has {len(body)} bytes", where="TD report")
    (
        tee_tcb_svn,
        mrseam,
        mrsignerseam,
        seam_attributes,
        td_attributes,
        xfam,
        mrtd,
        mrconfigid,
        mrowner,
        mrownerconfig,
        rtmr0,
        rtmr1,
        rtmr2,
        rtmr3,
        report_data,
    ) = _BODY_10.unpack_from(body)
    tee_tcb_svn2: bytes | None = None
    mrservicetd: bytes | None = None
    if len(body) >= TD_REPORT_15_BYTES:
        tee_tcb_svn2, mrservicetd = _ADDED_15.unpack_from(body, TD_REPORT_10_BYTES)
    extended = len(body) == TD_REPORT_15_EXTENDED_BYTES
    return TdReport(
        tee_tcb_svn=tee_tcb_svn,
        mrseam=mrseam,
        mrsignerseam=mrsignerseam,
        seam_attributes=seam_attributes,
        td_attributes=td_attributes,
        xfam=xfam,
        mrtd=mrtd,
        mrconfigid=mrconfigid,
        mrowner=mrowner,
        mrownerconfig=mrownerconfig,
        rtmrs=(rtmr0, rtmr1, rtmr2, rtmr3),
        report_data=report_data,
        tee_tcb_svn2=tee_tcb_svn2,
        mrservicetd=mrservicetd,
        extended=TdExtension(*_ADDED_EXTENDED.unpack_from(body, TD_REPORT_15_BYTES)) if extended else None,
    )


def verify_td_attributes(report: TdReport) -> None:
    """Untrusted (step ``report``) if an attribute bit is set that has no meaning here: it may weaken the TD."""
    unknown = int.from_bytes(report.td_attributes, "little") & ~_KNOWN_TD_ATTRIBUTES
    if unknown:
        raise Untrusted(f"TDATTRIBUTES has unknown bits 0x{unknown:x}", step="report", reason="reserved-bits")
