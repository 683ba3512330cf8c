"""What collateral says it is about."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests import vectors
from tests.forge.evidence import FMSPC, ISSUED, forge, hierarchy, td_report

from marblerun.attestation.collect.contents import read_contents
from marblerun.attestation.model import Collateral, CollateralKey, Tee
from marblerun.attestation.simulated.collateral import crl
from marblerun.errors import Malformed

GOOD = forge().collateral


@pytest.mark.parametrize(
    ("collateral", "key"),
    [
        (GOOD, CollateralKey(Tee.SGX, FMSPC, "platform")),
        (forge(of=hierarchy("processor")).collateral, CollateralKey(Tee.SGX, FMSPC, "processor")),
        (forge(td_report()).collateral, CollateralKey(Tee.TDX, FMSPC, "platform")),
    ],
)
def test_the_key_is_read_from_the_parts(collateral: Collateral, key: CollateralKey) -> None:
    assert read_contents(collateral).key == key


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity", "root_ca_crl", "pck_crl"])
def test_the_earliest_next_update_of_any_part_counts(part: str) -> None:
    early = ISSUED + timedelta(days=3)
    made = {
        "tcb_info": lambda: forge(tcb_info=lambda info: replace(info, next_update=early)).collateral,
        "qe_identity": lambda: forge(qe_identity=lambda identity: replace(identity, next_update=early)).collateral,
        "root_ca_crl": lambda: replace(GOOD, root_ca_crl=crl(hierarchy().root, issued=ISSUED, next_update=early)),
        "pck_crl": lambda: replace(GOOD, pck_crl=crl(hierarchy().pck_ca, issued=ISSUED, next_update=early)),
    }[part]()
    assert (read_contents(made).issued, read_contents(made).expires) == (ISSUED, early)


def test_the_latest_issue_date_of_any_part_counts() -> None:
    late = ISSUED + timedelta(days=3)
    made = replace(GOOD, pck_crl=crl(hierarchy().pck_ca, issued=late, next_update=late + timedelta(days=30)))
    assert (read_contents(made).issued, read_contents(made).expires) == (late, ISSUED + timedelta(days=30))


@given(st.sampled_from([field.name for field in fields(Collateral)]), st.binary(max_size=40), st.text(max_size=40))
def test_a_damaged_part_is_malformed_or_was_not_looked_at(name: str, data: bytes, text: str) -> None:
    value: Any = data if isinstance(getattr(GOOD, name), bytes) else text
    damaged = replace(GOOD, **{name: value})
    if name in ("tcb_info", "qe_identity", "root_ca_crl", "pck_crl"):
        with pytest.raises(Malformed):
            read_contents(damaged)
    else:
        assert read_contents(damaged) == read_contents(GOOD)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"id":"SGX"', '"id":"SNP"'),
        ('"id":"SGX"', '"id":["SGX"]'),
        ('"fmspc":"0051AB000000"', '"fmspc":"0051AB"'),
        ('"fmspc":"0051AB000000"', '"fmspc":7'),
        ("2026-05-31T12:00:00Z", "yesterday"),
        ("2026-05-31T12:00:00Z", "2026-05-31T12:00:00+00:00"),
    ],
)
def test_a_tcb_info_of_another_shape_is_malformed(old: str, new: str) -> None:
    assert old in GOOD.tcb_info
    with pytest.raises(Malformed, match="TCB Info"):
        read_contents(replace(GOOD, tcb_info=GOOD.tcb_info.replace(old, new, 1)))


def test_parts_of_different_technologies_do_not_go_together() -> None:
    with pytest.raises(Malformed, match="TCB Info is for sgx, QE identity for tdx"):
        read_contents(replace(GOOD, qe_identity=forge(td_report()).collateral.qe_identity))


def test_a_root_crl_in_the_place_of_the_pck_crl_is_no_pck_cas() -> None:
    with pytest.raises(Malformed, match="no PCK CA"):
        read_contents(replace(GOOD, pck_crl=GOOD.root_ca_crl))


@pytest.mark.parametrize("name", vectors.parameters("sgx", "tdx", "sim"))
def test_recorded_collateral_is_valid_at_its_time_by_its_own_words(name: str) -> None:
    vector = vectors.load(name)
    if vector.collateral is None or vector.at is None:
        return
    contents = read_contents(vector.collateral)
    assert contents.issued <= vector.at <= contents.expires
