"""May this evidence join as this package, on this platform? Every mismatch is gathered; empty policies admit nobody.

Claims that reach this module are authentic; here they are judged (protocol, sections 4.3 and 4.4).
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from marblerun.attestation.model import Claims, Origin, SgxReport, TcbStatus, Verdict
from marblerun.errors import Denied
from marblerun.manifest.model import Infrastructure, Package

DEFAULT_TCB_STATUSES = (TcbStatus.SW_HARDENING_NEEDED,)
"""Accepted beside ``UpToDate`` where a package lists none (protocol, section 4.3)."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One thing that did not fit: where in the manifest, what it asks for, what the evidence says."""

    path: str
    expected: str
    actual: str

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, evidence says {self.actual}"


@dataclass(frozen=True, slots=True)
class Admission:
    """Which origins of evidence this Coordinator admits at all; the default admits hardware only."""

    origins: frozenset[Origin] = field(default_factory=lambda: frozenset({Origin.HARDWARE}))


def require_admitted(
    verdict: Verdict,
    package_name: str,
    package: Package,
    infrastructures: Mapping[str, Infrastructure],
    admission: Admission,
) -> None:
    """Raise Denied, naming every mismatch, unless the evidence may join as this package.

    A peer without evidence (``Unattested``) is admitted only where the origin ``none`` is, and then nothing can be
    compared: that is what the reference's simulation mode means (protocol, section 4.5).
    """
    if verdict.origin not in admission.origins:
        raise Denied(
            "marble verification failed",
            mismatches=(f"evidence of origin {verdict.origin.value!r} is not admitted by this Coordinator",),
        )
    if not isinstance(verdict, Claims):
        return
    mismatches = [
        *_judge_package(verdict, f"Packages.{package_name}", package),
        *_judge_infrastructures(verdict, infrastructures),
    ]
    if mismatches:
        raise Denied("marble verification failed", mismatches=tuple(str(mismatch) for mismatch in mismatches))


def _judge_package(claims: Claims, path: str, package: Package) -> list[Mismatch]:
    """Compare evidence with a package (protocol, section 4.4), TCB standing included (4.3)."""
    if not isinstance(claims.report, SgxReport):
        return [Mismatch(path, "an SGX enclave", f"a {claims.tee.value.upper()} report")]
    report = claims.report
    found: list[Mismatch] = []
    if not (package.unique_id or package.signer_id or package.product_id is not None or package.debug):
        # A production package that states nothing cannot pass the manifest's checks; refuse it here too.
        found.append(Mismatch(path, "an identity", "a package that states none"))
    if package.debug != report.debug:
        found.append(Mismatch(f"{path}.Debug", str(package.debug).lower(), str(report.debug).lower()))
    if package.unique_id and not _hex_matches(package.unique_id, report.mrenclave):
        found.append(Mismatch(f"{path}.UniqueID", package.unique_id.lower(), report.mrenclave.hex()))
    if package.signer_id and not _hex_matches(package.signer_id, report.mrsigner):
        found.append(Mismatch(f"{path}.SignerID", package.signer_id.lower(), report.mrsigner.hex()))
    if package.product_id is not None and package.product_id != report.isv_prod_id:
        found.append(Mismatch(f"{path}.ProductID", str(package.product_id), str(report.isv_prod_id)))
    if package.security_version is not None and report.isv_svn < package.security_version:
        found.append(Mismatch(f"{path}.SecurityVersion", f"at least {package.security_version}", str(report.isv_svn)))
    found += judge_tcb(claims, path, package.accepted_tcb_statuses, package.accepted_advisories)
    return found


def judge_tcb(
    claims: Claims, path: str, accepted_statuses: tuple[str, ...], accepted_advisories: tuple[str, ...]
) -> list[Mismatch]:
    """Compare the platform's standing with what is accepted (protocol, section 4.3, points 2 and 3).

    ``UpToDate`` always passes and ``Revoked`` never does. An empty list of statuses means the default, an empty list
    of advisories accepts all: both as the reference has it. Status names are compared exactly, advisories ignoring
    case, and advisories only count where the status is ``SWHardeningNeeded``.
    """
    status = claims.tcb_status
    accepted = accepted_statuses or DEFAULT_TCB_STATUSES
    if status is TcbStatus.UP_TO_DATE:
        return []
    if status in (TcbStatus.REVOKED, TcbStatus.UNKNOWN) or status not in accepted:
        wanted = " or ".join(dict.fromkeys(("UpToDate", *accepted)))
        return [Mismatch(f"{path}.AcceptedTCBStatuses", wanted, status.value)]
    if status is TcbStatus.SW_HARDENING_NEEDED and accepted_advisories:
        known = {advisory.casefold() for advisory in accepted_advisories}
        open_advisories = [advisory for advisory in claims.advisories if advisory.casefold() not in known]
        if open_advisories:
            wanted = ", ".join(accepted_advisories)
            return [Mismatch(f"{path}.AcceptedAdvisories", wanted, ", ".join(open_advisories))]
    return []


def _judge_infrastructures(claims: Claims, infrastructures: Mapping[str, Infrastructure]) -> list[Mismatch]:
    """No infrastructures: no rule. Otherwise the platform must satisfy at least one of them."""
    if not infrastructures:
        return []
    found: list[Mismatch] = []
    for name in sorted(infrastructures):
        mismatches = _judge_infrastructure(claims, f"Infrastructures.{name}", infrastructures[name])
        if not mismatches:
            return []
        found += mismatches
    return found


def _judge_infrastructure(claims: Claims, path: str, infrastructure: Infrastructure) -> list[Mismatch]:
    platform = claims.platform
    found: list[Mismatch] = []
    wanted = infrastructure.cpu_svn
    if wanted and (len(wanted) != 16 or any(has < want for has, want in zip(platform.cpu_svns, wanted, strict=False))):
        found.append(Mismatch(f"{path}.CPUSVN", f"at least {wanted.hex()}", platform.cpu_svns.hex()))
    if infrastructure.qe_svn is not None and claims.qe_svn < infrastructure.qe_svn:
        found.append(Mismatch(f"{path}.QESVN", f"at least {infrastructure.qe_svn}", str(claims.qe_svn)))
    if infrastructure.pce_svn is not None and platform.pce_svn < infrastructure.pce_svn:
        found.append(Mismatch(f"{path}.PCESVN", f"at least {infrastructure.pce_svn}", str(platform.pce_svn)))
    if infrastructure.root_ca and not _is_root(infrastructure.root_ca, claims):
        found.append(Mismatch(f"{path}.RootCA", "another root of trust", claims.root))
    return found


def _is_root(root_ca: bytes, claims: Claims) -> bool:
    """Whether ``root_ca`` (certificate in DER or PEM) has the key that vouched; the key counts, not the certificate."""
    try:
        load = (
            x509.load_pem_x509_certificate if root_ca.lstrip().startswith(b"-----") else x509.load_der_x509_certificate
        )
        key = load(root_ca).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hmac.compare_digest(hashlib.sha256(spki).digest(), claims.root_spki_sha256)


def _hex_matches(expected: str, actual: bytes) -> bool:
    """Equal as hex text ignoring case, in constant time; anything that is not that hex text is not equal."""
    return hmac.compare_digest(expected.lower().encode("utf-8", "replace"), actual.hex().encode("ascii"))
