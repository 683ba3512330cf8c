"""Which Coordinators are alike enough for one to have the other's key encryption key: each rule alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.policy.claims import sgx, tdx

from marblerun.attestation.model import Claims, Origin, TcbStatus, TdReport, Unattested
from marblerun.errors import Denied
from marblerun.policy.sharing import Identity, IdentityUnknown, identity_of, require_client_like, require_server_like

DEBUG = b"\x07" + bytes(15)
OWN = identity_of(sgx())


def mismatches(own: Identity, claims: Claims, *, as_server: bool = False, product: bool = True) -> list[str]:
    """Where the peer differs."""
    try:
        if as_server:
            require_server_like(own, claims)
        else:
            require_client_like(own, claims, product=product)
    except Denied as error:
        return [found.partition(":")[0] for found in error.mismatches]
    return []


@pytest.mark.parametrize("as_server", [True, False])
@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({}, []),
        ({"mrsigner": b"\x99" * 32}, ["SignerID"]),
        ({"mrsigner": bytes(32)}, ["SignerID"]),
        ({"isv_prod_id": 9}, ["ProductID"]),
        ({"isv_svn": 1}, ["SecurityVersion"]),
        ({"isv_svn": 3}, []),
        ({"attributes": DEBUG}, ["Debug"]),
        ({"mrenclave": b"\x99" * 32}, []),
        ({"mrsigner": b"\x99" * 32, "isv_prod_id": 9, "isv_svn": 0}, ["SignerID", "ProductID", "SecurityVersion"]),
    ],
)
def test_d4_a_peer_of_the_product_has_signer_product_and_debug_of_ours_and_no_lower_version(
    report: dict[str, Any], expected: list[str], as_server: bool
) -> None:
    """UniqueID is not compared."""
    assert mismatches(OWN, sgx(**report), as_server=as_server) == expected


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({}, []),
        ({"mrenclave": b"\x99" * 32}, ["UniqueID"]),
        ({"mrsigner": b"\x99" * 32}, ["SignerID"]),
        ({"isv_prod_id": 9}, ["ProductID"]),
        ({"isv_svn": 1}, ["SecurityVersion"]),
        ({"attributes": DEBUG}, ["Debug"]),
    ],
)
def test_d4_where_the_state_is_not_sealed_to_the_product_the_whole_identity_counts(
    report: dict[str, Any], expected: list[str]
) -> None:
    assert mismatches(OWN, sgx(**report), product=False) == expected


def test_a_debug_enclave_shares_with_debug_enclaves_only() -> None:
    own = identity_of(sgx(attributes=DEBUG))
    assert mismatches(own, sgx(attributes=DEBUG)) == []
    assert mismatches(own, sgx()) == ["Debug"]


@pytest.mark.parametrize("as_server", [True, False])
@pytest.mark.parametrize(
    ("own", "peer", "fits"),
    [
        (TcbStatus.UP_TO_DATE, TcbStatus.UP_TO_DATE, True),
        (TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED, False),
        (TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE, False),
        (TcbStatus.SW_HARDENING_NEEDED, TcbStatus.UP_TO_DATE, True),
        (TcbStatus.SW_HARDENING_NEEDED, TcbStatus.SW_HARDENING_NEEDED, True),
        (TcbStatus.SW_HARDENING_NEEDED, TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED, False),
        (TcbStatus.OUT_OF_DATE, TcbStatus.SW_HARDENING_NEEDED, False),
        (TcbStatus.OUT_OF_DATE, TcbStatus.OUT_OF_DATE, True),
        (TcbStatus.REVOKED, TcbStatus.REVOKED, False),
        (TcbStatus.UNKNOWN, TcbStatus.UNKNOWN, False),
    ],
)
def test_a_peers_tcb_is_up_to_date_or_stands_as_our_own(
    own: TcbStatus, peer: TcbStatus, fits: bool, as_server: bool
) -> None:
    found = mismatches(replace(OWN, tcb_status=own), replace(sgx(), tcb_status=peer), as_server=as_server)
    assert found == ([] if fits else ["AcceptedTCBStatuses"])


@pytest.mark.parametrize("as_server", [True, False])
@pytest.mark.parametrize(
    ("own", "peer"),
    [(Origin.HARDWARE, Origin.SIMULATED), (Origin.SIMULATED, Origin.HARDWARE), (Origin.SIMULATED, Origin.NONE)],
)
def test_simulated_and_real_coordinators_share_nothing(own: Origin, peer: Origin, as_server: bool) -> None:
    claims = replace(sgx(), origin=peer)
    assert mismatches(replace(OWN, origin=own), claims, as_server=as_server) == ["evidence"]


def test_without_evidence_nobody_is_accepted_and_nobody_knows_himself() -> None:
    with pytest.raises(IdentityUnknown):
        identity_of(Unattested())
    with pytest.raises(Denied):
        require_server_like(OWN, Unattested())
    with pytest.raises(Denied):
        require_client_like(OWN, Unattested(), product=True)


@pytest.mark.parametrize(
    ("missing", "product", "name"),
    [
        ({"signer_id": b""}, True, "SignerID"),
        ({"signer_id": bytes(32)}, True, "SignerID"),
        ({"product_id": None}, True, "ProductID"),
        ({"security_version": None}, True, "SecurityVersion"),
        ({"unique_id": b""}, False, "UniqueID"),
        ({"unique_id": bytes(32)}, False, "UniqueID"),
    ],
)
def test_d4_what_is_not_known_of_ourselves_is_compared_with_nothing(
    missing: dict[str, Any], product: bool, name: str
) -> None:
    own = replace(OWN, **missing)
    with pytest.raises(IdentityUnknown, match=name):
        require_client_like(own, sgx(), product=product)
    require_client_like(own, sgx(), product=not product)
    if product:
        with pytest.raises(IdentityUnknown, match=name):
            require_server_like(own, sgx())


def td(**report: Any) -> Claims:
    return tdx(**report)


@pytest.mark.parametrize("product", [True, False])
@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({}, []),
        ({"mrtd": b"\x99" * 48}, ["TDX.MRTD"]),
        ({"rtmrs": (b"\x99" * 48, *[b"\x00" * 48] * 3)}, ["TDX.RTMR0"]),
        ({"mrconfigid": b"\x99" * 48}, ["TDX.MRCONFIGID"]),
        ({"mrowner": b"\x99" * 48}, ["TDX.MROWNER"]),
        ({"mrownerconfig": b"\x99" * 48}, ["TDX.MROWNERCONFIG"]),
        ({"mrservicetd": b"\x99" * 48}, ["TDX.MRSERVICETD"]),
        ({"xfam": b"\x99" * 8}, ["TDX.XFAM"]),
        ({"mrseam": b"\x99" * 48}, []),
    ],
)
def test_of_tds_every_measurement_counts_and_the_machines_module_by_its_tcb_only(
    report: dict[str, Any], expected: list[str], product: bool
) -> None:
    own_claims = td()
    assert isinstance(own_claims.report, TdReport)
    own = identity_of(own_claims)
    if "rtmrs" in report:
        report = {"rtmrs": (b"\x99" * 48, *own_claims.report.rtmrs[1:])}
    assert mismatches(own, td(**report), product=product) == expected
    assert mismatches(own, td(**report), as_server=True) == expected


@pytest.mark.parametrize(
    ("own", "peer", "fits"),
    [
        (b"\x55" * 48, b"\x55" * 48, True),
        (b"\x55" * 48, bytes(48), False),
        (b"\x55" * 48, None, False),
        (None, None, True),
        (None, bytes(48), True),
        (None, b"\x55" * 48, False),
    ],
)
def test_the_service_td_is_the_same_where_there_is_one_and_a_report_10_has_none(
    own: bytes | None, peer: bytes | None, fits: bool
) -> None:
    expected = [] if fits else ["TDX.MRSERVICETD"]
    assert mismatches(identity_of(td(mrservicetd=own)), td(mrservicetd=peer)) == expected


def test_an_enclave_and_a_td_share_nothing() -> None:
    assert mismatches(OWN, td()) == ["Packages.Coordinator"]
    assert mismatches(identity_of(td()), sgx()) == ["Packages.Coordinator"]


def test_all_that_differs_is_told_at_once() -> None:
    with pytest.raises(Denied) as refused:
        require_client_like(OWN, sgx(mrsigner=b"\x99" * 32, isv_prod_id=9), product=True)
    assert "SignerID: expected 2222" in str(refused.value)
    assert "ProductID: expected 1, evidence says 9" in str(refused.value)
