"""The certificates of Coordinator and Marbles say what the reference's say (protocol, sections 2.2, 2.7, 3.1)."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from tests.pki.authority import (
    AT,
    NAMES,
    CountingEntropy,
    der,
    intermediate,
    key,
    marble_issuer,
    marble_root,
    root,
)

from marblerun.errors import Malformed
from marblerun.pki import issue
from marblerun.pki.chains import verify_chain, verify_host
from marblerun.pki.csr import ParsedCsr, build_csr, parse_csr
from marblerun.pki.encodings import (
    PrivateKey,
    certificate_pem,
    encoded_pair,
    load_sec1,
    pkcs8,
    private_key_pem,
    public_key_info,
    sec1,
)
from marblerun.pki.extensions import MARBLE_TYPE
from marblerun.pki.parsed import parse_certificate
from marblerun.pki.profiles import CertificateTemplate, Name, SubjectNames

SOME_UUID = UUID("02030400-0000-0000-0000-000000000000")
NAMES_ON_CERTIFICATE = x509.SubjectAlternativeName(
    [
        x509.DNSName("localhost"),
        x509.DNSName("coordinator.example"),
        *(x509.IPAddress(ip_address(text)) for text in ("127.0.0.1", "::1", "10.1.2.3", "fd00::7")),
    ]
)
USAGES = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


def usage(*names: str) -> x509.KeyUsage:
    flags = (
        "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign "
        "crl_sign encipher_only decipher_only"
    )
    return x509.KeyUsage(**{flag: flag in names for flag in flags.split()})


def key_id(name: str) -> bytes:
    point = key(name).public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return hashlib.sha256(point).digest()[:20]


def extensions(certificate: x509.Certificate) -> list[tuple[x509.ExtensionType, bool]]:
    return [(extension.value, extension.critical) for extension in certificate.extensions]


def marble(csr: ParsedCsr | bytes, *, marble_type: str = "backendFirst", entropy: int = 1) -> x509.Certificate:
    data = issue.issue_marble_certificate(
        csr,
        marble_type=marble_type,
        uuid=SOME_UUID,
        issuer=marble_issuer(),
        public_key=key("leaf").public_key(),
        at=AT,
        entropy=CountingEntropy(entropy),
    )
    return x509.load_der_x509_certificate(data)


CA_EXTENSIONS: list[tuple[x509.ExtensionType, bool]] = [
    (usage("digital_signature", "key_cert_sign"), True),
    (USAGES, False),
    (x509.BasicConstraints(ca=True, path_length=None), True),
]


@pytest.mark.parametrize(
    ("make", "common_name", "key_name"),
    [(root, "MarbleRun Coordinator", "root"), (marble_root, "MarbleRun Coordinator - Intermediate CA", "intermediate")],
)
def test_root_and_marble_root_are_self_signed_without_an_authority_key_id(
    make: type, common_name: str, key_name: str
) -> None:
    certificate = make()
    assert (
        certificate.subject == certificate.issuer == x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    )
    assert extensions(certificate) == [
        *CA_EXTENSIONS,
        (x509.SubjectKeyIdentifier(key_id(key_name)), False),
        (NAMES_ON_CERTIFICATE, False),
    ]
    assert certificate.public_key() == key(key_name).public_key()
    certificate.verify_directly_issued_by(certificate)


def test_the_intermediate_is_signed_by_the_root_and_shares_name_and_key_with_the_marble_root() -> None:
    """A6, A8: issuer CN is the Coordinator's, and the signature is the root's."""
    certificate = intermediate()
    assert certificate.issuer == root().subject
    assert (certificate.subject, certificate.public_key()) == (marble_root().subject, marble_root().public_key())
    assert extensions(certificate) == [
        *CA_EXTENSIONS,
        (x509.SubjectKeyIdentifier(key_id("intermediate")), False),
        (x509.AuthorityKeyIdentifier(key_id("root"), None, None), False),
        (NAMES_ON_CERTIFICATE, False),
    ]
    certificate.verify_directly_issued_by(root())


def test_authorities_are_valid_from_now_for_292_years_and_signed_with_sha384() -> None:
    for certificate in (root(), intermediate(), marble_root()):
        assert certificate.version == x509.Version.v3
        assert certificate.not_valid_before_utc == datetime(2026, 11, 22, 13, 5, 7, tzinfo=UTC)
        assert certificate.not_valid_after_utc == datetime(2319, 3, 4, 12, 52, 24, tzinfo=UTC)
        assert isinstance(certificate.signature_hash_algorithm, hashes.SHA384)


@given(st.binary(min_size=16, max_size=16))
def test_a_serial_number_is_16_random_bytes_whatever_they_are(token: bytes) -> None:
    class Fixed(CountingEntropy):
        def token(self, size: int) -> bytes:
            assert size == 16
            return token

    data = issue.issue_self_signed_marble(SubjectNames(), key("marble"), AT, Fixed())
    assert parse_certificate(data).serial == int.from_bytes(token)


def test_the_names_of_a_certificate_authority_are_read_back_without_the_loopback_addresses() -> None:
    assert issue.names_of_ca(root()) == NAMES


def test_the_parts_of_a_name_list_are_not_trimmed_and_addresses_are_told_apart() -> None:
    """F10: SAN list split into IPs and names."""
    names = SubjectNames.parse("a, b,1.2.3.4,::ffff:1.2.3.5,fe80::1%eth0,01.2.3.4")
    assert names == SubjectNames(
        dns_names=("a", " b", "fe80::1%eth0", "01.2.3.4"), ip_addresses=(ip_address("1.2.3.4"), ip_address("1.2.3.5"))
    )


def test_an_issuer_needs_the_key_of_its_certificate() -> None:
    with pytest.raises(ValueError, match="not the certificate's"):
        issue.Issuer.of(root(), key("intermediate"))


def test_a_marble_certificate_has_exactly_these_extensions_in_this_order() -> None:
    """A7: usages, DNS names and addresses are those of the Marble's own certificate."""
    certificate = marble(build_csr(NAMES, key("csr")), marble_type="größer")
    assert extensions(certificate) == [
        (usage("digital_signature", "key_agreement"), True),
        (USAGES, False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.AuthorityKeyIdentifier(key_id("intermediate"), None, None), False),
        (NAMES_ON_CERTIFICATE, False),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier(MARBLE_TYPE), "größer".encode()), False),
    ]
    own = x509.load_der_x509_certificate(issue.issue_self_signed_marble(NAMES, key("csr"), AT, CountingEntropy()))
    assert extensions(own) == [*extensions(certificate)[:3], extensions(certificate)[4]]
    assert own.subject == own.issuer == x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "MarbleRun Marble")])


def test_a_marble_certificate_names_the_instance_and_its_own_new_key() -> None:
    """A7, A10: CN is the UUID; the key is the one that was made for it, not the request's."""
    certificate = marble(build_csr(SubjectNames(), key("csr")))
    assert certificate.subject == x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(SOME_UUID))])
    assert certificate.issuer == intermediate().subject
    assert certificate.public_key() == key("leaf").public_key()
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc >= timedelta(seconds=9223372036)


def test_a_marble_certificate_checks_with_intermediate_and_marble_root() -> None:
    """A8, A9: signature by the intermediate key; valid against each anchor, for DNS name localhost."""
    certificate = marble(build_csr(SubjectNames(), key("csr")))
    certificate.verify_directly_issued_by(intermediate())
    certificate.verify_directly_issued_by(marble_root())
    leaf = der(certificate)
    for between, anchor in (([], marble_root()), ([], intermediate()), ([der(intermediate())], root())):
        verify_chain(leaf, between, [der(anchor)], at=AT)
    verify_host(leaf, "localhost")


def test_attributes_of_the_request_survive_except_name_and_organization() -> None:
    subject = Name(
        country=("DE",),
        organization=("dropped",),
        organizational_unit=("ü",),
        locality=("L",),
        province=("P",),
        street_address=("S",),
        postal_code=("1",),
        serial_number="s",
        common_name="dropped",
    )
    attributes = [(part.oid, part.value) for part in marble(ParsedCsr(subject)).subject]
    assert attributes == [
        (NameOID.COUNTRY_NAME, "DE"),
        (NameOID.STATE_OR_PROVINCE_NAME, "P"),
        (NameOID.LOCALITY_NAME, "L"),
        (NameOID.STREET_ADDRESS, "S"),
        (NameOID.POSTAL_CODE, "1"),
        (NameOID.ORGANIZATIONAL_UNIT_NAME, "ü"),
        (NameOID.COMMON_NAME, str(SOME_UUID)),
        (NameOID.SERIAL_NUMBER, "s"),
    ]


def test_a_request_without_names_gives_no_alternative_names() -> None:
    found = [type(value) for value, _ in extensions(marble(ParsedCsr(Name())))]
    assert x509.SubjectAlternativeName not in found


def test_a_request_cannot_ask_to_become_an_authority() -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    for extension in (
        x509.BasicConstraints(ca=True, path_length=9),
        usage("key_cert_sign", "crl_sign"),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),
        x509.UnrecognizedExtension(x509.ObjectIdentifier(MARBLE_TYPE), b"admin"),
        x509.SubjectKeyIdentifier(b"mine"),
    ):
        builder = builder.add_extension(extension, critical=True)
    greedy = builder.sign(key("csr"), hashes.SHA256()).public_bytes(Encoding.DER)
    assert extensions(marble(greedy)) == extensions(marble(ParsedCsr(Name())))


def test_a_lifetime_may_reach_the_last_second_that_x509_can_express() -> None:
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    data = issue.issue_secret_certificate(
        CertificateTemplate(),
        public_key=ed25519.Ed25519PrivateKey.generate().public_key(),
        issuer=marble_issuer(),
        not_after=last,
        at=AT,
        entropy=CountingEntropy(),
    )
    assert parse_certificate(data).not_after == last


def test_pem_has_lines_of_64_characters_and_ends_with_a_line_feed() -> None:
    data = der(root())
    assert certificate_pem(data).encode() == root().public_bytes(Encoding.PEM)
    assert certificate_pem(b"") == "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"
    assert private_key_pem(pkcs8(key("root"))).startswith("-----BEGIN PRIVATE KEY-----\n")


@pytest.mark.parametrize("curve", [ec.SECP224R1, ec.SECP256R1, ec.SECP384R1, ec.SECP521R1, ec.SECP256K1])
def test_both_forms_of_a_key_made_at_once_are_those_made_one_by_one(curve: type[ec.EllipticCurve]) -> None:
    for _ in range(20):
        made = ec.generate_private_key(curve())
        assert encoded_pair(made) == (pkcs8(made), public_key_info(made.public_key()))


def test_both_forms_of_other_keys_too() -> None:
    others: list[PrivateKey] = [ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)]
    for made in others:
        assert encoded_pair(made) == (pkcs8(made), public_key_info(made.public_key()))


def test_keys_are_encoded_as_the_reference_encodes_them() -> None:
    """PKCS#8 holds the public key and no inner curve name, SEC1 holds both, Ed25519 is its 32-byte seed."""
    point = key("root").public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    curve = bytes.fromhex("06052b81040022")
    assert (pkcs8(key("root")).count(point), pkcs8(key("root")).count(curve)) == (1, 1)
    assert (sec1(key("root")).count(point), sec1(key("root")).count(curve)) == (1, 1)
    assert sec1(key("root"))[:8].hex().startswith("3081a4020101")
    assert public_key_info(load_sec1(sec1(key("root"))).public_key()) == public_key_info(key("root").public_key())
    seed = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
    assert pkcs8(seed).hex() == "302e020100300506032b657004220420" + "00" * 32


@pytest.mark.parametrize("data", [b"", b"\x30\x00", b"\xff" * 40])
def test_a_stored_key_that_is_none_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        load_sec1(data)


def test_a_stored_key_of_another_kind_is_malformed() -> None:
    with pytest.raises(Malformed):
        load_sec1(pkcs8(ed25519.Ed25519PrivateKey.generate()))


def test_a_marble_asks_for_its_names_and_the_loopback_addresses() -> None:
    parsed = parse_csr(build_csr(NAMES, ec.generate_private_key(ec.SECP256R1())))
    addresses = tuple(ip_address(text) for text in ("127.0.0.1", "::1", "10.1.2.3", "fd00::7"))
    assert parsed == ParsedCsr(Name(), ("localhost", "coordinator.example"), addresses)
