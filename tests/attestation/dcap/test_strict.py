"""Documents of the vendor that break one rule each are refused, though their signer has signed them.

``python -m tests.mutate`` takes the checks away one by one; each test here notices some.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tests.attestation.matrix import COMPONENT, PLATFORM, RELAUNCHED, WITH_OUT_OF_DATE
from tests.forge.dcap import (
    NOW,
    SGX_OID,
    Dcap,
    isv_level,
    level,
    module,
    new_keys,
    sgx_body,
    sgx_extension,
    td_body,
)

from marblerun.attestation.dcap.certificates import Certificate, read_certificate
from marblerun.attestation.dcap.crl import read_crl
from marblerun.attestation.dcap.pck import parse_sgx_extension
from marblerun.attestation.dcap.qe import parse_identity
from marblerun.attestation.dcap.quote import OE_HEADER_BYTES, add_oe_header, is_raw_sgx_quote, parse_quote
from marblerun.attestation.dcap.tcb import converge, parse_tcb_info, relaunch
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Origin, TcbStatus
from marblerun.attestation.registry import DcapEvidence
from marblerun.attestation.roots import root_from_certificate
from marblerun.attestation.sgx import parse_sgx_report
from marblerun.attestation.tdx import parse_td_report
from marblerun.errors import Malformed, Untrusted
from marblerun.wire import der
from marblerun.wire.limits import MAX_COLLATERAL_FIELD_BYTES, MAX_QUOTE_BYTES
from marblerun.wire.pem import decode_pem

KEYS = new_keys()
MINTED = Dcap(keys=KEYS).mint()
TDX = Dcap(tdx=True, version=4, keys=KEYS).mint()


def refusal(dcap: Dcap) -> tuple[str, str]:
    """Step and reason for which its evidence is refused; nothing for genuine evidence."""
    minted = dcap.mint()
    try:
        Verifier([minted.root]).verify(minted.quote, minted.collateral, NOW)
    except Untrusted as error:
        return error.step, error.reason
    return "", ""


def edited(text: str, *path: str | int, value: object) -> str:
    """The JSON text with another value at ``path``."""
    document: Any = json.loads(text)
    here = document
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    return json.dumps(document)


LEVEL = ("tcbLevels", 0)
IDENTITY_RULES: list[tuple[tuple[str | int, ...], object]] = [
    (("version",), True),
    (("version",), 1),
    (("version",), 2.0),
    (("id",), "QVE"),
    (("isvprodid",), True),
    (("isvprodid",), -1),
    (("isvprodid",), 1 << 16),
    (("tcbEvaluationDataNumber",), 1 << 32),
    (("tcbEvaluationDataNumber",), "17"),
    (("miscselect",), "000000"),
    (("miscselect",), "0000000000"),
    (("miscselect",), "00 00 00 00"),
    (("miscselect",), "00 00 00"),
    (("miscselect",), "0000000g"),
    (("attributes",), ""),
    (("mrsigner",), "8c" * 31),
    (("issueDate",), "2026-03-01T12:00:00+00:00"),
    (("issueDate",), "2026-03-01T12:00:00.Z"),
    (("issueDate",), "2026-03-01T12:00:00"),
    (("issueDate",), "2026-02-30T12:00:00Z"),
    (("nextUpdate",), "2026-03-01 12:00:00Z"),
    (("tcbLevels",), {}),
    (("tcbLevels",), [1]),
    (("tcbLevels",), [isv_level(8, "UpToDate")] * 257),
    ((*LEVEL, "tcb", "isvsvn"), True),
    ((*LEVEL, "tcb", "isvsvn"), 1 << 16),
    ((*LEVEL, "tcb"), [8]),
    ((*LEVEL, "tcbStatus"), "SWHardeningNeeded"),
    ((*LEVEL, "tcbStatus"), "uptodate"),
    ((*LEVEL, "tcbDate"), "2025-01-01"),
    ((*LEVEL, "advisoryIDs"), ["INTEL-SA-1", 2]),
    ((*LEVEL, "advisoryIDs"), None),
    ((*LEVEL, "advisoryIDs"), ["INTEL-SA-1"] * 257),
]
TCB_RULES: list[tuple[tuple[str | int, ...], object]] = [
    (("version",), 2),
    (("id",), "QE"),
    (("tcbType",), 1),
    (("tcbType",), False),
    (("fmspc",), "00606a0000"),
    (("pceId",), "000000"),
    ((*LEVEL, "tcbStatus"), "TDRelaunchAdvised"),
    ((*LEVEL, "tcbStatus"), "Unknown"),
    ((*LEVEL, "tcb", "pcesvn"), 1 << 16),
    ((*LEVEL, "tcb", "sgxtcbcomponents"), [{"svn": 5}] * 15),
    ((*LEVEL, "tcb", "sgxtcbcomponents"), [{"svn": 5}] * 17),
    ((*LEVEL, "tcb", "sgxtcbcomponents"), [{"svn": 5}] * 15 + [{"svn": True}]),
    ((*LEVEL, "tcb", "sgxtcbcomponents"), [{"svn": 5}] * 15 + [{"svn": 256}]),
    ((*LEVEL, "tcb", "sgxtcbcomponents"), [{"svn": 5}] * 15 + [{}]),
    ((*LEVEL, "tcb", "sgxtcbcomponents"), [{"svn": 5}] * 15 + [5]),
    ((*LEVEL, "tcb", "tdxtcbcomponents"), [{"svn": 5}] * 15),
    (("tdxModule",), None),
    (("tdxModule", "mrsigner"), "00" * 47),
    (("tdxModuleIdentities",), {}),
    (("tdxModuleIdentities", 0, "id"), "TDY_01"),
    (("tdxModuleIdentities", 0, "id"), "TDX_1"),
    (("tdxModuleIdentities", 0, "id"), "TDX_001"),
    (("tdxModuleIdentities", 0, "id"), "TDX_0101"),
    (("tdxModuleIdentities", 0, "id"), "TDX_"),
    (("tdxModuleIdentities", 0, "id"), "TDX_0g"),
    (("tdxModuleIdentities", 0, "tcbLevels", 0, "tcb", "isvsvn"), 256),
    (("tdxModuleIdentities", 0, "tcbLevels", 0, "tcbStatus"), "ConfigurationNeeded"),
]


@pytest.mark.parametrize(("path", "value"), IDENTITY_RULES)
def test_an_identity_that_breaks_one_rule_is_malformed(path: tuple[str | int, ...], value: object) -> None:
    with pytest.raises(Malformed):
        parse_identity(edited(MINTED.collateral.qe_identity, *path, value=value))


@pytest.mark.parametrize(("path", "value"), TCB_RULES)
def test_a_tcb_info_that_breaks_one_rule_is_malformed(path: tuple[str | int, ...], value: object) -> None:
    with pytest.raises(Malformed):
        parse_tcb_info(edited(TDX.collateral.tcb_info, *path, value=value))


def test_the_ends_of_what_is_allowed_are_allowed() -> None:
    text = edited(MINTED.collateral.qe_identity, "isvprodid", value=0xFFFF)
    assert parse_identity(text).isv_prod_id == 0xFFFF
    assert parse_identity(edited(text, "isvprodid", value=0)).isv_prod_id == 0
    assert len(parse_identity(edited(text, "tcbLevels", value=[isv_level(8, "UpToDate")] * 256)).levels) == 256
    advisories = parse_identity(edited(text, *LEVEL, "advisoryIDs", value=["A"] * 256)).levels[0].part.advisories
    assert len(advisories) == 256
    svns = [{"svn": 0}, {"svn": 255}] * 8
    info = parse_tcb_info(edited(TDX.collateral.tcb_info, *LEVEL, "tcb", "sgxtcbcomponents", value=svns))
    assert bytes([0, 255] * 8) == info.levels[0].sgx_svns


@pytest.mark.parametrize("name", ["tcbLevels", "mrsigner", "somethingElse"])
def test_a_name_given_twice_is_malformed_even_with_the_same_value(name: str) -> None:
    text = MINTED.collateral.qe_identity
    value = json.dumps(json.loads(text).get(name, 1))
    once = text if f'"{name}"' in text else f'{text[:-1]},"{name}":{value}}}'
    parse_identity(once)
    with pytest.raises(Malformed, match="twice"):
        parse_identity(f'{once[:-1]},"{name}":{value}}}')


@pytest.mark.parametrize("size", [0, 63, 65, 128])
def test_a_signature_of_another_length_is_no_signature(size: int) -> None:
    signature = (MINTED.collateral.tcb_info_signature + bytes(64))[:size]
    collateral = replace(MINTED.collateral, tcb_info_signature=signature)
    with pytest.raises(Untrusted) as error:
        Verifier([MINTED.root]).verify(MINTED.quote, collateral, NOW)
    assert (error.value.step, error.value.reason) == ("tcb-info", "bad-signature")


def test_seam_attributes_are_zero_even_where_the_vendor_masks_them() -> None:
    lax = module(1, isv_level(5, "UpToDate")) | {"attributesMask": "00" * 8}
    dcap = Dcap(tdx=True, version=4, tcb={"tdxModuleIdentities": [lax]})
    assert refusal(dcap) == ("", "")
    assert refusal(dcap.with_(report={"seam_attributes": b"\x01" + bytes(7)})) == ("tdx-module", "mismatch")


def test_seam_attributes_are_those_of_the_module() -> None:
    strange = module(1, isv_level(5, "UpToDate")) | {"attributes": "01" + "00" * 7}
    assert refusal(Dcap(tdx=True, version=4, tcb={"tdxModuleIdentities": [strange]})) == ("tdx-module", "mismatch")


def tlv(tag: int, content: bytes) -> bytes:
    """A DER value of up to 64 KiB."""
    length = len(content)
    size = length.to_bytes(2, "big").lstrip(b"\0") or b"\0"
    return bytes([tag]) + (size if length < 128 else bytes([0x80 | len(size)]) + size) + content


def pair(dotted: str, value: bytes) -> bytes:
    """A SEQUENCE of an OID and a value."""
    name = x509.Name([x509.NameAttribute(x509.ObjectIdentifier(dotted), "x")]).public_bytes()
    # SEQUENCE { SET { SEQUENCE { OID, text } } }
    attribute = der.elements(der.single(der.single(name).content).content, limit=1)[0]
    return tlv(0x30, der.elements(attribute.content, limit=2)[0].encoded + value)


GOOD = sgx_extension((5,) * 16, 13, "0000", "00606a000000")
FIELDS = [field.encoded for field in der.elements(der.single(GOOD).content, limit=16)]


def extension(*fields: bytes) -> bytes:
    """The SGX extension of these fields."""
    return tlv(0x30, b"".join(fields))


def test_an_extension_without_one_of_its_fields_is_malformed() -> None:
    parse_sgx_extension(extension(*FIELDS), "platform")
    for index in range(len(FIELDS)):
        with pytest.raises(Malformed, match="missing"):
            parse_sgx_extension(extension(*FIELDS[:index], *FIELDS[index + 1 :]), "platform")


def test_an_extension_with_a_field_twice_is_malformed() -> None:
    for field in FIELDS:
        with pytest.raises(Malformed, match="twice"):
            parse_sgx_extension(extension(*FIELDS, field), "platform")


@pytest.mark.parametrize(
    "field",
    [
        pair("1.2.840.113741.1.13.2", tlv(4, b"")),
        pair("1.2.840.113741.1.14.6", tlv(4, bytes(16))),
        pair("1.2.840.113741.1.13.1.6.1", tlv(4, bytes(16))),
        pair("1.2.3", tlv(4, bytes(16))),
        pair(f"{SGX_OID}.6", tlv(4, bytes(16)) + tlv(4, b"")),
        pair(f"{SGX_OID}.6", b""),
        pair(f"{SGX_OID}.6", tlv(4, bytes(15))),
        tlv(0x30, tlv(6, bytes.fromhex("2a864886f84d010d0180")) + tlv(4, bytes(16))),
        tlv(0x30, tlv(6, bytes.fromhex("2a864886f84d010d0186")) + tlv(4, bytes(16))),
        tlv(0x30, tlv(6, bytes.fromhex("2a864886f84d010d01")) + tlv(4, bytes(16))),
        pair(f"{SGX_OID}.6", tlv(2, bytes(16))),
        pair(f"{SGX_OID}.7", tlv(0x30, pair(f"{SGX_OID}.7.1", tlv(1, b"\x01")))),
        pair(f"{SGX_OID}.7", tlv(0x30, pair(f"{SGX_OID}.2.1", tlv(1, b"\xff")))),
    ],
)
def test_an_extension_with_a_strange_field_is_malformed(field: bytes) -> None:
    with pytest.raises(Malformed):
        parse_sgx_extension(extension(*FIELDS, field), "platform")


def test_a_field_whose_number_nobody_knows_is_passed_over() -> None:
    """Also one whose number needs two bytes."""
    expected = parse_sgx_extension(GOOD, "platform")
    for number in (8, 127, 128, 300):
        field = pair(f"{SGX_OID}.{number}", tlv(4, b"?"))
        assert expected == parse_sgx_extension(extension(*FIELDS, field), "platform")


def test_the_platform_instance_and_its_configuration_are_read() -> None:
    plain = parse_sgx_extension(GOOD, "platform")
    assert (
        plain.platform_instance_id,
        plain.dynamic_platform,
        plain.cached_keys,
        plain.smt_enabled,
    ) == (None, None, None, None)
    flags = pair(f"{SGX_OID}.7.1", tlv(1, b"\xff")) + pair(f"{SGX_OID}.7.3", tlv(1, b"\x00"))
    instance = pair(f"{SGX_OID}.6", tlv(4, b"\x77" * 16))
    full = parse_sgx_extension(extension(*FIELDS, instance, pair(f"{SGX_OID}.7", tlv(0x30, flags))), "platform")
    assert (
        full.platform_instance_id,
        full.dynamic_platform,
        full.cached_keys,
        full.smt_enabled,
    ) == (b"\x77" * 16, True, None, False)


@cache
def root() -> Certificate:
    return read_certificate(MINTED.root_der, "step", "the root")


Build = Callable[[x509.CertificateRevocationListBuilder], x509.CertificateRevocationListBuilder]


def crl(build: Build = lambda builder: builder) -> bytes:
    """A list that the root has signed."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Forged SGX Root CA")])
    builder = x509.CertificateRevocationListBuilder(name, NOW, NOW + timedelta(days=1))
    return build(builder).sign(KEYS["root"], hashes.SHA256()).public_bytes(Encoding.DER)


def entry(serial: int, *extensions: tuple[x509.ExtensionType, bool]) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical=critical)
    return builder.build()


def crl_refusal(encoded: bytes) -> tuple[str, str]:
    try:
        read_crl(encoded, root(), "root-crl", "a list")
    except Untrusted as error:
        return error.step, error.reason
    return "", ""


def signed_again(tbs: bytes, algorithm: bytes) -> bytes:
    """A list of exactly these bytes, with a right signature."""
    signature = KEYS["root"].sign(tbs, ec.ECDSA(hashes.SHA256()))
    return tlv(0x30, tbs + algorithm + tlv(3, b"\x00" + signature))


def test_a_list_with_a_critical_extension_says_something_else_and_is_refused() -> None:
    point = x509.IssuingDistributionPoint(None, None, True, False, None, False, False)
    reason = x509.CRLReason(x509.ReasonFlags.key_compromise)
    assert crl_refusal(crl()) == ("", "")
    assert crl_refusal(crl(lambda one: one.add_revoked_certificate(entry(7, (reason, False))))) == ("", "")
    for encoded in (
        crl(lambda one: one.add_extension(point, critical=True)),
        crl(lambda one: one.add_revoked_certificate(entry(7, (reason, True)))),
        crl(lambda one: one.add_revoked_certificate(entry(1 << 150, (reason, True)))),
    ):
        assert crl_refusal(encoded) == ("root-crl", "malformed")


def test_every_serial_number_in_a_list_is_found_whatever_its_length() -> None:
    reason = x509.CRLReason(x509.ReasonFlags.key_compromise)
    serials = [1 << bits for bits in (0, 7, 8, 143, 144, 145, 151, 152, 153, 158)]
    for several in (*([one] for one in serials), serials, serials[3:]):
        for extensions in ([], [(reason, False)]):

            def build(
                builder: x509.CertificateRevocationListBuilder,
                several: list[int] = several,
                extensions: Sequence[tuple[x509.ExtensionType, bool]] = extensions,
            ) -> x509.CertificateRevocationListBuilder:
                for one in several:
                    builder = builder.add_revoked_certificate(entry(one, *extensions))
                return builder

            assert frozenset(several) == read_crl(crl(build), root(), "root-crl", "a list").serials


def parts_of(encoded: bytes) -> tuple[list[bytes], bytes]:
    """The members of what is signed in a list, and the algorithm."""
    tbs, algorithm, _ = der.elements(der.single(encoded).content, limit=3)
    return [one.encoded for one in der.elements(tbs.content, limit=10)], algorithm.encoded


def test_a_list_that_does_not_end_is_refused() -> None:
    members, algorithm = parts_of(crl())
    without = [one for i, one in enumerate(members) if i != 4]
    assert members[4][0] == 0x17
    assert crl_refusal(signed_again(tlv(0x30, b"".join(without)), algorithm)) == ("root-crl", "malformed")


def test_a_list_of_version_1_is_read() -> None:
    members, algorithm = parts_of(crl())
    assert members[0][0] == 0x02
    first = [one for one in members[1:] if one[0] != 0xA0]
    assert crl_refusal(signed_again(tlv(0x30, b"".join(first)), algorithm)) == ("", "")


def test_a_list_signed_with_another_algorithm_than_it_says_is_refused() -> None:
    members, algorithm = parts_of(crl())
    other = bytes.fromhex("300a06082a8648ce3d040303")
    inside = [other if one == algorithm else one for one in members]
    assert crl_refusal(signed_again(tlv(0x30, b"".join(members)), algorithm)) == ("", "")
    assert crl_refusal(signed_again(tlv(0x30, b"".join(members)), other))[0] == "root-crl"
    assert crl_refusal(signed_again(tlv(0x30, b"".join(inside)), algorithm))[0] == "root-crl"
    assert crl_refusal(signed_again(tlv(0x30, b"".join(inside)), other)) == ("root-crl", "bad-signature")


def test_a_list_above_the_ceiling_is_not_even_read() -> None:
    with pytest.raises(Untrusted, match=f"has {MAX_COLLATERAL_FIELD_BYTES + 1} bytes"):
        read_crl(bytes(MAX_COLLATERAL_FIELD_BYTES + 1), root(), "root-crl", "a list")
    with pytest.raises(Untrusted, match="cannot be parsed"):
        read_crl(bytes(MAX_COLLATERAL_FIELD_BYTES), root(), "root-crl", "a list")


def padded(size: int) -> bytes:
    """A quote of exactly that size, by its authentication data."""
    empty = len(Dcap(keys=KEYS, auth_data=b"").mint().quote)
    for extra in range(-4, 5):
        # Certificates made anew differ by a few bytes.
        for _ in range(8):
            quote = Dcap(keys=KEYS, auth_data=bytes(size - empty + extra)).mint().quote
            if len(quote) == size:
                return quote
    raise AssertionError("no quote of that size")


def test_a_quote_may_be_as_large_as_the_ceiling_and_no_larger() -> None:
    quote = padded(MAX_QUOTE_BYTES)
    parse_quote(quote)
    parse_quote(add_oe_header(quote))
    larger = padded(MAX_QUOTE_BYTES + 1)
    for data in (larger, add_oe_header(larger), larger + bytes(OE_HEADER_BYTES)):
        with pytest.raises(Malformed, match="a quote has at most"):
            parse_quote(data)


@pytest.mark.parametrize("offset", [8, 9, 10, 11])
@pytest.mark.parametrize("version", [4, 5])
def test_reserved_bytes_of_the_header_are_zero_from_version_4_on(version: int, offset: int) -> None:
    quote = bytearray(Dcap(tdx=True, version=version, keys=KEYS).mint().quote)
    parse_quote(bytes(quote))
    quote[offset] = 1
    with pytest.raises(Malformed, match="reserved"):
        parse_quote(bytes(quote))


@pytest.mark.parametrize("size", [0, 383, 385, 584])
def test_an_sgx_report_has_one_size(size: int) -> None:
    parse_sgx_report(sgx_body())
    with pytest.raises(Malformed, match="384 are expected"):
        parse_sgx_report((sgx_body() + bytes(200))[:size])


@pytest.mark.parametrize("size", [0, 583, 585, 647, 649, 884, 886])
def test_a_td_report_has_one_of_three_sizes(size: int) -> None:
    with pytest.raises(Malformed, match="no TD report"):
        parse_td_report((td_body(885) + b"\0")[:size])


def test_evidence_is_recognised_from_a_whole_header_on() -> None:
    evidence = DcapEvidence(Verifier([]))
    for quote in (MINTED.quote, TDX.quote):
        assert [evidence.recognises(quote[:size]) for size in (47, 48, 49)] == [False, True, True]
        wrapped = add_oe_header(quote)
        assert [evidence.recognises(wrapped[:size]) for size in (63, 64, 65)] == [False, True, True]
    assert [is_raw_sgx_quote(MINTED.quote[:size]) for size in (47, 48)] == [False, True]


def test_nobody_can_pin_a_leaf_as_a_root() -> None:
    signer = decode_pem(MINTED.collateral.tcb_info_issuer_chain.encode(), "CERTIFICATE", max_blocks=2)[0]
    root_from_certificate(MINTED.root_der, "forged", Origin.SIMULATED)
    with pytest.raises(Untrusted, match="not a certificate authority"):
        root_from_certificate(signer, "forged", Origin.SIMULATED)


def test_a_level_given_out_of_order_is_found_as_if_in_order() -> None:
    levels = [level(3, "OutOfDate"), level(5, "UpToDate"), level(4, "SWHardeningNeeded")]
    minted = Dcap(tcb={"tcbLevels": levels}).mint()
    claims = Verifier([minted.root]).verify(minted.quote, minted.collateral, NOW)
    assert claims.tcb_status == "UpToDate"


@pytest.mark.parametrize("platform", PLATFORM[:-1])
@pytest.mark.parametrize("component", COMPONENT[:-1])
def test_a_component_converges_with_the_platform_as_the_table_says(platform: str, component: str) -> None:
    """Also where the verifier has refused a revoked part before: formats, section 5.3."""
    table = WITH_OUT_OF_DATE | {"Revoked": "Revoked"}
    expected = {"UpToDate": platform, "OutOfDate": table[platform], "Revoked": "Revoked"}[component]
    assert converge(TcbStatus(platform), TcbStatus(component)) == expected


@pytest.mark.parametrize("launched", PLATFORM[:-1])
@pytest.mark.parametrize("current", PLATFORM[:-2])
def test_a_td_launched_under_another_module_is_judged_as_the_table_says(launched: str, current: str) -> None:
    expected = RELAUNCHED.get((launched, current), launched)
    assert relaunch(TcbStatus(launched), TcbStatus(current)) == expected


def test_a_signature_in_a_list_is_whole_bytes_and_not_empty() -> None:
    members, algorithm = parts_of(crl())
    tbs = tlv(0x30, b"".join(members))
    signature = KEYS["root"].sign(tbs, ec.ECDSA(hashes.SHA256()))
    assert crl_refusal(tlv(0x30, tbs + algorithm + tlv(3, b"\x00" + signature))) == ("", "")
    for bits in (b"\x01" + signature[:-1] + b"\x00", b"\x00", b"", b"\x08" + signature):
        assert crl_refusal(tlv(0x30, tbs + algorithm + tlv(3, bits)))[0] == "root-crl"
    assert crl_refusal(tlv(0x30, tbs + algorithm)) == ("root-crl", "malformed")
    extra = tlv(3, b"\x00" + signature) + tlv(5, b"")
    assert crl_refusal(tlv(0x30, tbs + algorithm + extra)) == ("root-crl", "malformed")
