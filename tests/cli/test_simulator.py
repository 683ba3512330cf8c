"""``marblerun simulator``, as a process, the way other programs use it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.forge.evidence import forge
from tests.forge.oracle import verify_with_dcap_qvl

from marblerun.attestation.dcap.collateral import collateral_to_json
from marblerun.attestation.dcap.quote import OE_HEADER_BYTES, parse_quote, strip_oe_header
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import SgxReport
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.cli.simulator import simulator

COMMAND = [sys.executable, "-m", "marblerun", "simulator"]


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([*COMMAND, *arguments], input=stdin, capture_output=True, timeout=120, check=False)


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    directory = tmp_path_factory.mktemp("cli") / "machine"
    assert run("init", str(directory)).returncode == 0
    return SimulatedPlatform.load(directory)


def test_init_never_overwrites_a_platform(platform: SimulatedPlatform) -> None:
    again = run("init", str(platform.directory))
    assert again.returncode not in (0, 2)
    assert b"is not empty; nothing was changed" in again.stderr
    assert SimulatedPlatform.load(platform.directory).root_der == platform.root_der


def test_a_line_of_report_data_becomes_a_line_of_quote_with_the_open_enclave_header(
    platform: SimulatedPlatform,
) -> None:
    done = run("quote", str(platform.directory), stdin=b"11" * 32 + b"\n" + b"AB" * 64 + b"\n")
    quotes = [bytes.fromhex(line.decode()) for line in done.stdout.splitlines()]
    now = datetime.now(UTC)
    assert done.returncode == 0
    assert [parse_quote(quote).report.report_data for quote in quotes] == [b"\x11" * 32 + bytes(32), b"\xab" * 64]
    for quote in quotes:
        assert quote[:OE_HEADER_BYTES] == bytes.fromhex("0100000002000000") + (len(quote) - 16).to_bytes(8, "little")
        collateral = platform.collateral(now)
        assert verify_with_dcap_qvl(strip_oe_header(quote), collateral, platform.root_der, now) == "UpToDate"


def test_the_options_are_what_the_quote_says(platform: SimulatedPlatform) -> None:
    identity = EnclaveIdentity(b"\x01" * 32, b"\x02" * 32, 3, 4, True)
    arguments = ["--unique-id", "01" * 32, "--signer-id", "02" * 32, "--product-id", "3", "--security-version", "4"]
    done = run("quote", str(platform.directory), *arguments, "--debug", stdin=b"00" * 32 + b"\n")
    now = datetime.now(UTC)
    quote = bytes.fromhex(done.stdout.decode())
    report = Verifier([platform.trust_root()]).verify(quote, platform.collateral(now), now).report
    assert isinstance(report, SgxReport)
    assert (
        EnclaveIdentity(report.mrenclave, report.mrsigner, report.isv_prod_id, report.isv_svn, report.debug) == identity
    )


def test_as_a_co_process_it_answers_every_line_at_once(platform: SimulatedPlatform) -> None:
    with started("quote", str(platform.directory)) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for n in range(5):
            process.stdin.write(bytes([n]).hex().encode() * 64 + b"\n")
            process.stdin.flush()
            answer = bytes.fromhex(process.stdout.readline().decode())
            assert parse_quote(answer).report.report_data == bytes([n]) * 64
        process.stdin.close()
        assert process.wait(60) == 0


@pytest.mark.parametrize("line", [b"zz" * 32, b"00", b"00" * 33, b"00" * 5000, b"0 " * 32, "٠".encode() * 32])
def test_a_bad_line_ends_it_with_code_2_after_the_good_ones_are_answered(
    platform: SimulatedPlatform, line: bytes
) -> None:
    stdin = b"00" * 32 + b"\n" + line + b"\n" + b"00" * 32 + b"\n"
    done = CliRunner().invoke(simulator, ["quote", str(platform.directory)], input=stdin)
    assert (done.exit_code, len(done.stdout.splitlines())) == (2, 1)
    assert "line 2: report data must be 64 or 128 hex digits" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["quote"],
        ["quote", "DIR", "--unique-id", "00"],
        ["quote", "DIR", "--signer-id", "zz" * 32],
        ["quote", "DIR", "--product-id", "65536"],
        ["quote", "DIR", "--security-version", "-1"],
        ["quote", "DIR", "--unknown"],
        ["serve", "DIR", "--listen", "8081"],
        ["serve", "DIR", "--listen", "localhost:99999"],
        ["serve", "DIR", "--listen", "localhost:0", "--tls-cert", "CERT"],
        ["init"],
        ["dance"],
    ],
)
def test_wrong_usage_ends_with_code_2(platform: SimulatedPlatform, arguments: list[str]) -> None:
    root = platform.directory
    places = {"DIR": str(root), "CERT": str(root / "root-ca.pem")}
    result = CliRunner().invoke(simulator, [places.get(argument, argument) for argument in arguments])
    assert result.exit_code == 2, result.output


def test_a_directory_without_platform_is_named(tmp_path: Path) -> None:
    done = run("quote", str(tmp_path))
    assert done.returncode not in (0, 2)
    assert b"holds no simulated platform" in done.stderr


@pytest.mark.parametrize("command", [[], ["init"], ["quote"], ["serve"]])
def test_every_help_text_shows_an_example(command: list[str]) -> None:
    result = CliRunner().invoke(simulator, [*command, "--help"])
    assert result.exit_code == 0
    assert "marblerun simulator" in result.output.partition("Example:")[2].partition("Options:")[0]


def test_serve_prints_its_url_serves_and_ends_cleanly_on_sigterm(platform: SimulatedPlatform) -> None:
    with started("serve", str(platform.directory), "--listen", "127.0.0.1:0") as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        with urllib.request.urlopen(
            f"{url}/sgx/certification/v4/tcb?fmspc={platform.fmspc.hex()}", timeout=60
        ) as reply:
            assert platform.fmspc.hex().upper().encode() in reply.read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_serve_prints_the_host_as_it_was_named_since_a_certificate_for_a_name_fits_no_address(
    platform: SimulatedPlatform,
) -> None:
    with started("serve", str(platform.directory), "--listen", "localhost:0") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"http://localhost:")


def test_serve_serves_recorded_collateral_too(tmp_path: Path) -> None:
    collateral = forge().collateral
    (tmp_path / "recorded.json").write_text(collateral_to_json(collateral))
    with started("serve", str(tmp_path), "--listen", "127.0.0.1:0") as process:
        assert process.stdout is not None
        url = process.stdout.readline().decode().strip()
        with urllib.request.urlopen(f"{url}/sgx/certification/v4/rootcacrl", timeout=60) as reply:
            assert bytes.fromhex(reply.read().decode()) == collateral.root_ca_crl


def test_quoting_needs_no_environment(platform: SimulatedPlatform) -> None:
    python_path = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [*COMMAND, "quote", str(platform.directory)],
        input=b"00" * 32,
        env=python_path,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 1)
