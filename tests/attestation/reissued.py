"""Evidence and collateral that the vendor signed, with something else in them, before us and before dcap-qvl.

Slow; run ``python -m tests.attestation.reissued [--seconds N] [--seed N]``; a short form is in ``test_differential``.
The forge signs everything again after the change, so that the difference in meaning is what both verifiers see. A
difference between their verdicts has a class by what was changed, or it is a failure.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Final

from tests.attestation.differential import Verdict, theirs
from tests.forge.dcap import NOW, Dcap, Minted, isv_level, level, module, new_keys, raw_signature

from marblerun.attestation.dcap.verify import Verifier
from marblerun.errors import Malformed, Untrusted

KEYS: Final = new_keys()
STATUSES: Final = (
    *("UpToDate", "SWHardeningNeeded", "ConfigurationNeeded", "ConfigurationAndSWHardeningNeeded", "OutOfDate"),
    *("OutOfDateConfigurationNeeded", "Revoked"),
)
COMPONENT: Final = ("UpToDate", "OutOfDate", "Revoked")
ROLES: Final = ("root", "ca", "pck", "signer", "root_crl", "pck_crl", "tcb_info", "qe_identity")

WE_REFUSE: Final = {
    "name": "common names: dcap-qvl does not look at them",
    "pce-id": "PCEID: dcap-qvl does not compare it",
    "root date": "dates of the root: dcap-qvl uses its own copy and no dates of it",
    "crl start": "thisUpdate of a CRL: dcap-qvl does not look at it",
    "path length": "a root that allows no authority under it: dcap-qvl does not look at its path length",
    "attributes": "TDATTRIBUTES without a meaning: dcap-qvl takes bits 18 to 23, we refuse (formats, section 2.3)",
    "mask": "values of an identity outside their own mask: Intel's QVL and we refuse what can never match",
    "json version": "the version of a TCB Info: dcap-qvl takes any",
    "json tcbType": "tcbType: dcap-qvl does not look at it",
    "json pceId": "PCEID: dcap-qvl does not compare it",
    "json tcbDate": "the date of a level: dcap-qvl does not look at it",
}
"""What we refuse and dcap-qvl accepts, by kind of change."""
THEY_REFUSE: Final = {
    "debug": "debug enclaves and TDs: authentic here; the policy decides",
    "attributes": "attributes of a TD: authentic here if they have a meaning; the policy decides",
    "service-td": "a service TD: authentic here; the policy decides",
    "crl end": "nextUpdate of a CRL: the very second is too late for dcap-qvl, for us (formats, section 6) in time",
    "version": "SGX quotes of version 4 and 5: dcap-qvl takes them in version 3 only",
    "auth-data": "QE authentication data of other than 32 bytes: the length is part of the format",
}
"""What dcap-qvl refuses and we accept."""
ANOTHER_STATUS: Final = {
    "json isvsvn": "levels out of order: dcap-qvl takes the first that fits, we sort first (formats, section 5.1)",
    "json pcesvn": "levels out of order: dcap-qvl takes the first that fits, we sort first (formats, section 5.1)",
    "json svn": "levels out of order: dcap-qvl takes the first that fits, we sort first (formats, section 5.1)",
}
"""What both accept, with another status."""
REPEATED: Final = "an advisory that a level names twice: dcap-qvl repeats it, we tell a union"


@dataclass(frozen=True)
class Case:
    """What was changed, by kind, and in words; how it is minted, and when it is looked at."""

    kind: str
    what: str
    dcap: Dcap
    seconds: int = 0
    text: tuple[str, str] | None = None
    """A signed text of the collateral, by field, to be another one."""

    def build(self) -> Minted:
        """Quote and collateral, everything signed."""
        minted = self.dcap.mint()
        if self.text is None:
            return minted
        name, text = self.text
        changes: dict[str, Any] = {name: text, f"{name}_signature": raw_signature(KEYS["signer"], text.encode())}
        return replace(minted, collateral=replace(minted.collateral, **changes))


def _svns(dice: random.Random) -> bytes:
    return bytes([dice.randint(3, 6), dice.randint(0, 2), dice.randint(0, 3)]) + bytes(13)


def platform(dice: random.Random) -> Dcap:
    """A platform with levels of any status around it."""
    tdx = dice.random() < 0.5
    version = dice.choice((4, 5)) if tdx else dice.choice((3, 3, 4, 5))
    body_type = 1 if not tdx else dice.choice((2, 3, 4))
    levels = [
        level(
            svn,
            dice.choice(STATUSES[: 6 if dice.random() < 0.9 else 7]),
            pce=dice.randint(12, 14),
            tdx=(dice.randint(0, 5), dice.randint(0, 1), dice.randint(0, 3), *bytes(13)) if tdx else None,
            advisoryIDs=[f"P{dice.randint(0, 3)}" for _ in range(dice.randint(0, 3))],
        )
        for svn in sorted({dice.randint(2, 6) for _ in range(3)}, reverse=True)
    ]
    identity = {"tcbLevels": [isv_level(svn, dice.choice(COMPONENT[:2]), advisoryIDs=["Q"]) for svn in (8, 6)]}
    tcb: dict[str, Any] = {"tcbLevels": levels}
    report: dict[str, Any] = {}
    if tdx:
        modules = [module(v, isv_level(5, "UpToDate"), isv_level(3, dice.choice(COMPONENT))) for v in (1, 2)]
        tcb["tdxModuleIdentities"] = modules[: dice.randint(0, 2)]
        report = {name: _svns(dice) for name in ("tee_tcb_svn", "tee_tcb_svn2")}
    qe = {"isv_svn": dice.randint(5, 9).to_bytes(2, "little")}
    return Dcap(
        tdx=tdx, version=version, body_type=body_type, tcb=tcb, identity=identity, report=report, qe=qe, keys=KEYS
    )


def _easy(dice: random.Random) -> Dcap:
    """A platform that is accepted, so that a change alone decides."""
    tdx = dice.random() < 0.5
    return Dcap(tdx=tdx, version=dice.choice((4, 5)) if tdx else 3, body_type=dice.choice((2, 3, 4)), keys=KEYS)


def _standing(dice: random.Random) -> Case:
    dcap = platform(dice)
    return Case("version" if not dcap.tdx and dcap.version > 3 else "standing", "levels", dcap)


def _date(dice: random.Random) -> Case:
    """One part's period moved so that the time is a second around its start or end, or far away."""
    role, day = dice.choice(ROLES), timedelta(days=1)
    edge = dice.choice((-1, 0, 1, 3600 * 24 * 400)) * timedelta(seconds=1)
    period = dice.choice(((NOW + edge, NOW + edge + 900 * day), (NOW - 900 * day, NOW - edge)))
    kind = "root date" if role == "root" else "date"
    if role.endswith("_crl"):
        kind = "crl start" if period[0] > NOW else "crl end" if period[1] == NOW else "date"
    return Case(kind, f"{role} {period}", _easy(dice).with_(validity={role: period}))


def _at(dice: random.Random) -> Case:
    days = dice.choice((-10, 20))
    seconds = days * 24 * 3600 + dice.choice((-1, 0, 1))
    return Case("crl end" if seconds == 20 * 24 * 3600 else "date", f"{seconds} s", _easy(dice), seconds)


def _revoked(dice: random.Random) -> Case:
    roles = tuple(role for role in ("ca", "signer", "pck") if dice.random() < 0.4)
    dcap = _easy(dice).with_(revoked_by_root=roles, pck_revoked=dice.random() < 0.3)
    return Case("revoked", f"{roles} {dcap.pck_revoked}", dcap)


def _named(dice: random.Random) -> Case:
    role = dice.choice(("root", "ca", "pck", "signer"))
    return Case("name", role, _easy(dice).with_(names={role: dice.choice(("Somebody", "SGX", "Forged sgx root ca"))}))


def _certificates(dice: random.Random) -> Case:
    changes: dict[str, Any] = dice.choice(
        (
            {"not_a_ca": True},
            {"pck_is_ca": True},
            {"root_path_length": 0},
            {"critical_extension": dice.choice(("ca", "pck", "signer"))},
            {"foreign_attestation_key": True},
        )
    )
    kind = "path length" if "root_path_length" in changes else "certificate"
    return Case(kind, str(changes), _easy(dice).with_(**changes))


def _platform_of_another(dice: random.Random) -> Case:
    kind, name, value = dice.choice((("fmspc", "fmspc", "00606a000001"), ("pce-id", "pceId", "0001")))
    return Case(kind, value, _easy(dice).with_(tcb={name: value}))


def _quoting_enclave(dice: random.Random) -> Case:
    field, value = dice.choice(
        (
            ("miscselect", dice.randbytes(4)),
            ("attributes", bytes([0x15 ^ 1 << dice.randrange(8)]) + dice.choice((bytes(15), b"\0" * 7 + b"\xe7" * 8))),
            ("mrsigner", dice.randbytes(32)),
            ("isv_prod_id", dice.randbytes(2)),
            ("report_data", dice.randbytes(64)),
            ("cpusvn", dice.randbytes(16)),
            ("mrenclave", dice.randbytes(32)),
        )
    )
    return Case("qe", f"{field} {value.hex()}", _easy(dice).with_(qe={field: value}))


def _masks(dice: random.Random) -> Case:
    name, size = dice.choice((("miscselect", 4), ("miscselectMask", 4), ("attributes", 16), ("attributesMask", 16)))
    value = bytes(dice.choice((0, 0, 1, 0x11, 0xFF)) for _ in range(size)).hex()
    return Case("mask", f"{name} {value}", _easy(dice).with_(identity={name: value}))


def _auth_data(dice: random.Random) -> Case:
    size = dice.choice((0, 1, 31, 32, 33, 64, 1000))
    return Case("standing" if size == 32 else "auth-data", str(size), _easy(dice).with_(auth_data=dice.randbytes(size)))


def _report(dice: random.Random) -> Case:
    """A field of the report of enclave or TD."""
    dcap = _easy(dice)
    if not dcap.tdx:
        flags = bytes([0x05 | dice.choice((0, 2, 0x10, 0x20, 0x80))]) + bytes(7) + b"\xe7" + bytes(7)
        kind = "debug" if flags[0] & 2 else "report"
        return Case(kind, flags.hex(), dcap.with_(report={"attributes": flags}))
    match dice.randrange(4):
        case 0:
            bits = (1 << dice.randrange(64)) | (dice.randrange(2) << 28)
            value = bits.to_bytes(8, "little")
            return Case("attributes", f"td_attributes {value.hex()}", dcap.with_(report={"td_attributes": value}))
        case 1:
            return Case("module", "seam_attributes", dcap.with_(report={"seam_attributes": dice.randbytes(8)}))
        case 2:
            return Case("module", "mrsignerseam", dcap.with_(report={"mrsignerseam": dice.randbytes(48)}))
        case _:
            return Case("report", "xfam", dcap.with_(report={"xfam": dice.randbytes(8), "mrtd": dice.randbytes(48)}))


_VALUES: Final[tuple[Any, ...]] = (
    *(None, True, 0, 1, 2, -1, 255, 256, 65535, 65536, 1 << 32, "", "0", "00", "TDX_01", "UpToDate", "Revoked", "X"),
    *([], {}, [1], ["A"], "2026-03-01T12:00:00Z", "2026-02-30T00:00:00Z", "ff" * 16, "00" * 48),
)


def _json(dice: random.Random) -> Case:
    """A member of TCB Info or identity, on any depth, has another value or is gone; then all is signed."""
    dcap, name = _easy(dice), dice.choice(("tcb_info", "qe_identity"))
    document = json.loads(getattr(dcap.mint().collateral, name))
    here, path = document, list[str]()
    while True:
        key = dice.choice(list(here) if isinstance(here, dict) else range(len(here)))
        path.append(str(key))
        if isinstance(here[key], (dict, list)) and here[key] and dice.random() < 0.7:
            here = here[key]
            continue
        gone = dice.random() < 0.2
        value = here.pop(key) if gone else dice.choice(_VALUES)
        if not gone:
            here[key] = value
        what = f"{name} {'/'.join(path)} {'is gone' if gone else f'= {value!r}'}"
        return Case(f"json {path[-1]}", what, dcap, text=(name, json.dumps(document, separators=(",", ":"))))


MAKERS: Final[tuple[Callable[[random.Random], Case], ...]] = (
    *(_standing, _standing, _date, _at, _revoked, _named, _certificates, _platform_of_another),
    *(_quoting_enclave, _masks, _auth_data, _report, _json, _json),
)


@dataclass
class Outcome:
    """How often both agreed, how often a class of difference was seen, and what has no class."""

    agreed: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    unexplained: list[str] = field(default_factory=list)


def compare(case: Case, outcome: Outcome) -> None:
    """Both verifiers on the case."""
    minted, at = case.build(), NOW + timedelta(seconds=case.seconds)
    try:
        claims = Verifier([minted.root]).verify(minted.quote, minted.collateral, at)
        mine: Verdict = (claims.tcb_status.value, claims.advisories)
    except (Malformed, Untrusted) as error:
        mine = str(error)
    other = theirs(minted.quote, minted.collateral, int(at.timestamp()), minted.root_der)
    if isinstance(mine, str) and isinstance(other, str):
        outcome.agreed["refused"] += 1
    elif mine == other:
        outcome.agreed["accepted"] += 1
    elif isinstance(mine, tuple) and isinstance(other, tuple) and mine == (other[0], tuple(dict.fromkeys(other[1]))):
        outcome.classes[REPEATED] += 1
    else:
        found = WE_REFUSE if isinstance(mine, str) else THEY_REFUSE if isinstance(other, str) else ANOTHER_STATUS
        if case.kind in found:
            outcome.classes[found[case.kind]] += 1
        else:
            outcome.unexplained.append(f"{case.kind} {case.what}: ours {mine!r}, dcap-qvl {other!r}")


def run(seed: int, *, rounds: int, seconds: float = 600) -> Outcome:
    """So many cases, or as many as the time allows."""
    outcome, end = Outcome(), time.monotonic() + seconds
    for number in range(rounds):
        if time.monotonic() > end:
            break
        dice = random.Random(seed + number)
        compare(dice.choice(MAKERS)(dice), outcome)
    return outcome


def main() -> int:
    """1 if a difference has no class."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.attestation.reissued",
        description="Evidence and collateral changed at random and signed anew, before us and before dcap-qvl.",
        epilog="Ends with 1 if a difference has no class.",
    )
    parser.add_argument("--seconds", type=float, default=60, metavar="S", help="how long; default: %(default)s")
    parser.add_argument(
        "--seed",
        type=int,
        default=random.getrandbits(32),
        metavar="N",
        help="of what is made; default: another each time",
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    outcome = run(arguments.seed, rounds=sys.maxsize, seconds=arguments.seconds)
    print(f"seed {arguments.seed}: agreed {dict(outcome.agreed)}")
    for kind, count in outcome.classes.most_common():
        print(f"{count:7} {kind}")
    for line in outcome.unexplained:
        print(f"  UNEXPLAINED {line}")
    bad = len(outcome.unexplained)
    print(f"{bad} differences have no class" if bad else "every difference has its class")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
