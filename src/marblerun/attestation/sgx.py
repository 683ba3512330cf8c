"""SGX enclave reports: 384 bytes to :class:`SgxReport`."""

from __future__ import annotations

import struct
from typing import Final

from marblerun.attestation.model import SgxReport
from marblerun.errors import Malformed

SGX_REPORT_BYTES: Final = 384

# Source: formats, section 1.3; Intel SDM vol. 3D, REPORT structure. Byte 20 of the reserved ones is CET_ATTRIBUTES
# there, which processors fill for enclaves with control-flow enforcement and leave zero for all others.
_BODY: Final = struct.Struct("<16s 4s B 11s 16s 16s 32s 32s 32s 32s 64s H H H 42s 16s 64s")

_CET: Final = 0x40
"""ATTRIBUTES flag of an enclave with control-flow enforcement. Source: formats, section 1.3."""


def parse_sgx_report(body: bytes) -> SgxReport:
    """The report in ``body``; Malformed unless it is 384 bytes with all reserved bytes zero."""
    if len(body) != SGX_REPORT_BYTES:
        raise Malformed(f"{len(body)} bytes where {SGX_REPORT_BYTES} are expected", where="SGX report")
    (
        cpusvn,
        miscselect,
        cet_attributes,
        reserved_21,
        isv_ext_prod_id,
        attributes,
        mrenclave,
        reserved_96,
        mrsigner,
        reserved_160,
        config_id,
        isv_prod_id,
        isv_svn,
        config_svn,
        reserved_262,
        isv_family_id,
        report_data,
    ) = _BODY.unpack(body)
    if any(reserved_21 + reserved_96 + reserved_160 + reserved_262) or (cet_attributes and not attributes[0] & _CET):
        raise Malformed("reserved bytes must be zero", where="SGX report")
    return SgxReport(
        cpusvn=cpusvn,
        miscselect=miscselect,
        isv_ext_prod_id=isv_ext_prod_id,
        attributes=attributes,
        mrenclave=mrenclave,
        mrsigner=mrsigner,
        config_id=config_id,
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        config_svn=config_svn,
        isv_family_id=isv_family_id,
        report_data=report_data,
    )
