"""The stand-in PCCS answers like API version 4."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote

import dcap_qvl
import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from tests import vectors
from tests.forge.evidence import AT as FORGED_AT
from tests.forge.evidence import forge, hierarchy, td_report

from marblerun.attestation.dcap.collateral import collateral_to_json
from marblerun.attestation.model import Tee
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.attestation.simulated.pccs import CollateralServer, PlatformPublisher, RecordedPublisher, answer
from marblerun.errors import Malformed, NotFound

AT = datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> SimulatedPlatform:
    return SimulatedPlatform.create(tmp_path_factory.mktemp("pccs") / "machine", at=AT)


@pytest.fixture(scope="module")
def publisher(platform: SimulatedPlatform) -> PlatformPublisher:
    return PlatformPublisher(platform, clock=lambda: AT)


@pytest.mark.parametrize("tee", [Tee.SGX, Tee.TDX])
def test_tcb_info_arrives_exactly_as_signed(
    platform: SimulatedPlatform, publisher: PlatformPublisher, tee: Tee
) -> None:
    reply = answer(publisher, f"/{tee}/certification/v4/tcb?fmspc={platform.fmspc.hex()}&update=standard")
    collateral = platform.collateral(AT, tee)
    assert reply.status == 200
    assert f'"tcbInfo":{collateral.tcb_info},' in reply.body.decode()
    assert bytes.fromhex(json.loads(reply.body)["signature"]) == collateral.tcb_info_signature
    assert unquote(reply.headers["TCB-Info-Issuer-Chain"]) == collateral.tcb_info_issuer_chain


@pytest.mark.parametrize("tee", [Tee.SGX, Tee.TDX])
def test_the_qe_identity_arrives_exactly_as_signed(
    platform: SimulatedPlatform, publisher: PlatformPublisher, tee: Tee
) -> None:
    reply = answer(publisher, f"/{tee}/certification/v4/qe/identity?tcbEvaluationDataNumber=17")
    collateral = platform.collateral(AT, tee)
    assert f'"enclaveIdentity":{collateral.qe_identity},' in reply.body.decode()
    assert unquote(reply.headers["SGX-Enclave-Identity-Issuer-Chain"]) == collateral.qe_identity_issuer_chain


def test_the_pck_crl_comes_in_every_encoding(platform: SimulatedPlatform, publisher: PlatformPublisher) -> None:
    crl = platform.collateral(AT).pck_crl
    path = "/sgx/certification/v4/pckcrl?ca=platform"
    der, pem, hexadecimal = (answer(publisher, path + end) for end in ("&encoding=der", "&encoding=pem", ""))
    assert der.body == crl
    assert x509.load_pem_x509_crl(pem.body) == x509.load_der_x509_crl(crl)
    assert bytes.fromhex(hexadecimal.body.decode()) == crl
    assert unquote(der.headers["SGX-PCK-CRL-Issuer-Chain"]) == platform.collateral(AT).pck_crl_issuer_chain


def test_the_root_crl_comes_in_hex(platform: SimulatedPlatform, publisher: PlatformPublisher) -> None:
    reply = answer(publisher, "/sgx/certification/v4/rootcacrl")
    assert bytes.fromhex(reply.body.decode()) == platform.collateral(AT).root_ca_crl


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/", 404),
        ("//[", 404),
        ("/sgx/certification/v4/nothing", 404),
        ("/snp/certification/v4/tcb?fmspc=0051ab000000", 404),
        ("/tdx/certification/v4/pckcrl?ca=platform", 404),
        ("/sgx/certification/v3/tcb?fmspc=0051ab000000", 410),
        ("/sgx/certification/v4/tcb", 400),
        ("/sgx/certification/v4/tcb?fmspc=0051ab", 400),
        ("/sgx/certification/v4/tcb?fmspc=0051ab00000g", 400),
        ("/sgx/certification/v4/tcb?fmspc=0051ab000000&fmspc=0051ab000000", 400),
        ("/sgx/certification/v4/tcb?fmspc=00906ed50000", 404),
        ("/sgx/certification/v4/tcb?fmspc=0051AB000000", 200),
        ("/sgx/certification/v4/tcb?fmspc=0051ab000000&update=sometimes", 400),
        ("/sgx/certification/v4/tcb?fmspc=0051ab000000&tcbEvaluationDataNumber=x", 400),
        ("/sgx/certification/v4/tcb?fmspc=0051ab000000&tcbEvaluationDataNumber=3", 404),
        ("/sgx/certification/v4/tcb?fmspc=0051ab000000&tcbEvaluationDataNumber=17&update=early", 400),
        ("/sgx/certification/v4/pckcrl", 400),
        ("/sgx/certification/v4/pckcrl?ca=intel", 400),
        ("/sgx/certification/v4/pckcrl?ca=processor", 404),
        ("/sgx/certification/v4/pckcrl?ca=platform&encoding=xml", 400),
    ],
)
def test_a_bad_question_gets_the_services_own_status(publisher: PlatformPublisher, target: str, status: int) -> None:
    assert answer(publisher, target).status == status


@given(st.text(st.characters(codec="ascii"), max_size=200))
def test_no_request_target_is_too_strange_for_an_answer(publisher: PlatformPublisher, target: str) -> None:
    assert answer(publisher, "/" + target).status in (200, 400, 404, 410)


def test_over_a_socket_every_answer_has_a_request_id_and_unknown_methods_are_refused(
    publisher: PlatformPublisher,
) -> None:
    with CollateralServer(publisher) as server:
        with urllib.request.urlopen(f"{server.url}/sgx/certification/v4/rootcacrl", timeout=60) as response:
            assert (response.status, len(response.headers["Request-ID"])) == (200, 32)
        request = urllib.request.Request(f"{server.url}/sgx/certification/v4/tcb", data=b"x", method="PUT")
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(request, timeout=60)
        assert refusal.value.code == 501


def test_an_independent_client_and_verifier_work_against_it(platform: SimulatedPlatform) -> None:
    quote = platform.quote(b"independent")
    now = datetime.now(UTC)
    with CollateralServer(PlatformPublisher(platform, clock=lambda: now)) as server:

        async def fetch() -> dcap_qvl.QuoteCollateralV3:
            return await dcap_qvl.get_collateral(server.url, quote)

        collateral = asyncio.run(fetch())
    report = dcap_qvl.verify_with_root_ca(quote, collateral, platform.root_der, int(now.timestamp()))
    assert report.status == "UpToDate"


def test_recorded_collateral_is_served_by_platform(tmp_path: Path) -> None:
    sgx, tdx = forge(of=hierarchy("processor")), forge(td_report())
    (tmp_path / "a.json").write_text(collateral_to_json(sgx.collateral))
    (tmp_path / "b.json").write_text(collateral_to_json(tdx.collateral))
    publisher = RecordedPublisher.load(tmp_path, clock=lambda: FORGED_AT)
    assert publisher.find(tee=Tee.TDX) == tdx.collateral
    assert publisher.find(ca="processor") == sgx.collateral
    assert publisher.find(fmspc=bytes(6)) is None


def test_of_several_recordings_the_valid_one_goes_before_the_newer(tmp_path: Path) -> None:
    valid, future = forge().collateral, forge(issued=datetime(2027, 1, 1, tzinfo=UTC)).collateral
    (tmp_path / "valid.json").write_text(collateral_to_json(valid))
    (tmp_path / "future.json").write_text(collateral_to_json(future))
    assert RecordedPublisher.load(tmp_path, clock=lambda: FORGED_AT).find() == valid
    assert RecordedPublisher.load(tmp_path, clock=lambda: datetime(2028, 1, 1, tzinfo=UTC)).find() == future


def test_a_directory_without_collateral_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"\.json"):
        RecordedPublisher.load(tmp_path, clock=lambda: AT)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(Malformed, match=r"bad\.json"):
        RecordedPublisher.load(tmp_path, clock=lambda: AT)


@pytest.mark.parametrize("name", vectors.parameters("sgx", "tdx"))
def test_recorded_vendor_collateral_can_be_told_apart_by_platform(name: str, tmp_path: Path) -> None:
    vector = vectors.load(name)
    if vector.collateral_json is None or vector.at is None:
        return
    (tmp_path / "recorded.json").write_text(vector.collateral_json)
    at = vector.at
    publisher = RecordedPublisher.load(tmp_path, clock=lambda: at)
    quote = dcap_qvl.parse_quote(vector.quote)
    tee = Tee.TDX if quote.is_tdx() else Tee.SGX
    assert publisher.find(tee=tee, fmspc=bytes.fromhex(quote.fmspc()), ca=quote.ca()) == vector.collateral
