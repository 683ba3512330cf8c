"""Commands about a quote that names its platform only: the certificate is fetched, kept beside the rest, and used."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.attestation.collect.test_pck import nameless

from marblerun.attestation.collect.pck import query_name
from marblerun.attestation.dcap.pck import collateral_key
from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.attestation.simulated.identity import DEFAULT_UNIQUE_ID
from marblerun.attestation.simulated.pccs import CollateralServer, PlatformPublisher
from marblerun.cli.main import cli


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["evidence", *(str(argument) for argument in arguments)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine, its quote of certification data type 3, and what a PCCS gave for it, in a file and in a directory."""
    base = tmp_path_factory.mktemp("nameless")
    machine = SimulatedPlatform.create(base / "machine", at=datetime.now(UTC))
    (base / "quote").write_bytes(nameless(machine, 3, b"\xaa" * 384))
    manifest = {"Packages": {"p": {"UniqueID": DEFAULT_UNIQUE_ID.hex()}}, "Marbles": {"m": {"Package": "p"}}}
    (base / "manifest.json").write_text(json.dumps(manifest))
    with CollateralServer(PlatformPublisher(machine, lambda: datetime.now(UTC))) as server:
        common: list[str | Path] = ["--pccs-url", server.url, "--root-ca", base / "machine" / "root-ca.pem"]
        for option, place in (("--out", base / "one.json"), ("--dir", base / "kept")):
            result = run("collateral", "fetch", base / "quote", *common, option, place)
            assert result.exit_code == 0, result.output
    return base


def test_a_file_of_collateral_holds_the_certificate_as_well(files: Path) -> None:
    root = files / "machine" / "root-ca.pem"
    result = run("verify", files / "quote", "--collateral", files / "one.json", "--root-ca", root, "-o", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tcb_status"] == "UpToDate"


def test_a_directory_has_it_in_a_file_of_its_own_and_is_enough_without_a_network(files: Path) -> None:
    key = collateral_key(parse_quote((files / "quote").read_bytes()))
    assert key.pck is not None
    kept = sorted(path.name for path in (files / "kept").iterdir())
    assert kept == [f"pck-{query_name(key.pck)}.pem", "sgx-0051ab000000-platform.json"]
    assert "pck_certificate_chain" not in json.loads((files / "kept" / kept[1]).read_text())
    root: list[str | Path] = ["--root-ca", files / "machine" / "root-ca.pem", "-o", "json"]
    shown = run("collateral", "show", files / "kept", *root)
    assert shown.exit_code == 0, shown.output
    directory: list[str | Path] = ["--collateral-dir", files / "kept"]
    result = run("check", files / "quote", "--manifest", files / "manifest.json", "--marble", "m", *directory, *root)
    assert json.loads(result.stdout)["admitted"] is True, result.output


def test_without_the_certificate_the_refusal_says_what_to_do(files: Path) -> None:
    collateral = files / "kept" / "sgx-0051ab000000-platform.json"
    root = files / "machine" / "root-ca.pem"
    result = run("verify", files / "quote", "--collateral", collateral, "--root-ca", root)
    assert result.exit_code == 3
    assert "EDG_PCCS_URL" in result.output
    (files / "empty").mkdir(exist_ok=True)
    result = run("check", files / "quote", "--manifest", files / "manifest.json", "--marble", "m",
                 "--collateral-dir", files / "empty", "--root-ca", root)  # fmt: skip
    assert result.exit_code != 0
