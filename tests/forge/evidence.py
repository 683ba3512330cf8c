"""A vendor's whole hierarchy, minted here, with one thing broken at a time.

:func:`forge` makes good evidence; every argument exchanges one part of it. What stays is signed again where the
vendor or the platform would sign, so that exactly the broken thing is what a verifier can find.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Final, TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.attestation.model import Collateral, Origin, SgxReport, TcbStatus, TdReport, Tee, TrustRoot
from marblerun.attestation.simulated import quotes
from marblerun.attestation.simulated.collateral import (
    QeIdentity,
    TcbInfo,
    current_qe_identity,
    current_tcb_info,
    publish,
)
from marblerun.attestation.simulated.entropy import SystemEntropy
from marblerun.attestation.simulated.hierarchy import Hierarchy, mint_hierarchy, new_platform

AT: Final = datetime(2026, 6, 1, 12, tzinfo=UTC)
ISSUED: Final = datetime(2026, 5, 31, 12, tzinfo=UTC)
FMSPC: Final = bytes.fromhex("0051ab000000")
OTHER_FMSPC: Final = bytes.fromhex("0051ab000001")

MRENCLAVE: Final = hashlib.sha256(b"forged enclave").digest()
MRSIGNER: Final = hashlib.sha256(b"forged signer").digest()
REPORT_DATA: Final = hashlib.sha256(b"forged report data").digest() + bytes(32)

ENTROPY: Final = SystemEntropy()

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything a verifier is given."""

    quote: bytes
    """Without Open Enclave header."""
    collateral: Collateral
    root: TrustRoot
    root_der: bytes
    hierarchy: Hierarchy
    at: datetime = AT


def same(value: T) -> T:
    """Nothing is broken here."""
    return value


@cache
def hierarchy(ca: str = "platform", fmspc: bytes = FMSPC, name: str = "") -> Hierarchy:
    """A hierarchy, minted once per test run for each set of arguments; ``name`` tells otherwise equal ones apart."""
    return mint_hierarchy(new_platform(fmspc, ca, entropy=ENTROPY), at=ISSUED, entropy=ENTROPY)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key that nobody vouches for."""
    return ENTROPY.ec_key(ec.SECP256R1())


def trust_root(of: Hierarchy, origin: Origin = Origin.SIMULATED) -> TrustRoot:
    """The root of a hierarchy as something to trust."""
    spki = of.root.certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return TrustRoot("forged", hashlib.sha256(spki).digest(), origin)


def sgx_report(*, debug: bool = False) -> SgxReport:
    """The report of an enclave."""
    report = quotes.sgx_report(REPORT_DATA, mrenclave=MRENCLAVE, mrsigner=MRSIGNER, isv_prod_id=3, isv_svn=2)
    return replace(report, attributes=set_bit(report.attributes, quotes.DEBUG) if debug else report.attributes)


def td_report(*, version_15: bool = False, debug: bool = False) -> TdReport:
    """The report of a TD, 1.0 or 1.5, on the current module."""
    return TdReport(
        tee_tcb_svn=quotes.TEE_TCB_SVN,
        mrseam=hashlib.sha384(b"module").digest(),
        mrsignerseam=bytes(48),
        seam_attributes=bytes(8),
        td_attributes=set_bit(quotes.TD_ATTRIBUTES, 1) if debug else quotes.TD_ATTRIBUTES,
        xfam=quotes.XFAM,
        mrtd=hashlib.sha384(b"td").digest(),
        mrconfigid=bytes(48),
        mrowner=bytes(48),
        mrownerconfig=bytes(48),
        rtmrs=(bytes([1]) * 48, bytes([2]) * 48, bytes([3]) * 48, bytes(48)),
        report_data=REPORT_DATA,
        tee_tcb_svn2=quotes.TEE_TCB_SVN if version_15 else None,
        mrservicetd=bytes(48) if version_15 else None,
    )


def set_bit(attributes: bytes, bit: int) -> bytes:
    """Attributes with a bit of the first byte set."""
    return bytes((attributes[0] | bit,)) + attributes[1:]


def forge(
    report: SgxReport | TdReport | None = None,
    *,
    of: Hierarchy | None = None,
    version: int | None = None,
    at: datetime = AT,
    issued: datetime = ISSUED,
    status: TcbStatus = TcbStatus.UP_TO_DATE,
    qe_report: Callable[[SgxReport], SgxReport] = same,
    tcb_info: Callable[[TcbInfo], TcbInfo] = same,
    qe_identity: Callable[[QeIdentity], QeIdentity] = same,
    parts: Callable[[quotes.QuoteParts], quotes.QuoteParts] = same,
    collateral: Callable[[Collateral], Collateral] = same,
    collateral_of: Hierarchy | None = None,
    revoked_by_root: Iterable[int] = (),
    revoked_by_pck_ca: Iterable[int] = (),
    trusted: Hierarchy | None = None,
) -> Evidence:
    """Evidence that is good except for what the arguments exchange.

    ``qe_report``, ``tcb_info`` and ``qe_identity`` are applied before signing, ``parts`` and ``collateral`` after;
    ``collateral_of`` signs the collateral with another hierarchy, ``trusted`` is the one the verifier trusts.
    """
    of = of or hierarchy()
    report = report or sgx_report()
    tee = Tee.TDX if isinstance(report, TdReport) else Tee.SGX
    signing = collateral_of or of
    published = publish(
        signing,
        tcb_info(current_tcb_info(signing, tee, issued=issued, status=status)),
        qe_identity(current_qe_identity(tee, issued=issued)),
        revoked_by_root=revoked_by_root,
        revoked_by_pck_ca=revoked_by_pck_ca,
    )
    key = new_key()
    qe = quotes.certify(of, key, qe_report(quotes.qe_report(tee, key)))
    if version is None:
        version = 3 if tee is Tee.SGX else 5 if isinstance(report, TdReport) and report.tee_tcb_svn2 else 4
    made = parts(quotes.quote(of, qe, report, version=version))
    root = trusted or of
    return Evidence(made.encode(), collateral(published), trust_root(root), root.root_der, of, at)
