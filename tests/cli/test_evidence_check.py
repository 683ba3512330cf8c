"""``evidence check`` says what a Coordinator would say, and ``evidence collateral`` what collateral is about."""

from __future__ import annotations

import hashlib
import json
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.forge.dcap import NOW, Dcap
from tests.vectors import load, vectors_directory

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.dcap.collateral import collateral_to_json, parse_collateral_json
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.attestation.simulated.pccs import CollateralServer, PlatformPublisher
from marblerun.cli.main import cli
from marblerun.manifest.parse import parse_manifest
from marblerun.policy.admission import Admission, NotAdmitted, require_admitted
from marblerun.wire.pem import encode_pem

CERTIFICATE = b"\x30\x03\x02\x01\x05"
MINTED = Dcap(report={"report_data": report_data_for(CERTIFICATE)}).mint()
AT = str(int(NOW.timestamp()))
UNIQUE = "11" * 32
MANIFEST: dict[str, Any] = {
    "Packages": {"good": {"UniqueID": UNIQUE}, "bad": {"SignerID": "00" * 32, "ProductID": 9, "SecurityVersion": 3}},
    "Marbles": {"web": {"Package": "good"}, "db": {"Package": "bad"}, "lost": {"Package": "none"}},
}
PLATFORMS = {"Infrastructures": {"ours": {"FMSPCs": ["00906ED50000"], "QESVN": 9}}}


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(cli, ["evidence", *[str(argument) for argument in arguments]], env=env or {})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "quote").write_bytes(MINTED.quote)
    (tmp_path / "recorded").mkdir()
    (tmp_path / "recorded" / "one.json").write_text(collateral_to_json(MINTED.collateral))
    (tmp_path / "root.der").write_bytes(MINTED.root_der)
    (tmp_path / "manifest.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "platforms.json").write_text(json.dumps(MANIFEST | PLATFORMS))
    (tmp_path / "cert.der").write_bytes(CERTIFICATE)
    (tmp_path / "cert.pem").write_text(encode_pem(CERTIFICATE, "CERTIFICATE"))
    return tmp_path


def check(files: Path, marble: str = "web", *more: str | Path, manifest: str = "manifest.json") -> Result:
    fixed: list[str | Path] = ["--root-ca", files / "root.der", "--at", AT, "-o", "json"]
    source: list[str | Path] = []
    if "--collateral-dir" not in more:
        source = ["--collateral-dir", files / "recorded"]
    return run("check", files / "quote", "--manifest", files / manifest, "--marble", marble, *source, *fixed, *more)


@pytest.mark.parametrize(
    "more", [("--report-data-of", "cert.der"), ("--report-data-of", "cert.pem"), ("--message", "cert.der")]
)
def test_a_quote_that_fits_is_admitted_and_its_binding_checked(files: Path, more: tuple[str, str]) -> None:
    result = check(files, "web", more[0], files / more[1])
    shown = json.loads(result.stdout)
    assert (result.exit_code, shown["admitted"], shown["report_data_checked"]) == (0, True, True)
    assert (shown["package"], shown["mismatches"], shown["simulated"]) == ("good", [], True)


def test_a_quote_bound_to_something_else_is_refused(files: Path) -> None:
    result = check(files, "web", "--message", files / "root.der")
    assert (result.exit_code, json.loads(result.stdout)["error"]["step"]) == (3, "report-data")


def test_without_a_message_it_says_that_the_binding_was_not_looked_at(files: Path) -> None:
    assert json.loads(check(files).stdout)["report_data_checked"] is False
    assert "Not checked: what the report data covers" in check(files, "web", "-o", "text").stdout


@pytest.mark.parametrize("marble", ["web", "db"])
@pytest.mark.parametrize("manifest", ["manifest.json", "platforms.json"])
def test_the_answer_is_the_coordinators_own(files: Path, marble: str, manifest: str) -> None:
    """Same verifier, same judgement on the same values; every mismatch with code, path, expected and actual."""
    result = check(files, marble, manifest=manifest)
    claims = Verifier([MINTED.root]).verify(MINTED.quote, MINTED.collateral, NOW)
    document = parse_manifest((files / manifest).read_bytes())
    package = document.marbles[marble].package
    admission = Admission(frozenset({claims.origin}))
    expected: list[dict[str, str]] = []
    try:
        require_admitted(claims, package, document.packages[package], document.infrastructures, admission)
    except NotAdmitted as refusal:
        expected = [
            {"code": one.code, "path": one.path, "expected": one.expected, "actual": one.actual}
            for one in refusal.found
        ]
    shown = json.loads(result.stdout)
    assert expected == shown["mismatches"]
    assert (result.exit_code, shown["admitted"]) == ((4, False) if expected else (0, True))


def test_every_mismatch_is_shown_to_people_too(files: Path) -> None:
    text = check(files, "db", "-o", "text", manifest="platforms.json").stdout
    assert text.startswith("NOT ADMITTED, BUT SIMULATED")
    for path in ("Packages.bad.SignerID", "Packages.bad.ProductID", "Infrastructures.ours.FMSPCs"):
        assert f"- {path}: expected" in text


def test_simulated_evidence_is_not_genuine_where_only_hardware_counts(files: Path) -> None:
    arguments: list[str | Path] = [
        "check",
        files / "quote",
        "--manifest",
        files / "manifest.json",
        "--marble",
        "web",
        "--at",
        AT,
    ]
    result = run(*arguments, "--collateral", files / "recorded" / "one.json")
    assert (result.exit_code, "unknown-root" in result.stdout) == (3, True)


@pytest.mark.parametrize(
    "more",
    [
        ("nobody",),
        ("lost",),
        ("web", "--collateral-dir", "missing", "--collateral", "missing"),
        ("web", "--message", "."),
        ("web", "--message", "cert.der", "--report-data-of", "cert.der"),
    ],
)
def test_a_wrong_command_line_is_told_and_nothing_is_decided(files: Path, more: tuple[str, ...]) -> None:
    result = check(files, *more)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Error: " in result.stderr


def test_a_directory_that_is_not_there_is_told(files: Path) -> None:
    result = check(files, "web", "--collateral-dir", files / "nowhere")
    assert (result.exit_code, result.stderr.splitlines()[-1]) == (
        6,
        f"Error: there is no directory {files / 'nowhere'} to take collateral from",
    )


def test_a_directory_without_the_platform_is_unavailable(files: Path) -> None:
    (files / "recorded" / "one.json").unlink()
    result = check(files)
    assert (result.exit_code, "holds no collateral" in result.stderr) == (6, True)


@pytest.mark.skipif(vectors_directory() is None, reason="no vectors: one check of a recorded quote is skipped")
def test_a_recorded_coordinator_of_the_reference_is_admitted_as_itself(tmp_path: Path) -> None:
    vector = load("sgx/marblerun-coordinator-00906ed5")
    collateral, at = vector.verifiable()
    manifest = {
        "Packages": {"p": {"SignerID": vector.expected["mrsigner"], "ProductID": 3, "SecurityVersion": 0}},
        "Marbles": {"m": {"Package": "p"}},
    }
    manifest["Packages"]["p"]["AcceptedTCBStatuses"] = [vector.expected["tcb_status"]]
    (tmp_path / "m").write_text(json.dumps(manifest))
    (tmp_path / "q").write_bytes(vector.quote)
    (tmp_path / "c").write_text(collateral_to_json(collateral))
    result = run(
        "check", tmp_path / "q", "--manifest", tmp_path / "m", "--marble", "m", "--collateral", tmp_path / "c",
        "--at", str(int(at.timestamp())), "-o", "json",
    )  # fmt: skip
    shown = json.loads(result.stdout)
    assert (result.exit_code, shown["origin"], shown["mismatches"]) == (0, "hardware", [])


# -- collateral --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    return SimulatedPlatform.create(tmp_path_factory.mktemp("cli") / "machine", at=datetime.now(UTC))


def environment(platform: SimulatedPlatform) -> dict[str, str]:
    return {"EDG_SIMULATED_PLATFORM": str(platform.directory)}


def fetched(platform: SimulatedPlatform, *arguments: str | Path) -> Result:
    with CollateralServer(PlatformPublisher(platform, lambda: datetime.now(UTC))) as server:
        return run("collateral", "fetch", *arguments, "--pccs-url", server.url, env=environment(platform))


def test_collateral_for_a_quote_is_fetched_into_a_directory_and_shown(
    platform: SimulatedPlatform, tmp_path: Path
) -> None:
    (tmp_path / "quote").write_bytes(platform.quote(b""))
    result = fetched(platform, tmp_path / "quote", "--tee", "tdx", "--dir", tmp_path / "kept")
    assert result.exit_code == 0, result.stderr
    (file,) = (tmp_path / "kept").iterdir()
    assert file.name == f"tdx-{platform.fmspc.hex()}-{platform.platform.ca}.json"
    shown = run("collateral", "show", tmp_path / "kept", "-o", "json", env=environment(platform))
    (one,) = json.loads(shown.stdout)["collateral"]
    assert (shown.exit_code, one["usable"], one["problem"], one["tee"]) == (0, True, None, "tdx")
    assert one["fmspc"] == platform.fmspc.hex().upper()
    assert set(one["parts"]) == {"tcb_info", "qe_identity", "root_ca_crl", "pck_crl"}
    assert isinstance(one["parts"]["tcb_info"]["tcb_evaluation_number"], int)
    assert "evaluation number" in run("collateral", "show", file, env=environment(platform)).stdout


def test_collateral_for_a_named_platform_goes_to_standard_output(platform: SimulatedPlatform) -> None:
    named = ("--fmspc", platform.fmspc.hex(), "--ca", platform.platform.ca, "--tee", "sgx")
    result = fetched(platform, *named)
    assert result.exit_code == 0, result.stderr
    assert '"SGX"' in parse_collateral_json(result.stdout).tcb_info


def test_a_service_that_says_nothing_is_waited_for_as_long_as_the_environment_says(platform: SimulatedPlatform) -> None:
    named = ("--fmspc", platform.fmspc.hex(), "--ca", platform.platform.ca, "--tee", "sgx")
    with socket.create_server(("127.0.0.1", 0), backlog=64) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = run("collateral", "fetch", *named, "--pccs-url", url, env={"EDG_PCCS_TIMEOUT": "0.05"})
        wrong = run("collateral", "fetch", *named, "--pccs-url", url, env={"EDG_PCCS_TIMEOUT": "soon"})
    # One reason for all four parts, told once, although it is logged, too.
    assert result.stderr.count("no complete answer within 0.05 s") == 1
    assert "PCK CRL, root CRL, TCB Info, QE identity: no complete answer" in result.stderr
    assert (wrong.exit_code != 0, "EDG_PCCS_TIMEOUT is 'soon'" in wrong.stderr) == (True, True)


def test_what_the_collateral_client_warns_of_is_shown_as_a_warning(platform: SimulatedPlatform, tmp_path: Path) -> None:
    named = ("--fmspc", platform.fmspc.hex(), "--ca", platform.platform.ca, "--tee", "sgx")
    (tmp_path / "qcnl.conf").write_text('{"pccs_url": "https://127.0.0.1:9", "use_secure_cert": false}')
    env = {"EDG_QCNL_CONFIG": str(tmp_path / "qcnl.conf")}
    result = run("collateral", "fetch", *named, env=env)
    assert result.stderr.count("Warning: the TLS certificate of https://127.0.0.1:9 is not verified") == 1
    assert run("collateral", "fetch", *named, env=env).stderr == result.stderr


def test_collateral_that_nobody_trusted_signed_is_not_written(platform: SimulatedPlatform, tmp_path: Path) -> None:
    named = ("--fmspc", platform.fmspc.hex(), "--ca", platform.platform.ca, "--tee", "sgx", "--out", tmp_path / "c")
    with CollateralServer(PlatformPublisher(platform, lambda: datetime.now(UTC))) as server:
        result = run("collateral", "fetch", *named, "--pccs-url", server.url)
    assert (result.exit_code, (tmp_path / "c").exists()) == (6, False)
    assert "not trustworthy" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--fmspc", "00"),
        ("--fmspc", "00906ed50000", "--ca", "processor"),
        ("--fmspc", "zz906ed50000", "--ca", "processor", "--tee", "sgx"),
        ("quote", "--fmspc", "00906ed50000"),
    ],
)
def test_an_unclear_platform_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    assert run("collateral", "fetch", *arguments).exit_code == 2


def test_what_cannot_be_used_is_shown_with_its_problem(files: Path, tmp_path: Path) -> None:
    (files / "recorded" / "two.json").write_text("{}")
    shown = run("collateral", "show", files / "recorded", "--at", AT, "--root-ca", files / "root.der", "-o", "json")
    found = [(one["usable"], (one["problem"] or "")[:8]) for one in json.loads(shown.stdout)["collateral"]]
    assert (shown.exit_code, [usable for usable, _ in found]) == (3, [True, False])
    for at, problem in (("0", "not valid yet"), ("2000000000", "expired")):
        late = run("collateral", "show", files / "recorded" / "one.json", "--at", at, "--root-ca", files / "root.der")
        assert (late.exit_code, problem in late.stdout) == (3, True)
    intel = run("collateral", "show", files / "recorded" / "one.json", "--at", AT)
    assert (intel.exit_code, "not authentic" in intel.stdout) == (3, True)
    assert hashlib.sha256(CERTIFICATE).digest() == report_data_for(CERTIFICATE)[:32]
