"""Secrets are generated as the reference generates them (protocol, sections 5.10 and 6)."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key
from cryptography.x509.oid import NameOID
from tests.pki.authority import AT, CountingEntropy, der, intermediate, key, marble_issuer, marble_root, root

from marblerun.errors import Malformed, Untrusted
from marblerun.pki.chains import CLIENT_AUTH, verify_chain, verify_host
from marblerun.pki.issue import Issuer, issue_secret_certificate
from marblerun.pki.parsed import parse_certificate
from marblerun.pki.profiles import CertificateTemplate, Name
from marblerun.secrets import generate
from marblerun.secrets.generate import Inputs, generate_secret
from marblerun.secrets.model import Secret, SecretDefinition

UUID_1 = UUID("02030400-0000-0000-0000-000000000000")
UUID_2 = UUID("02030400-0000-0000-0000-000000000001")
LATER = timedelta(days=30)


def inputs(*, issuer: Issuer | None = None, root_secret: bytes = bytes(range(32)), days: int = 0) -> Inputs:
    return Inputs(root_secret, issuer or marble_issuer(), AT + timedelta(days=days), CountingEntropy())


ENTROPY = CountingEntropy(10_000)


def shared(definition: SecretDefinition | Secret, given: Inputs | None = None) -> Secret:
    return generate_secret(
        "s",
        replace(definition, shared=True),
        uuid=None,
        marble_name="",
        inputs=given or replace(inputs(), entropy=ENTROPY),
    )


def private(
    definition: SecretDefinition | Secret, given: Inputs | None = None, *, uuid: UUID = UUID_1, marble_name: str = "m"
) -> Secret:
    return generate_secret("s", definition, uuid=uuid, marble_name=marble_name, inputs=given or inputs())


def common_name(secret: Secret) -> str:
    subject = x509.load_der_x509_certificate(secret.certificate).subject
    return str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


@pytest.mark.parametrize(("bits", "size"), [(128, 16), (256, 32)])
def test_shared_symmetric_keys_have_the_stated_size_and_are_random(bits: int, size: int) -> None:
    """S1: shared symmetric keys of 128 and 256 bit have 16 and 32 bytes."""
    made = [shared(SecretDefinition(type="symmetric-key", size=bits)) for _ in range(2)]
    assert [len(secret.private) for secret in made] == [size, size]
    assert made[0].private == made[0].public
    assert made[0].private != made[1].private


KEYS: list[tuple[str, int, type, int]] = [
    ("cert-rsa", 2048, rsa.RSAPublicKey, 2048),
    ("cert-rsa", 1024, rsa.RSAPublicKey, 1024),
    ("cert-ed25519", 0, ed25519.Ed25519PublicKey, 0),
    ("cert-ecdsa", 224, ec.EllipticCurvePublicKey, 224),
    ("cert-ecdsa", 256, ec.EllipticCurvePublicKey, 256),
    ("cert-ecdsa", 384, ec.EllipticCurvePublicKey, 384),
    ("cert-ecdsa", 521, ec.EllipticCurvePublicKey, 521),
]


@pytest.mark.parametrize(("kind", "size", "key_type", "bits"), KEYS)
def test_every_certificate_type_yields_a_certificate_for_its_key(
    kind: str, size: int, key_type: type, bits: int
) -> None:
    """S2: cert-rsa 2048, cert-ed25519, cert-ecdsa 224/256/384/521 all yield a certificate."""
    secret = shared(SecretDefinition(type=kind, size=size))
    public_key = load_der_public_key(secret.public)
    assert isinstance(public_key, key_type)
    assert getattr(public_key, "key_size", 0) == bits
    assert load_der_private_key(secret.private, None).public_key() == public_key
    assert x509.load_der_x509_certificate(secret.certificate).public_key() == public_key
    assert (secret.type, secret.size, secret.shared, secret.user_defined) == (kind, size, True, False)


def test_a_certificate_without_template_is_for_localhost() -> None:
    """S3: certificate without template gets CN localhost and DNS names [localhost]."""
    secret = shared(SecretDefinition(type="cert-ed25519"))
    names = parse_certificate(secret.certificate).alt_names
    assert common_name(secret) == "localhost"
    assert names.dns_names == ("localhost",)
    assert [str(address) for address in names.ip_addresses] == ["127.0.0.1", "::1"]


@pytest.mark.parametrize(
    ("dns_names", "expected"),
    [
        (("a.example",), "a.example"),
        (("a", "b"), "MarbleRun Generated Certificate"),
        ((), "MarbleRun Generated Certificate"),
    ],
)
def test_the_common_name_falls_back_to_a_single_dns_name(dns_names: tuple[str, ...], expected: str) -> None:
    template = CertificateTemplate(dns_names=dns_names)
    secret = shared(SecretDefinition(type="cert-ed25519", template=template))
    assert common_name(secret) == expected
    assert parse_certificate(secret.certificate).alt_names.dns_names == dns_names


def test_regenerating_gives_a_new_serial_number_and_key() -> None:
    """S4: regenerating gives a new serial number."""
    first = shared(SecretDefinition(type="cert-ed25519"))
    second = shared(first)
    serials = [parse_certificate(secret.certificate).serial for secret in (first, second)]
    assert serials[0] != serials[1]
    assert first.private != second.private


def test_an_ed25519_authority_can_issue_below_the_root() -> None:
    """S5: an Ed25519 secret with IsCA can sign a leaf that validates root -> secret CA -> leaf."""
    template = CertificateTemplate(is_ca=True, subject=Name(common_name="secret authority"))
    authority = shared(SecretDefinition(type="cert-ed25519", template=template))
    signer = load_der_private_key(authority.private, None)
    assert isinstance(signer, ed25519.Ed25519PrivateKey)
    parsed = x509.load_der_x509_certificate(authority.certificate)
    leaf = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")]))
        .issuer_name(parsed.subject)
        .public_key(key("leaf").public_key())
        .serial_number(5)
        .not_valid_before(AT)
        .not_valid_after(AT + LATER)
        .sign(signer, None)
    )
    path = (der(leaf), authority.certificate, der(marble_root()))
    assert verify_chain(der(leaf), [authority.certificate], [der(marble_root())], at=AT + timedelta(seconds=1)) == path


def test_no_definitions_give_no_secrets() -> None:
    """S6: empty map and no map give an empty map, not an error."""
    assert generate.shared_secrets({}, inputs()) == {}
    assert generate.placeholder_secrets({}, inputs()) == {}
    assert generate.unset_secrets({}) == {}
    assert generate.regenerated_certificates({}, inputs()) == {}


REFUSED = [
    (SecretDefinition(type="symmetric-key"), "Secrets.s.Size"),
    (SecretDefinition(type="symmetric-key", size=12), "Secrets.s.Size"),
    (SecretDefinition(type="symmetric-key", size=2**63), "Secrets.s.Size"),
    (SecretDefinition(type="raw", size=128), "Secrets.s.Type"),
    (SecretDefinition(type="Symmetric-Key", size=128), "Secrets.s.Type"),
    (SecretDefinition(type="plain"), "Secrets.s.Type"),
    (SecretDefinition(type="cert-ed25519", size=256), "Secrets.s.Size"),
    (SecretDefinition(type="cert-ecdsa", size=512), "Secrets.s.Size"),
    (SecretDefinition(type="cert-ecdsa"), "Secrets.s.Size"),
    (SecretDefinition(type="cert-rsa"), "Secrets.s.Size"),
    (SecretDefinition(type="cert-rsa", size=1023), "Secrets.s.Size"),
    (SecretDefinition(type="cert-rsa", size=2**40), "Secrets.s.Size"),
    (SecretDefinition(type="cert-ed25519", valid_for=2**63), "Secrets.s.ValidFor"),
    (SecretDefinition(type="cert-ed25519", valid_for=10**7), "Secrets.s.ValidFor"),
    (
        SecretDefinition(type="cert-ed25519", template=CertificateTemplate(ext_key_usage=(14,))),
        "Secrets.s.Cert.ExtKeyUsage",
    ),
    (SecretDefinition(type="cert-ed25519", template=CertificateTemplate(policies=("x",))), "Secrets.s.Cert"),
    (SecretDefinition(type="cert-ed25519", certificate=b"\x30\x00"), "Secrets.s.Cert"),
]


@pytest.mark.parametrize(("definition", "where"), REFUSED)
def test_what_the_reference_refuses_is_refused_with_its_path(definition: SecretDefinition, where: str) -> None:
    """S7: symmetric key without size: err; unknown type: err; Ed25519 with a size: err; ECDSA size 512: err."""
    for make in (shared, private):
        with pytest.raises(Malformed) as caught:
            make(definition)
        assert caught.value.where == where


def test_a_private_key_longer_than_hkdf_gives_is_refused_but_a_shared_one_is_not() -> None:
    definition = SecretDefinition(type="symmetric-key", size=65288)
    assert len(shared(definition).private) == 8161
    with pytest.raises(Malformed):
        private(definition)
    assert len(private(replace(definition, size=65280)).private) == 8160


def test_private_symmetric_keys_follow_from_root_secret_uuid_name_and_marble_name() -> None:
    """A20: different UUIDs: different private keys for bound and unbound types; A19: unbound types share."""
    definition = SecretDefinition(type="symmetric-key", size=128)
    vector = generate_secret("symmetricKeyPrivate", definition, uuid=UUID_1, marble_name="", inputs=inputs())
    assert vector.private.hex() == "e9b8c1b8d26d688bb891bb74a4624e9c"
    assert private(definition) == private(definition, inputs(issuer=marble_issuer("other"), days=9))
    assert private(definition) != private(definition, uuid=UUID_2)
    assert private(definition) != private(definition, marble_name="other")
    assert private(definition) != private(definition, inputs(root_secret=bytes(32)))


def test_private_certificates_are_fresh_for_the_same_instance() -> None:
    definition = SecretDefinition(type="cert-ecdsa", size=256)
    assert private(definition).private != private(definition).private


def test_generated_certificates_validate_against_the_root() -> None:
    """A13: secret certificates validate against the root CA; ValidFor 7 gives 7 days."""
    secret = private(SecretDefinition(type="cert-ed25519", valid_for=7))
    verify_chain(secret.certificate, [], [der(marble_root())], at=AT)
    verify_chain(secret.certificate, [der(intermediate())], [der(root())], at=AT, usage=CLIENT_AUTH)
    verify_host(secret.certificate, "localhost")
    assert expiry(secret) == timedelta(days=7)
    assert secret.valid_for == 7


def expiry(secret: Secret) -> timedelta:
    return parse_certificate(secret.certificate).not_after - AT.replace(microsecond=0)


def template(days: int) -> CertificateTemplate:
    return CertificateTemplate(not_after=(AT + timedelta(days=days)).replace(microsecond=0))


@pytest.mark.parametrize(
    ("definition", "is_shared", "days", "stored"),
    [
        (SecretDefinition(type="cert-ed25519"), True, 365, 365),
        (SecretDefinition(type="cert-ed25519"), False, 365, 365),
        (SecretDefinition(type="cert-ed25519", valid_for=7), True, 7, 7),
        (SecretDefinition(type="cert-ed25519", template=template(50)), True, 50, 0),
        (SecretDefinition(type="cert-ed25519", template=template(50)), False, 50, 0),
        (SecretDefinition(type="cert-ed25519", template=template(50), valid_for=7), True, 50, 7),
        (SecretDefinition(type="cert-ed25519", template=template(50), valid_for=7), False, 7, 7),
    ],
)
def test_the_lifetime_follows_the_rules_of_the_reference(
    definition: SecretDefinition, is_shared: bool, days: int, stored: int
) -> None:
    secret = (shared if is_shared else private)(definition)
    assert (expiry(secret), secret.valid_for) == (timedelta(days=days), stored)


def test_a_private_certificate_gets_a_new_lifetime_and_a_shared_one_keeps_its_end() -> None:
    definition = SecretDefinition(type="cert-ed25519", valid_for=100)
    later = inputs(days=60)
    assert expiry(shared(shared(definition), later)) == timedelta(days=100)
    assert expiry(private(private(definition), later)) == timedelta(days=160)


def test_regeneration_keeps_subject_and_key_id_and_loses_template_only_extensions() -> None:
    """Also explicitly empty lists turn into the defaults (protocol, section 6.4)."""
    given = CertificateTemplate(
        subject=Name(common_name="ca", organization=("o",)),
        is_ca=True,
        dns_names=(),
        ext_key_usage=(),
        policies=("1.2.3",),
        extra_extensions=(("1.2.4", False, b"\x05\x00"),),
    )
    first = shared(SecretDefinition(type="cert-ed25519", template=given))
    before, after = (parse_certificate(secret.certificate) for secret in (first, shared(first)))
    assert (after.subject, after.subject_key_id) == (before.subject, before.subject_key_id)
    assert (before.alt_names.dns_names, after.alt_names.dns_names) == ((), ("localhost",))
    assert (len(before.extended_key_usage), len(after.extended_key_usage)) == (0, 2)
    assert before.extensions["2.5.29.32"] == after.extensions["2.5.29.32"]
    assert ("1.2.4" in before.extensions, "1.2.4" in after.extensions) == (True, False)


def test_a_certificate_in_the_manifest_is_a_template() -> None:
    given = issue_secret_certificate(
        CertificateTemplate(dns_names=("given.example",), key_usage=1),
        public_key=key("given").public_key(),
        issuer=marble_issuer("foreign"),
        not_after=AT + LATER,
        at=AT,
        entropy=CountingEntropy(),
    )
    secret = shared(SecretDefinition(type="cert-ed25519", certificate=given))
    made = parse_certificate(secret.certificate)
    assert (made.alt_names.dns_names, made.key_usage, expiry(secret)) == (("given.example",), 1, LATER)


def test_a_certificate_in_the_manifest_that_our_key_cannot_imitate_is_refused() -> None:
    """Its signature algorithm is part of the template, and the issuer's key makes only ECDSA."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "rsa")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.not_valid_before(AT).not_valid_after(AT + LATER)
    signer = ed25519.Ed25519PrivateKey.generate()
    foreign = der(builder.public_key(signer.public_key()).sign(signer, None))
    with pytest.raises(Malformed) as caught:
        shared(SecretDefinition(type="cert-ed25519", certificate=foreign))
    assert caught.value.where == "Secrets.s.Cert.SignatureAlgorithm"


DEFINITIONS = {
    "sharedKey": SecretDefinition(type="symmetric-key", size=128, shared=True),
    "sharedCert": SecretDefinition(type="cert-ed25519", shared=True),
    "privateKey": SecretDefinition(type="symmetric-key", size=128),
    "privateCert": SecretDefinition(type="cert-ed25519"),
    "userKey": SecretDefinition(type="symmetric-key", size=128, user_defined=True),
    "userPlain": SecretDefinition(type="plain", user_defined=True, shared=True),
}


def test_setting_a_manifest_makes_shared_values_placeholders_and_unset_secrets() -> None:
    made = inputs()
    assert list(generate.shared_secrets(DEFINITIONS, made)) == ["sharedKey", "sharedCert"]
    placeholders = generate.placeholder_secrets(DEFINITIONS, made)
    assert list(placeholders) == ["privateKey", "privateCert"]
    assert placeholders["privateKey"] != generate.placeholder_secrets(DEFINITIONS, made)["privateKey"]
    unset = generate.unset_secrets(DEFINITIONS)
    assert unset == {
        "userKey": Secret(type="symmetric-key", size=128, user_defined=True),
        "userPlain": Secret(type="plain", user_defined=True, shared=True),
    }


def test_after_a_package_update_only_shared_certificates_are_new() -> None:
    """P2: shared symmetric keys unchanged, shared certificates re-issued; only new ones validate with the new CA."""
    stored = {**generate.shared_secrets(DEFINITIONS, inputs()), **generate.unset_secrets(DEFINITIONS)}
    renewed = generate.regenerated_certificates(stored, inputs(issuer=marble_issuer("renewed"), days=1))
    assert list(renewed) == ["sharedCert"]
    old, new = stored["sharedCert"].certificate, renewed["sharedCert"].certificate
    at = AT + timedelta(days=1)
    for anchor in (intermediate("renewed"), marble_root("renewed")):
        verify_chain(new, [], [der(anchor)], at=at)
        with pytest.raises(Untrusted):
            verify_chain(old, [], [der(anchor)], at=at)
    verify_chain(old, [], [der(marble_root())], at=at)


def test_wrong_use_is_our_own_error() -> None:
    with pytest.raises(ValueError, match="user-defined"):
        private(DEFINITIONS["userKey"])
    with pytest.raises(ValueError, match="UUID"):
        private(DEFINITIONS["sharedKey"])
    with pytest.raises(ValueError, match="UUID"):
        generate_secret("s", DEFINITIONS["privateKey"], uuid=None, marble_name="", inputs=inputs())


def test_values_never_show_in_a_representation() -> None:
    secret = private(DEFINITIONS["privateKey"])
    shown = f"{secret!r}{secret}{inputs()!r}"
    assert secret.private.hex() not in shown
    assert repr(secret.private) not in shown
    assert repr(bytes(range(32))) not in shown
