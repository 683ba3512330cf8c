"""What is remembered changes speed and never a verdict; the quick ways of reading say what the thorough ones say."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.forge.dcap import NOW, Dcap, new_keys
from tests.vectors import load, parameters

from marblerun.attestation.dcap import certificates, crl
from marblerun.attestation.dcap.certificates import MAX_RECENT, CertificateMemory, parse_certificate, read_certificate
from marblerun.attestation.dcap.pck import collateral_key
from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import CollateralKey, Tee
from marblerun.errors import Malformed, Untrusted
from marblerun.wire import der

KEYS = new_keys()
ONE = Dcap(keys=KEYS).mint()


# -- remembering -------------------------------------------------------------------------------------------------


def outcome(verifier: Verifier, minted: object, **changes: object) -> tuple[str, str]:
    changed = replace(minted, **changes)  # type: ignore[type-var]
    try:
        claims = verifier.verify(changed.quote, changed.collateral, NOW)  # type: ignore[attr-defined]
        return claims.tcb_status.value, ",".join(claims.advisories)
    except Untrusted as refusal:
        return refusal.step, refusal.reason


def test_a_verifier_that_has_seen_much_says_what_a_new_one_says() -> None:
    """Good and bad evidence under one root and several, in random order, again and again."""
    generator = random.Random(7)
    cases = [
        Dcap(keys=KEYS),
        Dcap(keys=KEYS, tdx=True, version=5),
        Dcap(keys=KEYS, pck_revoked=True),
        Dcap(keys=KEYS, revoked_by_root=("ca",)),
        Dcap(keys=KEYS, revoked_by_root=("signer",)),
        Dcap(keys=KEYS, not_a_ca=True),
        Dcap(keys=KEYS, root_path_length=0),
        Dcap(keys=KEYS, names={"signer": "Forged SGX PCK Certificate"}),
        Dcap(keys=KEYS, validity={"ca": (NOW - timedelta(days=9), NOW - timedelta(days=1))}),
        Dcap(keys=KEYS, foreign_attestation_key=True),
        Dcap(),
    ]
    minted = [case.mint() for case in cases]
    # Collateral of one under the quote of another, too: what is shared is remembered, what is judged is not.
    pairs = [(one, other.collateral) for one in minted for other in minted]
    old = Verifier([ONE.root])
    for one, collateral in generator.sample(pairs, len(pairs)):
        new = outcome(Verifier([ONE.root]), one, collateral=collateral)
        assert new == outcome(old, one, collateral=collateral) == outcome(old, one, collateral=collateral)


def test_as_many_vouched_certificates_are_remembered_as_allowed_and_the_oldest_goes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(certificates, "MAX_VOUCHED", 2)
    memory = CertificateMemory()
    chain = [parse_certificate(one) for one in chain_of_one()]
    for certificate in chain[:2]:
        memory.keep(certificate)
    assert [memory.parse(one.encoded) is one for one in chain] == [True, True, False]
    memory.keep(chain[2])
    assert [memory.parse(one.encoded) is one for one in chain] == [False, True, True]


def chain_of_one() -> list[bytes]:
    """The three certificates of a quote, DER."""
    pem = parse_quote(ONE.quote).certification.data.rstrip(b"\0")
    return [one.public_bytes(Encoding.DER) for one in x509.load_pem_x509_certificates(pem)]


def test_a_certificate_that_was_read_is_not_trusted_for_it() -> None:
    """The chain of a stranger is read when its collateral is asked for; verifying it afterwards still refuses it."""
    stranger, verifier = Dcap().mint(), Verifier([ONE.root])
    with pytest.raises(Untrusted):
        verifier.collateral_key(parse_quote(stranger.quote))
    verifier.verify(ONE.quote, ONE.collateral, NOW)
    assert outcome(verifier, stranger, collateral=ONE.collateral) == ("pck-chain", "unknown-root")


def test_strangers_cannot_push_out_what_a_root_vouches_for() -> None:
    memory = CertificateMemory()
    authority = memory.parse(ONE.root_der)
    memory.keep(authority)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    for serial in range(1, MAX_RECENT + 10):
        builder = x509.CertificateBuilder(name, name, key.public_key(), serial, NOW, NOW + timedelta(days=1))
        memory.parse(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
    assert memory.parse(ONE.root_der) is authority


def test_which_collateral_is_needed_is_told_only_for_platforms_under_a_trusted_root() -> None:
    """Otherwise anybody could have collateral fetched for platforms that do not exist."""
    verifier = Verifier([ONE.root])
    sgx, tdx = parse_quote(ONE.quote), parse_quote(Dcap(keys=KEYS, tdx=True, version=4).mint().quote)
    for quote in (sgx, tdx, sgx, replace(tdx, certification=sgx.certification)):
        assert verifier.collateral_key(quote) == collateral_key(quote)
    assert verifier.collateral_key(sgx) == CollateralKey(Tee.SGX, bytes.fromhex("00606a000000"), "platform")
    made_up = parse_quote(Dcap(keys=new_keys()).mint().quote)
    for stranger in (made_up, replace(sgx, certification=replace(sgx.certification, data=b""))):
        for _ in range(2):
            with pytest.raises(Untrusted):
                verifier.collateral_key(stranger)
    with pytest.raises(Untrusted):
        verifier.collateral_key(replace(sgx, certification=replace(sgx.certification, type=4)))
    with pytest.raises(Untrusted, match="no root of trust"):
        Verifier([]).collateral_key(sgx)


# -- reading quickly ---------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _authority() -> tuple[ec.EllipticCurvePrivateKey, x509.Name, certificates.Certificate]:
    return KEYS["root"], x509.load_der_x509_certificate(ONE.root_der).subject, read_certificate(ONE.root_der, "s", "r")


entries = st.lists(
    st.tuples(
        st.integers(1, 2**159 - 1)
        | st.sampled_from([2**bits - odd for bits in (144, 150, 151, 152, 158) for odd in (0, 1)]),
        st.none() | st.sampled_from([flag for flag in x509.ReasonFlags if flag.name != "unspecified"]),
        st.sampled_from([NOW, NOW.replace(year=2055)]),
    ),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(entries)
def test_serials_are_read_quickly_as_pyca_reads_them(
    listed: list[tuple[int, x509.ReasonFlags | None, object]],
) -> None:
    key, name, issuer = _authority()
    builder = x509.CertificateRevocationListBuilder(name, NOW, NOW + timedelta(days=30))
    for serial, reason, at in listed:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)  # type: ignore[arg-type]
        if reason is not None and reason is not x509.ReasonFlags.remove_from_crl:
            entry = entry.add_extension(x509.CRLReason(reason), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    encoded = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
    expected = frozenset(one.serial_number for one in x509.load_der_x509_crl(encoded))
    assert expected == crl.read_crl(encoded, issuer, "s", "w").serials


def test_an_entry_with_a_critical_extension_is_refused() -> None:
    key, name, issuer = _authority()
    entry = x509.RevokedCertificateBuilder().serial_number(2**158).revocation_date(NOW)
    odd = entry.add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=True).build()
    builder = x509.CertificateRevocationListBuilder(name, NOW, NOW + timedelta(days=30)).add_revoked_certificate(odd)
    with pytest.raises(Untrusted, match="critical"):
        crl.read_crl(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER), issuer, "s", "w")


@pytest.mark.parametrize("name", parameters("sgx", "tdx"))
def test_serials_of_recorded_lists_are_those_that_pyca_reads(name: str) -> None:
    vector = load(name)
    if vector.collateral is None:
        pytest.skip("without collateral")
    parsed = x509.load_der_x509_crl(vector.collateral.pck_crl)
    members = der.elements(der.single(parsed.tbs_certlist_bytes).content, limit=10)
    expected = frozenset(entry.serial_number for entry in parsed)
    quick = crl._usual_serials(members[3:])
    assert quick is None or expected == quick
    assert quick is not None or not expected


RELATIVE = [
    x509.NameAttribute(x509.NameOID.COMMON_NAME, "Intel SGX Root CA"),
    x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Intel Corporation"),
    x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "US"),
    x509.NameAttribute(x509.NameOID.COMMON_NAME, "another"),
    x509.NameAttribute(x509.NameOID.LOCALITY_NAME, "\x06\x03U\x04\x03" * 3),
    x509.NameAttribute(x509.NameOID.STATE_OR_PROVINCE_NAME, "x" * 120),
]


@given(st.lists(st.lists(st.sampled_from(RELATIVE), min_size=1, max_size=2, unique=True), max_size=5))
def test_names_are_read_quickly_as_they_are_read_thoroughly(parts: list[list[x509.NameAttribute[str]]]) -> None:
    encoded = x509.Name([x509.RelativeDistinguishedName(part) for part in parts]).public_bytes()
    quick = certificates._usual_common_names(encoded)
    assert quick is None or quick == certificates._common_names(encoded)


@given(st.lists(st.sampled_from(RELATIVE), max_size=2), st.integers(-4, 0), st.binary(max_size=4))
def test_a_name_with_bytes_too_many_or_too_few_is_not_read_quickly(
    parts: list[x509.NameAttribute[str]], cut: int, added: bytes
) -> None:
    encoded = x509.Name(parts).public_bytes()
    content = (encoded[2:cut] if cut else encoded[2:]) + added
    if len(content) < 128 and content != encoded[2:]:
        changed = bytes([0x30, len(content)]) + content
        try:
            thorough: list[bytes] | None = certificates._common_names(changed)
        except (Malformed, ValueError):
            thorough = None
        quick = certificates._usual_common_names(changed)
        assert quick is None or quick == thorough


@given(
    st.binary(max_size=80) | st.builds(lambda head, rest: head + rest, st.just(b"\x30\x20\x31\x1e\x30"), st.binary())
)
def test_nothing_else_than_a_name_is_read_as_one(data: bytes) -> None:
    try:
        thorough: list[bytes] | None = certificates._common_names(data)
    except (Malformed, ValueError):
        thorough = None
    quick = certificates._usual_common_names(data)
    assert quick is None or quick == thorough


@pytest.mark.parametrize("what", ["outer", "inner"])
def test_both_names_of_the_signature_algorithm_must_be_the_one(what: str) -> None:
    """One of them is changed to ecdsa-with-SHA384."""
    place = ONE.root_der.find if what == "inner" else ONE.root_der.rfind
    at = place(certificates.ECDSA_WITH_SHA256)
    changed = bytearray(ONE.root_der)
    changed[at + len(certificates.ECDSA_WITH_SHA256) - 1] = 3
    assert parse_certificate(ONE.root_der).is_ca
    with pytest.raises(Untrusted):
        read_certificate(bytes(changed), "s", "w")
