"""Forms that genuine evidence and collateral can have though no vector does, and what dcap-qvl says to each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.attestation.differential import theirs
from tests.forge.dcap import NOW, Dcap, Minted, isv_level, level, module
from tests.forge.evidence import td_report

from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral, TdExtension
from marblerun.attestation.simulated.quotes import encode_td_report
from marblerun.attestation.tdx import parse_td_report
from marblerun.errors import Malformed, Untrusted

SGX = Dcap()
TDX = Dcap(tdx=True, version=5)
STATUSES = (
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
    "Revoked",
)


def ours(minted: Minted) -> tuple[str, tuple[str, ...]] | str:
    try:
        claims = Verifier([minted.root]).verify(minted.quote, minted.collateral, NOW)
    except (Malformed, Untrusted) as error:
        return str(error)
    return claims.tcb_status.value, claims.advisories


def both(minted: Minted) -> tuple[object, object]:
    """Our verdict and dcap-qvl's; every refusal is the same one here."""
    other = theirs(minted.quote, minted.collateral, int(NOW.timestamp()), minted.root_der)
    mine = ours(minted)
    return "refused" if isinstance(mine, str) else mine, "refused" if isinstance(other, str) else other


def svn(*first: int) -> bytes:
    return bytes(first) + bytes(16 - len(first))


def tdx_levels(*statuses: tuple[str, int]) -> list[dict[str, Any]]:
    """Levels that differ in what they ask of the SEAM loader."""
    return [level(5, status, tdx=tuple(svn(0, 0, at)), advisoryIDs=[status]) for status, at in statuses]


def with_chains(change: Callable[[str], str]) -> Minted:
    minted = SGX.mint()
    names = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "qe_identity_issuer_chain")
    changes: dict[str, Any] = {name: change(getattr(minted.collateral, name)) for name in names}
    changed: Collateral = replace(minted.collateral, **changes)
    return replace(minted, collateral=changed)


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("qe", [6, 7, 8, 9])
@pytest.mark.parametrize("ca", ["Processor", "Platform"])
def test_every_status_with_every_level_of_a_qe(status: str, qe: int, ca: str) -> None:
    tcb = {"tcbLevels": [level(5, status, advisoryIDs=["INTEL-SA-P"])]}
    mine, other = both(SGX.with_(ca=ca, tcb=tcb, qe={"isv_svn": bytes((qe, 0))}).mint())
    assert mine == other


@pytest.mark.parametrize("launched", STATUSES)
@pytest.mark.parametrize("current", STATUSES)
def test_every_pair_of_statuses_of_a_td_launched_under_one_loader_and_running_under_another(
    launched: str, current: str
) -> None:
    report = {"tee_tcb_svn": svn(5, 1, 2), "tee_tcb_svn2": svn(5, 1, 6)}
    mine, other = both(TDX.with_(tcb={"tcbLevels": tdx_levels((current, 5), (launched, 2))}, report=report).mint())
    assert mine == other


@pytest.mark.parametrize("identity", ["TDX_01", "TDX_0A", "tdx_0a", "TDX_1", "TDX_001", "TDX_zz", "01"])
@pytest.mark.parametrize("version", [0, 1, 10])
def test_every_way_to_write_a_module_identity(identity: str, version: int) -> None:
    written = module(1, isv_level(5, "UpToDate", advisoryIDs=["M"])) | {"id": identity}
    mine, other = both(
        TDX.with_(
            tcb={"tdxModuleIdentities": [written]},
            report={"tee_tcb_svn": svn(5, version, 2), "tee_tcb_svn2": svn(5, version, 2)},
        ).mint()
    )
    # An identity that cannot be read is no matter to dcap-qvl unless it is looked for; we read all that is signed.
    readable = identity.upper() in ("TDX_01", "TDX_0A")
    assert mine == other if readable else mine == "refused"


def test_several_module_identities_each_with_its_levels() -> None:
    modules = [
        module(1, isv_level(5, "UpToDate")),
        module(3, isv_level(4, "UpToDate"), isv_level(2, "OutOfDate", advisoryIDs=["OLD"])),
        module(16, isv_level(1, "UpToDate")),
    ]
    report = {"tee_tcb_svn": svn(3, 3, 2), "tee_tcb_svn2": svn(1, 16, 2)}
    minted = TDX.with_(tcb={"tdxModuleIdentities": modules}, report=report).mint()
    assert both(minted) == (("TDRelaunchAdvised", ("OLD",)),) * 2


@pytest.mark.parametrize(
    ("time", "accepted", "theirs_too"),
    [
        ("2026-02-20T00:00:00Z", True, True),
        ("2026-02-20T00:00:00.5Z", True, True),
        ("2026-02-20T00:00:00.123456789Z", True, True),
        ("2026-02-20T00:00:00+00:00", False, True),
        ("2026-02-20t00:00:00z", False, True),
        ("2026-02-20 00:00:00Z", False, True),
        ("2026-02-20T00:00:00", False, False),
        ("2026-02-20T00:00:00.Z", False, False),
        ("2026-02-30T00:00:00Z", False, False),
        ("2027-02-20T00:00:00.5Z", False, False),
    ],
)
@pytest.mark.parametrize("where", ["tcb", "identity"])
def test_times_are_rfc_3339_in_utc_with_or_without_fractions(
    where: str, time: str, accepted: bool, theirs_too: bool
) -> None:
    mine, other = both(SGX.with_(**{where: {"issueDate": time}}).mint())
    assert (mine != "refused", other != "refused") == (accepted, theirs_too)


def test_a_fraction_of_a_second_after_the_time_is_the_future() -> None:
    time = f"{NOW:%Y-%m-%dT%H:%M:%S}.000001Z"
    assert ours(SGX.with_(tcb={"issueDate": time.replace(".000001", "")}).mint()) == ("UpToDate", ())
    assert str(ours(SGX.with_(tcb={"issueDate": time}).mint())).startswith("tcb-info")


@pytest.mark.parametrize(
    "change",
    [
        lambda chain: chain + "\0",
        lambda chain: chain + "\0\0\0",
        lambda chain: chain.strip(),
        lambda chain: chain + "\n\n",
        lambda chain: chain.replace("\n", "\r\n"),
    ],
    ids=["NUL", "NULs", "no end of line", "empty lines", "CRLF"],
)
def test_chains_as_different_producers_end_them(change: Callable[[str], str]) -> None:
    assert both(with_chains(change)) == (("UpToDate", ()),) * 2


def blocks(chain: str) -> list[str]:
    return [block + "-----END CERTIFICATE-----\n" for block in chain.split("-----END CERTIFICATE-----\n")[:-1]]


def with_chain_in_quote(change: Callable[[list[str]], str]) -> Minted:
    """An SGX quote with another text of the same certificates; no signature covers that."""
    minted = SGX.mint()
    chain = parse_quote(minted.quote).certification.data
    text = change(blocks(chain.decode().rstrip("\0"))).encode()
    start = minted.quote.index(chain)
    quote = minted.quote[: start - 4] + len(text).to_bytes(4, "little") + text
    return replace(minted, quote=quote[:432] + (len(quote) - 436).to_bytes(4, "little") + quote[436:])


@pytest.mark.parametrize(
    "change",
    [
        lambda chain: "".join(blocks(chain)[:-1]),
        lambda chain: chain + blocks(chain)[-1],
        lambda chain: chain + blocks(chain)[0] + blocks(chain)[0],
        lambda chain: "subject=CN\n" + chain,
        lambda chain: chain + "  ",
    ],
    ids=["without root", "root twice", "four certificates", "text before", "spaces"],
)
def test_chains_of_collateral_that_only_dcap_qvl_reads(change: Callable[[str], str]) -> None:
    """No service sends them. Without a root Intel's own verifier refuses them too (ROOT_CA_MISSING)."""
    assert both(with_chains(change)) == ("refused", ("UpToDate", ()))


@pytest.mark.parametrize(
    ("change", "mine", "other"),
    [
        (lambda chain: "".join(chain[:2]), False, True),
        (lambda chain: "".join(chain) + chain[2], False, True),
        (lambda chain: chain[0] + chain[2], False, False),
        (lambda chain: chain[0], False, False),
        (lambda chain: "".join(reversed(chain)), True, False),
        (lambda chain: chain[0] + chain[2] + chain[1], True, True),
        (lambda chain: "\n".join(chain), True, True),
        (lambda chain: "".join(chain).replace("\n", "\r\n") + "\0", True, True),
    ],
    ids=["no root", "root twice", "no CA", "leaf alone", "root first", "root before CA", "empty lines", "CRLF and NUL"],
)
def test_chains_in_a_quote(change: Callable[[list[str]], str], mine: bool, other: bool) -> None:
    """Certificates are found by name, so any order will do; the chain is whole, and holds nothing else."""
    found = both(with_chain_in_quote(change))
    assert tuple(verdict != "refused" for verdict in found) == (mine, other)


@pytest.mark.parametrize(
    "dcap",
    [
        SGX.with_(pck_svns=(255,) * 16),
        SGX.with_(pck_svns=(5, 128, 5, 200) * 4),
        SGX.with_(tcb={"tcbLevels": [level(5, "UpToDate", unknown=[1, {"a": None}])], "another": "member"}),
        SGX.with_(tcb={"tcbLevels": [level(5, "UpToDate", unknown=[1.5, {"a": -0.0}])], "another": 1e300}),
        SGX.with_(identity={"another": [17.0, {"weight": 0.5}]}),
        SGX.with_(
            tcb={
                "tcbLevels": [
                    level(5, "UpToDate")
                    | {"tcb": {"sgxtcbcomponents": [{"svn": 5, "category": "BIOS", "type": "x"}] * 16, "pcesvn": 13}}
                ]
            }
        ),
        SGX.with_(report={"attributes": b"\x45" + bytes(15), "reserved_20": b"\x03"}),
        TDX.with_(body_type=4),
        TDX.with_(body_type=2),
        TDX.with_(version=4),
    ],
)
def test_rare_and_right_evidence_is_accepted(dcap: Dcap) -> None:
    """Components of 128 and more, members that nobody knows, control-flow enforcement, every TD report."""
    assert both(dcap.mint()) == (("UpToDate", ()),) * 2


@given(st.binary(min_size=237, max_size=237))
def test_every_field_of_an_extended_td_report_is_read_from_its_place(added: bytes) -> None:
    """The offsets of formats, section 2.3, from 648 on."""
    extended = TdExtension(
        vm_id=added[0],
        td_id=added[1:33],
        device_info_hash=added[33:81],
        initial_service_td_hash=added[81:129],
        initial_service_td_attributes=added[129:137],
        initial_cpusvn=added[137:153],
        initial_tee_tcb_svn=added[153:169],
        initial_fmspc=added[169:181],
        service_td_hash=added[181:229],
        service_td_attributes=added[229:237],
    )
    report = replace(td_report(version_15=True), extended=extended)
    body = encode_td_report(report)
    assert (body[648:], parse_td_report(body)) == (added, report)


def test_control_flow_attributes_without_the_feature_are_reserved_bytes() -> None:
    assert "reserved bytes" in ours(SGX.with_(report={"reserved_20": b"\x03"}).mint())


@pytest.mark.parametrize(
    "dcap",
    [SGX.with_(version=4), SGX.with_(version=5, body_type=1), SGX.with_(auth_data=b"")],
    ids=["v4", "v5", "auth"],
)
def test_what_only_we_accept(dcap: Dcap) -> None:
    """SGX in quotes of version 4 and 5, and authentication data of any length: the format has them."""
    assert both(dcap.mint()) == (("UpToDate", ()), "refused")


@pytest.mark.parametrize(
    "dcap",
    [
        SGX.with_(identity={"tcbLevels": [isv_level(8, "ConfigurationNeeded")]}),
        SGX.with_(identity={"tcbLevels": [isv_level(8, "OutOfDateConfigurationNeeded")]}),
        SGX.with_(tcb={"version": 2}),
        SGX.with_(tcb={"version": 4}),
        SGX.with_(tcb={"tcbLevels": [level(5, "UpToDate") | {"tcbDate": "2024-03-13"}]}),
    ],
    ids=["status of a QE", "another one", "TCB Info version 2", "TCB Info version 4", "date of a level"],
)
def test_signed_forms_that_only_dcap_qvl_accepts(dcap: Dcap) -> None:
    """The service's API has none of them (formats, sections 4.1 and 4.2; Intel PCS API v4)."""
    assert both(dcap.mint()) == ("refused", ("UpToDate", ()))


def test_levels_of_a_qe_are_sorted_by_us_and_taken_as_they_stand_by_dcap_qvl() -> None:
    levels = [isv_level(6, "OutOfDate"), isv_level(8, "UpToDate")]
    assert both(SGX.with_(identity={"tcbLevels": levels}).mint()) == (("UpToDate", ()), ("OutOfDate", ()))
