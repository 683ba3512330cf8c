"""Coordinators in TDs: the policy's TDX object, read strictly, judged as a package's is, attested over a connection."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client.coordinators import FakeCoordinator, coordinator, serving
from tests.client.fixtures import POLICY, PRODUCT, SIGNER_ID
from tests.forge.evidence import AT, forge, new_key, td_report

from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, TdReport, Tee
from marblerun.attestation.simulated import SimulatedPlatform, quotes
from marblerun.client import CoordinatorPolicy, Trust, attest, parse_policy
from marblerun.errors import Denied, Malformed, MarbleRunError, Misconfigured
from marblerun.manifest.model import TdxIdentity

TD = td_report(version_15=True)
MRTD = TD.mrtd.hex()
TD_ONLY = CoordinatorPolicy(tdx=TdxIdentity(mrtd=MRTD))
BOTH = replace(POLICY, tdx=TdxIdentity(mrtd=MRTD))


def claims(report: TdReport) -> Claims:
    evidence = forge(report)
    return Verifier([evidence.root]).verify(evidence.quote, evidence.collateral, AT)


def refused(policy: CoordinatorPolicy, found: Claims) -> list[str]:
    with pytest.raises(Denied) as refusal:
        policy.judge(found)
    return [mismatch.split(":")[0] for mismatch in refusal.value.mismatches]


def in_a_td(platform: SimulatedPlatform, report: TdReport) -> FakeCoordinator:
    """An honest Coordinator whose quotes are of the TD ``report`` on the simulated platform."""
    hierarchy, key = platform.hierarchy(), new_key()
    enclave = quotes.certify(hierarchy, key, quotes.qe_report(Tee.TDX, key))
    fake = coordinator(platform, product_id=PRODUCT)

    def quote(nonce: bytes) -> bytes:
        data = hashlib.sha256(fake.root.der + nonce).digest() + bytes(32)
        return quotes.quote(hierarchy, enclave, replace(report, report_data=data), version=5).encode()

    fake.evidence = quote
    return fake


@pytest.mark.parametrize("policy", [TD_ONLY, BOTH])
def test_a_coordinator_in_a_td_is_attested_with_a_fresh_nonce(
    platform: SimulatedPlatform, trust: Trust, policy: CoordinatorPolicy
) -> None:
    with serving(in_a_td(platform, TD)) as fake:
        found = attest(fake.endpoint, policy, trust=trust)
    assert found.claims is not None
    assert (found.claims.tee, len(found.nonce), found.chain.root_der) == (Tee.TDX, 32, fake.root.der)


@pytest.mark.parametrize(
    ("policy", "report"),
    [
        (POLICY, TD),
        (CoordinatorPolicy(tdx=TdxIdentity(mrtd="11" * 48)), TD),
        (TD_ONLY, replace(TD, td_attributes=bytes.fromhex("0100001000000000"))),
        (TD_ONLY, replace(TD, td_attributes=bytes.fromhex("0000003000000000"))),
        (TD_ONLY, replace(TD, mrservicetd=b"\x01" * 48)),
    ],
)
def test_another_td_than_the_policys_is_denied(
    platform: SimulatedPlatform, trust: Trust, policy: CoordinatorPolicy, report: TdReport
) -> None:
    with serving(in_a_td(platform, report)) as fake, pytest.raises(Denied):
        attest(fake.endpoint, policy, trust=trust)


def test_an_enclave_is_denied_where_only_a_td_is_meant(platform: SimulatedPlatform, trust: Trust) -> None:
    with serving(coordinator(platform, product_id=PRODUCT)) as fake:
        with pytest.raises(Denied) as refusal:
            attest(fake.endpoint, TD_ONLY, trust=trust)
        assert refusal.value.mismatches == ("policy: expected a TD, evidence says it is an SGX enclave",)
        assert attest(fake.endpoint, BOTH, trust=trust).claims is not None


def test_every_mismatch_of_a_td_is_told() -> None:
    tdx = TdxIdentity(mrtd="11" * 48, rtmrs=("", "22" * 48, "", ""), module_svn=6)
    found = claims(replace(td_report(debug=True), td_attributes=b"\x01\x00\x00\x30" + bytes(4)))
    assert refused(CoordinatorPolicy(tdx=tdx), found) == [
        "policy.Debug",
        "policy.TDX.MRTD",
        "policy.TDX.RTMR1",
        "policy.TDX.TDAttributes",
        "policy.TDX.ModuleSVN",
    ]


def test_a_debug_td_is_admitted_only_on_demand_and_warned_of() -> None:
    found = claims(td_report(debug=True))
    assert refused(TD_ONLY, found) == ["policy.Debug"]
    assert any("DEBUG TD" in warning for warning in replace(TD_ONLY, debug=True).judge(found))


def test_the_keys_are_a_packages_in_any_case() -> None:
    stated = {
        "mrtd": MRTD, "RTMR0": "00" * 48, "RTMR1": "01" * 48, "RTMR2": "02" * 48, "RTMR3": "03" * 48,
        "MRCONFIGID": "04" * 48, "MROWNER": "05" * 48, "MROWNERCONFIG": "06" * 48, "MRSEAM": "07" * 48,
        "MRSERVICETD": "08" * 48, "TDAttributes": "0000001000000000", "TDATTRIBUTESMASK": "ff000010000000ff",
        "XFAM": "03" + "00" * 7, "xfamMask": "07" + "00" * 7, "ModuleSVN": 5,
    }  # fmt: skip
    assert parse_policy(json.dumps({"TDX": stated}).encode()) == CoordinatorPolicy(
        tdx=TdxIdentity(
            MRTD, tuple(f"0{n}" * 48 for n in range(4)), "04" * 48, "05" * 48, "06" * 48, "07" * 48, "08" * 48,  # type: ignore[arg-type]  # four of them
            "0000001000000000", "ff000010000000ff", "03" + "00" * 7, "07" + "00" * 7, 5,
        )
    )  # fmt: skip
    assert parse_policy(b'{"TDX": null}') == CoordinatorPolicy()


@pytest.mark.parametrize(
    ("tdx", "where"),
    [
        ("[]", "TDX"),
        ("{}", "TDX.MRTD"),
        ('{"MRTD": null}', "TDX.MRTD"),
        ('{"MRTD": "00"}', "TDX.MRTD"),
        ('{"MRTD": 5}', "TDX.MRTD"),
        ('{"MRTDD": ""}', "TDX.MRTDD"),
        (f'{{"MRTD": "{MRTD}", "mrtd": ""}}', "TDX.MRTD"),
        (f'{{"MRTD": "{MRTD}", "ModuleSVN": 256}}', "TDX.ModuleSVN"),
        (f'{{"MRTD": "{MRTD}", "ModuleSVN": -1}}', "TDX.ModuleSVN"),
        (f'{{"MRTD": "{MRTD}", "XFAMMask": "{"ff" * 8}"}}', "TDX.XFAMMask"),
        (f'{{"MRTD": "{MRTD}", "TDAttributes": "{"ff" * 8}", "TDAttributesMask": "{"00" * 8}"}}', "TDX.TDAttributes"),
    ],
)
def test_a_tdx_object_that_cannot_be_meant_is_malformed(tdx: str, where: str) -> None:
    with pytest.raises(Malformed) as refusal:
        parse_policy(f'{{"TDX": {tdx}}}'.encode())
    assert str(refusal.value).startswith(f"{where}:") or where in str(refusal.value)


def test_a_policy_that_admits_any_td_or_half_an_enclave_is_refused() -> None:
    for policy in (
        CoordinatorPolicy(tdx=TdxIdentity()),
        replace(BOTH, tdx=TdxIdentity(rtmrs=("00" * 48,) * 4)),
        CoordinatorPolicy(signer_id=SIGNER_ID, tdx=TD_ONLY.tdx),
    ):
        with pytest.raises(Misconfigured):
            policy.verify_complete()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["MRTD", "XFAM", "ModuleSVN"]), inner),
    max_leaves=6,
)


@given(JSON)
def test_whatever_the_object_is_only_our_errors_come_out(tdx: object) -> None:
    try:
        parse_policy(json.dumps({"TDX": tdx}).encode())
    except MarbleRunError:
        return
    assert tdx is None
