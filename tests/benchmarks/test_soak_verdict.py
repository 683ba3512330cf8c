"""The soak's verdict is bad for each thing that must not be, and for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.coordinators import Site, Target, free_endpoint
from benchmarks.marbles import CallFailed
from benchmarks.process import MIB, Usage
from benchmarks.soak import Sample, Soak, judge

CALM = Usage(resident=60 * MIB, descriptors=12, threads=6)


@pytest.fixture
def soak(tmp_path: Path) -> Soak:
    """A minute in which nothing happened, after two restarts; life 4 is the last process."""
    found = Soak(Site(tmp_path), 60.0, Target(free_endpoint(), free_endpoint(), None))
    found.samples = [Sample(float(at), 2 if at < 40 else 4, CALM) for at in range(60)]
    found.restarts, found.findings.life = 2, 4
    return found


def bad(soak: Soak, quiet: Usage = CALM) -> list[str]:
    """What is bad, with ``quiet`` as the usage when all is over."""
    judgements = judge(soak, CALM, quiet, judge_latency=True)
    return [one.what for one in judgements if one.counts and not one.is_good]


def test_a_calm_soak_is_good(soak: Soak) -> None:
    assert bad(soak) == []


def test_memory_that_grows_in_the_last_process_is_bad(soak: Soak) -> None:
    for at in range(40, 60):
        soak.samples[at] = Sample(float(at), 4, Usage((60 + at) * MIB, 12, 6))
    assert bad(soak) == ["growth of resident memory, MiB"]


def test_memory_that_grows_from_process_to_process_is_not_growth(soak: Soak) -> None:
    for at in range(40, 60):
        soak.samples[at] = Sample(float(at), 4, Usage(90 * MIB, 12, 6))
    assert bad(soak) == []


def test_descriptors_that_stay_open_when_nobody_is_there_are_bad(soak: Soak) -> None:
    assert bad(soak, Usage(60 * MIB, 21, 6)) == ["descriptors left open"]


def test_more_threads_than_a_bounded_pool_has_are_bad(soak: Soak) -> None:
    soak.samples[50] = Sample(50.0, 4, Usage(60 * MIB, 12, 65))
    assert bad(soak) == ["threads"]


def test_latencies_that_double_are_bad(soak: Soak) -> None:
    soak.findings.latencies = [(float(at), 0.01 if at < 60 else 0.021) for at in range(90)]
    assert bad(soak) == ["latency, last third over first"]


def test_a_soak_without_its_restarts_is_bad(soak: Soak) -> None:
    soak.restarts = 1
    assert bad(soak) == ["restarts that are missing"]


def refuse() -> bool:
    """An activation that did not end as it must."""
    raise CallFailed("status 13")


def test_a_failure_is_bad(soak: Soak) -> None:
    assert soak.findings.attempt("activations", refuse) is False
    assert bad(soak) == ["unexpected failures"]
    assert "status 13" in soak.findings.failures[0]


def test_a_failure_while_the_coordinator_is_restarted_is_expected(soak: Soak) -> None:
    def restart_meanwhile() -> bool:
        soak.findings.life += 2
        return refuse()

    soak.findings.stop.set()
    assert soak.findings.attempt("activations", restart_meanwhile) is False
    soak.findings.life = 3
    assert soak.findings.attempt("activations", refuse) is False
    assert (soak.findings.failures, soak.findings.counts["cut off by a restart"]) == ([], 2)
