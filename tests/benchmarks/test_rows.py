"""Every row of the benchmark works, in a form too short for its numbers to mean anything; and so does the soak."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import KEYS, main
from benchmarks.coordinators import coordinator
from benchmarks.manifests import typical
from benchmarks.soak import run_soak

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
# The long form is for CI; whoever is in a hurry says so.
SOAK_SECONDS = float(os.environ.get("MARBLERUN_SOAK_SECONDS", "60"))


def measured(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The JSON document of one short run."""
    path = tmp_path / "found.json"
    assert main(["--short", "--json", str(path), *arguments]) == 0
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def test_every_row_is_measured_and_each_number_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = measured(tmp_path)
    rows = {row["row"]: row for row in document["rows"]}
    assert set(KEYS) == set(rows)
    values = [(check["what"], check["value"]) for row in rows.values() for check in row["checks"]]
    assert [what for what, value in values if not isinstance(value, int | float) or value != value] == []
    assert [check["value"] for check in rows["crowd"]["checks"] if check["what"] == "not served"] == [0]
    assert document["machine"]["processor"]
    shown = capsys.readouterr().out
    assert [row["label"][:40] for row in rows.values() if row["label"][:40] not in shown] == []


def test_markdown_is_a_table_of_the_row_that_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured(tmp_path, "--only", "typical", "--output", "markdown")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("| activation, typical | CPU a call | <= 3 ms |")] != []


def test_a_server_that_somebody_else_started_is_measured_by_its_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with coordinator() as target:
        monkeypatch.setenv("EDG_SIMULATED_PLATFORM", target.evidence["EDG_SIMULATED_PLATFORM"])
        manifest = tmp_path / "manifest.json"
        manifest.write_text(json.dumps(typical()))
        addresses = ("--mesh", str(target.mesh), "--client", str(target.client))
        document = measured(tmp_path, *addresses, "--pid", str(target.pid), "--set-manifest", str(manifest))
        assert [row["row"] for row in document["rows"]] == ["typical", "p256", "durable", "requests"]
        checks = document["rows"][0]["checks"]
        assert [check["what"] for check in checks] == ["CPU, a call", "median time, a call"]
        assert min(check["value"] for check in checks) > 0
        without = measured(tmp_path, *addresses[:2], "--only", "typical")
        assert [[check["what"] for check in row["checks"]] for row in without["rows"]] == [["median time, a call"]]


def test_the_manifest_for_another_server_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-manifest"]) == 0
    assert typical() == json.loads(capsys.readouterr().out)


def test_the_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert list(KEYS) == capsys.readouterr().out.split()


def test_a_soak_finds_nothing_that_grows_and_no_failure_but_what_a_restart_cut_off() -> None:
    judgements, seen = run_soak(SOAK_SECONDS, judge_latency=False)
    assert seen["failures"] == []
    assert [one for one in judgements if one.counts and not one.is_good] == []
    assert seen["counts"]["manifests updated"] >= 1
