"""Everything the forge mints is judged as it should be, by our verifier and by an independent one."""

from __future__ import annotations

import dcap_qvl
import pytest
from tests.forge.cases import BAD, GOOD, Bad, Good
from tests.forge.evidence import Evidence, forge, sgx_report
from tests.forge.oracle import dcap_qvl_status

from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Tee
from marblerun.errors import Untrusted


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_genuine_evidence_gets_the_status_its_level_has(case: Good) -> None:
    evidence = case.build()
    claims = Verifier([evidence.root]).verify(evidence.quote, evidence.collateral, evidence.at)
    assert claims.tcb_status == case.status


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_an_independent_verifier_agrees_on_genuine_evidence(case: Good) -> None:
    evidence = case.build()
    if "debug" in case.name:
        with pytest.raises(ValueError, match="Debug mode"):
            dcap_qvl_status(evidence)
        return
    assert dcap_qvl_status(evidence) == case.status.value


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_broken_evidence_is_refused_at_the_step_that_is_broken(case: Bad) -> None:
    evidence = case.build()
    with pytest.raises(Untrusted) as refusal:
        Verifier([evidence.root]).verify(evidence.quote, evidence.collateral, evidence.at)
    assert (refusal.value.step, refusal.value.reason) == (case.step, case.reason)


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_an_independent_verifier_refuses_broken_evidence_except_where_it_is_known_not_to_look(case: Bad) -> None:
    evidence = case.build()
    if not case.known_to_dcap_qvl:
        assert dcap_qvl_status(evidence) == "UpToDate"
        return
    with pytest.raises(ValueError, match=r"."):
        dcap_qvl_status(evidence)


def test_names_of_cases_are_unique() -> None:
    names = [case.name for case in GOOD] + [case.name for case in BAD]
    assert sorted(set(names)) == sorted(names)


def test_claims_repeat_the_forged_platform_and_report() -> None:
    evidence = forge()
    claims = Verifier([evidence.root]).verify(evidence.quote, evidence.collateral, evidence.at)
    assert (claims.platform, claims.report, claims.tee) == (evidence.hierarchy.platform, sgx_report(), Tee.SGX)


def test_the_independent_parser_reads_the_same_platform_from_the_certificate() -> None:
    evidence: Evidence = forge()
    platform = evidence.hierarchy.platform
    quote = dcap_qvl.parse_quote(evidence.quote)
    pck = dcap_qvl.parse_pck_extension_from_pem(evidence.hierarchy.pck_chain.encode())
    assert (quote.fmspc(), quote.ca()) == (platform.fmspc.hex().upper(), platform.ca)
    assert (pck.ppid, pck.cpu_svn, pck.pce_svn, pck.pce_id) == (
        platform.ppid,
        platform.cpu_svns,
        platform.pce_svn,
        platform.pce_id,
    )
    assert (pck.sgx_type, pck.platform_instance_id) == (platform.sgx_type, platform.platform_instance_id)
