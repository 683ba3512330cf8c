"""Each rule of the verifier, by forged evidence in which one thing is wrong and all else is right."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from tests.forge.dcap import NOW, Dcap, Minted, isv_level, level, module, new_keys

from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, Origin, TcbStatus, Tee, TrustRoot
from marblerun.errors import Malformed, Untrusted
from marblerun.wire.pem import encode_pem

SGX = Dcap()
TDX = Dcap(tdx=True, version=5)
SECOND = timedelta(seconds=1)


def verify(minted: Minted, at: datetime = NOW) -> Claims:
    return Verifier([minted.root]).verify(minted.quote, minted.collateral, at)


def refusal(minted: Minted, at: datetime = NOW) -> tuple[str, str]:
    with pytest.raises((Malformed, Untrusted)) as caught:
        verify(minted, at)
    return (caught.value.step, caught.value.reason) if isinstance(caught.value, Untrusted) else ("parse", "")


def svn(*first: int) -> bytes:
    return bytes(first) + bytes(16 - len(first))


def u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


@pytest.mark.parametrize(
    ("dcap", "tee"),
    [
        (SGX, Tee.SGX),
        (SGX.with_(ca="Processor"), Tee.SGX),
        (SGX.with_(version=4), Tee.SGX),
        (SGX.with_(version=5, body_type=1), Tee.SGX),
        (TDX.with_(version=4), Tee.TDX),
        (TDX.with_(body_type=2), Tee.TDX),
        (TDX, Tee.TDX),
        (TDX.with_(body_type=4), Tee.TDX),
        (SGX.with_(auth_data=b""), Tee.SGX),
        (SGX.with_(auth_data=b"\x07" * 100), Tee.SGX),
    ],
)
def test_every_format_of_a_genuine_quote_is_accepted(dcap: Dcap, tee: Tee) -> None:
    claims = verify(dcap.mint())
    assert (claims.tee, claims.tcb_status, claims.origin, claims.advisories) == (
        tee,
        TcbStatus.UP_TO_DATE,
        Origin.SIMULATED,
        (),
    )


@pytest.mark.parametrize(
    ("dcap", "expected"),
    [
        # 3. root CRL
        (SGX.with_(revoked_by_root=("signer",)), ("root-crl", "revoked")),
        # 4. TCB signer, TCB Info, identity
        (SGX.with_(names={"signer": "Forged SGX PCK Certificate"}), ("tcb-signer", "mismatch")),
        (SGX.with_(critical_extension="signer"), ("tcb-signer", "malformed")),
        (SGX.with_(sign_text=lambda text: text + " "), ("tcb-info", "bad-signature")),
        (SGX.with_(tcb={"version": 2}), ("tcb-info", "malformed")),
        (SGX.with_(tcb={"tcbType": 1}), ("tcb-info", "malformed")),
        (SGX.with_(tcb={"id": "QE"}), ("tcb-info", "malformed")),
        (SGX.with_(tcb={"tcbLevels": [level(5, "Fine")]}), ("tcb-info", "malformed")),
        (SGX.with_(tcb={"tcbLevels": [level(256, "UpToDate")]}), ("tcb-info", "malformed")),
        (SGX.with_(tcb={"issueDate": "2026-02-30T00:00:00Z"}), ("tcb-info", "malformed")),
        (SGX.with_(tcb={"nextUpdate": "2030-01-01"}), ("tcb-info", "malformed")),
        (SGX.with_(tcb={"tcbEvaluationDataNumber": True}), ("tcb-info", "malformed")),
        (SGX.with_(identity={"version": 1}), ("qe-identity", "malformed")),
        (SGX.with_(identity={"id": "QVE"}), ("qe-identity", "malformed")),
        (SGX.with_(identity={"tcbLevels": [isv_level(1, "SWHardeningNeeded")]}), ("qe-identity", "malformed")),
        # 5. PCK chain
        (SGX.with_(revoked_by_root=("ca",)), ("root-crl", "revoked")),
        (SGX.with_(pck_revoked=True), ("pck-crl", "revoked")),
        (SGX.with_(not_a_ca=True), ("pck-crl", "mismatch")),
        (SGX.with_(pck_is_ca=True), ("pck-chain", "mismatch")),
        (SGX.with_(root_path_length=0), ("pck-crl", "mismatch")),
        (SGX.with_(names={"pck": "Forged SGX TCB Signing"}), ("pck-chain", "mismatch")),
        (SGX.with_(names={"ca": "Forged SGX PCK Other CA"}), ("pck-crl", "mismatch")),
        (SGX.with_(critical_extension="pck"), ("pck-chain", "malformed")),
        # 6. platform and collateral
        (SGX.with_(tcb={"fmspc": "00606A000001"}), ("collateral-match", "mismatch")),
        (SGX.with_(tcb={"pceId": "0001"}), ("collateral-match", "mismatch")),
        (SGX.with_(identity={"id": "TD_QE"}), ("collateral-match", "mismatch")),
        (TDX.with_(identity={"id": "QE"}), ("collateral-match", "mismatch")),
        # 8. report data of the QE
        (SGX.with_(qe={"report_data": bytes(64)}), ("qe-report-data", "mismatch")),
        # 9. QE identity
        (SGX.with_(qe={"attributes": bytes.fromhex("17") + bytes(15)}), ("qe-match", "debug")),
        (SGX.with_(qe={"attributes": bytes.fromhex("05") + bytes(15)}), ("qe-match", "mismatch")),
        (SGX.with_(qe={"miscselect": b"\x01\x00\x00\x00"}), ("qe-match", "mismatch")),
        (SGX.with_(qe={"mrsigner": b"\x01" * 32}), ("qe-match", "mismatch")),
        (SGX.with_(qe={"isv_prod_id": u16(2)}), ("qe-match", "mismatch")),
        (SGX.with_(qe={"isv_svn": u16(5)}), ("qe-level", "not-supported")),
        (SGX.with_(identity={"tcbLevels": [isv_level(8, "Revoked")]}), ("qe-level", "revoked")),
        # 10. the quote's signature
        (SGX.with_(foreign_attestation_key=True), ("quote-signature", "bad-signature")),
        # 11. levels and module
        (SGX.with_(pck_svns=(5,) * 15 + (4,)), ("tcb-level", "not-supported")),
        (SGX.with_(pce_svn=12), ("tcb-level", "not-supported")),
        (SGX.with_(tcb={"tcbLevels": []}), ("tcb-level", "not-supported")),
        (SGX.with_(tcb={"tcbLevels": [level(5, "Revoked")]}), ("tcb-level", "revoked")),
        (TDX.with_(report={"tee_tcb_svn": svn(5, 1, 1)}), ("tcb-level", "not-supported")),
        (TDX.with_(report={"tee_tcb_svn": svn(4, 0, 2), "tee_tcb_svn2": svn(4, 0, 2)}), ("tcb-level", "not-supported")),
        (TDX.with_(report={"tee_tcb_svn": svn(1, 1, 2)}), ("tdx-module", "not-supported")),
        (TDX.with_(report={"tee_tcb_svn": svn(5, 3, 2)}), ("tdx-module", "not-supported")),
        (TDX.with_(report={"tee_tcb_svn2": svn(1, 1, 2)}), ("tdx-module", "not-supported")),
        (TDX.with_(report={"tee_tcb_svn2": svn(5, 3, 2)}), ("tdx-module", "not-supported")),
        (TDX.with_(tcb={"tdxModuleIdentities": [module(1, isv_level(1, "Revoked"))]}), ("tdx-module", "revoked")),
        (TDX.with_(report={"mrsignerseam": b"\x01" * 48}), ("tdx-module", "mismatch")),
        (TDX.with_(report={"seam_attributes": b"\x01" + bytes(7)}), ("tdx-module", "mismatch")),
        (
            TDX.with_(tcb={"tdxModuleIdentities": [module(1, isv_level(1, "UpToDate"), mrsigner="11" * 48)]}),
            ("tdx-module", "mismatch"),
        ),
        # 12. the report
        (TDX.with_(report={"td_attributes": bytes.fromhex("0200001000000000")}), ("report", "reserved-bits")),
        (SGX.with_(report={"reserved_20": b"\x01"}), ("parse", "")),
    ],
)
def test_one_wrong_thing_is_refused_at_its_step(dcap: Dcap, expected: tuple[str, str]) -> None:
    assert expected == refusal(dcap.mint())


ROLES = {
    "root": "tcb-signer",
    "signer": "tcb-signer",
    "root_crl": "root-crl",
    "tcb_info": "tcb-info",
    "qe_identity": "qe-identity",
    "ca": "pck-crl",
    "pck_crl": "pck-crl",
    "pck": "pck-chain",
}


@pytest.mark.parametrize(("role", "step"), ROLES.items())
def test_every_date_is_judged_on_every_call_both_ends_included(role: str, step: str) -> None:
    """One verifier with warm caches, asked at each edge of one part's validity."""
    first, last = NOW - timedelta(days=1), NOW + timedelta(days=1)
    minted = SGX.with_(validity={role: (first, last)}).mint()
    verifier = Verifier([minted.root])

    def reason(at: datetime) -> tuple[str, str] | None:
        try:
            verifier.verify(minted.quote, minted.collateral, at)
        except Untrusted as error:
            return error.step, error.reason
        return None

    edges = [NOW, first - SECOND, first, last, last + SECOND, NOW]
    expected = [None, (step, "not-yet-valid"), None, None, (step, "expired"), None]
    assert expected == [reason(at) for at in edges]


def test_the_earliest_end_of_all_collateral_is_told() -> None:
    end = NOW + timedelta(days=3)
    assert end == verify(SGX.with_(validity={"pck_crl": (NOW, end)}).mint()).collateral_expires


@pytest.mark.parametrize(
    ("field", "step"),
    [
        ("root_ca_crl", "root-crl"),
        ("pck_crl", "pck-crl"),
        ("tcb_info", "tcb-info"),
        ("tcb_info_signature", "tcb-info"),
        ("qe_identity", "qe-identity"),
        ("qe_identity_signature", "qe-identity"),
        ("tcb_info_issuer_chain", "tcb-signer"),
        ("qe_identity_issuer_chain", "tcb-signer"),
        ("pck_crl_issuer_chain", "pck-crl"),
    ],
)
def test_missing_and_foreign_collateral_is_refused_field_by_field(field: str, step: str) -> None:
    newer = {"tcbEvaluationDataNumber": 18}
    minted, other = SGX.mint(), SGX.with_(tcb=newer, identity=newer).mint()
    empty = "" if isinstance(getattr(minted.collateral, field), str) else b""
    for value in (empty, getattr(other.collateral, field)):
        changes: dict[str, Any] = {field: value}
        assert refusal(replace(minted, collateral=replace(minted.collateral, **changes)))[0] == step


def test_a_crl_of_the_other_ca_does_not_count() -> None:
    """Both CAs are under the same root and both lists are genuine, but the Processor CA's says nothing on Platform."""
    keys = new_keys()
    platform, processor = SGX.with_(keys=keys).mint(), SGX.with_(keys=keys, ca="Processor").mint()
    swapped = replace(
        platform.collateral,
        pck_crl=processor.collateral.pck_crl,
        pck_crl_issuer_chain=processor.collateral.pck_crl_issuer_chain,
    )
    assert refusal(replace(platform, collateral=swapped)) == ("pck-crl", "mismatch")


def test_the_quotes_own_ca_certificate_must_not_be_revoked_either() -> None:
    """The CA was reissued with the same key: the collateral has the new certificate, the quote the revoked one."""
    keys = new_keys()
    old = SGX.with_(keys=keys).mint()
    revoked = x509.load_pem_x509_certificates(old.collateral.pck_crl_issuer_chain.encode())[0].serial_number
    new = SGX.with_(keys=keys, also_revoked_by_root=(revoked,)).mint()
    assert refusal(replace(old, collateral=new.collateral)) == ("root-crl", "revoked")


def test_a_root_certificate_with_the_right_key_must_still_be_signed_by_it() -> None:
    minted = SGX.mint()
    changed = minted.root_der[:-1] + bytes([minted.root_der[-1] ^ 1])
    ca = minted.collateral.pck_crl_issuer_chain.partition("-----END CERTIFICATE-----\n")
    chain = ca[0] + ca[1] + encode_pem(changed, "CERTIFICATE")
    swapped = replace(minted, collateral=replace(minted.collateral, pck_crl_issuer_chain=chain))
    assert refusal(swapped) == ("pck-crl", "bad-signature")


def test_identity_and_tcb_info_of_different_roots_are_refused() -> None:
    one, two = SGX.mint(), SGX.mint()
    mixed = replace(
        one.collateral,
        qe_identity=two.collateral.qe_identity,
        qe_identity_signature=two.collateral.qe_identity_signature,
        qe_identity_issuer_chain=two.collateral.qe_identity_issuer_chain,
    )
    with pytest.raises(Untrusted) as caught:
        Verifier([one.root, two.root]).verify(one.quote, mixed, NOW)
    assert (caught.value.step, caught.value.reason) == ("tcb-signer", "mismatch")


def test_the_lower_evaluation_number_is_told() -> None:
    minted = SGX.with_(tcb={"tcbEvaluationDataNumber": 20}, identity={"tcbEvaluationDataNumber": 19}).mint()
    assert verify(minted).tcb_evaluation_number == 19


STATUSES = {
    # platform status: status with a QE that is OutOfDate (formats, section 5.3)
    "UpToDate": "OutOfDate",
    "SWHardeningNeeded": "OutOfDate",
    "ConfigurationNeeded": "OutOfDateConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded": "OutOfDateConfigurationNeeded",
    "OutOfDate": "OutOfDate",
    "OutOfDateConfigurationNeeded": "OutOfDateConfigurationNeeded",
}


@pytest.mark.parametrize(("platform", "converged"), STATUSES.items())
@pytest.mark.parametrize("dcap", [SGX, TDX.with_(body_type=2)])
def test_a_platform_status_converges_with_an_outdated_qe(dcap: Dcap, platform: str, converged: str) -> None:
    tdx = (5, 0, 2) + (0,) * 13 if dcap.tdx else None
    described = dcap.with_(tcb={"tcbLevels": [level(5, platform, tdx=tdx, advisoryIDs=["P", "INTEL-SA-QE"])]})
    current, outdated = verify(described.mint()), verify(described.with_(qe={"isv_svn": u16(6)}).mint())
    assert (current.tcb_status, current.advisories) == (TcbStatus(platform), ("P", "INTEL-SA-QE"))
    assert (outdated.tcb_status, outdated.parts["qe"].status) == (TcbStatus(converged), TcbStatus.OUT_OF_DATE)
    assert outdated.advisories == ("P", "INTEL-SA-QE")


def test_the_first_level_that_fits_counts_and_levels_are_sorted_first() -> None:
    levels = [level(3, "OutOfDate", advisoryIDs=["OLD"]), level(5, "SWHardeningNeeded"), level(6, "UpToDate")]
    claims = verify(SGX.with_(tcb={"tcbLevels": levels}).mint())
    assert (claims.tcb_status, claims.advisories) == (TcbStatus.SW_HARDENING_NEEDED, ())


OLD, NEW = svn(2, 1, 2), svn(5, 1, 3)
MODULES = [module(1, isv_level(5, "UpToDate", advisoryIDs=["NEW"]), isv_level(2, "OutOfDate", advisoryIDs=["OLD"]))]


@pytest.mark.parametrize(
    ("launched", "current", "platform", "expected"),
    [
        (OLD, NEW, "UpToDate", "TDRelaunchAdvised"),
        (OLD, NEW, "SWHardeningNeeded", "TDRelaunchAdvised"),
        (OLD, NEW, "ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
        (OLD, NEW, "OutOfDate", "OutOfDate"),
        (OLD, OLD, "UpToDate", "OutOfDate"),
        (NEW, OLD, "UpToDate", "UpToDate"),
        (NEW, NEW, "UpToDate", "UpToDate"),
    ],
)
def test_a_td_launched_under_an_old_module_is_advised_to_relaunch(
    launched: bytes, current: bytes, platform: str, expected: str
) -> None:
    levels = [level(5, platform, tdx=tuple(svn(0, 0, 2)))]
    described = TDX.with_(
        tcb={"tcbLevels": levels, "tdxModuleIdentities": MODULES},
        report={"tee_tcb_svn": launched, "tee_tcb_svn2": current},
    )
    claims = verify(described.mint())
    assert claims.tcb_status == TcbStatus(expected)
    assert claims.parts["module"].status == (TcbStatus.OUT_OF_DATE if launched == OLD else TcbStatus.UP_TO_DATE)
    assert claims.parts["module-current"].advisories == (("OLD",) if current == OLD else ("NEW",))


def test_a_module_of_version_zero_is_judged_by_the_tcb_info_itself() -> None:
    described = TDX.with_(report={"tee_tcb_svn": svn(5, 0, 2), "tee_tcb_svn2": svn(5, 0, 2)})
    assert sorted(verify(described.mint()).parts) == ["platform", "platform-current", "qe"]


def test_debug_and_attributes_are_told_and_not_judged() -> None:
    assert verify(SGX.with_(report={"attributes": b"\x07" + bytes(15)}).mint()).debug is True
    assert verify(TDX.with_(report={"td_attributes": b"\x01" + bytes(7)}).mint()).debug is True


@pytest.mark.parametrize("bit", [0, 4, 5, 6, 16, 17, 27, 28, 29, 30, 31, 62, 63])
def test_debug_and_each_profiling_bit_make_a_td_a_debug_one_and_no_other_bit_does(bit: int) -> None:
    """Formats, section 2.3."""
    claims = verify(TDX.with_(report={"td_attributes": (1 << bit).to_bytes(8, "little")}).mint())
    assert claims.debug is (bit in {0, 4, 5, 6})


def test_a_naive_time_is_our_own_mistake() -> None:
    minted = SGX.mint()
    with pytest.raises(ValueError, match="aware"):
        verify(minted, NOW.replace(tzinfo=None))


def test_what_was_refused_is_not_remembered_and_what_was_accepted_is_judged_again() -> None:
    """A warm cache helps nobody: a new CRL that revokes the PCK, or another quote signature, is refused at once."""
    minted = SGX.mint()
    forged = bytearray(minted.quote)
    forged[436] ^= 1
    verifier = Verifier([minted.root])
    outcomes: list[str] = []
    changes: list[Callable[[], object]] = [
        lambda: verifier.verify(minted.quote, minted.collateral, NOW),
        lambda: verifier.verify(bytes(forged), minted.collateral, NOW),
        lambda: verifier.verify(minted.quote, replace(minted.collateral, pck_crl=b""), NOW),
        lambda: verifier.verify(minted.quote, minted.collateral, NOW),
    ]
    for change in changes:
        try:
            change()
            outcomes.append("ok")
        except Untrusted as error:
            outcomes.append(error.step)
    assert outcomes == ["ok", "quote-signature", "pck-crl", "ok"]


def test_verifiers_do_not_share_trust() -> None:
    minted = SGX.mint()
    verify(minted)
    stranger = Verifier([TrustRoot("stranger", bytes(32), Origin.SIMULATED)])
    with pytest.raises(Untrusted) as caught:
        stranger.verify(minted.quote, minted.collateral, NOW)
    assert caught.value.reason == "unknown-root"


def test_many_threads_get_the_same_answers() -> None:
    """More hierarchies than the caches hold, in several threads on one verifier."""
    minted = [SGX.with_(report={"isv_svn": u16(i)}).mint() for i in range(8)]
    verifier = Verifier([one.root for one in minted])

    def svn_of(i: int) -> int:
        one = minted[i % len(minted)]
        report = verifier.verify(one.quote, one.collateral, NOW).report
        assert hasattr(report, "isv_svn")
        return int(report.isv_svn)

    with ThreadPoolExecutor(4) as pool:
        assert [i % len(minted) for i in range(80)] == list(pool.map(svn_of, range(80)))
