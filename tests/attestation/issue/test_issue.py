"""Our own evidence: from directories in the shape of Gramine's and Linux', from a simulated platform, or none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.dcap.quote import add_oe_header
from marblerun.attestation.issue import (
    GramineIssuer,
    NoEvidenceIssuer,
    SimulatedIssuer,
    TsmIssuer,
    detect_issuer,
)
from marblerun.attestation.issue.quotes import finish_quote
from marblerun.attestation.issue.tsm import ReportEntries
from marblerun.attestation.model import Origin, Tee
from marblerun.attestation.simulated import SimulatedPlatform, quotes
from marblerun.errors import Malformed, Misconfigured, NotFound, Unavailable

DATA = report_data_for(b"certificate")
OTHER_DATA = report_data_for(b"another certificate")


QE = quotes.QuotingEnclave(ec.generate_private_key(ec.SECP256R1()), bytes(384), bytes(64))


def sgx_quote(report_data: bytes = DATA) -> bytes:
    return quotes.sign_quote(quotes.header(3, Tee.SGX), bytes(320) + report_data, QE, "PEM").encode()


def tdx_quote(report_data: bytes = DATA, version: int = 4, size: int = 584) -> bytes:
    body = bytes(520) + report_data + bytes(size - 584)
    return quotes.sign_quote(
        quotes.header(version, Tee.TDX), quotes.v5_body(body) if version == 5 else body, QE, "PEM"
    ).encode()


SGX_QUOTE, TDX_QUOTE = sgx_quote(), tdx_quote()


def gramine(root: Path, quote: bytes, kind: str = "dcap") -> Path:
    directory = root / "dev/attestation"
    directory.mkdir(parents=True)
    (directory / "user_report_data").write_bytes(bytes(64))
    (directory / "quote").write_bytes(quote)
    (directory / "attestation_type").write_text(kind)
    return directory


@dataclass(frozen=True)
class FakeKernel(ReportEntries):
    """Fills each new entry as the kernel would, and takes it away whole."""

    fill: Callable[[Path], None]
    seen: list[bytes] = field(default_factory=list)

    def create(self) -> Path:
        entry = super().create()
        for name, content in {"inblob": b"", "provider": b"tdx_guest\n", "generation": b"1\n"}.items():
            (entry / name).write_bytes(content)
        self.fill(entry)
        return entry

    def remove(self, entry: Path) -> None:
        self.seen.append((entry / "inblob").read_bytes())
        shutil.rmtree(entry)


def kernel(root: Path, outblob: bytes = b"", **files: bytes) -> FakeKernel:
    def fill(entry: Path) -> None:
        for name, content in {"outblob": outblob, **files}.items():
            (entry / name).write_bytes(content)

    (root / "report").mkdir()
    return FakeKernel(root / "report", fill)


def test_gramine_is_given_the_report_data_and_its_quote_gets_the_open_enclave_header(tmp_path: Path) -> None:
    directory = gramine(tmp_path, SGX_QUOTE)
    evidence = GramineIssuer(directory).issue(DATA)
    assert (directory / "user_report_data").read_bytes() == DATA
    assert evidence[:16].hex() == "0100000002000000" + len(SGX_QUOTE).to_bytes(8, "little").hex()
    assert evidence[16:] == SGX_QUOTE


def test_padding_behind_a_quote_is_cut_off(tmp_path: Path) -> None:
    directory = gramine(tmp_path, SGX_QUOTE.ljust(8191, b"\x00"))
    assert GramineIssuer(directory).issue(DATA) == add_oe_header(SGX_QUOTE)


@pytest.mark.parametrize("quote", [b"", b"\x03\x00", SGX_QUOTE[:-1], bytes(2000), b"x" * 20_000, sgx_quote(OTHER_DATA)])
def test_a_quote_of_gramine_that_is_none_or_somebody_elses_is_an_error(quote: bytes, tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        GramineIssuer(gramine(tmp_path, quote)).issue(DATA)


def test_a_gramine_without_quotes_is_an_error_that_names_the_device(tmp_path: Path) -> None:
    directory = gramine(tmp_path, b"")
    (directory / "quote").unlink()
    with pytest.raises(Unavailable, match="dev/attestation/quote: No such file"):
        GramineIssuer(directory).issue(DATA)


@pytest.mark.parametrize("quote", [TDX_QUOTE, tdx_quote(version=5), tdx_quote(version=5, size=648)])
def test_a_tdx_quote_comes_bare_and_without_padding(quote: bytes, tmp_path: Path) -> None:
    entries = kernel(tmp_path, quote.ljust(8192, b"\x00"))
    assert TsmIssuer(entries).issue(DATA) == quote
    assert entries.seen == [DATA]
    assert list(entries.directory.iterdir()) == []


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"outblob": TDX_QUOTE, "generation": b"2"}, "changed by somebody else"),
        ({"outblob": TDX_QUOTE, "provider": b"sev_guest"}, "sev_guest"),
        ({"outblob": tdx_quote(OTHER_DATA)}, "other report data"),
        ({"outblob": b""}, "empty"),
        ({"outblob": b"\xd9\xd9\xf7" * 4000}, "quote version"),
        ({"outblob": bytes(100_000)}, "more than"),
    ],
)
def test_a_failed_tsm_report_is_an_error_and_leaves_no_entry(
    files: dict[str, bytes], reason: str, tmp_path: Path
) -> None:
    entries = kernel(tmp_path, **files)
    with pytest.raises(Unavailable, match=reason):
        TsmIssuer(entries).issue(DATA)
    assert len(entries.seen) == 1
    assert list(entries.directory.iterdir()) == []


def test_an_entry_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="report entry"):
        TsmIssuer(ReportEntries(tmp_path / "missing")).issue(DATA)


@pytest.mark.parametrize("size", [0, 32, 63, 65])
def test_report_data_of_another_size_is_our_own_mistake(size: int, tmp_path: Path) -> None:
    for issuer in (NoEvidenceIssuer(), GramineIssuer(tmp_path), SimulatedIssuer(lambda data: sgx_quote(data))):
        with pytest.raises(ValueError, match="report data"):
            issuer.issue(bytes(size))


def test_without_evidence_the_evidence_is_empty() -> None:
    assert NoEvidenceIssuer().issue(DATA) == b""


@given(st.binary(max_size=700) | st.builds(lambda cut: TDX_QUOTE[:cut], st.integers(0, 1500)))
def test_any_bytes_are_finished_or_malformed(raw: bytes) -> None:
    try:
        finished = finish_quote(raw, DATA)
    except Malformed:
        return
    assert finished.endswith(raw[: len(finished)])


class TestDetection:
    """Which issuer is chosen."""

    def test_a_name_goes_before_what_the_machine_shows(self, tmp_path: Path) -> None:
        gramine(tmp_path, SGX_QUOTE)
        assert detect_issuer({"OE_SIMULATION": "1"}, tmp_path).origin is Origin.NONE
        assert detect_issuer({}, tmp_path) == GramineIssuer(tmp_path / "dev/attestation")

    def test_gramine_goes_before_configfs_tsm(self, tmp_path: Path) -> None:
        reports = tmp_path / "sys/kernel/config/tsm/report"
        reports.mkdir(parents=True)
        assert detect_issuer({}, tmp_path) == TsmIssuer(ReportEntries(reports))
        gramine(tmp_path, SGX_QUOTE)
        assert detect_issuer({}, tmp_path) == GramineIssuer(tmp_path / "dev/attestation")

    def test_a_simulated_platform_quotes_the_identity_in_the_environment(self, tmp_path: Path) -> None:
        SimulatedPlatform.create(tmp_path / "platform", at=datetime.now(UTC))
        environment = {
            "EDG_SIMULATED_PLATFORM": str(tmp_path / "platform"),
            "EDG_SIMULATED_UNIQUE_ID": "ab" * 32,
            "EDG_SIMULATED_SECURITY_VERSION": "7",
        }
        issuer = detect_issuer(environment, tmp_path)
        evidence = issuer.issue(DATA)
        assert issuer.origin is Origin.SIMULATED
        body = evidence[16 + 48 :]
        assert body[64:96] == bytes.fromhex("ab" * 32)
        assert int.from_bytes(body[258:260], "little") == 7
        assert body[320:384] == DATA

    def test_both_simulations_at_once_are_refused(self, tmp_path: Path) -> None:
        environment = {"OE_SIMULATION": "1", "EDG_SIMULATED_PLATFORM": str(tmp_path)}
        with pytest.raises(Misconfigured, match="exclude each other"):
            detect_issuer(environment, tmp_path)

    def test_a_broken_simulated_platform_never_becomes_no_evidence(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound):
            detect_issuer({"EDG_SIMULATED_PLATFORM": str(tmp_path / "none")}, tmp_path)

    @pytest.mark.parametrize(
        "environment", [{}, {"OE_SIMULATION": "0"}, {"OE_SIMULATION": "", "EDG_SIMULATED_PLATFORM": ""}]
    )
    def test_without_a_tee_the_message_says_what_to_do(self, environment: dict[str, str], tmp_path: Path) -> None:
        with pytest.raises(Misconfigured, match=r"EDG_SIMULATED_PLATFORM=DIR .* OE_SIMULATION=1"):
            detect_issuer(environment, tmp_path)

    def test_a_gramine_that_cannot_attest_is_refused_with_the_line_to_change(self, tmp_path: Path) -> None:
        gramine(tmp_path, b"", kind="none")
        with pytest.raises(Misconfigured, match=r"sgx\.remote_attestation"):
            detect_issuer({}, tmp_path)
