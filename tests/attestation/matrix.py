"""Every standing of platform, QE and TDX module against every list of accepted statuses, on forged evidence.

Slow; run ``python -m tests.attestation.matrix`` (``make fuzz``); a short form is in ``test_matrix``. The expected
outcome comes from the tables here, written from formats, sections 5.3 to 5.5, and protocol, section 4.3, and not from
what the code says.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, combinations, product
from typing import Any

from tests.forge.dcap import NOW, Dcap, isv_level, level, module, new_keys

from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, Origin
from marblerun.errors import Untrusted
from marblerun.manifest.model import Package, TdxIdentity
from marblerun.policy.admission import Admission, judge

PLATFORM = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
    "",
)
"""Of the platform's level; empty where no level is reached."""
COMPONENT = ("UpToDate", "OutOfDate", "Revoked", "")
"""Of the level of a QE or a TDX module."""
MODULE = (*COMPONENT, "absent", "none")
"""``absent``: no identity for that version; ``none``: version 0, which has no identity of its own."""
ALL = (*PLATFORM[:-1], "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded")

WITH_OUT_OF_DATE = {
    "UpToDate": "OutOfDate",
    "SWHardeningNeeded": "OutOfDate",
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
    "OutOfDate": "OutOfDate",
    "OutOfDateConfigurationNeeded": "OutOfDateConfigurationNeeded",
}
"""The platform's status beside a component that is out of date. Source: formats, section 5.3."""

RELAUNCHED = {
    # launched, now: what is said. Everything else stays as launched. Source: formats, section 5.4.
    ("OutOfDate", "UpToDate"): "TDRelaunchAdvised",
    ("OutOfDate", "SWHardeningNeeded"): "TDRelaunchAdvised",
    ("OutOfDate", "ConfigurationNeeded"): "TDRelaunchAdvisedConfigurationNeeded",
    ("OutOfDate", "ConfigurationAndSWHardeningNeeded"): "TDRelaunchAdvisedConfigurationNeeded",
    ("OutOfDateConfigurationNeeded", "UpToDate"): "TDRelaunchAdvisedConfigurationNeeded",
    ("OutOfDateConfigurationNeeded", "SWHardeningNeeded"): "TDRelaunchAdvisedConfigurationNeeded",
    ("OutOfDateConfigurationNeeded", "ConfigurationNeeded"): "TDRelaunchAdvisedConfigurationNeeded",
    ("OutOfDateConfigurationNeeded", "ConfigurationAndSWHardeningNeeded"): "TDRelaunchAdvisedConfigurationNeeded",
}


@dataclass(frozen=True)
class Standing:
    """The level that each part reaches; ``module`` is ``None`` for SGX, ``now`` for all but TD reports of 1.5."""

    platform: str
    qe: str
    module: str | None = None
    now: tuple[str, str] | None = None
    """Platform and module by the module that runs now."""


def expected(standing: Standing) -> str:
    """The status of everything together; empty if it must be refused."""
    launched = _together(standing.platform, standing.qe, standing.module)
    if standing.now is None or not launched:
        return launched
    current = _together(standing.now[0], standing.qe, standing.now[1])
    return RELAUNCHED.get((launched, current), launched) if current else ""


def _together(platform: str, qe: str, module: str | None) -> str:
    if platform in ("", "Revoked") or qe in ("", "Revoked") or module in ("", "Revoked", "absent"):
        return ""
    return WITH_OUT_OF_DATE[platform] if "OutOfDate" in (qe, module) else platform


def accepted(status: str, listed: Iterable[str]) -> bool:
    """Whether a package that lists these admits the status. Source: protocol, section 4.3; formats, section 5.5."""
    listed = set(listed) or {"SWHardeningNeeded"}
    return status == "UpToDate" or (status != "Revoked" and status in listed)


def sgx() -> Iterator[Standing]:
    """Every standing of an SGX enclave."""
    return (Standing(platform, qe) for platform, qe in product(PLATFORM, COMPONENT))


def tdx() -> Iterator[Standing]:
    """Every standing of a TD with report 1.0."""
    return (Standing(*parts) for parts in product(PLATFORM, COMPONENT, MODULE))


def relaunches() -> Iterator[Standing]:
    """Every standing of a TD with report 1.5; if nothing is launched, it need not be run with everything."""
    for platform, qe, launched in product(PLATFORM, COMPONENT, MODULE):
        for now in product(PLATFORM, MODULE):
            if _together(platform, qe, launched) or now == ("UpToDate", "UpToDate"):
                yield Standing(platform, qe, launched, now)


KEYS = new_keys()
REACHED = 5


def mint(standing: Standing) -> Dcap:
    """A platform of that standing: levels that it reaches or not, of the statuses wanted."""
    identity = {"tcbLevels": [isv_level(8 if standing.qe else 9, standing.qe or "UpToDate")]}
    if standing.module is None:
        levels = [level(REACHED if standing.platform else REACHED + 1, standing.platform or "UpToDate")]
        return Dcap(keys=KEYS, identity=identity, tcb={"tcbLevels": levels})
    # The third SVN tells the two modules apart for the platform's level, the version for the module's.
    launched, now = (standing.platform, standing.module), standing.now
    levels = []
    modules: list[dict[str, Any]] = []
    svns: list[bytes] = []
    for (platform, kind), svn, version in ((now, 3, 3), (launched, 2, 2)) if now else ((launched, 2, 2),):
        if platform:
            levels.append(level(REACHED, platform, tdx=(0, 0, svn) + (0,) * 13))
        else:
            svn = 0
        if kind not in ("none", "absent"):
            modules.append(module(version, isv_level(5 if kind else 6, kind or "UpToDate")))
        svns.insert(0, bytes([5, 0 if kind == "none" else version, svn]) + bytes(13))
    if not levels:
        levels.append(level(REACHED, "UpToDate", tdx=(0, 0, 9) + (0,) * 13))
    report: dict[str, Any] = {"tee_tcb_svn": svns[0]} | ({"tee_tcb_svn2": svns[1]} if now else {})
    tcb = {"tcbLevels": levels, "tdxModuleIdentities": modules}
    return Dcap(tdx=True, version=5 if now else 4, keys=KEYS, identity=identity, tcb=tcb, report=report)


def observed(standing: Standing) -> tuple[str, Claims | None]:
    """What the verifier says of it."""
    minted = mint(standing).mint()
    try:
        claims = Verifier([minted.root]).verify(minted.quote, minted.collateral, NOW)
    except Untrusted as refusal:
        if refusal.step not in ("tcb-level", "qe-level", "tdx-module"):
            raise
        return "", None
    return claims.tcb_status.value, claims


def subsets(statuses: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Every list of them."""
    return chain.from_iterable(combinations(statuses, count) for count in range(len(statuses) + 1))


FEW_LISTS = ((), ("UpToDate",), ("Revoked",), ("Unknown", "outofdate", ""), ALL, *((one,) for one in ALL))


def admissions(claims: Claims, lists: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Where policy does not say what the table says."""
    tdx_identity = TdxIdentity(mrtd="44" * 48) if claims.tee.value == "tdx" else None
    status = claims.tcb_status.value
    for listed in lists:
        package = Package(unique_id="11" * 32, accepted_tcb_statuses=listed, tdx=tdx_identity)
        found = judge(claims, "p", package, {}, Admission(frozenset({Origin.SIMULATED})))
        codes = {mismatch.code for mismatch in found}
        if codes != (set() if accepted(status, listed) else {"tcb-status"}):
            yield f"{status} with {listed}: {sorted(codes)}"


def sweep(standings: Iterable[Standing]) -> tuple[Counter[str], list[str]]:
    """How often each outcome came, and what was wrong."""
    counted, wrong, seen = Counter[str](), list[str](), set[str]()
    for standing in standings:
        status, claims = observed(standing)
        counted[status or "refused"] += 1
        if status != expected(standing):
            wrong.append(f"{standing}: {status or 'refused'}, expected {expected(standing) or 'a refusal'}")
        if claims is not None:
            # All lists once for each outcome, a few every time.
            lists = FEW_LISTS if status in seen else (*FEW_LISTS, *subsets(ALL))
            seen.add(status)
            wrong += [f"{standing}: {line}" for line in admissions(claims, lists)]
    return counted, wrong


KINDS: dict[str, Callable[[], Iterator[Standing]]] = {"sgx": sgx, "tdx-1.0": tdx, "tdx-1.5": relaunches}


def main() -> int:
    """The whole matrix; 1 if an outcome is not that of the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.attestation.matrix",
        description="Every standing of platform, QE and TDX module, on forged evidence, against tables.",
        epilog="Ends with 1 if an outcome is not that of the tables. Everything takes some minutes.",
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; default: all")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.kinds) - set(KINDS)):
        parser.error(f"no such kind: {', '.join(unknown)}")
    found: list[str] = []
    for name in arguments.kinds or KINDS:
        standings = KINDS[name]()
        start = time.perf_counter()
        counted, wrong = sweep(standings)
        print(f"{name}: {counted.total()} standings, {time.perf_counter() - start:.1f} s: {dict(counted)}", flush=True)
        found += wrong
    for line in found:
        print(f"  WRONG {line}")
    print(f"{len(found)} outcomes are not those of the tables" if found else "every outcome is that of the tables")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
