"""The vocabulary of attestation: evidence goes in, collateral vouches for it, claims come out.

Claims are authentic, not acceptable: nothing here or in the verifiers judges a status, a debug flag or a
measurement. That is the policy room's work.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Tee(StrEnum):
    """A trusted execution technology."""

    SGX = "sgx"
    TDX = "tdx"
    NONE = "none"


class Origin(StrEnum):
    """Who stands behind a piece of evidence; policy must admit an origin before anything else counts."""

    HARDWARE = "hardware"
    """A vendor's root of trust, pinned in this package."""
    SIMULATED = "simulated"
    """A software platform's own root, trusted only where someone asked for it by name."""
    NONE = "none"
    """No evidence at all (the reference's ``OE_SIMULATION=1``)."""


class TcbStatus(StrEnum):
    """Standing of a platform's trusted computing base. Source: Intel PCS API v4, TCB Info; relaunch from Intel QVL."""

    UP_TO_DATE = "UpToDate"
    SW_HARDENING_NEEDED = "SWHardeningNeeded"
    CONFIGURATION_NEEDED = "ConfigurationNeeded"
    CONFIGURATION_AND_SW_HARDENING_NEEDED = "ConfigurationAndSWHardeningNeeded"
    OUT_OF_DATE = "OutOfDate"
    OUT_OF_DATE_CONFIGURATION_NEEDED = "OutOfDateConfigurationNeeded"
    TD_RELAUNCH_ADVISED = "TDRelaunchAdvised"
    TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED = "TDRelaunchAdvisedConfigurationNeeded"
    REVOKED = "Revoked"
    UNKNOWN = "Unknown"


@dataclass(frozen=True, slots=True)
class TrustRoot:
    """A root key we accept, pinned by the SHA-256 of its DER SubjectPublicKeyInfo (32 bytes).

    The key is pinned, not the certificate: Intel reissues root certificates with the same key
    (formats, section 3.1).
    """

    name: str
    spki_sha256: bytes
    origin: Origin


@dataclass(frozen=True, slots=True)
class Collateral:
    """What a vendor publishes about its platforms, exactly as signed; nothing in it is trusted yet.

    Chains are PEM text (signer first, root last), CRLs are DER, ``tcb_info`` and ``qe_identity`` the exact signed
    JSON text, signatures 64 bytes ``r || s`` big-endian.
    Source: Intel PCS API v4; the nine-field shape is that of ``sgx_ql_qve_collateral_t``.
    """

    pck_crl_issuer_chain: str
    root_ca_crl: bytes
    pck_crl: bytes
    tcb_info_issuer_chain: str
    tcb_info: str
    tcb_info_signature: bytes
    qe_identity_issuer_chain: str
    qe_identity: str
    qe_identity_signature: bytes
    pck_certificate_chain: str = ""
    """The PCK certificate chain of one machine, PEM text, for evidence that does not carry it; else empty."""


@dataclass(frozen=True, slots=True)
class PckQuery:
    """By what a machine's PCK certificate can be asked for, where a quote does not carry it.

    Source: formats, sections 1.2, 1.4 and 4 (Intel PCS API v4, ``pckcert``).
    """

    qe_id: bytes
    """16 bytes, from the quote's header."""
    cpusvn: bytes
    """16 bytes, raw."""
    pce_svn: int
    pce_id: bytes
    """2 bytes."""
    encrypted_ppid: bytes = b""
    """384 bytes (RSA-3072) where the quote has it in the form that services take; else empty."""


@dataclass(frozen=True, slots=True)
class CollateralKey:
    """Which collateral a piece of evidence asks for. Taken from untrusted evidence: it selects and proves nothing."""

    tee: Tee
    fmspc: bytes
    """6 bytes; empty where ``pck`` is given, since the PCK certificate says it."""
    ca: str
    """``processor`` or ``platform``; likewise."""
    pck: PckQuery | None = None
    """How to ask for the PCK certificate, where the evidence does not carry it."""


@dataclass(frozen=True, slots=True)
class SgxReport:
    """An SGX enclave report body (384 bytes on the wire). Source: formats, section 1.3; Intel SDM vol. 3D."""

    cpusvn: bytes
    miscselect: bytes
    isv_ext_prod_id: bytes
    attributes: bytes
    """16 bytes: 8 bytes flags, 8 bytes XFRM, as in memory."""
    mrenclave: bytes
    mrsigner: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes
    """64 bytes."""

    @property
    def debug(self) -> bool:
        """Whether the enclave runs in debug mode, in which its memory can be read."""
        return bool(self.attributes[0] & 0x02)


@dataclass(frozen=True, slots=True)
class TdExtension:
    """What TD report 1.5 extended adds (237 bytes). Source: formats, section 2.3."""

    vm_id: int
    td_id: bytes
    """32 bytes."""
    device_info_hash: bytes
    """48 bytes, as all hashes here."""
    initial_service_td_hash: bytes
    """Of the service TD that was bound when the TD was made; zeros if there was none."""
    initial_service_td_attributes: bytes
    initial_cpusvn: bytes
    initial_tee_tcb_svn: bytes
    initial_fmspc: bytes
    """12 bytes."""
    service_td_hash: bytes
    """Of the service TD that is bound now; zeros if there is none."""
    service_td_attributes: bytes


@dataclass(frozen=True, slots=True)
class TdReport:
    """A TD report body, versions 1.0, 1.5 and 1.5 extended. Source: formats, section 2.3."""

    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    """64 bytes."""
    tee_tcb_svn2: bytes | None = None
    mrservicetd: bytes | None = None
    extended: TdExtension | None = None
    """TD reports of version 1.5 extended only."""

    @property
    def debug(self) -> bool:
        """Whether the TD is debuggable (TDATTRIBUTES bit 0) or can be profiled from outside (bits 4 to 6).

        Profiling tells the host what happens inside, so such a TD is as little fit for production as one in debug mode.
        Source: formats, section 2.3.
        """
        return bool(self.td_attributes[0] & 0x71)


@dataclass(frozen=True, slots=True)
class PartStatus:
    """Standing of one part (platform, quoting enclave, TDX module) by the level it matched."""

    status: TcbStatus
    tcb_date: datetime
    advisories: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Platform:
    """Which machine made the evidence, from its PCK certificate."""

    fmspc: bytes
    pce_id: bytes
    pce_svn: int
    cpu_svns: bytes
    """16 component SVNs, one byte each, from the certificate (not the report's CPUSVN)."""
    ca: str
    """``processor`` or ``platform``."""
    ppid: bytes
    platform_instance_id: bytes | None = None
    sgx_type: int = 0
    """0 standard, 1 scalable, 2 scalable with integrity."""
    dynamic_platform: bool | None = None
    """Whether platforms may be added after registration; ``None`` where the certificate does not say."""
    cached_keys: bool | None = None
    smt_enabled: bool | None = None


@dataclass(frozen=True, slots=True)
class Claims:
    """What verified evidence says. Every field is authentic; none has been judged."""

    origin: Origin
    tee: Tee
    root: str
    """Name of the root of trust whose key signed."""
    root_spki_sha256: bytes
    """Pin of that root key, 32 bytes."""
    tcb_status: TcbStatus
    advisories: tuple[str, ...]
    tcb_date: datetime
    parts: dict[str, PartStatus]
    """Keys ``platform``, ``qe`` and, for TDX, ``module`` where a module identity was judged. For TD reports of version
    1.5 also ``platform-current`` and ``module-current``, the same by the TDX module that runs now."""
    tcb_evaluation_number: int
    """The lower one of TCB Info and QE identity."""
    qe_svn: int
    platform: Platform
    report: SgxReport | TdReport
    collateral_expires: datetime

    @property
    def debug(self) -> bool:
        """Whether the enclave or TD is debuggable."""
        return self.report.debug

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the attested code chose."""
        return self.report.report_data


@dataclass(frozen=True, slots=True)
class Unattested:
    """The claims of a peer that shows no evidence: nothing is known about it, not even that it is a TEE."""

    origin: Origin = Origin.NONE


Verdict = Claims | Unattested
