"""Who may have the key encryption key: which Coordinators are alike enough to share one state.

Both sides of the key exchange judge the other one by what their own evidence says about themselves, with the very rules
for packages. Nobody is compared with an empty expectation. Source: protocol, section 11.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from marblerun.attestation.model import Claims, Origin, SgxReport, TcbStatus, TdReport, Verdict
from marblerun.errors import Denied, Unavailable
from marblerun.manifest.model import Package, TdxIdentity
from marblerun.policy.admission import Admission, judge

_PEER = "Coordinator"


class IdentityUnknown(Unavailable):
    """This Coordinator does not know enough about itself to compare others with it."""

    code = "identity-unknown"


@dataclass(frozen=True, slots=True)
class Identity:
    """What a Coordinator's own evidence says about it; empty, ``None`` and all zero: not known."""

    origin: Origin
    tcb_status: TcbStatus
    debug: bool = False
    unique_id: bytes = b""
    """MRENCLAVE, 32 bytes."""
    signer_id: bytes = b""
    """MRSIGNER, 32 bytes."""
    product_id: int | None = None
    security_version: int | None = None
    td: TdxIdentity | None = None
    """Of a TD, which has none of the four."""

    def require_known(self, *, product: bool) -> None:
        """Raise IdentityUnknown if something is missing that others would be compared with.

        Where the ``product`` counts that is SignerID, ProductID and SecurityVersion, else UniqueID.
        """
        if self.td is not None:
            return
        known = {"UniqueID": any(self.unique_id)}
        if product:
            known = {
                "SignerID": any(self.signer_id),
                "ProductID": self.product_id is not None,
                "SecurityVersion": self.security_version is not None,
            }
        missing = [name for name, is_known in known.items() if not is_known]
        if missing:
            raise IdentityUnknown(f"this Coordinator does not know its own {' and '.join(missing)}")


def identity_of(verdict: Verdict) -> Identity:
    """The identity in verified evidence; IdentityUnknown for a Coordinator that has no evidence."""
    if not isinstance(verdict, Claims):
        raise IdentityUnknown("without evidence there is no key exchange between Coordinators")
    common = Identity(verdict.origin, verdict.tcb_status, verdict.debug)
    report = verdict.report
    if isinstance(report, SgxReport):
        return replace(
            common,
            unique_id=report.mrenclave,
            signer_id=report.mrsigner,
            product_id=report.isv_prod_id,
            security_version=report.isv_svn,
        )
    return replace(common, td=_td(report))


def _td(report: TdReport) -> TdxIdentity:
    """Everything that the TD's program, configuration and owner decide; the machine is judged by its TCB status."""
    one, two, three, four = (value.hex() for value in report.rtmrs)
    return TdxIdentity(
        mrtd=report.mrtd.hex(),
        rtmrs=(one, two, three, four),
        mr_config_id=report.mrconfigid.hex(),
        mr_owner=report.mrowner.hex(),
        mr_owner_config=report.mrownerconfig.hex(),
        mr_service_td=report.mrservicetd.hex() if report.mrservicetd is not None else "",
        td_attributes=report.td_attributes.hex(),
        xfam=report.xfam.hex(),
    )


def require_server_like(own: Identity, verdict: Verdict) -> None:
    """Raise Denied, with every mismatch, unless the key may be taken from this Coordinator.

    Debug, ProductID and SignerID equal, SecurityVersion at least our own, TCB status ``UpToDate`` or our own; UniqueID
    is not compared. Of TDs every measurement is. IdentityUnknown if we cannot say what to compare with.
    """
    _require(own, _package(own, product=True), verdict)


def require_client_like(own: Identity, verdict: Verdict, *, product: bool) -> None:
    """Raise Denied, with every mismatch, unless the key may be given to this Coordinator.

    Where the state is sealed to the ``product`` the same is compared as by :func:`require_server_like`, else UniqueID,
    too. Of TDs every measurement is, in any case. IdentityUnknown if we cannot say what to compare with.
    """
    _require(own, _package(own, product=product), verdict)


def _package(own: Identity, *, product: bool) -> Package:
    own.require_known(product=product)
    return Package(
        debug=own.debug,
        unique_id="" if product else own.unique_id.hex(),
        signer_id=own.signer_id.hex() if any(own.signer_id) else "",
        product_id=own.product_id,
        security_version=own.security_version,
        accepted_tcb_statuses=(own.tcb_status.value,),
        tdx=own.td,
    )


def _require(own: Identity, package: Package, verdict: Verdict) -> None:
    found = tuple(_mismatches(own, package, verdict))
    if found:
        raise Denied("not a Coordinator like this one", mismatches=found)


def _mismatches(own: Identity, package: Package, verdict: Verdict) -> Iterator[str]:
    """Evidence of another origin than our own never fits: no simulated peer gets the key of a real one."""
    prefix = f"Packages.{_PEER}"
    for mismatch in judge(verdict, _PEER, package, {}, Admission(frozenset((own.origin,)))):
        yield str(replace(mismatch, path=mismatch.path.removeprefix(f"{prefix}.")))
