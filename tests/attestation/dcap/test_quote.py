"""The quote parser accepts one reading of the bytes, and knows the wrappers around them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.forge.dcap import Dcap, td_body

from marblerun.attestation.dcap.pck import collateral_key, summarise_certification
from marblerun.attestation.dcap.quote import (
    add_oe_header,
    is_raw_sgx_quote,
    parse_quote,
    parse_quote_prefix,
    ppid_certification,
    strip_oe_header,
)
from marblerun.attestation.model import CollateralKey, SgxReport, TdReport, Tee
from marblerun.errors import Malformed, Untrusted

SGX = Dcap().mint().quote
TDX = Dcap(tdx=True, version=5).mint().quote
CERTIFICATION = 1046


def change(quote: bytes, offset: int, replacement: bytes) -> bytes:
    return quote[:offset] + replacement + quote[offset + len(replacement) :]


def with_certification(kind: int, data: bytes) -> bytes:
    """The SGX quote with other certification data and all lengths right."""
    tail = kind.to_bytes(2, "little") + len(data).to_bytes(4, "little") + data
    quote = SGX[:CERTIFICATION] + tail
    return change(quote, 432, (len(quote) - 436).to_bytes(4, "little"))


def test_the_open_enclave_header_is_added_and_taken_off() -> None:
    wrapped = add_oe_header(SGX)
    assert wrapped[:16].hex() == "0100000002000000" + len(SGX).to_bytes(8, "little").hex()
    assert strip_oe_header(wrapped) == strip_oe_header(SGX) == SGX
    assert parse_quote(wrapped) == parse_quote(SGX)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (change(add_oe_header(SGX), 4, b"\x01"), "local report"),
        (change(add_oe_header(SGX), 4, b"\x03"), "report type 3"),
        (add_oe_header(SGX) + b"\x00", "bytes announced"),
        (add_oe_header(SGX)[:-1], "bytes announced"),
        (change(add_oe_header(SGX), 15, b"\xff"), "bytes announced"),
        (b"\x01\x00\x00\x00\x02\x00", "report type"),
        (b"\x03\x00\x00\x00" + bytes(100), "evidence header"),
        (add_oe_header(add_oe_header(SGX)), "version 1"),
        (SGX + bytes(16 * 1024), "at most 16384"),
        (b"", "48 bytes"),
    ],
)
def test_wrappers_that_do_not_fit_are_malformed(data: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        parse_quote(data)


@pytest.mark.parametrize(
    ("quote", "reason"),
    [
        (change(SGX, 0, b"\x02"), "version 2"),
        (change(SGX, 0, b"\x06"), "version 6"),
        (change(SGX, 2, b"\x03"), "key type 3"),
        (change(SGX, 4, b"\x81"), "TEE type 0x81 in a version 3"),
        (change(TDX, 4, b"\x82"), "TEE type 0x82"),
        (change(TDX, 8, b"\x01"), "reserved"),
        (change(SGX, 12, b"\x00"), "not Intel's"),
        (change(SGX, 48 + 100, b"\x01"), "reserved"),
        (change(TDX, 48, b"\x01"), "body type 1"),
        (change(TDX, 50, b"\x00"), "body type 3"),
        (change(SGX, 432, (len(SGX) - 435).to_bytes(4, "little")), "signature data needs"),
        (change(SGX, 432, (len(SGX) - 437).to_bytes(4, "little")), "certification data needs"),
        (change(SGX, 432, b"\xff\xff\xff\xff"), "signature data needs"),
        (change(SGX, 1012, b"\xff\xff"), "authentication data needs"),
        (change(SGX, CERTIFICATION + 2, b"\x00\x00"), "follow"),
        (SGX + b"\x00", f"1 bytes follow after the quote, all of them zero: .* cut off at byte {len(SGX)}"),
        (SGX + b"\x00\x01", "2 bytes follow after the quote$"),
        (change(SGX, CERTIFICATION, b"\x06"), "type 6"),
        (change(SGX, CERTIFICATION, b"\x00"), "type 0"),
        (change(SGX, CERTIFICATION, b"\x08"), "type 8"),
        (change(TDX, 54 + 648 + 4 + 128, b"\x05"), "must be 6"),
        (change(TDX, 54 + 648 + 4 + 128, b"\x07"), "must be 6"),
    ],
)
def test_a_field_that_does_not_fit_is_malformed(quote: bytes, reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        parse_quote(quote)


@pytest.mark.parametrize(("quote", "length_at"), [(SGX, 432), (TDX, 54 + 648)])
def test_nothing_may_follow_within_the_signature_data(quote: bytes, length_at: int) -> None:
    longer = (len(quote) + 1 - length_at - 4).to_bytes(4, "little")
    with pytest.raises(Malformed, match="1 bytes follow"):
        parse_quote(change(quote, length_at, longer) + b"\x00")


def test_padding_is_told_apart_from_the_quote_only_where_nothing_is_trusted() -> None:
    assert parse_quote_prefix(TDX + bytes(100)) == (parse_quote(TDX), bytes(100))


@pytest.mark.parametrize(("kind", "size"), [(1, 16), (2, 256), (3, 384)])
def test_certification_by_ppid_is_parsed_and_cannot_be_verified(kind: int, size: int) -> None:
    data = b"\xaa" * size + b"\xbb" * 16 + b"\x0d\x00" + b"\x00\x01"
    quote = parse_quote(with_certification(kind, data))
    parsed = ppid_certification(quote.certification)
    assert parsed is not None
    assert (parsed.ppid, parsed.cpusvn, parsed.pce_svn, parsed.pce_id) == (
        b"\xaa" * size,
        b"\xbb" * 16,
        13,
        b"\x00\x01",
    )
    with pytest.raises(Malformed):
        parse_quote(with_certification(kind, data + b"\x00"))


def test_a_quote_that_is_cut_short_is_not_said_to_have_zeros_behind_it() -> None:
    header = b"".join(number.to_bytes(size, "little") for number, size in ((1, 4), (2, 4), (100, 8)))
    with pytest.raises(Malformed, match=r"50 follow$"):
        strip_oe_header(header + bytes(50))


def test_certification_without_a_certificate_is_not_shown_as_one_that_cannot_be_read() -> None:
    shown = [
        summarise_certification(parse_quote(with_certification(*one)).certification).description
        for one in ((4, b"leaf"), (7, b"m"))
    ]
    assert ["unreadable" in one for one in shown] == [True, False]


@pytest.mark.parametrize(("kind", "data", "reason"), [(4, b"leaf", "malformed"), (7, b"m", "unsupported")])
def test_certification_that_leads_to_no_certificate_is_refused_by_name(kind: int, data: bytes, reason: str) -> None:
    quote = parse_quote(with_certification(kind, data))
    assert summarise_certification(quote.certification).platform is None
    with pytest.raises(Untrusted) as refusal:
        collateral_key(quote)
    assert (refusal.value.step, refusal.value.reason) == ("certification-data", reason)


def test_the_collateral_key_is_read_from_the_untrusted_leaf() -> None:
    assert collateral_key(parse_quote(TDX)) == CollateralKey(Tee.TDX, bytes.fromhex("00606a000000"), "platform")


@pytest.mark.parametrize(
    ("offset", "value", "raw"),
    [
        (0, b"", True),
        (0, b"\x04", False),
        (2, b"\x03", True),
        (2, b"\x04", False),
        (4, b"\x01", False),
        (8, b"\x00\x00", False),
        (10, b"\x00\x00", False),
    ],
)
def test_a_raw_sgx_quote_is_recognised_as_the_reference_does(offset: int, value: bytes, raw: bool) -> None:
    assert is_raw_sgx_quote(change(SGX, offset, value)) is raw


@pytest.mark.parametrize("data", [b"", bytes(100), SGX[:47], add_oe_header(SGX), TDX])
def test_everything_else_is_no_raw_sgx_quote(data: bytes) -> None:
    assert is_raw_sgx_quote(data) is False


def test_every_field_of_an_sgx_report_comes_from_its_place() -> None:
    body = bytes(range(128)) * 3
    for start, end in ((20, 32), (96, 128), (160, 192), (262, 304)):
        body = change(body, start, bytes(end - start))
    report = parse_quote(change(SGX, 48, body)).report
    assert isinstance(report, SgxReport)
    assert (report.cpusvn, report.miscselect, report.isv_ext_prod_id) == (body[:16], body[16:20], body[32:48])
    assert (report.attributes, report.mrenclave, report.mrsigner) == (body[48:64], body[64:96], body[128:160])
    assert (report.config_id, report.isv_family_id, report.report_data) == (body[192:256], body[304:320], body[320:384])
    assert (report.isv_prod_id, report.isv_svn, report.config_svn) == (0x0100, 0x0302, 0x0504)


@given(st.binary(min_size=885, max_size=885))
def test_every_field_of_a_td_report_comes_from_its_place(body: bytes) -> None:
    from marblerun.attestation.tdx import parse_td_report

    report = parse_td_report(body)
    assert isinstance(report, TdReport)
    assert report.tee_tcb_svn2 is not None
    assert report.mrservicetd is not None
    fields = [report.tee_tcb_svn, report.mrseam, report.mrsignerseam, report.seam_attributes, report.td_attributes]
    fields += [report.xfam, report.mrtd, report.mrconfigid, report.mrowner, report.mrownerconfig, *report.rtmrs]
    fields += [report.report_data, report.tee_tcb_svn2, report.mrservicetd]
    assert b"".join(fields) == body[:648]


@pytest.mark.parametrize("size", [0, 583, 585, 647, 884])
def test_a_td_report_of_another_size_is_malformed(size: int) -> None:
    from marblerun.attestation.tdx import parse_td_report

    with pytest.raises(Malformed):
        parse_td_report(td_body(885)[:size])
