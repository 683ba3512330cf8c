"""May this evidence join as this package, on this platform? Every mismatch is gathered; empty policies admit nobody.

Claims that reach this module are authentic; here they are judged (protocol, sections 4.3 and 4.4). What the reference
does not have (TDs, lists of platforms, evaluation numbers) follows the same rules: what is stated must hold.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from marblerun.attestation.model import Claims, Origin, Platform, SgxReport, TcbStatus, TdReport, Verdict
from marblerun.errors import Denied
from marblerun.manifest.model import Infrastructure, Package, TdxIdentity
from marblerun.manifest.platforms import ATTRIBUTE_BYTES, MEASUREMENT_BYTES, identifier_lists, is_hex, measurements

DEFAULT_TCB_STATUSES = (TcbStatus.SW_HARDENING_NEEDED,)
"""Accepted beside ``UpToDate`` where a package lists none (protocol, section 4.3)."""

ATTRIBUTES_TO_BE_NAMED = {
    16: "ICSSD",
    17: "SERVTD_EXT",
    29: "MIGRATABLE",
    62: "TPA",
    63: "PERFMON",
}
"""TDATTRIBUTES that whoever starts a TD may set without changing any measurement, and that let something out of it or
bind something to it. A TD that has one is admitted only where the package's ``TDAttributes`` has it too. Source:
formats, section 2.3."""
_SERVICE_TD_EXTENDED = 17

_NO_SERVICE_TD = "00" * MEASUREMENT_BYTES
_MAX_SHOWN = 8
_REFUSED = "marble verification failed"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One thing that did not fit: where in the manifest, what it asks for, what the evidence says.

    ``code`` is stable, for metrics and programs.
    """

    path: str
    expected: str
    actual: str
    code: str = "mismatch"
    about_platform: bool = False
    """Whether it tells about the machine and not about the program: then its values are for the operator only."""

    def __str__(self) -> str:
        return f"{self.path}: expected {self.expected}, evidence says {self.actual}"

    @property
    def for_caller(self) -> str:
        """What the peer itself may be told: it cannot be expected to know who owns which machine."""
        return f"{self.path}: the platform does not satisfy it" if self.about_platform else str(self)


class NotAdmitted(Denied):
    """Authentic evidence that may not join.

    ``found`` is everything, for the operator; the message and ``mismatches`` are what the peer may be told.
    """

    def __init__(self, found: tuple[Mismatch, ...]) -> None:
        super().__init__(_REFUSED, mismatches=tuple(mismatch.for_caller for mismatch in found))
        self.found = found


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
    """Raise NotAdmitted (a Denied), with every mismatch, unless the evidence may join as this package."""
    found = judge(verdict, package_name, package, infrastructures, admission)
    if found:
        raise NotAdmitted(found)


def judge(
    verdict: Verdict,
    package_name: str,
    package: Package,
    infrastructures: Mapping[str, Infrastructure],
    admission: Admission,
) -> tuple[Mismatch, ...]:
    """Everything that keeps the evidence from joining as this package; empty if it may.

    A peer without evidence (``Unattested``) is admitted only where the origin ``none`` is, and then nothing can be
    compared: that is what the reference's simulation mode means (protocol, section 4.5).
    """
    if verdict.origin not in admission.origins:
        admitted = " or ".join(sorted(origin.value for origin in admission.origins)) or "nothing"
        return (Mismatch("evidence", f"evidence of origin {admitted}", f"origin {verdict.origin.value}", "origin"),)
    if not isinstance(verdict, Claims):
        return ()
    return (
        *_judge_package(verdict, f"Packages.{package_name}", package),
        *_judge_infrastructures(verdict, infrastructures),
    )


def _judge_package(claims: Claims, path: str, package: Package) -> Iterator[Mismatch]:
    """Compare evidence with a package (protocol, section 4.4), TCB standing included (4.3)."""
    if isinstance(claims.report, SgxReport):
        identity = _judge_enclave(claims.report, path, package)
    else:
        identity = _judge_td(claims.report, path, package)
    if package.debug != claims.debug:
        expected, actual = str(package.debug).lower(), str(claims.debug).lower()
        yield Mismatch(f"{path}.Debug", expected, actual, "debug")
    yield from identity
    yield from judge_tcb(claims, path, package.accepted_tcb_statuses, package.accepted_advisories)


def _judge_enclave(report: SgxReport, path: str, package: Package) -> Iterator[Mismatch]:
    if package.tdx is not None and not package.states_enclave:
        yield Mismatch(path, "a TD", "an SGX enclave", "technology")
        return
    if not (package.unique_id or package.signer_id or package.debug):
        # Anybody's enclave would do. Such a package cannot pass the manifest's checks; refuse it here too.
        yield Mismatch(path, "an identity", "a package that states none", "no-identity")
    if package.unique_id and not _hex_matches(package.unique_id, report.mrenclave):
        yield Mismatch(f"{path}.UniqueID", package.unique_id.lower(), report.mrenclave.hex(), "unique-id")
    if package.signer_id and not _hex_matches(package.signer_id, report.mrsigner):
        yield Mismatch(f"{path}.SignerID", package.signer_id.lower(), report.mrsigner.hex(), "signer-id")
    if package.product_id is not None and package.product_id != report.isv_prod_id:
        yield Mismatch(f"{path}.ProductID", str(package.product_id), str(report.isv_prod_id), "product-id")
    version = package.security_version
    if version is not None and report.isv_svn < version:
        yield Mismatch(f"{path}.SecurityVersion", f"at least {version}", str(report.isv_svn), "security-version")


def _judge_td(report: TdReport, path: str, package: Package) -> Iterator[Mismatch]:
    if package.tdx is None:
        yield Mismatch(path, "an SGX enclave", "a TD", "technology")
        return
    path = f"{path}.TDX"
    if not (package.tdx.mrtd or package.debug):
        yield Mismatch(path, "an identity", "a package that states none", "no-identity")
    yield from judge_td(report, path, package.tdx)


def judge_td(report: TdReport, path: str, tdx: TdxIdentity) -> Iterator[Mismatch]:
    """Compare a TD with what is stated about it; debug mode, and whether an identity is stated, are for the caller."""
    actual = {
        "MRTD": report.mrtd,
        **{f"RTMR{index}": value for index, value in enumerate(report.rtmrs)},
        "MRCONFIGID": report.mrconfigid,
        "MROWNER": report.mrowner,
        "MROWNERCONFIG": report.mrownerconfig,
        "MRSEAM": report.mrseam,
        "MRSERVICETD": report.mrservicetd or bytes(MEASUREMENT_BYTES),
    }
    for key, stated in measurements(tdx):
        # A service TD may copy the TD elsewhere, so there is none unless the package says which.
        expected = stated or (_NO_SERVICE_TD if key == "MRSERVICETD" else "")
        if expected and not _hex_matches(expected, actual[key]):
            yield Mismatch(f"{path}.{key}", expected.lower(), actual[key].hex(), key.lower())
    yield from _judge_bound_service_tds(f"{path}.MRSERVICETD", tdx, report)
    yield from _judge_unnamed_attributes(f"{path}.TDAttributes", tdx, report)
    yield from _judge_bits(f"{path}.TDAttributes", tdx.td_attributes, tdx.td_attributes_mask, report.td_attributes)
    yield from _judge_bits(f"{path}.XFAM", tdx.xfam, tdx.xfam_mask, report.xfam)
    yield from _judge_module(path, tdx, report)


def _judge_bound_service_tds(path: str, tdx: TdxIdentity, report: TdReport) -> Iterator[Mismatch]:
    """Where a TD may be bound to service TDs in the extended manner, those that were and are must be the stated one."""
    extended = report.extended
    if extended is None or not _has_attribute(report.td_attributes, _SERVICE_TD_EXTENDED):
        return
    expected = tdx.mr_service_td or _NO_SERVICE_TD
    for what, value in (("at first", extended.initial_service_td_hash), ("now", extended.service_td_hash)):
        if any(value) and not _hex_matches(expected, value):
            yield Mismatch(path, expected.lower(), f"{value.hex()} ({what})", "mrservicetd")


def _judge_unnamed_attributes(path: str, tdx: TdxIdentity, report: TdReport) -> Iterator[Mismatch]:
    """Attributes that nobody asked for: what the package does not compare must not have one that has to be named."""
    compared = tdx.td_attributes_mask or ("ff" * ATTRIBUTE_BYTES if tdx.td_attributes else "")
    covered = bytes.fromhex(compared) if is_hex(compared, ATTRIBUTE_BYTES) else bytes(ATTRIBUTE_BYTES)
    for bit, name in ATTRIBUTES_TO_BE_NAMED.items():
        if _has_attribute(report.td_attributes, bit) and not _has_attribute(covered, bit):
            yield Mismatch(path, f"{name} (bit {bit}) not set, or named here", f"{name} is set", "tdattributes-unnamed")


def _has_attribute(attributes: bytes, bit: int) -> bool:
    return bool(int.from_bytes(attributes, "little") >> bit & 1)


def _judge_bits(path: str, expected: str, mask: str, actual: bytes) -> Iterator[Mismatch]:
    """Compare 8 bytes of flags under a mask; values that are no flags, or a mask alone, match nothing."""
    if not (expected or mask):
        return
    wanted = f"{expected.lower() or 'no value'} under {mask.lower()}" if mask else expected.lower()
    readable = is_hex(expected, ATTRIBUTE_BYTES) and (not mask or is_hex(mask, ATTRIBUTE_BYTES))
    bits = int(mask, 16) if readable and mask else (1 << 8 * ATTRIBUTE_BYTES) - 1
    if not readable or int.from_bytes(actual, "big") & bits != int(expected, 16):
        yield Mismatch(path, wanted, actual.hex(), path.rpartition(".")[2].lower())


def _judge_module(path: str, tdx: TdxIdentity, report: TdReport) -> Iterator[Mismatch]:
    actual = report.tee_tcb_svn[0]
    if tdx.module_svn is not None and actual < tdx.module_svn:
        yield Mismatch(f"{path}.ModuleSVN", f"at least {tdx.module_svn}", str(actual), "module-svn")


def judge_tcb(
    claims: Claims, path: str, accepted_statuses: tuple[str, ...], accepted_advisories: tuple[str, ...]
) -> list[Mismatch]:
    """Compare the platform's standing with what is accepted (protocol, section 4.3, points 2 and 3; rule 5.5.1).

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
        return [Mismatch(f"{path}.AcceptedTCBStatuses", wanted, status.value, "tcb-status")]
    if status is TcbStatus.SW_HARDENING_NEEDED and accepted_advisories:
        known = {advisory.casefold() for advisory in accepted_advisories}
        open_advisories = [advisory for advisory in claims.advisories if advisory.casefold() not in known]
        if open_advisories:
            wanted = ", ".join(accepted_advisories)
            return [Mismatch(f"{path}.AcceptedAdvisories", wanted, ", ".join(open_advisories), "advisories")]
    return []


def _judge_infrastructures(claims: Claims, infrastructures: Mapping[str, Infrastructure]) -> list[Mismatch]:
    """No infrastructures: no rule. Otherwise the platform must satisfy at least one of them."""
    found: list[Mismatch] = []
    for name in sorted(infrastructures):
        mismatches = list(_judge_infrastructure(claims, f"Infrastructures.{name}", infrastructures[name]))
        if not mismatches:
            return []
        found += mismatches
    return found


def _judge_infrastructure(claims: Claims, path: str, infrastructure: Infrastructure) -> Iterator[Mismatch]:
    def mismatch(key: str, expected: str, actual: str, code: str) -> Mismatch:
        return Mismatch(f"{path}.{key}", expected, actual, code, about_platform=True)

    platform = claims.platform
    wanted = infrastructure.cpu_svn
    if wanted and (len(wanted) != 16 or any(has < want for has, want in zip(platform.cpu_svns, wanted, strict=False))):
        yield mismatch("CPUSVN", f"at least {wanted.hex()}", platform.cpu_svns.hex(), "cpu-svn")
    for key, lowest, actual, code in (
        ("QESVN", infrastructure.qe_svn, claims.qe_svn, "qe-svn"),
        ("PCESVN", infrastructure.pce_svn, platform.pce_svn, "pce-svn"),
        (
            "MinTCBEvaluationDataNumber",
            infrastructure.min_tcb_evaluation_data_number,
            claims.tcb_evaluation_number,
            "tcb-evaluation-number",
        ),
    ):
        if lowest is not None and actual < lowest:
            yield mismatch(key, f"at least {lowest}", str(actual), code)
    if infrastructure.root_ca and not _is_root(infrastructure.root_ca, claims):
        yield mismatch("RootCA", "another root of trust", claims.root, "root-ca")
    identifiers = _identifiers(platform)
    for key, _, entries in identifier_lists(infrastructure):
        if entries is not None and not _is_listed(entries, identifiers[key]):
            shown = "none" if identifiers[key] is None else (identifiers[key] or b"").hex()
            yield mismatch(key, _shown(entries), shown, _LIST_CODES[key])


_LIST_CODES = {"FMSPCs": "fmspc", "PPIDs": "ppid", "PlatformInstanceIDs": "platform-instance-id"}


def _shown(entries: tuple[str, ...]) -> str:
    listed = " or ".join(entries[:_MAX_SHOWN]).lower() or "none at all"
    return listed if len(entries) <= _MAX_SHOWN else f"{listed} or one of {len(entries) - _MAX_SHOWN} more"


def _identifiers(platform: Platform) -> dict[str, bytes | None]:
    return {
        "FMSPCs": platform.fmspc,
        "PPIDs": platform.ppid,
        "PlatformInstanceIDs": platform.platform_instance_id,
    }


def _is_listed(entries: Iterable[str], actual: bytes | None) -> bool:
    return actual is not None and any(_hex_matches(entry, actual) for entry in entries)


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
