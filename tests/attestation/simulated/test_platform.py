"""A simulated platform on disk."""

from __future__ import annotations

import json
import logging
import shutil
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.forge.oracle import verify_with_dcap_qvl

from marblerun.attestation.dcap.pck import collateral_key
from marblerun.attestation.dcap.quote import add_oe_header, parse_quote
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import CollateralKey, Origin, SgxReport, TcbStatus, Tee
from marblerun.attestation.roots import root_from_certificate
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform, load_trust_root
from marblerun.attestation.simulated.platform import is_simulated_platform
from marblerun.errors import Conflict, Malformed, NotFound, Unavailable, Untrusted

AT = datetime(2026, 6, 1, 12, 30, 15, tzinfo=UTC)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    return SimulatedPlatform.create(tmp_path_factory.mktemp("platform") / "machine", at=AT)


def test_a_quote_verifies_under_the_platforms_own_root_and_says_so(platform: SimulatedPlatform) -> None:
    quote = add_oe_header(platform.quote(b"r" * 64))
    claims = Verifier([platform.trust_root()]).verify(quote, platform.collateral(AT), AT)
    assert (claims.origin, claims.tee, claims.tcb_status) == (Origin.SIMULATED, Tee.SGX, TcbStatus.UP_TO_DATE)
    assert claims.platform == platform.platform
    assert claims.report_data == b"r" * 64


def test_no_other_root_accepts_it(platform: SimulatedPlatform, tmp_path: Path) -> None:
    other = SimulatedPlatform.create(tmp_path / "other", at=AT)
    with pytest.raises(Untrusted) as refusal:
        Verifier([other.trust_root()]).verify(platform.quote(b""), platform.collateral(AT), AT)
    assert refusal.value.reason == "unknown-root"


@settings(max_examples=20, deadline=None)
@given(
    unique_id=st.binary(min_size=32, max_size=32),
    signer_id=st.binary(min_size=32, max_size=32),
    product_id=st.integers(0, 0xFFFF),
    security_version=st.integers(0, 0xFFFF),
    debug=st.booleans(),
    report_data=st.binary(max_size=64),
)
def test_every_identity_comes_out_of_the_verifier_as_it_went_in(
    platform: SimulatedPlatform,
    unique_id: bytes,
    signer_id: bytes,
    product_id: int,
    security_version: int,
    debug: bool,
    report_data: bytes,
) -> None:
    identity = EnclaveIdentity(unique_id, signer_id, product_id, security_version, debug)
    quote = platform.quote_as(identity, report_data)
    report = Verifier([platform.trust_root()]).verify(quote, platform.collateral(AT), AT).report
    assert isinstance(report, SgxReport)
    claimed = EnclaveIdentity(report.mrenclave, report.mrsigner, report.isv_prod_id, report.isv_svn, report.debug)
    assert claimed == identity
    assert report.report_data == report_data.ljust(64, b"\x00")


@pytest.mark.parametrize("ca", ["platform", "processor"])
def test_an_independent_verifier_accepts_quote_and_collateral(ca: str, tmp_path: Path) -> None:
    made = SimulatedPlatform.create(tmp_path / "p", at=AT, ca=ca)
    assert verify_with_dcap_qvl(made.quote(b"x"), made.collateral(AT), made.root_der, AT) == "UpToDate"


def test_quotes_are_as_long_as_real_ones(platform: SimulatedPlatform) -> None:
    """Real quotes are 4575 to 4734 bytes (formats, section 1.1)."""
    assert 4575 <= len(platform.quote(b"")) <= 4734


def test_report_data_of_more_than_64_bytes_is_our_own_mistake(platform: SimulatedPlatform) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        platform.quote(bytes(65))


def test_the_chosen_tcb_status_is_what_verifiers_find(tmp_path: Path) -> None:
    created = SimulatedPlatform.create(
        tmp_path / "p", at=AT, tcb_status=TcbStatus.SW_HARDENING_NEEDED, advisories=("INTEL-SA-00615",)
    )
    loaded = SimulatedPlatform.load(created.directory)
    claims = Verifier([loaded.trust_root()]).verify(loaded.quote(b""), loaded.collateral(AT), AT)
    assert (claims.tcb_status, claims.advisories) == (TcbStatus.SW_HARDENING_NEEDED, ("INTEL-SA-00615",))


@pytest.mark.parametrize("later", [timedelta(0), timedelta(days=29), timedelta(days=400), timedelta(days=29 * 365)])
def test_a_platform_on_disk_never_goes_stale(platform: SimulatedPlatform, later: timedelta) -> None:
    at = AT + later
    claims = Verifier([platform.trust_root()]).verify(platform.quote(b""), platform.collateral(at), at)
    assert claims.tcb_status == TcbStatus.UP_TO_DATE
    assert claims.collateral_expires > at + timedelta(days=29)


def test_collateral_expires_like_the_vendors(platform: SimulatedPlatform) -> None:
    old = platform.collateral(AT)
    with pytest.raises(Untrusted) as refusal:
        Verifier([platform.trust_root()]).verify(platform.quote(b""), old, AT + timedelta(days=31))
    assert refusal.value.reason == "expired"


def test_collateral_is_valid_for_a_clock_that_is_an_hour_behind(platform: SimulatedPlatform) -> None:
    behind = AT - timedelta(hours=1)
    claims = Verifier([platform.trust_root()]).verify(platform.quote(b""), platform.collateral(AT), behind)
    assert claims.tcb_status == TcbStatus.UP_TO_DATE


def test_collateral_stays_the_same_within_the_hour_so_that_verifiers_can_recognise_it(
    platform: SimulatedPlatform,
) -> None:
    assert platform.collateral(AT) is platform.collateral(AT + timedelta(minutes=20))
    assert platform.collateral(AT) != platform.collateral(AT + timedelta(hours=1))


def test_tdx_collateral_is_about_the_same_platform(platform: SimulatedPlatform) -> None:
    text = platform.collateral(AT, Tee.TDX).tcb_info
    assert (json.loads(text)["id"], bytes.fromhex(json.loads(text)["fmspc"])) == ("TDX", platform.fmspc)


def test_the_quote_names_the_collateral_it_needs(platform: SimulatedPlatform) -> None:
    key = collateral_key(parse_quote(platform.quote(b"")))
    assert key == CollateralKey(Tee.SGX, platform.fmspc, "platform")


def test_the_quoting_enclave_keeps_its_key_and_certification_across_processes(platform: SimulatedPlatform) -> None:
    again = SimulatedPlatform.load(platform.directory)
    first, second = parse_quote(platform.quote(b"1")), parse_quote(again.quote(b"2"))
    assert (first.attestation_key, first.qe_report, first.qe_report_signature) == (
        second.attestation_key,
        second.qe_report,
        second.qe_report_signature,
    )
    assert first.header == second.header


def test_directory_and_files_are_private(platform: SimulatedPlatform) -> None:
    assert stat.S_IMODE(platform.directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in platform.directory.iterdir()} == {0o600}


def test_keys_that_others_can_read_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = SimulatedPlatform.create(tmp_path / "p", at=AT)
    made.directory.chmod(0o755)
    (made.directory / "root-ca.key.pem").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        SimulatedPlatform.load(made.directory)
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [
        made.directory / "root-ca.key.pem"
    ]


def test_an_existing_platform_is_never_overwritten(tmp_path: Path) -> None:
    made = SimulatedPlatform.create(tmp_path / "p", at=AT)
    with pytest.raises(Conflict):
        SimulatedPlatform.create(made.directory, at=AT)
    assert SimulatedPlatform.load(made.directory).root_der == made.root_der


def test_somebody_elses_files_are_never_mixed_with_a_platform(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(Conflict):
        SimulatedPlatform.create(tmp_path, at=AT)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_an_empty_directory_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir(mode=0o755)
    made = SimulatedPlatform.create(tmp_path / "p", at=AT)
    assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700


def test_of_several_creators_at_once_exactly_one_wins(tmp_path: Path) -> None:
    outcomes: list[str] = []

    def create() -> None:
        try:
            SimulatedPlatform.create(tmp_path / "p", at=AT)
            outcomes.append("made")
        except Conflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=create) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["conflict"] * 5 + ["made"]
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("a file")
    with pytest.raises(Unavailable, match="cannot write"):
        SimulatedPlatform.create(tmp_path / "p", at=AT)


def test_the_root_certificate_alone_is_enough_to_trust_a_platform(platform: SimulatedPlatform, tmp_path: Path) -> None:
    shutil.copy(platform.directory / "root-ca.pem", tmp_path)
    root = load_trust_root(tmp_path)
    assert root == platform.trust_root()
    assert root == root_from_certificate(platform.root_der, root.name, Origin.SIMULATED)


def test_the_names_do_not_claim_to_be_intels(platform: SimulatedPlatform) -> None:
    hierarchy = platform.hierarchy()
    certificates = [s.certificate for s in (hierarchy.root, hierarchy.pck_ca, hierarchy.tcb_signer, hierarchy.pck)]
    names = [certificate.subject.rfc4514_string() for certificate in certificates]
    assert [name for name in names if "Intel" in name] == []
    assert all("CN=Simulated" in name and "O=Simulation\\, not hardware" in name for name in names)


@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        ("platform.json", None, NotFound),
        ("root-ca.pem", None, NotFound),
        ("platform.json", b"[1", Malformed),
        ("platform.json", b"{}", Malformed),
        ("platform.json", b'{"format": 2}', Malformed),
        ("platform.json", b"[" * 100_000, Malformed),
        ("platform.json", b" " * 100_000, Malformed),
        ("root-ca.pem", b"no certificate", Malformed),
        ("attestation.key.pem", b"no key", Malformed),
        ("attestation.key.pem", None, NotFound),
        ("qe-report.bin", b"short", Malformed),
    ],
)
def test_a_damaged_platform_is_an_error_of_ours_that_names_the_file(
    platform: SimulatedPlatform, tmp_path: Path, file: str, content: bytes | None, error: type[Exception]
) -> None:
    shutil.copytree(platform.directory, tmp_path / "p")
    (tmp_path / "p" / file).unlink()
    if content is not None:
        (tmp_path / "p" / file).write_bytes(content)
    with pytest.raises(error, match=file):
        SimulatedPlatform.load(tmp_path / "p").quote(b"")


def test_what_is_no_platform_is_not_taken_for_one(platform: SimulatedPlatform, tmp_path: Path) -> None:
    assert is_simulated_platform(platform.directory)
    assert not is_simulated_platform(tmp_path)
    with pytest.raises(NotFound):
        SimulatedPlatform.load(tmp_path / "nowhere")


def test_sealing_keys_differ_by_platform_identity_key_id_and_size(platform: SimulatedPlatform, tmp_path: Path) -> None:
    other = SimulatedPlatform.create(tmp_path / "other", at=AT)
    keys = [
        platform.sealing_key(b"signer", b"1"),
        platform.sealing_key(b"signer", b"2"),
        platform.sealing_key(b"enclave", b"1"),
        platform.sealing_key(b"signer", b"1", 32)[:16],
        other.sealing_key(b"signer", b"1"),
    ]
    assert len(set(keys)) == len(keys)
    assert [len(platform.sealing_key(b"signer", b"1", size)) for size in (16, 32)] == [16, 32]


def test_sealing_keys_survive_a_restart(platform: SimulatedPlatform) -> None:
    again = SimulatedPlatform.load(platform.directory)
    assert again.sealing_key(b"signer", b"id") == platform.sealing_key(b"signer", b"id")


def test_a_sealing_key_of_another_size_is_our_own_mistake(platform: SimulatedPlatform) -> None:
    with pytest.raises(ValueError, match="16 or 32"):
        platform.sealing_key(b"signer", b"id", 24)
