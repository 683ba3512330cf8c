"""What each single rule of admission is for: evidence that only this rule keeps out. ``python -m tests.mutate``."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.forge.dcap import NOW, Dcap

from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, Origin, TcbStatus
from marblerun.manifest.model import Infrastructure, Package, TdxIdentity
from marblerun.policy.admission import Admission, Mismatch, judge

ADMISSION = Admission(frozenset({Origin.SIMULATED}))
ENCLAVE = Package(unique_id="11" * 32)
MRTD = "44" * 48


def claims_of(dcap: Dcap) -> Claims:
    minted = dcap.mint()
    return Verifier([minted.root]).verify(minted.quote, minted.collateral, NOW)


SGX = claims_of(Dcap())
TDX = claims_of(Dcap(tdx=True, version=4))
DEBUG_TDX = claims_of(Dcap(tdx=True, version=4, report={"td_attributes": bytes.fromhex("0100001000000000")}))


def found(claims: Claims, package: Package, **infrastructures: Infrastructure) -> tuple[Mismatch, ...]:
    return judge(claims, "p", package, infrastructures, ADMISSION)


@pytest.mark.parametrize("status", [one for one in TcbStatus if one not in (TcbStatus.REVOKED, TcbStatus.UNKNOWN)])
def test_advisories_count_only_where_software_has_to_be_hardened(status: TcbStatus) -> None:
    """Protocol, section 4.3, point 3."""
    claims = replace(SGX, tcb_status=status, advisories=("INTEL-SA-1",))
    package = replace(ENCLAVE, accepted_tcb_statuses=(status.value,), accepted_advisories=("INTEL-SA-2",))
    expected = ["advisories"] if status is TcbStatus.SW_HARDENING_NEEDED else []
    assert [mismatch.code for mismatch in found(claims, package)] == expected


@pytest.mark.parametrize(
    ("value", "mask", "shown"),
    [
        ("zz" * 8, "ff" * 8, f"{'zz' * 8} under {'ff' * 8}"),
        ("0000001000000000", "zz" * 8, f"0000001000000000 under {'zz' * 8}"),
        ("0000001000000000", "f", "0000001000000000 under f"),
        ("0000001000000000", "+ffffffffffffff0", "0000001000000000 under +ffffffffffffff0"),
        ("", "0000000000000000", "no value under 0000000000000000"),
        ("0000000000000000", "", "0000000000000000"),
    ],
)
def test_flags_that_cannot_be_read_match_nothing_and_are_shown_as_stated(value: str, mask: str, shown: str) -> None:
    package = Package(tdx=TdxIdentity(mrtd=MRTD, td_attributes=value, td_attributes_mask=mask))
    (mismatch,) = found(TDX, package)
    assert (mismatch.code, mismatch.expected, mismatch.actual) == ("tdattributes", shown, "0000001000000000")


def test_a_debug_package_may_leave_the_identity_of_a_td_open_and_no_other_may() -> None:
    nobody = Package(tdx=TdxIdentity())
    assert found(DEBUG_TDX, replace(nobody, debug=True)) == ()
    assert [mismatch.code for mismatch in found(TDX, nobody)] == ["no-identity"]


def test_the_admitted_origins_are_told() -> None:
    for origins, told in (
        ({Origin.HARDWARE}, "evidence of origin hardware"),
        ({Origin.HARDWARE, Origin.NONE}, "evidence of origin hardware or none"),
        (set[Origin](), "evidence of origin nothing"),
    ):
        (mismatch,) = judge(SGX, "p", ENCLAVE, {}, Admission(frozenset(origins)))
        assert (mismatch.expected, mismatch.actual) == (told, "origin simulated")


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ((), "none at all"),
        (("AA", "bb"), "aa or bb"),
        (("aa",) * 8, " or ".join(["aa"] * 8)),
        (("aa",) * 9, " or ".join(["aa"] * 8) + " or one of 1 more"),
    ],
)
def test_a_list_of_machines_is_told_up_to_its_eighth_entry(entries: tuple[str, ...], told: str) -> None:
    (ppids,) = found(SGX, ENCLAVE, i=Infrastructure(ppids=entries))
    (instances,) = found(SGX, ENCLAVE, i=Infrastructure(platform_instance_ids=entries))
    assert (ppids.expected, ppids.actual) == (told, "55" * 16)
    assert (instances.expected, instances.actual) == (told, "none")
