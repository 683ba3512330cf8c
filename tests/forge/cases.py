"""The catalogue: each way in which evidence can be wrong, and the step at which a verifier must find it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from hashlib import sha256
from typing import Final

from cryptography import x509
from tests.forge.evidence import (
    AT,
    ENTROPY,
    FMSPC,
    ISSUED,
    OTHER_FMSPC,
    Evidence,
    forge,
    hierarchy,
    new_key,
    set_bit,
    sgx_report,
    td_report,
)

from marblerun.attestation.model import Collateral, TcbStatus
from marblerun.attestation.simulated import quotes
from marblerun.attestation.simulated.collateral import IsvLevel, ModuleIdentity, QeIdentity, TcbInfo, crl
from marblerun.attestation.simulated.hierarchy import (
    CRL_HOST,
    Hierarchy,
    Names,
    Role,
    Signer,
    issue_certificate,
    mint_hierarchy,
    new_platform,
    new_serial,
    public_point,
    sgx_extension,
    sign,
)


@dataclass(frozen=True, slots=True)
class Good:
    """Genuine evidence and the status it must get."""

    name: str
    build: Callable[[], Evidence]
    status: TcbStatus = TcbStatus.UP_TO_DATE


@dataclass(frozen=True, slots=True)
class Bad:
    """Evidence to be refused, the step of our verifier that must refuse it, and the class of failure."""

    name: str
    build: Callable[[], Evidence]
    step: str
    reason: str
    known_to_dcap_qvl: bool = True
    """Whether dcap-qvl 0.7.0 refuses it too; formats, section 7 lists what it leaves out."""


def _levels(info: TcbInfo, **changes: object) -> TcbInfo:
    """Every platform level with the same change."""
    return replace(info, levels=tuple(replace(level, **changes) for level in info.levels))  # type: ignore[arg-type]  # test code


def _qe_levels(*levels: IsvLevel) -> Callable[[QeIdentity], QeIdentity]:
    return lambda identity: replace(identity, levels=levels)


def _modules(*modules: ModuleIdentity) -> Callable[[TcbInfo], TcbInfo]:
    return lambda info: replace(info, modules=modules)


def _text(change: Callable[[Collateral], tuple[str, str]]) -> Callable[[Collateral], Collateral]:
    """Edit TCB Info without signing it again."""

    def edit(collateral: Collateral) -> Collateral:
        old, new = change(collateral)
        assert old in collateral.tcb_info
        return replace(collateral, tcb_info=collateral.tcb_info.replace(old, new, 1))

    return edit


def _reissued(of: Hierarchy, role: Role, name: str, *, valid: tuple[timedelta, timedelta] | None = None) -> Signer:
    """The certificate of ``role`` issued again for the same key, under another name or for another time."""
    old = {"root": of.root, "pck-ca": of.pck_ca, "pck": of.pck, "tcb-signer": of.tcb_signer}[role]
    issuer = {"root": None, "pck-ca": of.root, "pck": of.pck_ca, "tcb-signer": of.root}[role]
    before, after = valid or (timedelta(days=-1), timedelta(days=365))
    return issue_certificate(
        role,
        Names().subject(name),
        old.key,
        issuer,
        valid=(AT + before, AT + after),
        serial=new_serial(ENTROPY),
        crl_url=f"{CRL_HOST}/root-ca.crl",
        extension=sgx_extension(of.platform) if role == "pck" else None,
    )


def _expired_tcb_signer() -> Evidence:
    of = hierarchy(name="expired tcb signer")
    signer = _reissued(of, "tcb-signer", Names().tcb_signer, valid=(timedelta(days=-400), timedelta(days=-1)))
    return forge(of=replace(of, tcb_signer=signer))


def _expired_pck() -> Evidence:
    of = hierarchy(name="expired pck")
    pck = _reissued(of, "pck", Names().pck, valid=(timedelta(days=-400), timedelta(days=-1)))
    return forge(of=replace(of, pck=pck))


def _pck_signs_collateral() -> Evidence:
    """A PCK key in the place of the TCB signer: rightly certified, for something else."""
    of = hierarchy()
    impostor = replace(of, tcb_signer=of.pck)
    chain = of.pck_ca.pem + of.root.pem

    def with_ca(collateral: Collateral) -> Collateral:
        return replace(
            collateral, tcb_info_issuer_chain=of.pck.pem + chain, qe_identity_issuer_chain=of.pck.pem + chain
        )

    return forge(of=of, collateral_of=impostor, collateral=with_ca)


def _misnamed_tcb_signer() -> Evidence:
    of = hierarchy(name="misnamed tcb signer")
    return forge(of=replace(of, tcb_signer=_reissued(of, "tcb-signer", "Simulated SGX Something Else")))


def _other_root_same_names() -> Evidence:
    """All of it minted again by somebody else, names included."""
    return forge(of=hierarchy(name="impostor"), trusted=hierarchy())


def _pck_key_of_other(parts: quotes.QuoteParts) -> quotes.QuoteParts:
    return replace(parts, qe_report_signature=sign(new_key(), parts.qe_report))


def _unbound_key(parts: quotes.QuoteParts) -> quotes.QuoteParts:
    """The QE vouched for one key; the quote is signed, rightly, with another."""
    key = new_key()
    return replace(parts, attestation_key=public_point(key), quote_signature=sign(key, parts.signed))


def _off_curve_bound() -> Evidence:
    """A QE that vouches for something that is no key."""
    bad = bytes(63) + b"\x01"

    digest = sha256(bad + quotes.QE_AUTHENTICATION_DATA).digest() + bytes(32)
    return forge(
        qe_report=lambda report: replace(report, report_data=digest), parts=lambda p: replace(p, attestation_key=bad)
    )


def _forged_qe_report(parts: quotes.QuoteParts) -> quotes.QuoteParts:
    """Our own enclave's measurement in place of the QE's, the old signature kept."""
    return replace(parts, qe_report=parts.qe_report[:64] + b"\x66" * 32 + parts.qe_report[96:])


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def _foreign_root_crl(collateral: Collateral) -> Collateral:
    other = hierarchy(name="impostor")
    list_ = crl(other.root, issued=ISSUED, next_update=ISSUED + timedelta(days=30))
    return replace(collateral, root_ca_crl=list_)


def _pck_crl_of_other_ca() -> Evidence:
    """A fresh, genuine CRL: of the other PCK CA under the same root."""
    of = hierarchy()
    sibling = _processor_ca_under(of)
    list_ = crl(sibling, issued=ISSUED, next_update=ISSUED + timedelta(days=30))
    return forge(of=of, collateral=lambda c: replace(c, pck_crl=list_, pck_crl_issuer_chain=sibling.pem + of.root.pem))


def _processor_ca_under(of: Hierarchy) -> Signer:
    return issue_certificate(
        "pck-ca",
        Names().subject(Names().pck_ca.format(ca="Processor")),
        new_key(),
        of.root,
        valid=(ISSUED, AT + timedelta(days=365)),
        serial=new_serial(ENTROPY),
        crl_url=f"{CRL_HOST}/root-ca.crl",
    )


def _stale_crl(signer: Signer) -> bytes:
    return crl(signer, issued=AT - timedelta(days=60), next_update=AT - timedelta(days=1))


def _serial(signer: Signer) -> int:
    certificate: x509.Certificate = signer.certificate
    return certificate.serial_number


def _platform_with(**changes: object) -> Hierarchy:
    platform = replace(new_platform(FMSPC, "platform", entropy=ENTROPY), **changes)  # type: ignore[arg-type]  # test code
    return mint_hierarchy(platform, at=ISSUED, entropy=ENTROPY)


_OTHER_SIGNER: Final = b"\x99" * 32
_OUT_OF_DATE_TD = replace(td_report(version_15=True), tee_tcb_svn=bytes((3, 1, 2, *bytes(13))))

GOOD: Final = (
    Good("sgx, platform CA", forge),
    Good("sgx, processor CA", lambda: forge(of=hierarchy("processor"))),
    Good("sgx, debug enclave", lambda: forge(sgx_report(debug=True))),
    Good("tdx 1.0 in version 4", lambda: forge(td_report())),
    Good("tdx 1.0 in version 5", lambda: forge(td_report(), version=5)),
    Good("tdx 1.5 in version 5", lambda: forge(td_report(version_15=True))),
    *(
        Good(f"sgx, {status}", lambda status=status: forge(status=status), status)  # type: ignore[misc]  # bound early
        for status in (
            TcbStatus.SW_HARDENING_NEEDED,
            TcbStatus.CONFIGURATION_NEEDED,
            TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
            TcbStatus.OUT_OF_DATE,
            TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
        )
    ),
    Good(
        "qe out of date pulls the platform down",
        lambda: forge(qe_report=lambda report: replace(report, isv_svn=6)),
        TcbStatus.OUT_OF_DATE,
    ),
    Good(
        "qe out of date on a platform that needs configuration",
        lambda: forge(status=TcbStatus.CONFIGURATION_NEEDED, qe_report=lambda report: replace(report, isv_svn=6)),
        TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
    ),
    Good(
        "platform at an older level",
        lambda: forge(tcb_info=lambda i: replace(i, levels=(replace(i.levels[0], pce_svn=14), *i.levels[1:]))),
        TcbStatus.OUT_OF_DATE,
    ),
    Good(
        "tdx module out of date",
        lambda: forge(replace(td_report(), tee_tcb_svn=bytes((3, 1, 2, *bytes(13))))),
        TcbStatus.OUT_OF_DATE,
    ),
    Good("td started before the module was updated", lambda: forge(_OUT_OF_DATE_TD), TcbStatus.TD_RELAUNCH_ADVISED),
    Good(
        "chain in another order",
        lambda: forge(
            parts=lambda p: replace(
                p,
                certification_data=(hierarchy().pck.pem + hierarchy().root.pem + hierarchy().pck_ca.pem).encode(),
            )
        ),
    ),
)

BAD: Final = (
    # 3. root
    Bad("other root, same names", _other_root_same_names, "tcb-signer", "unknown-root"),
    Bad(
        "collateral of another root",
        lambda: forge(collateral_of=hierarchy(name="impostor")),
        "tcb-signer",
        "unknown-root",
    ),
    Bad(
        "quote of another root",
        lambda: forge(of=hierarchy(name="impostor"), collateral_of=hierarchy(), trusted=hierarchy()),
        "pck-chain",
        "unknown-root",
    ),
    Bad("root CRL missing", lambda: forge(collateral=lambda c: replace(c, root_ca_crl=b"")), "root-crl", "missing"),
    Bad("root CRL of another root", lambda: forge(collateral=_foreign_root_crl), "root-crl", "bad-signature"),
    Bad(
        "root CRL stale",
        lambda: forge(collateral=lambda c: replace(c, root_ca_crl=_stale_crl(hierarchy().root))),
        "root-crl",
        "expired",
    ),
    # 4. TCB signer and what it signs
    Bad(
        "revoked TCB signer",
        lambda: forge(revoked_by_root=[_serial(hierarchy().tcb_signer)]),
        "root-crl",
        "revoked",
    ),
    Bad("expired TCB signer", _expired_tcb_signer, "tcb-signer", "expired"),
    Bad("TCB signer of another name", _misnamed_tcb_signer, "tcb-signer", "mismatch", known_to_dcap_qvl=False),
    Bad("PCK certificate as TCB signer", _pck_signs_collateral, "tcb-signer", "mismatch", known_to_dcap_qvl=False),
    Bad(
        "TCB Info edited",
        lambda: forge(status=TcbStatus.OUT_OF_DATE, collateral=_text(lambda _: ("OutOfDate", "UpToDate"))),
        "tcb-info",
        "bad-signature",
    ),
    Bad(
        "TCB Info signature flipped",
        lambda: forge(collateral=lambda c: replace(c, tcb_info_signature=_flip(c.tcb_info_signature, 63))),
        "tcb-info",
        "bad-signature",
    ),
    Bad(
        "QE identity signature flipped",
        lambda: forge(collateral=lambda c: replace(c, qe_identity_signature=_flip(c.qe_identity_signature, 63))),
        "qe-identity",
        "bad-signature",
    ),
    Bad(
        "stale TCB Info",
        lambda: forge(
            tcb_info=lambda i: replace(i, next_update=AT - timedelta(seconds=1)),
        ),
        "tcb-info",
        "expired",
    ),
    Bad(
        "stale QE identity",
        lambda: forge(qe_identity=lambda i: replace(i, next_update=AT - timedelta(seconds=1))),
        "qe-identity",
        "expired",
    ),
    Bad(
        "QE identity of the future",
        lambda: forge(qe_identity=lambda i: replace(i, issued=AT + timedelta(seconds=1))),
        "qe-identity",
        "not-yet-valid",
    ),
    # 5. PCK chain
    Bad("revoked PCK", lambda: forge(revoked_by_pck_ca=[_serial(hierarchy().pck)]), "pck-crl", "revoked"),
    Bad("revoked PCK CA", lambda: forge(revoked_by_root=[_serial(hierarchy().pck_ca)]), "root-crl", "revoked"),
    Bad("expired PCK", _expired_pck, "pck-chain", "expired"),
    Bad(
        "PCK CRL stale",
        lambda: forge(collateral=lambda c: replace(c, pck_crl=_stale_crl(hierarchy().pck_ca))),
        "pck-crl",
        "expired",
    ),
    Bad("PCK CRL of the other CA", _pck_crl_of_other_ca, "pck-crl", "mismatch"),
    Bad("PCK CRL missing", lambda: forge(collateral=lambda c: replace(c, pck_crl=b"")), "pck-crl", "missing"),
    # 6. the collateral is about this platform
    Bad("other FMSPC", lambda: forge(tcb_info=lambda i: replace(i, fmspc=OTHER_FMSPC)), "collateral-match", "mismatch"),
    Bad(
        "other PCEID",
        lambda: forge(tcb_info=lambda i: replace(i, pce_id=b"\x01\x00")),
        "collateral-match",
        "mismatch",
        known_to_dcap_qvl=False,
    ),
    Bad(
        "TDX collateral for an SGX quote",
        lambda: replace(forge(td_report()), quote=forge().quote),
        "collateral-match",
        "mismatch",
    ),
    # 7, 8. QE report
    Bad(
        "QE report signed by another key",
        lambda: forge(parts=_pck_key_of_other),
        "qe-report-signature",
        "bad-signature",
    ),
    Bad("forged QE report", lambda: forge(parts=_forged_qe_report), "qe-report-signature", "bad-signature"),
    Bad("attestation key not bound", lambda: forge(parts=_unbound_key), "qe-report-data", "mismatch"),
    Bad(
        "second half of the QE report data not zero",
        lambda: forge(qe_report=lambda r: replace(r, report_data=r.report_data[:63] + b"\x01")),
        "qe-report-data",
        "mismatch",
        known_to_dcap_qvl=False,
    ),
    # 9. QE identity
    Bad(
        "QE of another signer",
        lambda: forge(qe_report=lambda r: replace(r, mrsigner=_OTHER_SIGNER)),
        "qe-match",
        "mismatch",
    ),
    Bad("QE of another product", lambda: forge(qe_report=lambda r: replace(r, isv_prod_id=9)), "qe-match", "mismatch"),
    Bad(
        "debug QE",
        lambda: forge(qe_report=lambda r: replace(r, attributes=set_bit(r.attributes, quotes.DEBUG))),
        "qe-match",
        "debug",
    ),
    Bad(
        "QE with other MISCSELECT",
        lambda: forge(qe_report=lambda r: replace(r, miscselect=b"\x01\0\0\0")),
        "qe-match",
        "mismatch",
    ),
    Bad("QE below all levels", lambda: forge(qe_report=lambda r: replace(r, isv_svn=1)), "qe-level", "not-supported"),
    Bad(
        "QE level revoked",
        lambda: forge(qe_identity=_qe_levels(IsvLevel(8, TcbStatus.REVOKED))),
        "qe-level",
        "revoked",
    ),
    # 10. quote signature
    Bad("attestation key off the curve", _off_curve_bound, "attestation-key", "bad-key"),
    Bad(
        "quote signature flipped",
        lambda: forge(parts=lambda p: replace(p, quote_signature=_flip(p.quote_signature, 63))),
        "quote-signature",
        "bad-signature",
    ),
    Bad(
        "measurement exchanged",
        lambda: forge(parts=lambda p: replace(p, body=_flip(p.body, 64))),
        "quote-signature",
        "bad-signature",
    ),
    Bad(
        "tdx, RTMR exchanged",
        lambda: forge(td_report(), parts=lambda p: replace(p, body=_flip(p.body, 400))),
        "quote-signature",
        "bad-signature",
    ),
    # 11. levels
    Bad(
        "platform below all levels",
        lambda: forge(tcb_info=lambda i: _levels(i, pce_svn=99)),
        "tcb-level",
        "not-supported",
    ),
    Bad("platform TCB revoked", lambda: forge(status=TcbStatus.REVOKED), "tcb-level", "revoked"),
    Bad(
        "one component too low",
        lambda: forge(
            of=_platform_with(cpu_svns=bytes(16)), tcb_info=lambda i: _levels(i, components=b"\x00" * 15 + b"\x01")
        ),
        "tcb-level",
        "not-supported",
    ),
    Bad("unknown TDX module", lambda: forge(td_report(), tcb_info=_modules()), "tdx-module", "not-supported"),
    Bad(
        "TDX module below all levels",
        lambda: forge(td_report(), tcb_info=_modules(ModuleIdentity(1, (IsvLevel(6),)))),
        "tdx-module",
        "not-supported",
    ),
    Bad(
        "TDX module revoked",
        lambda: forge(td_report(), tcb_info=_modules(ModuleIdentity(1, (IsvLevel(5, TcbStatus.REVOKED),)))),
        "tdx-module",
        "revoked",
    ),
    Bad(
        "TDX module of another signer",
        lambda: forge(replace(td_report(), mrsignerseam=b"\x01" * 48)),
        "tdx-module",
        "mismatch",
    ),
    Bad(
        "SEAM attributes set",
        lambda: forge(replace(td_report(), seam_attributes=b"\x01" + bytes(7))),
        "tdx-module",
        "mismatch",
    ),
    # 12. report
    Bad(
        "TD attribute without a meaning",
        lambda: forge(replace(td_report(), td_attributes=b"\x00\x01\x00\x10" + bytes(4))),
        "report",
        "reserved-bits",
    ),
)
