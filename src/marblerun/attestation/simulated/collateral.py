"""The signed statements a provisioning service publishes: TCB Info, QE identity and CRLs, made on demand.

Dates are the caller's: the same platform can speak for any time, so a platform kept on disk never goes stale.

Source: formats, sections 4.1, 4.2, 4.3 and 6; Intel PCS API version 4.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from marblerun.attestation.model import Collateral, TcbStatus, Tee
from marblerun.attestation.simulated.hierarchy import Hierarchy, Signer, sign

NEXT_UPDATE: Final = timedelta(days=30)
"""How long TCB Info, identities and PCK CRLs live. Source: formats, section 4."""
ROOT_CRL_NEXT_UPDATE: Final = timedelta(days=365)
EVALUATION_NUMBER: Final = 17
LEVEL_DATE: Final = datetime(2025, 11, 12, tzinfo=UTC)
TDX_MODULE_MRSIGNER: Final = bytes(48)
"""All zero: Intel's own modules. Source: formats, section 2.3."""

QE_MRSIGNER: Final = bytes.fromhex("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff")
TD_QE_MRSIGNER: Final = bytes.fromhex("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5")
QE_SVN: Final = 8
"""The current level of the identities minted here."""


@dataclass(frozen=True, slots=True)
class TcbLevel:
    """One row of a TCB Info: the SVNs a platform must reach and what it is worth then."""

    components: bytes
    """16 SGX component SVNs."""
    pce_svn: int
    status: TcbStatus | str = TcbStatus.UP_TO_DATE
    advisories: tuple[str, ...] = ()
    date: datetime = LEVEL_DATE
    tdx_components: bytes | None = None
    """16 TDX component SVNs, in a TDX TCB Info only."""


@dataclass(frozen=True, slots=True)
class IsvLevel:
    """One row of an enclave or module identity: the ISVSVN to reach and what it is worth then."""

    isv_svn: int
    status: TcbStatus | str = TcbStatus.UP_TO_DATE
    advisories: tuple[str, ...] = ()
    date: datetime = LEVEL_DATE


@dataclass(frozen=True, slots=True)
class ModuleIdentity:
    """A TDX module's identity, ``TDX_`` and its version in two hex digits."""

    version: int
    levels: tuple[IsvLevel, ...]
    mrsigner: bytes = TDX_MODULE_MRSIGNER


@dataclass(frozen=True, slots=True)
class TcbInfo:
    """What a TCB Info says, before it is text."""

    tee: Tee
    fmspc: bytes
    levels: tuple[TcbLevel, ...]
    issued: datetime
    next_update: datetime
    pce_id: bytes = b"\x00\x00"
    evaluation_number: int = EVALUATION_NUMBER
    modules: tuple[ModuleIdentity, ...] = ()

    def text(self) -> str:
        """The JSON text to be signed, keys in Intel's order, without whitespace. Source: formats, section 4.1."""
        document: dict[str, Any] = {
            "id": self.tee.value.upper(),
            "version": 3,
            "issueDate": _rfc3339(self.issued),
            "nextUpdate": _rfc3339(self.next_update),
            "fmspc": self.fmspc.hex().upper(),
            "pceId": self.pce_id.hex(),
            "tcbType": 0,
            "tcbEvaluationDataNumber": self.evaluation_number,
        }
        if self.tee is Tee.TDX:
            document["tdxModule"] = _module(TDX_MODULE_MRSIGNER)
            document["tdxModuleIdentities"] = [
                {"id": f"TDX_{module.version:02X}"}
                | _module(module.mrsigner)
                | {"tcbLevels": [_isv_level(level) for level in module.levels]}
                for module in self.modules
            ]
        document["tcbLevels"] = [_tcb_level(level) for level in self.levels]
        return _compact(document)


@dataclass(frozen=True, slots=True)
class QeIdentity:
    """What a quoting enclave's identity says, before it is text."""

    tee: Tee
    levels: tuple[IsvLevel, ...]
    issued: datetime
    next_update: datetime
    mrsigner: bytes
    isv_prod_id: int
    evaluation_number: int = EVALUATION_NUMBER
    attributes: bytes = field(default=bytes.fromhex("11000000000000000000000000000000"))
    attributes_mask: bytes = field(default=bytes.fromhex("FBFFFFFFFFFFFFFF0000000000000000"))

    def text(self) -> str:
        """The JSON text to be signed. Source: formats, section 4.2."""
        return _compact(
            {
                "id": "TD_QE" if self.tee is Tee.TDX else "QE",
                "version": 2,
                "issueDate": _rfc3339(self.issued),
                "nextUpdate": _rfc3339(self.next_update),
                "tcbEvaluationDataNumber": self.evaluation_number,
                "miscselect": "00000000",
                "miscselectMask": "FFFFFFFF",
                "attributes": self.attributes.hex().upper(),
                "attributesMask": self.attributes_mask.hex().upper(),
                "mrsigner": self.mrsigner.hex().upper(),
                "isvprodid": self.isv_prod_id,
                "tcbLevels": [_isv_level(level) for level in self.levels],
            }
        )


def current_tcb_info(
    hierarchy: Hierarchy,
    tee: Tee,
    *,
    issued: datetime,
    status: TcbStatus | str = TcbStatus.UP_TO_DATE,
    advisories: tuple[str, ...] = (),
) -> TcbInfo:
    """A TCB Info whose first level is met exactly by the hierarchy's platform and has ``status``."""
    platform = hierarchy.platform
    tdx = tee is Tee.TDX
    older = bytes(svn // 2 for svn in platform.cpu_svns)
    return TcbInfo(
        tee=tee,
        fmspc=platform.fmspc,
        pce_id=platform.pce_id,
        issued=issued,
        next_update=issued + NEXT_UPDATE,
        levels=(
            TcbLevel(
                platform.cpu_svns,
                platform.pce_svn,
                status,
                advisories,
                tdx_components=bytes((5, 0, 2, *bytes(13))) if tdx else None,
            ),
            TcbLevel(
                older,
                platform.pce_svn // 2,
                TcbStatus.OUT_OF_DATE,
                ("INTEL-SA-00000",),
                LEVEL_DATE - timedelta(days=730),
                bytes(16) if tdx else None,
            ),
        ),
        modules=(ModuleIdentity(1, (IsvLevel(5), IsvLevel(2, TcbStatus.OUT_OF_DATE))),) if tdx else (),
    )


def current_qe_identity(tee: Tee, *, issued: datetime) -> QeIdentity:
    """The identity that the quoting enclaves of ``simulated.quotes`` meet at its first level."""
    tdx = tee is Tee.TDX
    return QeIdentity(
        tee=tee,
        levels=(
            IsvLevel(QE_SVN),
            IsvLevel(QE_SVN - 2, TcbStatus.OUT_OF_DATE, ("INTEL-SA-00615",), LEVEL_DATE - timedelta(days=730)),
        ),
        issued=issued,
        next_update=issued + NEXT_UPDATE,
        mrsigner=TD_QE_MRSIGNER if tdx else QE_MRSIGNER,
        isv_prod_id=2 if tdx else 1,
    )


def crl(issuer: Signer, revoked: Iterable[int] = (), *, issued: datetime, next_update: datetime) -> bytes:
    """A CRL in DER, signed by ``issuer``, listing serial numbers as compromised. Source: formats, section 6."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(issued)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(1), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.certificate.public_key()),  # type: ignore[arg-type]  # always EC here
            critical=False,
        )
    )
    for serial in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(issued)
        entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def publish(
    hierarchy: Hierarchy,
    tcb_info: TcbInfo,
    qe_identity: QeIdentity,
    *,
    revoked_by_root: Iterable[int] = (),
    revoked_by_pck_ca: Iterable[int] = (),
) -> Collateral:
    """Sign everything and put it together; the CRLs are issued with the TCB Info."""
    issued = tcb_info.issued
    tcb_text, qe_text = tcb_info.text(), qe_identity.text()
    return Collateral(
        pck_crl_issuer_chain=hierarchy.pck_crl_issuer_chain,
        root_ca_crl=crl(hierarchy.root, revoked_by_root, issued=issued, next_update=issued + ROOT_CRL_NEXT_UPDATE),
        pck_crl=crl(hierarchy.pck_ca, revoked_by_pck_ca, issued=issued, next_update=issued + NEXT_UPDATE),
        tcb_info_issuer_chain=hierarchy.tcb_signer_chain,
        tcb_info=tcb_text,
        tcb_info_signature=sign(hierarchy.tcb_signer.key, tcb_text.encode()),
        qe_identity_issuer_chain=hierarchy.tcb_signer_chain,
        qe_identity=qe_text,
        qe_identity_signature=sign(hierarchy.tcb_signer.key, qe_text.encode()),
    )


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _compact(document: dict[str, Any]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _module(mrsigner: bytes) -> dict[str, Any]:
    return {"mrsigner": mrsigner.hex().upper(), "attributes": "00" * 8, "attributesMask": "FF" * 8}


def _level_end(level: TcbLevel | IsvLevel) -> dict[str, Any]:
    # Intel leaves advisoryIDs out where there are none.
    advisories = {"advisoryIDs": list(level.advisories)} if level.advisories else {}
    return {"tcbDate": _rfc3339(level.date), "tcbStatus": str(level.status)} | advisories


def _isv_level(level: IsvLevel) -> dict[str, Any]:
    return {"tcb": {"isvsvn": level.isv_svn}} | _level_end(level)


def _tcb_level(level: TcbLevel) -> dict[str, Any]:
    tcb: dict[str, Any] = {"sgxtcbcomponents": [{"svn": svn} for svn in level.components], "pcesvn": level.pce_svn}
    if level.tdx_components is not None:
        tcb["tdxtcbcomponents"] = [{"svn": svn} for svn in level.tdx_components]
    return {"tcb": tcb} | _level_end(level)
