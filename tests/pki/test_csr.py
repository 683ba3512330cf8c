"""A certificate request is read only if its own key signed it, and bad ones raise nothing but our errors."""

from __future__ import annotations

from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.pki.authority import NAMES, key

from marblerun.errors import Malformed, Untrusted
from marblerun.pki import der
from marblerun.pki import extensions as ext
from marblerun.pki.csr import build_csr, parse_csr
from marblerun.pki.encodings import public_key_info
from marblerun.pki.extensions import AltNames, Extension
from marblerun.pki.names import EMPTY_NAME
from marblerun.pki.signatures import ECDSA_SHA384
from marblerun.wire.limits import MAX_CSR_BYTES

SHA384 = hashes.SHA384()


@cache
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


@cache
def valid() -> bytes:
    return build_csr(NAMES, key("csr"))


def builder() -> x509.CertificateSigningRequestBuilder:
    names = x509.SubjectAlternativeName([x509.DNSName("a")])
    return x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)


def request(
    *extensions: bytes,
    attributes: bytes | None = None,
    subject: bytes = EMPTY_NAME,
    hash_: hashes.HashAlgorithm = SHA384,
    algorithm: bytes = ECDSA_SHA384,
) -> bytes:
    """A signed request with these encoded extensions, or these attributes."""
    if attributes is None:
        wanted = der.set_of([der.sequence(*extensions)])
        attributes = der.sequence(der.oid("1.2.840.113549.1.9.14"), wanted)
    public = public_key_info(key("csr").public_key())
    body = der.sequence(der.integer(0), subject, public, der.tlv(der.context(0, constructed=True), attributes))
    signature = key("csr").sign(body, ec.ECDSA(hash_))
    return der.sequence(body, algorithm, der.bit_string(signature))


@pytest.mark.parametrize("curve", [ec.SECP224R1(), ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_ecdsa_requests_are_accepted(curve: ec.EllipticCurve) -> None:
    csr = builder().sign(ec.generate_private_key(curve), hashes.SHA512()).public_bytes(Encoding.DER)
    assert parse_csr(csr).dns_names == ("a",)


@pytest.mark.parametrize("hash_", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()])
def test_rsa_requests_are_accepted_with_both_paddings(hash_: hashes.HashAlgorithm) -> None:
    pss = padding.PSS(padding.MGF1(hash_), hash_.digest_size)
    for scheme in (padding.PKCS1v15(), pss):
        assert isinstance(hash_, hashes.SHA256 | hashes.SHA384 | hashes.SHA512)
        csr = builder().sign(rsa_key(), hash_, rsa_padding=scheme).public_bytes(Encoding.DER)
        assert parse_csr(csr).dns_names == ("a",)


def test_ed25519_requests_are_accepted() -> None:
    csr = builder().sign(ed25519.Ed25519PrivateKey.generate(), None).public_bytes(Encoding.DER)
    assert parse_csr(csr).dns_names == ("a",)


def test_sha1_is_accepted_on_a_request_because_go_accepts_it() -> None:
    algorithm = der.sequence(der.oid("1.2.840.10045.4.1"))
    assert parse_csr(request(attributes=b"", hash_=hashes.SHA1(), algorithm=algorithm)).dns_names == ()


@pytest.mark.parametrize("algorithm", ["1.2.840.113549.1.1.4", "1.2.840.113549.1.1.12", "1.3.101.112", "2.5.4.3"])
def test_an_algorithm_that_does_not_fit_the_key_is_untrusted(algorithm: str) -> None:
    with pytest.raises(Untrusted) as caught:
        parse_csr(request(attributes=b"", algorithm=der.sequence(der.oid(algorithm))))
    assert caught.value.reason == "bad-algorithm"


@pytest.mark.parametrize(("hash_", "salt"), [(hashes.SHA256(), 20), (hashes.SHA384(), 32), (hashes.SHA512(), 0)])
def test_pss_with_another_salt_length_is_malformed(
    hash_: hashes.SHA256 | hashes.SHA384 | hashes.SHA512, salt: int
) -> None:
    scheme = padding.PSS(padding.MGF1(hash_), salt)
    with pytest.raises(Malformed):
        parse_csr(builder().sign(rsa_key(), hash_, rsa_padding=scheme).public_bytes(Encoding.DER))


def test_keys_of_other_kinds_are_malformed() -> None:
    other: list[ec.EllipticCurvePrivateKey | dsa.DSAPrivateKey] = [
        ec.generate_private_key(ec.SECP256K1()),
        dsa.generate_private_key(2048),
    ]
    for private_key in other:
        with pytest.raises(Malformed):
            parse_csr(builder().sign(private_key, hashes.SHA256()).public_bytes(Encoding.DER))


def test_a_signature_by_another_key_is_untrusted() -> None:
    csr = valid()
    other = public_key_info(key("other").public_key())
    changed = csr.replace(public_key_info(key("csr").public_key()), other)
    assert changed != csr
    with pytest.raises(Untrusted) as caught:
        parse_csr(changed)
    assert (caught.value.step, caught.value.reason) == ("csr-signature", "bad-signature")


def test_a_name_changed_after_signing_is_untrusted() -> None:
    with pytest.raises(Untrusted):
        parse_csr(valid().replace(b"coordinator.example", b"administrat.example"))


def test_names_and_addresses_keep_their_order_and_other_kinds_are_dropped() -> None:
    names = x509.SubjectAlternativeName(
        [
            x509.RFC822Name("a@b"),
            x509.DNSName("b"),
            x509.UniformResourceIdentifier("spiffe://x"),
            x509.DNSName("a"),
            x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "c")])),
        ]
    )
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=True)
    assert parse_csr(csr.sign(key("csr"), hashes.SHA256()).public_bytes(Encoding.DER)).dns_names == ("b", "a")


def test_a_request_without_attributes_is_accepted() -> None:
    assert parse_csr(request(attributes=b"")).dns_names == ()


NAMES_EXTENSION = ext.subject_alt_name(AltNames(dns_names=("a",))).encode()


@pytest.mark.parametrize(
    "csr",
    [
        request(NAMES_EXTENSION, NAMES_EXTENSION),
        request(Extension(ext.SUBJECT_ALT_NAME, False, der.sequence(der.tlv(0x82, "ö".encode()))).encode()),
        request(Extension(ext.SUBJECT_ALT_NAME, False, der.sequence(der.tlv(0x87, bytes(5)))).encode()),
        request(Extension(ext.SUBJECT_ALT_NAME, False, der.sequence() + b"\x00").encode()),
        request(attributes=der.octet_string(b"no attribute")),
        request(subject=der.sequence(der.set_of([der.sequence(der.oid("2.5.4.6"))]))),
        request(subject=der.sequence(der.set_of([der.sequence(der.oid("2.5.4.6"), der.tlv(0x13, b"_"))]))),
        request(subject=der.sequence(der.set_of([der.sequence(der.oid("2.5.4.6"), der.tlv(0x0C, b"\xff"))]))),
        valid() + b"\x00",
        b"",
        b"\x30\x80\x00\x00",
        der.sequence(bytes(MAX_CSR_BYTES)),
    ],
)
def test_malformed_requests_are_refused(csr: bytes) -> None:
    with pytest.raises(Malformed):
        parse_csr(csr)


def test_every_truncation_is_malformed() -> None:
    for size in range(len(valid())):
        with pytest.raises(Malformed):
            parse_csr(valid()[:size])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_only_our_errors(data: bytes) -> None:
    with pytest.raises(Malformed):
        parse_csr(data)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_every_changed_byte_is_refused(position: int, change: int) -> None:
    """Nothing of a request is outside its signature, and no second encoding is accepted."""
    csr = bytearray(valid())
    csr[position % len(csr)] ^= change
    with pytest.raises((Malformed, Untrusted)):
        parse_csr(bytes(csr))
