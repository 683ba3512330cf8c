"""We and the independent Rust verifier agree, except where a table here says why not."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attestation import differential, matrix, reissued, sweep
from tests.attestation.differential import GENUINE_BUT_REFUSED, Verdict, changes, run, theirs
from tests.attestation.sweep import genuine
from tests.forge.dcap import NOW, Dcap, Minted, isv_level, level, module
from tests.vectors import Vector, load, parameters, vectors_directory

from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral
from marblerun.errors import Malformed, Untrusted

pytest.importorskip("dcap_qvl")

LENIENT = {
    # It accepts, we refuse.
    "negative/trailing-16-bytes": "bytes behind the quote",
}


def ours(vector: Vector | Minted, at_least: Collateral, seconds: int) -> Verdict:
    del seconds
    at = vector.at if isinstance(vector, Vector) else NOW
    assert at is not None
    try:
        claims = Verifier([vector.root]).verify(vector.quote, at_least, at)
    except (Malformed, Untrusted) as error:
        return str(error)
    return claims.tcb_status.value, claims.advisories


def agree(mine: Verdict, other: Verdict) -> bool:
    """Same status and advisories, or both refuse."""
    return mine == other if isinstance(mine, tuple) and isinstance(other, tuple) else type(mine) is type(other)


@pytest.mark.parametrize("name", parameters("sgx", "tdx", "sim", "negative"))
def test_both_give_the_same_verdict_on_recorded_quotes(name: str) -> None:
    vector = load(name)
    if vector.collateral is None or vector.at is None:
        pytest.skip("without collateral")
    seconds = int(vector.at.timestamp())
    mine = ours(vector, vector.collateral, seconds)
    other = theirs(vector.quote, vector.collateral, seconds, vector.root_certificate)
    if isinstance(other, str) and any(text in other for text in GENUINE_BUT_REFUSED):
        assert isinstance(mine, tuple)
    elif name in LENIENT:
        assert (type(mine), type(other)) == (str, tuple)
    else:
        assert agree(mine, other), (mine, other)


STATUSES = [
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
]
QE_STATUSES = ["UpToDate", "OutOfDate", "Revoked"]


@st.composite
def platforms(draw: st.DrawFn) -> Dcap:
    """An SGX or TDX platform at random, with levels, modules and a QE around it."""
    tdx = draw(st.booleans())
    svns = st.integers(3, 6)
    statuses = st.sampled_from(STATUSES)
    low, high = draw(svns), draw(svns)
    tdx_svns = (lambda: (draw(svns), draw(st.integers(0, 1)), draw(svns)) + (0,) * 13) if tdx else lambda: None
    levels = [
        level(svn, draw(statuses), pce=draw(st.integers(12, 13)), tdx=tdx_svns(), advisoryIDs=[f"P{i}"])
        for i, svn in enumerate(sorted({low, high}, reverse=True))
    ]
    report = {}
    tcb: dict[str, object] = {"tcbLevels": levels}
    if tdx:
        for name in ("tee_tcb_svn", "tee_tcb_svn2"):
            report[name] = bytes([draw(svns), draw(st.integers(0, 2)), draw(svns)]) + bytes(13)
        tcb["tdxModuleIdentities"] = [
            module(
                1,
                isv_level(5, draw(st.sampled_from(QE_STATUSES)), advisoryIDs=["M5"]),
                isv_level(4, draw(st.sampled_from(QE_STATUSES)), advisoryIDs=["M4"]),
            )
        ]
    identity = {"tcbLevels": [isv_level(8, draw(st.sampled_from(QE_STATUSES)), advisoryIDs=["Q"])]}
    return Dcap(tdx=tdx, version=5 if tdx else 3, report=report, tcb=tcb, identity=identity)


@settings(max_examples=150, deadline=None)
@given(platforms())
def test_both_evaluate_the_same_tcb_on_random_platforms(dcap: Dcap) -> None:
    """Levels, modules, convergence and relaunch, statuses and advisories in order."""
    minted = dcap.mint()
    seconds = int(NOW.timestamp())
    mine = ours(minted, minted.collateral, seconds)
    other = theirs(minted.quote, minted.collateral, seconds, minted.root_der)
    assert agree(mine, other), (mine, other)


@pytest.mark.skipif(vectors_directory() is None, reason="no vectors: the differential run is skipped")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_every_difference_over_changed_inputs_has_its_class() -> None:
    """A byte of quote or collateral is another; the long form is ``python -m tests.attestation.differential``."""
    unexplained: list[str] = []
    for index, name in enumerate(genuine()):
        vector = load(name)
        collateral, at = vector.verifiable()
        if isinstance(theirs(vector.quote, collateral, int(at.timestamp()), vector.root_certificate), tuple):
            unexplained += run(vector, changes(vector, 499, 11 * index)).unexplained
    assert unexplained == []


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_every_difference_over_evidence_signed_anew_has_its_class() -> None:
    """The long form, with other seeds, is ``python -m tests.attestation.reissued``."""
    outcome = reissued.run(7, rounds=150)
    assert outcome.unexplained == []
    assert min(outcome.agreed.values()) > 25


@pytest.mark.parametrize(
    "main",
    [differential.main, matrix.main, reissued.main, sweep.main],
    ids=["differential", "matrix", "reissued", "sweep"],
)
def test_every_long_form_says_what_it_does_and_refuses_what_it_does_not_know(
    main: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for argument, code in (("--help", 0), ("--no-such-option", 2)):
        monkeypatch.setattr("sys.argv", ["long-form", argument])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
    assert "usage: python -m tests.attestation." in capsys.readouterr().out


@pytest.mark.skipif(vectors_directory() is None, reason="no vectors: the summary of the differential run is skipped")
@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
def test_the_long_form_sums_up_and_says_what_it_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["differential", "--vector", "sim/sgx", "--stride", "1999"])
    assert differential.main() == 0
    shown = capsys.readouterr().out
    assert "both refused" in shown
    assert "only dcap-qvl accepts: root certificate: dcap-qvl takes the root" in shown
    assert "genuine quotes that only we accept: Debug mode is enabled: a debug enclave" in shown
    assert shown.endswith("every difference has its class\n")
    monkeypatch.setattr("sys.argv", ["differential", "--seconds", "-1"])
    assert differential.main() == 0
    assert "stopped for time after 0 of" in capsys.readouterr().out


@pytest.mark.parametrize("make", reissued.MAKERS)
def test_a_case_comes_from_its_seed(make: Callable[[random.Random], reissued.Case]) -> None:
    first, again = make(random.Random(3)), make(random.Random(3))
    assert (first.kind, first.what, first.seconds) == (again.kind, again.what, again.seconds)
