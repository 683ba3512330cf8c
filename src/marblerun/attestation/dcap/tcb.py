"""TCB Info, and what it says about a platform: levels, TDX modules, convergence, relaunch.

Source: formats, sections 4.1 and 5 (Intel PCS API v4, TCB Info version 3; Intel SGX and TDX DCAP quote
verification library).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from operator import ge
from typing import Final

from marblerun.attestation.dcap.qe import IsvLevel, matching_level
from marblerun.attestation.dcap.signed_json import ENCLAVE_STATUSES, PLATFORM_STATUSES, Fields, parse_object
from marblerun.attestation.dcap.validity import Validity
from marblerun.attestation.model import PartStatus, Platform, TcbStatus, TdReport, Tee
from marblerun.errors import Malformed, Untrusted

STEP: Final = "tcb-info"
LEVEL_STEP: Final = "tcb-level"
MODULE_STEP: Final = "tdx-module"
_IDS: Final = {"SGX": Tee.SGX, "TDX": Tee.TDX}
_VERSION: Final = 3
_COMPONENTS: Final = 16

_CONFIGURATION: Final = frozenset(
    {
        TcbStatus.CONFIGURATION_NEEDED,
        TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED,
        TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
    }
)
_OUT_OF_DATE: Final = frozenset({TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED})


@dataclass(frozen=True, slots=True)
class PlatformLevel:
    """A platform level: it applies where every SVN of the platform is at least the one here."""

    sgx_svns: bytes
    pce_svn: int
    tdx_svns: bytes
    """Empty for SGX."""
    part: PartStatus


@dataclass(frozen=True, slots=True)
class TdxModule:
    """What a TDX module of one version must be. ``levels`` is empty for the module that TCB Info itself describes."""

    mrsigner: bytes
    attributes: int
    attributes_mask: int
    levels: tuple[IsvLevel, ...]


@dataclass(frozen=True, slots=True, eq=False)
class TcbInfo:
    """The vendor's judgement on one platform family (FMSPC). Levels are sorted, highest first."""

    tee: Tee
    validity: Validity
    evaluation_number: int
    fmspc: bytes
    pce_id: bytes
    levels: tuple[PlatformLevel, ...]
    module: TdxModule | None
    modules: Mapping[int, TdxModule]
    """By module version, the NN of ``TDX_NN``."""


@dataclass(frozen=True, slots=True)
class TcbVerdict:
    """The status of everything together, and of each part."""

    status: TcbStatus
    parts: Mapping[str, PartStatus]

    @property
    def advisories(self) -> tuple[str, ...]:
        """The union over platform, module and QE as launched, in that order (rule 5.3.5)."""
        parts = (self.parts[name] for name in ("platform", "module", "qe") if name in self.parts)
        return tuple(dict.fromkeys(advisory for part in parts for advisory in part.advisories))


def parse_tcb_info(text: str) -> TcbInfo:
    """The TCB Info in ``text``, whose signature was verified; Malformed for another id, version, type or shape.

    Rules 4.1.1 (id, version, type), 4.1.3 (FMSPC in either case), 5.1.1 (levels sorted, highest first).
    """
    fields = parse_object(text, "tcbInfo")
    identity, version = fields.text("id"), fields.number("version")
    if identity not in _IDS or version != _VERSION or fields.number("tcbType") != 0:
        raise Malformed(f"TCB Info {identity!r} version {version} is not known", where="tcbInfo")
    tee = _IDS[identity]
    levels = [_parse_level(level, tee) for level in fields.objects("tcbLevels")]
    modules = _parse_modules(fields.objects("tdxModuleIdentities") if fields.has("tdxModuleIdentities") else ())
    return TcbInfo(
        tee=tee,
        validity=Validity(STEP, "the TCB Info", fields.time("issueDate"), fields.time("nextUpdate")),
        evaluation_number=fields.number("tcbEvaluationDataNumber"),
        fmspc=fields.hex("fmspc", 6),
        pce_id=fields.hex("pceId", 2),
        levels=tuple(sorted(levels, key=lambda one: (one.sgx_svns, one.pce_svn, one.tdx_svns), reverse=True)),
        module=_parse_module(fields.object("tdxModule")) if tee is Tee.TDX else None,
        modules=modules,
    )


def _parse_level(level: Fields, tee: Tee) -> PlatformLevel:
    tcb = level.object("tcb")
    return PlatformLevel(
        sgx_svns=tcb.svns("sgxtcbcomponents", _COMPONENTS),
        pce_svn=tcb.number("pcesvn", limit=0xFFFF),
        tdx_svns=tcb.svns("tdxtcbcomponents", _COMPONENTS) if tee is Tee.TDX else b"",
        part=level.status(PLATFORM_STATUSES),
    )


def _parse_modules(identities: tuple[Fields, ...]) -> dict[int, TdxModule]:
    # Rule 4.1.5: TDX_ and two hex digits, each at most once.
    modules = {_module_version(one.text("id")): _parse_module(one) for one in identities}
    if len(modules) != len(identities):
        raise Malformed("a TDX module version is there twice", where="tcbInfo.tdxModuleIdentities")
    return modules


def _parse_module(module: Fields) -> TdxModule:
    levels = module.objects("tcbLevels") if module.has("tcbLevels") else ()
    parsed = [
        IsvLevel(level.object("tcb").number("isvsvn", limit=255), level.status(ENCLAVE_STATUSES)) for level in levels
    ]
    return TdxModule(
        mrsigner=module.hex("mrsigner", 48),
        attributes=int.from_bytes(module.hex("attributes", 8), "big"),
        attributes_mask=int.from_bytes(module.hex("attributesMask", 8), "big"),
        levels=tuple(sorted(parsed, key=lambda level: level.isv_svn, reverse=True)),
    )


def _module_version(identity: str) -> int:
    prefix, digits = identity[:4], identity[4:]
    if prefix.upper() != "TDX_" or len(digits) != 2:
        raise Malformed(f"module id {identity!r}", where="tcbInfo")
    try:
        return bytes.fromhex(digits)[0]
    except ValueError as error:
        raise Malformed(f"module id {identity!r}", where="tcbInfo") from error


def platform_level(info: TcbInfo, platform: Platform, tee_tcb_svn: bytes) -> PartStatus:
    """The first level that the platform reaches; Untrusted (``tcb-level``) if there is none or it is revoked.

    ``tee_tcb_svn`` is empty for SGX. Its first two bytes belong to the TDX module; where the second is not zero, the
    module identity judges them and they are not compared here (rule 5.1.5).
    """
    first = 2 if tee_tcb_svn and tee_tcb_svn[1] > 0 else 0
    launched = tee_tcb_svn[first:]
    for level in info.levels:
        if (
            all(map(ge, platform.cpu_svns, level.sgx_svns))  # 5.1.2
            and platform.pce_svn >= level.pce_svn  # 5.1.3
            and all(map(ge, launched, level.tdx_svns[first:]))  # 5.1.4
        ):
            if level.part.status is TcbStatus.REVOKED:  # 5.1.7
                raise Untrusted("the platform's TCB is revoked", step=LEVEL_STEP, reason="revoked")
            return level.part
    # 5.1.6
    raise Untrusted("the platform is below every TCB level", step=LEVEL_STEP, reason="not-supported")


def module_level(info: TcbInfo, tee_tcb_svn: bytes) -> PartStatus | None:
    """The level of the TDX module that ``tee_tcb_svn`` names; ``None`` for version 0, which has no levels.

    Untrusted (``tdx-module``) if the vendor lists no such module, or no level that it reaches, or revoked it.
    """
    isv_svn, version = tee_tcb_svn[0], tee_tcb_svn[1]
    if version == 0:  # 5.2.5
        return None
    return matching_level(  # 5.2.6
        _module(info, version).levels, isv_svn, step=MODULE_STEP, what=f"the TDX module of version {version}"
    )


def verify_module(info: TcbInfo, report: TdReport) -> None:
    """Untrusted (``tdx-module``) unless signer and attributes of the TDX module are those that TCB Info demands."""
    module = _module(info, report.tee_tcb_svn[1])
    if report.mrsignerseam != module.mrsigner:  # 5.2.7
        raise Untrusted("MRSIGNERSEAM is not that of the TDX module", step=MODULE_STEP, reason="mismatch")
    attributes = int.from_bytes(report.seam_attributes, "big")
    # 5.2.8
    if attributes != 0 or attributes & module.attributes_mask != module.attributes:
        raise Untrusted("SEAMATTRIBUTES are not those of the TDX module", step=MODULE_STEP, reason="mismatch")


def _module(info: TcbInfo, version: int) -> TdxModule:
    module = info.module if version == 0 else info.modules.get(version)  # 5.2.4
    if module is None:
        raise Untrusted(f"no TDX module of version {version} is known", step=MODULE_STEP, reason="not-supported")
    return module


def converge(platform: TcbStatus, component: TcbStatus) -> TcbStatus:
    """The platform's status when a component of it (QE, TDX module) has its own. Source: formats, section 5.3."""
    if TcbStatus.REVOKED in (platform, component):  # 5.3.4
        return TcbStatus.REVOKED
    if component is not TcbStatus.OUT_OF_DATE or platform in _OUT_OF_DATE:  # 5.3.3
        return platform
    # 5.3.2, 5.3.1
    return TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED if platform in _CONFIGURATION else TcbStatus.OUT_OF_DATE


def relaunch(launched: TcbStatus, current: TcbStatus) -> TcbStatus:
    """The status of a TD launched under one TDX module and running under another. Source: formats, section 5.4."""
    if launched not in _OUT_OF_DATE or current in _OUT_OF_DATE:  # 5.4.3
        return launched
    if launched in _CONFIGURATION or current in _CONFIGURATION:  # 5.4.2
        return TcbStatus.TD_RELAUNCH_ADVISED_CONFIGURATION_NEEDED
    # 5.4.1
    return TcbStatus.TD_RELAUNCH_ADVISED


def evaluate_sgx(info: TcbInfo, platform: Platform, qe: PartStatus) -> TcbVerdict:
    """The verdict on an SGX platform; Untrusted if a part is revoked or reaches no level."""
    level = platform_level(info, platform, b"")
    return TcbVerdict(converge(level.status, qe.status), {"platform": level, "qe": qe})


def evaluate_tdx(
    info: TcbInfo, platform: Platform, qe: PartStatus, tee_tcb_svn: bytes, svn2: bytes | None
) -> TcbVerdict:
    """The verdict on a TDX platform as launched, and for TD reports of version 1.5 as running now (``svn2``).

    Untrusted if a part is revoked or reaches no level, as launched or now.
    """
    status, level, module = _evaluate_module(info, platform, qe, tee_tcb_svn)
    parts = {"platform": level, "qe": qe} | ({"module": module} if module else {})
    if svn2 is not None:  # 5.4.4: a level that is not reached raises
        current, level, module = _evaluate_module(info, platform, qe, svn2)
        parts |= {"platform-current": level} | ({"module-current": module} if module else {})
        status = relaunch(status, current)
    return TcbVerdict(status, parts)


def _evaluate_module(
    info: TcbInfo, platform: Platform, qe: PartStatus, tee_tcb_svn: bytes
) -> tuple[TcbStatus, PartStatus, PartStatus | None]:
    level = platform_level(info, platform, tee_tcb_svn)
    module = module_level(info, tee_tcb_svn)
    status = level.status if module is None else converge(level.status, module.status)
    return converge(status, qe.status), level, module
