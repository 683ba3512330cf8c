"""The matrix of TCB standings in short: all of SGX and TD report 1.0, some of 1.5; the long form is ``matrix.py``."""

from __future__ import annotations

from itertools import islice

from tests.attestation.matrix import ALL, FEW_LISTS, PLATFORM, RELAUNCHED, accepted, relaunches, sgx, sweep, tdx

STRIDE = 13
"""Prime to the number of modules and statuses, so that all of them are met."""


def test_every_standing_of_an_enclave_has_the_outcome_of_the_table() -> None:
    counted, wrong = sweep(sgx())
    assert wrong == []
    assert {*PLATFORM[:-2], "refused"} == set(counted)


def test_every_standing_of_a_td_has_the_outcome_of_the_table() -> None:
    counted, wrong = sweep(tdx())
    assert wrong == []
    assert {*PLATFORM[:-2], "refused"} == set(counted)


def test_standings_of_a_td_that_was_launched_under_another_module_have_the_outcome_of_the_table() -> None:
    counted, wrong = sweep(islice(relaunches(), 0, None, STRIDE))
    assert wrong == []
    assert {*RELAUNCHED.values(), "refused"} <= set(counted)


def test_the_table_of_accepted_lists_never_admits_what_is_revoked() -> None:
    """The oracle itself: what it says for the cases that matter most."""
    assert [listed for listed in FEW_LISTS if accepted("Revoked", listed)] == []
    assert [status for status in ALL if accepted(status, ("Revoked",)) and status != "UpToDate"] == []
    assert [status for status in ALL if accepted(status, ())] == ["UpToDate", "SWHardeningNeeded"]
