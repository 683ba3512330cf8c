"""Who may join as which package on which platform: each rule alone, every mismatch told, empty refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from tests.forge.dcap import NOW, Dcap

from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, Origin, SgxReport, TcbStatus, TdExtension, TdReport, Unattested
from marblerun.errors import Denied
from marblerun.manifest.model import Infrastructure, Package, TdxIdentity
from marblerun.policy.admission import Admission, Mismatch, NotAdmitted, judge, require_admitted

SIMULATED = Admission(frozenset({Origin.SIMULATED}))
UNIQUE, SIGNER = "11" * 32, "22" * 32
ENCLAVE = Package(unique_id=UNIQUE)
MRTD = "44" * 48
TD = Package(tdx=TdxIdentity(mrtd=MRTD))
BOTH = replace(ENCLAVE, tdx=TD.tdx)
PPID = "55" * 16


@lru_cache(maxsize=2)
def _minted(tdx: bool) -> tuple[Claims, bytes]:
    minted = Dcap(tdx=True, version=5).mint() if tdx else Dcap().mint()
    return Verifier([minted.root]).verify(minted.quote, minted.collateral, NOW), minted.root_der


def sgx(**report: Any) -> Claims:
    claims, _ = _minted(False)
    assert isinstance(claims.report, SgxReport)
    return replace(claims, report=replace(claims.report, **report))


def tdx(**report: Any) -> Claims:
    claims, _ = _minted(True)
    assert isinstance(claims.report, TdReport)
    return replace(claims, report=replace(claims.report, **report))


def codes(claims: Claims, package: Package, **infrastructures: Infrastructure) -> list[str]:
    return [mismatch.code for mismatch in judge(claims, "p", package, infrastructures, SIMULATED)]


# -- enclaves (protocol, section 4.4) ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "report", "expected"),
    [
        (ENCLAVE, {}, []),
        (Package(unique_id=UNIQUE.upper()), {}, []),
        (Package(unique_id="12" + UNIQUE[2:]), {}, ["unique-id"]),
        (Package(unique_id=UNIQUE[:-2]), {}, ["unique-id"]),
        (Package(unique_id=UNIQUE + "00"), {}, ["unique-id"]),
        (Package(unique_id="zz" * 32), {}, ["unique-id"]),
        (Package(signer_id=SIGNER, product_id=1, security_version=2), {}, []),
        (Package(signer_id=SIGNER, product_id=1, security_version=1), {}, []),
        (Package(signer_id=SIGNER, product_id=1, security_version=3), {}, ["security-version"]),
        (Package(signer_id=SIGNER, product_id=1, security_version=0), {}, []),
        (Package(signer_id=SIGNER, product_id=2, security_version=2), {}, ["product-id"]),
        (Package(signer_id=SIGNER, product_id=0, security_version=2), {}, ["product-id"]),
        (Package(signer_id=UNIQUE, product_id=2), {}, ["signer-id", "product-id"]),
        (Package(), {}, ["no-identity"]),
        (Package(security_version=0), {}, ["no-identity"]),
        (ENCLAVE, {"attributes": b"\x07" + bytes(15)}, ["debug"]),
        (replace(ENCLAVE, debug=True), {}, ["debug"]),
        (replace(ENCLAVE, debug=True), {"attributes": b"\x07" + bytes(15)}, []),
        (Package(debug=True), {"attributes": b"\x07" + bytes(15)}, []),
        (TD, {}, ["technology"]),
        (BOTH, {}, []),
        (Package(debug=True, tdx=TD.tdx), {"attributes": b"\x07" + bytes(15)}, ["technology"]),
    ],
)  # fmt: skip
def test_an_enclave_is_admitted_exactly_if_all_that_the_package_states_holds(
    package: Package, report: dict[str, Any], expected: list[str]
) -> None:
    assert expected == codes(sgx(**report), package)


# -- TDs ---------------------------------------------------------------------------------------------------------


def td(**stated: Any) -> Package:
    return Package(tdx=replace(TdxIdentity(mrtd=MRTD), **stated))


ZEROS, ONES = "00" * 48, "01" * 48


@pytest.mark.parametrize(
    ("package", "report", "expected"),
    [
        (TD, {}, []),
        (BOTH, {}, []),
        (Package(tdx=TdxIdentity(mrtd=MRTD.upper())), {}, []),
        (ENCLAVE, {}, ["technology"]),
        (Package(debug=True), {"td_attributes": b"\x01" + bytes(7)}, ["technology"]),
        (Package(tdx=TdxIdentity()), {}, ["no-identity"]),
        (Package(tdx=TdxIdentity(rtmrs=("", ZEROS, ZEROS, ""))), {}, ["no-identity"]),
        (Package(tdx=TdxIdentity(mrtd=MRTD[:-2])), {}, ["mrtd"]),
        (Package(tdx=TdxIdentity(mrtd=ONES)), {}, ["mrtd"]),
        (td(rtmrs=(ZEROS, ZEROS, ZEROS, ZEROS)), {}, []),
        (td(rtmrs=("", "", ONES, "")), {}, ["rtmr2"]),
        (td(rtmrs=(ONES, ONES, ONES, ONES)), {}, ["rtmr0", "rtmr1", "rtmr2", "rtmr3"]),
        (td(mr_config_id=ZEROS, mr_owner=ZEROS, mr_owner_config=ZEROS, mr_seam="33" * 48), {}, []),
        (td(mr_config_id=ONES), {}, ["mrconfigid"]),
        (td(mr_owner=ONES), {}, ["mrowner"]),
        (td(mr_owner_config=ONES), {}, ["mrownerconfig"]),
        (td(mr_seam=ONES), {}, ["mrseam"]),
        (TD, {"mrservicetd": b"\x01" * 48}, ["mrservicetd"]),
        (TD, {"mrservicetd": None}, []),
        (td(mr_service_td=ONES), {"mrservicetd": b"\x01" * 48}, []),
        (td(mr_service_td=ONES), {}, ["mrservicetd"]),
        # the forged TD has SEPT_VE_DISABLE set and nothing else
        (td(td_attributes="0000001000000000"), {}, []),
        (td(td_attributes="0000000000000000"), {}, ["tdattributes"]),
        (td(td_attributes="0000000000000000", td_attributes_mask="0000000000000000"), {}, []),
        (td(td_attributes="0000001000000000", td_attributes_mask="0000001000000000"), {}, []),
        (
            td(td_attributes="0000001000000000", td_attributes_mask="0000001000000000"),
            {"td_attributes": bytes(8)},
            ["tdattributes"],
        ),
        (td(td_attributes="0000001000000000", td_attributes_mask="0000000000000000"), {}, ["tdattributes"]),
        (td(td_attributes="10"), {}, ["tdattributes"]),
        (td(td_attributes_mask="ffffffffffffffff"), {}, ["tdattributes"]),
        (td(td_attributes="0000001000000000", td_attributes_mask="ff"), {}, ["tdattributes"]),
        (td(xfam="e702060000000000"), {}, []),
        (td(xfam="E702060000000000"), {}, []),
        (td(xfam="0300000000000000", xfam_mask="0300000000000000"), {}, []),
        (td(xfam="0000000000000000", xfam_mask="0300000000000000"), {}, ["xfam"]),
        (td(module_svn=5), {}, []),
        (td(module_svn=6), {}, ["module-svn"]),
        (td(module_svn=0), {}, []),
        (TD, {"td_attributes": bytes.fromhex("0100001000000000")}, ["debug"]),
        (replace(TD, debug=True), {"td_attributes": bytes.fromhex("0100001000000000")}, []),
        (replace(TD, debug=True), {}, ["debug"]),
    ],
)  # fmt: skip
def test_a_td_is_admitted_exactly_if_all_that_the_package_states_holds(
    package: Package, report: dict[str, Any], expected: list[str]
) -> None:
    assert expected == codes(tdx(**report), package)


def attributes(*bits: int) -> bytes:
    return sum(1 << bit for bit in set(bits)).to_bytes(8, "little")


NAMED_BITS = (16, 17, 29, 62, 63)


@pytest.mark.parametrize("bit", [bit for bit in range(64) if bit not in (0, 4, 5, 6)])
def test_attributes_that_open_a_td_are_refused_unless_the_package_names_them(bit: int) -> None:
    """A mask that leaves the bit out does not name it; one that has it, with the bit clear, refuses as ever."""
    claims, opens = tdx(td_attributes=attributes(28, bit)), bit in NAMED_BITS
    without = ["tdattributes-unnamed"] if opens else []
    both, only_28 = attributes(28, bit).hex(), attributes(28).hex()
    assert codes(claims, TD) == without
    assert codes(claims, td(td_attributes=only_28, td_attributes_mask=only_28)) == without
    assert codes(claims, td(td_attributes=both)) == []
    assert codes(claims, td(td_attributes=both, td_attributes_mask=both)) == []
    assert codes(claims, td(td_attributes=only_28)) == ([] if bit == 28 else ["tdattributes"])


@pytest.mark.parametrize("mask", ["", "zz", "ff", "\N{FULLWIDTH DIGIT ONE}" * 16])
def test_an_unreadable_mask_names_nothing(mask: str) -> None:
    found = codes(tdx(td_attributes=attributes(28, 29)), td(td_attributes_mask=mask))
    assert "tdattributes-unnamed" in found


@pytest.mark.parametrize(
    ("bits", "stated", "hashes", "expected"),
    [
        ((17, 28), "", (ZEROS, ZEROS), []),
        ((17, 28), "", (ONES, ZEROS), ["mrservicetd"]),
        ((17, 28), "", (ZEROS, ONES), ["mrservicetd"]),
        ((17, 28), ONES, (ONES, ONES), []),
        ((17, 28), ONES, (ZEROS, ONES), []),
        ((17, 28), ONES, (ONES, "02" * 48), ["mrservicetd"]),
        ((28,), "", (ONES, ONES), []),
    ],
)
def test_service_tds_bound_in_the_extended_manner_must_be_the_stated_one(
    bits: tuple[int, ...], stated: str, hashes: tuple[str, str], expected: list[str]
) -> None:
    """Without SERVTD_EXT the extended fields say nothing."""
    first, now = (bytes.fromhex(text) for text in hashes)
    extended = TdExtension(0, bytes(32), bytes(48), first, bytes(8), bytes(16), bytes(16), bytes(12), now, bytes(8))
    bound = bytes.fromhex(stated) if stated else bytes(48)
    claims = tdx(td_attributes=attributes(*bits), extended=extended, mrservicetd=bound)
    package = td(td_attributes=attributes(*bits).hex(), mr_service_td=stated)
    assert expected == codes(claims, package)


# -- TCB (protocol, section 4.3) ---------------------------------------------------------------------------------

ALL = tuple(status.value for status in TcbStatus)


@pytest.mark.parametrize("make", [lambda: (sgx(), ENCLAVE), lambda: (tdx(), TD)])
@pytest.mark.parametrize("status", list(TcbStatus))
@pytest.mark.parametrize("accepted", [(), *[(name,) for name in ALL], ALL, ("uptodate",), ("outofdate",)])
def test_a_tcb_status_is_admitted_exactly_if_it_is_up_to_date_or_accepted_and_never_if_revoked(
    make: Callable[[], tuple[Claims, Package]], status: TcbStatus, accepted: tuple[str, ...]
) -> None:
    """B1, B2, B3: any other status is what the reference calls an invalid level; a failed verification gives none."""
    claims, package = make()
    names = accepted or ("SWHardeningNeeded",)
    admitted = status is TcbStatus.UP_TO_DATE or (status in names and status not in ("Revoked", "Unknown"))
    found = codes(replace(claims, tcb_status=status), replace(package, accepted_tcb_statuses=accepted))
    assert ([] if admitted else ["tcb-status"]) == found


@pytest.mark.parametrize(
    ("accepted", "advisories", "expected"),
    [
        ((), ("INTEL-SA-1",), []),
        (("INTEL-SA-1",), ("INTEL-SA-1",), []),
        (("intel-sa-1",), ("INTEL-SA-1",), []),
        (("INTEL-SA-2",), ("INTEL-SA-1",), ["advisories"]),
        (("INTEL-SA-1",), ("INTEL-SA-1", "INTEL-SA-2"), ["advisories"]),
        (("INTEL-SA-1",), (), []),
        (("INTEL-SA-",), ("INTEL-SA-1",), ["advisories"]),
    ],
)
def test_every_advisory_must_be_listed_where_any_is(
    accepted: tuple[str, ...], advisories: tuple[str, ...], expected: list[str]
) -> None:
    """B4: where none is listed all are accepted, and only SWHardeningNeeded looks at them."""
    package = replace(ENCLAVE, accepted_advisories=accepted)
    needed = replace(sgx(), tcb_status=TcbStatus.SW_HARDENING_NEEDED, advisories=advisories)
    assert expected == codes(needed, package)
    assert codes(replace(needed, tcb_status=TcbStatus.UP_TO_DATE), package) == []


# -- infrastructures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("infrastructure", "expected"),
    [
        (Infrastructure(), []),
        (Infrastructure(cpu_svn=b"\x05" * 16), []),
        (Infrastructure(cpu_svn=b"\x05" * 15 + b"\x06"), ["cpu-svn"]),
        (Infrastructure(cpu_svn=b"\x05" * 15), ["cpu-svn"]),
        (Infrastructure(qe_svn=8, pce_svn=13), []),
        (Infrastructure(qe_svn=9), ["qe-svn"]),
        (Infrastructure(pce_svn=14), ["pce-svn"]),
        (Infrastructure(qe_svn=0, pce_svn=0, min_tcb_evaluation_data_number=0), []),
        (Infrastructure(min_tcb_evaluation_data_number=17), []),
        (Infrastructure(min_tcb_evaluation_data_number=18), ["tcb-evaluation-number"]),
        (Infrastructure(root_ca=b"no certificate"), ["root-ca"]),
        (Infrastructure(fmspcs=("00606a000000",)), []),
        (Infrastructure(fmspcs=("00906ed50000", "00606A000000")), []),
        (Infrastructure(fmspcs=("00906ed50000",)), ["fmspc"]),
        (Infrastructure(fmspcs=()), ["fmspc"]),
        (Infrastructure(fmspcs=("",)), ["fmspc"]),
        (Infrastructure(ppids=(PPID,)), []),
        (Infrastructure(ppids=()), ["ppid"]),
        (Infrastructure(ppids=(PPID[:-2],)), ["ppid"]),
        (Infrastructure(platform_instance_ids=("66" * 16,)), ["platform-instance-id"]),
        (Infrastructure(platform_instance_ids=()), ["platform-instance-id"]),
        (Infrastructure(platform_instance_ids=("",)), ["platform-instance-id"]),
        (Infrastructure(qe_svn=9, pce_svn=14, ppids=()), ["qe-svn", "pce-svn", "ppid"]),
    ],
)
@pytest.mark.parametrize("make", [lambda: (sgx(), ENCLAVE), lambda: (tdx(), TD)])
def test_a_platform_is_admitted_exactly_if_all_that_the_infrastructure_states_holds(
    make: Callable[[], tuple[Claims, Package]], infrastructure: Infrastructure, expected: list[str]
) -> None:
    assert expected == codes(*make(), i=infrastructure)


def test_the_instance_id_of_the_platform_counts_where_it_has_one() -> None:
    claims = replace(sgx(), platform=replace(sgx().platform, platform_instance_id=b"\x66" * 16))
    assert codes(claims, ENCLAVE, i=Infrastructure(platform_instance_ids=("66" * 16,))) == []


def test_the_key_of_the_root_counts_in_der_and_pem() -> None:
    claims, der = _minted(False)
    pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM)
    other = _minted(True)[1]
    assert [codes(claims, ENCLAVE, i=Infrastructure(root_ca=root)) for root in (der, pem, other)] == [
        [],
        [],
        ["root-ca"],
    ]


def test_one_infrastructure_that_fits_is_enough_and_otherwise_all_are_told() -> None:
    narrow, wide = Infrastructure(qe_svn=99), Infrastructure(qe_svn=1)
    assert codes(sgx(), ENCLAVE, a=narrow, b=wide) == []
    assert codes(sgx(), ENCLAVE, a=narrow, b=Infrastructure(ppids=())) == ["qe-svn", "ppid"]


# -- the whole ---------------------------------------------------------------------------------------------------


def refusal(claims: Claims, package: Package, **infrastructures: Infrastructure) -> NotAdmitted:
    with pytest.raises(NotAdmitted) as caught:
        require_admitted(claims, "p", package, infrastructures, SIMULATED)
    return caught.value


def test_a_refusal_gathers_everything_with_path_expected_and_actual() -> None:
    claims = replace(sgx(attributes=b"\x07" + bytes(15)), tcb_status=TcbStatus.OUT_OF_DATE)
    found = refusal(claims, Package(unique_id="00" * 32), i=Infrastructure(qe_svn=9)).found
    assert found == (
        Mismatch("Packages.p.Debug", "false", "true", "debug"),
        Mismatch("Packages.p.UniqueID", "00" * 32, UNIQUE, "unique-id"),
        Mismatch("Packages.p.AcceptedTCBStatuses", "UpToDate or SWHardeningNeeded", "OutOfDate", "tcb-status"),
        Mismatch("Infrastructures.i.QESVN", "at least 9", "8", "qe-svn", about_platform=True),
    )


def test_the_peer_is_told_about_its_program_and_not_about_machines() -> None:
    denied = refusal(sgx(), Package(unique_id="00" * 32), i=Infrastructure(ppids=("ab" * 16,)))
    assert isinstance(denied, Denied)
    assert UNIQUE in str(denied)
    assert "Infrastructures.i.PPIDs" in str(denied)
    assert ("ab" * 16 in str(denied), PPID in str(denied)) == (False, False)
    assert ["ab" * 16 in str(mismatch) for mismatch in denied.found] == [False, True]


def test_a_long_list_is_told_in_short() -> None:
    (mismatch,) = refusal(sgx(), ENCLAVE, i=Infrastructure(ppids=("00" * 16,) * 10_000)).found
    assert len(mismatch.expected) < 500


def test_only_admitted_origins_get_as_far_as_a_package() -> None:
    for admission in (Admission(), Admission(frozenset())):
        found = judge(sgx(), "p", ENCLAVE, {}, admission)
        assert [mismatch.code for mismatch in found] == ["origin"]
    assert [mismatch.code for mismatch in judge(Unattested(), "p", ENCLAVE, {}, SIMULATED)] == ["origin"]
    assert judge(Unattested(), "p", ENCLAVE, {}, Admission(frozenset({Origin.NONE}))) == ()


hexes = st.text("0123456789abcdefgG ", max_size=98)
identities = st.builds(
    TdxIdentity, hexes, st.tuples(hexes, hexes, hexes, hexes), *[hexes] * 9, st.none() | st.integers(0, 255)
)
packages = st.builds(
    Package, st.booleans(), hexes, hexes, *[st.none() | st.integers(0, 2**64 - 1)] * 2, tdx=st.none() | identities
)


@given(packages, st.booleans())
def test_no_stated_nonsense_admits_anything(package: Package, td: bool) -> None:
    """Values that are not the evidence's own never pass, whatever they look like."""
    claims = tdx() if td else sgx()
    stated = package.tdx.mrtd if td and package.tdx else package.unique_id or package.signer_id
    if stated not in ("", UNIQUE, SIGNER, MRTD):
        assert codes(claims, package) != []
