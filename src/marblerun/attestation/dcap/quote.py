"""DCAP quotes: bytes to :class:`Quote`, for SGX (version 3, 4, 5) and TDX (version 4, 5). Nothing is trusted here.

Parsing is strict: every length must fit exactly, reserved fields must be zero, and nothing may follow.
Source: formats, sections 1 and 2 (Intel SGX ECDSA QuoteLib and TDX DCAP Quoting Library API references).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from marblerun.attestation.model import SgxReport, TdReport, Tee
from marblerun.attestation.sgx import SGX_REPORT_BYTES, parse_sgx_report
from marblerun.attestation.tdx import (
    TD_REPORT_10_BYTES,
    TD_REPORT_15_BYTES,
    TD_REPORT_15_EXTENDED_BYTES,
    parse_td_report,
)
from marblerun.errors import Malformed
from marblerun.wire.limits import MAX_QUOTE_BYTES
from marblerun.wire.reader import Reader

INTEL_QE_VENDOR_ID: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
ECDSA_P256: Final = 2

PLAIN_PPID: Final = 1
ENCRYPTED_PPID_RSA_2048: Final = 2
ENCRYPTED_PPID_RSA_3072: Final = 3
PCK_LEAF: Final = 4
PCK_CHAIN: Final = 5
QE_REPORT_CERTIFICATION: Final = 6
PLATFORM_MANIFEST: Final = 7

HEADER_BYTES: Final = 48
# Version, attestation key type, TEE type, QE SVN, PCE SVN, QE vendor, user data. Source: formats, section 1.2.
_HEADER: Final = struct.Struct("<H H I H H 16s 20s")
OE_HEADER_BYTES: Final = 16
_OE_VERSION: Final = 1
_OE_LOCAL: Final = 1
_OE_REMOTE: Final = 2
_OE_PREFIX: Final = _OE_VERSION.to_bytes(4, "little")
_OE_EVIDENCE_PREFIX: Final = (3).to_bytes(4, "little")

_TEES: Final = {0x00: Tee.SGX, 0x81: Tee.TDX}
# Version 5 body types. Source: formats, section 2.2.
_BODIES: Final = {
    1: (Tee.SGX, SGX_REPORT_BYTES),
    2: (Tee.TDX, TD_REPORT_10_BYTES),
    3: (Tee.TDX, TD_REPORT_15_BYTES),
    4: (Tee.TDX, TD_REPORT_15_EXTENDED_BYTES),
}
# PPID, CPUSVN 16, PCESVN 2, PCEID 2. Source: formats, section 1.4.
_PPID_SIZES: Final = {PLAIN_PPID: 16, ENCRYPTED_PPID_RSA_2048: 256, ENCRYPTED_PPID_RSA_3072: 384}


@dataclass(frozen=True, slots=True)
class Header:
    """The first 48 bytes of a quote. Source: formats, section 1.2."""

    version: int
    tee: Tee
    qe_svn: int
    """Informative; the QE report has the authentic one. Zero from version 4 on."""
    pce_svn: int
    user_data: bytes
    """20 bytes; the first 16 are the QE ID."""


@dataclass(frozen=True, slots=True)
class CertificationData:
    """How the quote says who vouches for its QE: one of the types 1 to 5 and 7, and its bytes."""

    type: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PpidCertification:
    """Certification data of types 1 to 3: the platform's name, with which its PCK certificate can be asked for."""

    ppid: bytes
    """16 bytes, or 256 or 384 if encrypted."""
    cpusvn: bytes
    pce_svn: int
    pce_id: bytes


@dataclass(frozen=True, slots=True)
class Quote:
    """A parsed quote. Signatures are 64 bytes ``r || s``, the key is 64 bytes ``x || y``, all big-endian."""

    header: Header
    report: SgxReport | TdReport
    signed: bytes
    """Header and body as they were: what the attestation key signs."""
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    """384 bytes, an SGX report."""
    qe_report_signature: bytes
    qe_auth_data: bytes
    certification: CertificationData

    @property
    def tee(self) -> Tee:
        """The technology that made the quote."""
        return self.header.tee


def parse_quote(data: bytes) -> Quote:
    """The quote in ``data``, raw or behind a 16-byte Open Enclave header; Malformed for anything else.

    Rules 7.1.1 (bounded), 7.1.2 (every length) and 7.1.3 (nothing follows).
    """
    quote, trailing = parse_quote_prefix(data)
    if trailing:
        end = len(data) - len(trailing)
        raise Malformed(f"{len(trailing)} bytes follow after the quote{_rest(trailing, end)}", where="quote")
    return quote


def parse_quote_prefix(data: bytes) -> tuple[Quote, bytes]:
    """The quote at the start of ``data`` and whatever follows it; only for showing, and for cutting padding off."""
    stripped = strip_oe_header(data)
    raw = Reader(stripped, "quote")
    header = _parse_header(raw)
    tee, body = _parse_body(raw, header)
    report: SgxReport | TdReport = parse_sgx_report(body) if tee is Tee.SGX else parse_td_report(body)
    length = raw.u32("signature data length")
    signed_length = raw.offset - 4
    signature_data = Reader(raw.take(length, "signature data"), "quote signature data")
    signature = signature_data.take(64, "quote signature")
    key = signature_data.take(64, "attestation key")
    if header.version >= 4:
        signature_data = _unwrap_qe_certification(signature_data)
    qe_report = signature_data.take(SGX_REPORT_BYTES, "QE report")
    qe_report_signature = signature_data.take(64, "QE report signature")
    qe_auth_data = signature_data.take(signature_data.u16("QE authentication data length"), "QE authentication data")
    certification = _parse_certification(signature_data)
    signature_data.expect_end()
    quote = Quote(
        header=header,
        report=report,
        signed=stripped[:signed_length],
        signature=signature,
        attestation_key=key,
        qe_report=qe_report,
        qe_report_signature=qe_report_signature,
        qe_auth_data=qe_auth_data,
        certification=certification,
    )
    return quote, raw.rest()


def _parse_header(raw: Reader) -> Header:
    # Rules 7.1.4 (version), 7.1.5 (key type), 7.1.6 (TEE), 7.1.7 (vendor).
    version, key_type, tee_type, qe_svn, pce_svn, vendor, user_data = _HEADER.unpack(raw.take(HEADER_BYTES, "header"))
    if version not in (3, 4, 5):
        raise Malformed(f"quote version {version}; versions 3, 4 and 5 are known", where="quote")
    if key_type != ECDSA_P256:
        raise Malformed(f"attestation key type {key_type}; only 2 (ECDSA P-256) is known", where="quote")
    tee = _TEES.get(tee_type)
    if tee is None or (version == 3 and tee is not Tee.SGX):
        raise Malformed(f"TEE type 0x{tee_type:x} in a version {version} quote", where="quote")
    if version >= 4 and (qe_svn or pce_svn):
        raise Malformed("reserved header bytes 8..11 must be zero from version 4 on", where="quote")
    if vendor != INTEL_QE_VENDOR_ID:
        raise Malformed(f"QE vendor {vendor.hex()} is not Intel's", where="quote")
    return Header(version=version, tee=tee, qe_svn=qe_svn, pce_svn=pce_svn, user_data=user_data)


def _parse_body(raw: Reader, header: Header) -> tuple[Tee, bytes]:
    if header.version < 5:
        size = SGX_REPORT_BYTES if header.tee is Tee.SGX else TD_REPORT_10_BYTES
        return header.tee, raw.take(size, "report body")
    body_type, size = raw.u16("body type"), raw.u32("body size")
    if _BODIES.get(body_type) != (header.tee, size):
        raise Malformed(f"body type {body_type} of {size} bytes in a {header.tee} quote", where="quote")
    return header.tee, raw.take(size, "report body")


def _unwrap_qe_certification(outer: Reader) -> Reader:
    kind = outer.u16("certification data type")
    if kind != QE_REPORT_CERTIFICATION:
        raise Malformed(f"certification data type {kind}, from version 4 on it must be 6", where="quote signature data")
    inner = outer.take(outer.u32("certification data length"), "QE report certification data")
    outer.expect_end()
    return Reader(inner, "QE report certification data")


def _parse_certification(reader: Reader) -> CertificationData:
    # Rule 7.1.8.
    kind = reader.u16("certification data type")
    if kind not in (*_PPID_SIZES, PCK_LEAF, PCK_CHAIN, PLATFORM_MANIFEST):
        raise Malformed(f"certification data type {kind} is not possible here", where="quote signature data")
    data = reader.take(reader.u32("certification data length"), "certification data")
    if kind in _PPID_SIZES and len(data) != _PPID_SIZES[kind] + 20:
        raise Malformed(f"{len(data)} bytes of certification data type {kind}", where="quote signature data")
    return CertificationData(kind, data)


def ppid_certification(certification: CertificationData) -> PpidCertification | None:
    """What certification data of types 1 to 3 says; ``None`` for the other types."""
    size = _PPID_SIZES.get(certification.type)
    if size is None:
        return None
    reader = Reader(certification.data, "certification data")
    return PpidCertification(
        ppid=reader.take(size, "PPID"),
        cpusvn=reader.take(16, "CPUSVN"),
        pce_svn=reader.u16("PCESVN"),
        pce_id=reader.take(2, "PCEID"),
    )


def strip_oe_header(data: bytes) -> bytes:
    """The raw quote in ``data``, with or without Open Enclave's legacy header (formats, section 1.5).

    Malformed if the header does not fit what follows, or is of a kind that cannot be verified here.
    """
    if len(data) > MAX_QUOTE_BYTES + OE_HEADER_BYTES:
        raise Malformed(f"{len(data)} bytes, a quote has at most {MAX_QUOTE_BYTES}", where="quote")
    if data[:4] == _OE_EVIDENCE_PREFIX:
        raise Malformed("Open Enclave's newer 28-byte evidence header is not supported", where="quote")
    if not is_oe_report(data):
        return _within_limit(data)
    header = Reader(data[:OE_HEADER_BYTES], "Open Enclave header")
    header.u32("version")
    kind = header.u32("report type")
    size = header.u64("report size")
    if kind == _OE_LOCAL:
        raise Malformed("a local report; only remote reports can be verified elsewhere", where="Open Enclave header")
    if kind != _OE_REMOTE:
        raise Malformed(f"report type {kind}", where="Open Enclave header")
    if size != len(data) - OE_HEADER_BYTES:
        rest = _rest(data[OE_HEADER_BYTES + size :], OE_HEADER_BYTES + size)
        raise Malformed(
            f"{size} bytes announced, {len(data) - OE_HEADER_BYTES} follow{rest}", where="Open Enclave header"
        )
    return _within_limit(data[OE_HEADER_BYTES:])


def _rest(trailing: bytes, end: int) -> str:
    """What to say of bytes behind a quote: senders leave the rest of their buffer there (formats, section 1.1)."""
    if not trailing or any(trailing):
        return ""
    return f", all of them zero: the rest of the sender's buffer, to be cut off at byte {end}"


def _within_limit(raw: bytes) -> bytes:
    if len(raw) > MAX_QUOTE_BYTES:
        raise Malformed(f"{len(raw)} bytes, a quote has at most {MAX_QUOTE_BYTES}", where="quote")
    return raw


def is_oe_report(data: bytes) -> bool:
    """Whether ``data`` begins with Open Enclave's legacy header."""
    return data[: len(_OE_PREFIX)] == _OE_PREFIX


def add_oe_header(quote: bytes) -> bytes:
    """``quote`` behind the 16-byte header that EGo and the reference's REST answers have (protocol, section 4.1)."""
    return _OE_PREFIX + _OE_REMOTE.to_bytes(4, "little") + len(quote).to_bytes(8, "little") + quote


def is_raw_sgx_quote(data: bytes) -> bool:
    """Whether ``data`` looks like a version 3 SGX quote without header, by the reference's test (protocol, 4.1)."""

    def u16(offset: int) -> int:
        return int.from_bytes(data[offset : offset + 2], "little")

    return (
        len(data) >= HEADER_BYTES
        and u16(0) == 3
        and u16(2) <= 3
        and data[4:8] == bytes(4)
        and u16(8) != 0
        and u16(10) != 0
    )
