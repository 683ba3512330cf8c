"""The attestation policy: the reference's file, read strictly, judged completely."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client.fixtures import UNIQUE_ID

from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Claims, Origin, SgxReport, TcbStatus, TdReport
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.client import CoordinatorPolicy, parse_policy
from marblerun.errors import Denied, Malformed, Misconfigured

SIGNER = "43361affeb75affee9baec7e054a5e14883213e5a121b67d74a0e12e9d2b7a00"
GOOD = CoordinatorPolicy(signer_id=SIGNER, product_id=3, security_version=5)


@pytest.fixture(scope="module", autouse=True)
def _base(platform: SimulatedPlatform) -> None:
    """Claims as a verifier makes them; the tests change what they are about."""
    raw = platform.quote(b"", signer_id=bytes.fromhex(SIGNER), product_id=3, security_version=5)
    now = datetime.now(UTC)
    BASE.append(Verifier([platform.trust_root()]).verify(raw, platform.collateral(now), now))


BASE: list[Claims] = []


def claims(
    status: TcbStatus = TcbStatus.UP_TO_DATE,
    advisories: tuple[str, ...] = (),
    *,
    debug: bool = False,
    product: int = 3,
    svn: int = 5,
) -> Claims:
    base = BASE[-1]
    assert isinstance(base.report, SgxReport)
    flags = bytes([base.report.attributes[0] | (2 if debug else 0)])
    report = replace(base.report, attributes=flags + base.report.attributes[1:], isv_prod_id=product, isv_svn=svn)
    return replace(base, origin=Origin.HARDWARE, tcb_status=status, advisories=advisories, report=report)


def mismatches(policy: CoordinatorPolicy, found: Claims) -> list[str]:
    try:
        policy.judge(found)
    except Denied as refusal:
        return [mismatch.split(":")[0].removeprefix("policy.") for mismatch in refusal.mismatches]
    return []


def test_the_typical_file_is_read() -> None:
    raw = json.dumps({"SecurityVersion": 5, "ProductID": 3, "SignerID": SIGNER.upper()}).encode()
    assert parse_policy(raw) == GOOD


def test_every_key_is_read_in_any_case() -> None:
    raw = json.dumps(
        {
            "securityversion": 1, "PRODUCTID": 2, "UniqueId": "ab" * 32, "signerID": "cd" * 32, "Debug": True,
            "InsecureSkipVerify": True, "AcceptedTCBStatuses": ["OutOfDate"], "AcceptedAdvisories": ["INTEL-SA-1"],
            "Nonce": "aGk=",
        }
    ).encode()  # fmt: skip
    assert parse_policy(raw) == CoordinatorPolicy(
        "ab" * 32, "cd" * 32, 2, 1, True, ("OutOfDate",), ("INTEL-SA-1",), True, b"hi"
    )


WRONG: list[tuple[str, str]] = [
    ("[]", "not a JSON object"),
    ("{", "expected"),
    ('{"SingerID": ""}', "did you mean SignerID?"),
    ('{"SignerID": "", "signerid": ""}', "is there twice"),
    ('{"SignerID": "abc"}', "64 hex digits"),
    ('{"ProductID": -1}', "16 bits"),
    ('{"ProductID": 65536}', "16 bits"),
    ('{"ProductID": 1.5}', "16 bits"),
    ('{"SecurityVersion": "1"}', "32 bits"),
    ('{"Debug": 1}', "true or false"),
    ('{"AcceptedTCBStatuses": ["uptodate"]}', "not a TCB status"),
    ('{"AcceptedTCBStatuses": "UpToDate"}', "list"),
    ('{"Nonce": "%"}', "base64"),
]


@pytest.mark.parametrize(("raw", "text"), WRONG)
def test_what_is_wrong_is_said(raw: str, text: str) -> None:
    with pytest.raises(Malformed) as error:
        parse_policy(raw.encode())
    assert text in str(error.value)


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_policy_or_malformed(raw: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert isinstance(parse_policy(raw), CoordinatorPolicy)


INCOMPLETE = [
    CoordinatorPolicy(),
    replace(GOOD, signer_id=""),
    replace(GOOD, product_id=0),
    replace(GOOD, security_version=0),
]


@pytest.mark.parametrize("policy", INCOMPLETE)
def test_a_policy_that_leaves_open_whose_enclave_it_is_refuses(policy: CoordinatorPolicy) -> None:
    with pytest.raises(Misconfigured):
        policy.judge(claims())


def test_a_unique_id_alone_is_complete() -> None:
    assert CoordinatorPolicy(unique_id=UNIQUE_ID).judge(claims()) == ()


def test_identity_is_compared_and_svn_is_a_minimum() -> None:
    assert mismatches(GOOD, claims(svn=6)) == []
    assert mismatches(GOOD, claims(svn=4)) == ["SecurityVersion"]
    assert mismatches(GOOD, claims(product=4)) == ["ProductID"]
    assert mismatches(replace(GOOD, signer_id="00" * 32), claims()) == ["SignerID"]
    assert mismatches(replace(GOOD, unique_id="11" * 32), claims()) == ["UniqueID"]


def test_debug_is_admitted_only_by_name_and_with_a_warning() -> None:
    assert mismatches(GOOD, claims(debug=True)) == ["Debug"]
    assert any("DEBUG" in warning for warning in replace(GOOD, debug=True).judge(claims(debug=True)))
    assert replace(GOOD, debug=True).judge(claims()) == ()


@pytest.mark.parametrize("status", list(TcbStatus))
def test_the_tcb_status_matrix(status: TcbStatus) -> None:
    """UpToDate always; the default adds SWHardeningNeeded; others by name; what nobody may accept, never."""
    by_default = {TcbStatus.UP_TO_DATE, TcbStatus.SW_HARDENING_NEEDED}
    assert (mismatches(GOOD, claims(status)) == []) == (status in by_default)
    only_current = replace(GOOD, accepted_tcb_statuses=("OutOfDate",))
    assert (mismatches(only_current, claims(status)) == []) == (status in {TcbStatus.UP_TO_DATE, TcbStatus.OUT_OF_DATE})
    named = replace(GOOD, accepted_tcb_statuses=(status.value,))
    assert (mismatches(named, claims(status)) == []) == (status not in {TcbStatus.REVOKED, TcbStatus.UNKNOWN})


def test_an_accepted_status_is_a_warning_with_its_advisories() -> None:
    warnings = GOOD.judge(claims(TcbStatus.SW_HARDENING_NEEDED, ("INTEL-SA-00615",)))
    assert len(warnings) == 1
    assert "SWHardeningNeeded" in warnings[0]
    assert "INTEL-SA-00615" in warnings[0]


def test_advisories_count_only_with_sw_hardening_needed_and_a_list() -> None:
    hardening = claims(TcbStatus.SW_HARDENING_NEEDED, ("INTEL-SA-1", "INTEL-SA-2"))
    assert mismatches(replace(GOOD, accepted_advisories=("intel-sa-1", "INTEL-SA-2")), hardening) == []
    assert mismatches(replace(GOOD, accepted_advisories=("INTEL-SA-1",)), hardening) == ["AcceptedAdvisories"]
    assert mismatches(GOOD, hardening) == []


def test_a_td_is_not_the_enclave_that_a_policy_describes() -> None:
    six, eight = bytes(48), bytes(8)
    report = TdReport(bytes(16), six, six, eight, eight, eight, six, six, six, six, (six,) * 4, bytes(64))
    with pytest.raises(Denied, match="TD"):
        GOOD.judge(replace(claims(), report=report))
