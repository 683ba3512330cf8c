"""A short form of the sweeps in ``sweep.py``: some bytes and some lengths of every genuine quote."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from itertools import islice

import pytest
from tests.attestation.sweep import (
    at_the_edges,
    every_byte,
    every_genuine,
    exchanged,
    extended,
    flipped,
    genuine,
    raw,
    stale,
    swaps,
    sweep,
    truncated,
    uncovered,
)
from tests.forge.dcap import NOW, Dcap, new_keys
from tests.vectors import Vector, load, vectors_directory

from marblerun.attestation.dcap.verify import Verifier

FORGED = {"sgx": Dcap(), "tdx-4": Dcap(tdx=True, version=4), "tdx-5": Dcap(tdx=True, version=5)}
STEP = 61
"""Prime, so that the bytes looked at differ from quote to quote together with the offset of each."""


def forged(name: str) -> Vector:
    minted = FORGED[name].mint()
    return Vector(
        name, minted.quote, minted.collateral, None, NOW, minted.root, minted.root_der, {"ok": True}, {}, None
    )


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("name", FORGED)
def test_no_changed_or_cut_byte_of_a_forged_quote_is_accepted(name: str) -> None:
    vector = forged(name)
    size = len(vector.quote)
    assert sweep(vector, flipped(vector.quote, range(0, size, 7), masks=(0x01,))).accepted == []
    assert sweep(vector, truncated(vector.quote, range(size))).accepted == []
    assert sweep(vector, extended(vector.quote)).accepted == []


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("name", FORGED)
def test_what_is_listed_as_not_covered_is_exactly_what_can_be_changed_in_a_forged_quote(name: str) -> None:
    """Both ways, over some of all changes, and over all of those to the end of the chain."""
    vector = forged(name)
    verifier = Verifier([vector.root])
    assert stale(vector, verifier) == []
    assert sweep(vector, islice(every_byte(vector.quote), 3, None, 53), verifier).accepted == []
    listed, size = uncovered(vector.quote), len(vector.quote)
    changes = ((offset, value) for offset in range(size - 30, size) for value in range(256))
    accepted = {
        (offset, value)
        for offset, value in changes
        if value != vector.quote[offset]
        and sweep(
            vector, [("", vector.quote[:offset] + bytes([value]) + vector.quote[offset + 1 :])], verifier
        ).accepted
    }
    assert accepted == {change for change in listed if change[0] >= size - 30}
    assert accepted


@pytest.mark.skipif(vectors_directory() is None, reason="no vectors: what is not covered is listed for forged quotes")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_nothing_is_listed_as_not_covered_that_is_refused() -> None:
    vectors = [replace(load(name), quote=raw(load(name))) for name in genuine()]
    assert [line for one in vectors for line in stale(one, Verifier([one.root]))] == []
    assert [line for one in vectors for line in sweep(one, extended(one.quote)).accepted] == []


@pytest.mark.skipif(vectors_directory() is None, reason="no vectors: the sweep runs over forged quotes only")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_no_changed_or_cut_byte_of_a_recorded_quote_is_accepted() -> None:
    accepted: dict[str, list[str]] = {}
    for i, name in enumerate(genuine()):
        vector = load(name)
        verifier, size = Verifier([vector.root]), len(vector.quote)
        # The last bytes and all length fields in any case.
        offsets = sorted({*range(i, size, STEP), *range(size - 4, size), *range(430, 440), *range(632, 640)})
        result = sweep(vector, flipped(vector.quote, offsets, masks=(0x01, 0x20)), verifier)
        result.accepted += sweep(vector, truncated(vector.quote, range(i, size, STEP)), verifier).accepted
        accepted |= {name: result.accepted} if result.accepted else {}
    assert accepted == {}


def test_parts_of_two_forged_quotes_under_one_root_do_not_make_a_third() -> None:
    """Same vendor, another machine, QE and enclave: every part, and every run of parts, of the other is refused."""
    keys, strange = new_keys(), new_keys()
    others = keys | {"pck": strange["pck"], "qe": strange["qe"]}
    one, other = Dcap(keys=keys).mint(), Dcap(keys=others, report={"mrenclave": b"\x99" * 32}).mint()
    changed = list(exchanged(one.quote, other.quote))
    vector = Vector("swap", one.quote, one.collateral, None, NOW, one.root, None, {"ok": True}, {}, None)
    result = sweep(vector, changed)
    assert (len(changed) > 20, result.accepted) == (True, [])


@pytest.mark.skipif(vectors_directory() is None, reason="no vectors: swaps run over forged quotes only")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_neither_parts_nor_collateral_of_others_are_accepted() -> None:
    vectors = [load(name) for name in genuine()]
    wrong: list[str] = []
    for i, one in enumerate(vectors):
        verifier = Verifier([one.root])
        for step in (1, 2, 5):
            other = vectors[(i + step) % len(vectors)]
            wrong += swaps(one, other, verifier)
    assert wrong == []


def test_every_boundary_of_a_forged_quote_is_where_its_dates_say() -> None:
    day = timedelta(days=1)
    roles = ("root", "ca", "pck", "signer", "root_crl", "pck_crl", "tcb_info", "qe_identity")
    validity = {role: (NOW - (i + 1) * day, NOW + (i + 1) * day) for i, role in enumerate(roles)}
    minted = Dcap(validity=validity).mint()
    vector = Vector("edges", minted.quote, minted.collateral, None, NOW, minted.root, None, {"ok": True}, {}, None)
    assert at_the_edges(vector) == []


@pytest.mark.parametrize("tdx", [False, True])
@pytest.mark.parametrize("role", ["root", "ca", "pck", "signer", "root_crl", "pck_crl", "tcb_info", "qe_identity"])
def test_the_dates_of_each_part_count_where_they_are_the_narrowest(role: str, tdx: bool) -> None:
    """Over the recorded quotes only the parts that live shortest decide."""
    second = timedelta(seconds=1)
    validity = {role: (NOW - 2 * second, NOW + 3 * second)}
    minted = Dcap(tdx=tdx, version=4 if tdx else 3, validity=validity).mint()
    vector = Vector(role, minted.quote, minted.collateral, None, NOW, minted.root, None, {"ok": True}, {}, None)
    assert at_the_edges(vector) == []


@pytest.mark.skipif(vectors_directory() is None, reason="no vectors: 33 recorded entries are not tried at their dates")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_every_boundary_of_the_recorded_entries_is_where_its_dates_say() -> None:
    assert [line for name in every_genuine() for line in at_the_edges(load(name))] == []
