"""Every certificate of every chain must be issued, and meant, for what it does; each test breaks one certificate.

The chains in evidence and collateral are text that anybody may exchange, and anybody can make certificates with the
vendor's names. What is broken here is right in everything else, and whoever made it holds the keys that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tests.forge.dcap import NOW, SGX_OID, Dcap, Minted, new_keys, raw_signature, sgx_extension

from marblerun.attestation.dcap.certificates import _common_names, _usual_common_names, read_certificate
from marblerun.attestation.dcap.collateral import MAX_COLLATERAL_JSON_BYTES, collateral_to_json, parse_collateral_json
from marblerun.attestation.dcap.quote import parse_quote
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import Collateral
from marblerun.errors import Malformed, Untrusted
from marblerun.wire.limits import MAX_COLLATERAL_FIELD_BYTES

KEYS = new_keys()
GENUINE = Dcap(keys=KEYS).mint()
STRANGER = ec.generate_private_key(ec.SECP256R1())
COMMON = {
    "root": "Forged SGX Root CA",
    "ca": "Forged SGX PCK Platform CA",
    "pck": "Forged SGX PCK Certificate",
    "signer": "Forged SGX TCB Signing",
}
ISSUERS = {"root": "root", "ca": "root", "pck": "ca", "signer": "root"}


@dataclass(frozen=True)
class Made:
    """A certificate of a role, right in everything that is not said otherwise."""

    role: str
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None
    issuer: str = ""
    issuer_name: str = ""
    issuer_key: ec.EllipticCurvePrivateKey | None = None
    usage: dict[str, bool] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    is_ca: bool | None = None
    path_length: int | None = 0
    digest: hashes.SHA256 | hashes.SHA384 = field(default_factory=hashes.SHA256)

    def pem(self) -> str:
        """As text."""
        issuer = self.issuer or ISSUERS[self.role]
        authority = self.role in ("root", "ca")
        key = self.key or KEYS[self.role]
        usage: dict[str, Any] = dict.fromkeys(
            ("key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
        )
        usage |= {"digital_signature": not authority, "content_commitment": not authority}
        usage |= {"key_cert_sign": authority, "crl_sign": authority} | self.usage
        is_ca = authority if self.is_ca is None else self.is_ca
        builder = x509.CertificateBuilder(
            _name(self.issuer_name or COMMON[issuer]),
            _name(COMMON[self.role]),
            key.public_key(),
            x509.random_serial_number(),
            NOW - timedelta(days=1),
            NOW + timedelta(days=1),
        )
        if "basicConstraints" not in self.without:
            length = (1 if self.role == "root" and self.path_length == 0 else self.path_length) if is_ca else None
            builder = builder.add_extension(x509.BasicConstraints(is_ca, length), critical=True)
        if "keyUsage" not in self.without:
            builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
        if self.role == "pck" and "sgx" not in self.without:
            value = sgx_extension((5,) * 16, 13, "0000", "00606a000000")
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(SGX_OID), value), critical=False
            )
        return builder.sign(self.issuer_key or KEYS[issuer], self.digest).public_bytes(Encoding.PEM).decode()


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


ROOT = Made("root").pem()


def with_chain(*certificates: str) -> bytes:
    """The genuine quote with another chain; no signature covers it."""
    quote, old = GENUINE.quote, parse_quote(GENUINE.quote).certification.data
    chain = "".join(certificates).encode()
    signature = int.from_bytes(quote[432:436], "little") + len(chain) - len(old)
    start = quote.index(old)
    front = quote[:432] + signature.to_bytes(4, "little") + quote[436 : start - 4]
    return front + len(chain).to_bytes(4, "little") + chain


def in_quote(role: str, made: Made) -> tuple[bytes, Collateral]:
    """Evidence with that certificate in its PCK chain."""
    chain = {"pck": Made("pck").pem(), "ca": Made("ca").pem(), "root": ROOT} | {role: made.pem()}
    return with_chain(*chain.values()), GENUINE.collateral


def in_collateral(name: str, made: Made) -> tuple[bytes, Collateral]:
    """Collateral with that certificate in the chain called ``name``, and what it signs signed by its key."""
    old = GENUINE.collateral
    changes: dict[str, Any] = {f"{name}_issuer_chain": made.pem() + ROOT}
    if made.role == "root":
        changes = {f"{name}_issuer_chain": Made("ca" if name == "pck_crl" else "signer").pem() + made.pem()}
    elif name != "pck_crl" and made.key is STRANGER:
        changes[f"{name}_signature"] = raw_signature(made.key, getattr(old, name).encode())
    return GENUINE.quote, replace(old, **changes)


def refusal(evidence: tuple[bytes, Collateral], *others: Minted) -> tuple[str, str]:
    """Step and reason; nothing for evidence that is accepted."""
    quote, collateral = evidence
    try:
        Verifier([GENUINE.root, *(one.root for one in others)]).verify(quote, collateral, NOW)
    except Untrusted as error:
        return error.step, error.reason
    return "", ""


LEAVES: list[tuple[Made, str]] = [
    # Why it must not be believed: for a certificate that signs data, whatever its name.
    (Made("", STRANGER, issuer_key=STRANGER), "bad-signature"),
    (Made("", issuer_key=STRANGER), "bad-signature"),
    (Made("", issuer_name="Forged SGX Root"), "mismatch"),
    (Made("", is_ca=True), "mismatch"),
    (Made("", usage={"key_cert_sign": True}), "mismatch"),
    (Made("", usage={"digital_signature": False}), "mismatch"),
    (Made("", without=("keyUsage",)), "mismatch"),
    (Made("", rsa.generate_private_key(65537, 2048)), "malformed"),
    (Made("", ec.generate_private_key(ec.SECP384R1())), "malformed"),
    (Made("", digest=hashes.SHA384()), "malformed"),
]
AUTHORITIES: list[tuple[Made, str]] = [
    (Made("", issuer_key=STRANGER), "bad-signature"),
    (Made("", STRANGER, issuer_key=STRANGER), "bad-signature"),
    (Made("", issuer_name="Forged SGX Root"), "mismatch"),
    (Made("", is_ca=False), "mismatch"),
    (Made("", without=("basicConstraints",)), "mismatch"),
    (Made("", without=("keyUsage",)), "mismatch"),
    (Made("", usage={"key_cert_sign": False}), "mismatch"),
    (Made("", usage={"crl_sign": False}), "mismatch"),
]


@pytest.mark.parametrize(("made", "reason"), LEAVES)
@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_whoever_signs_collateral_was_made_a_signer_by_the_root(name: str, made: Made, reason: str) -> None:
    assert refusal(in_collateral(name, replace(made, role="signer"))) == ("tcb-signer", reason)


@pytest.mark.parametrize(("made", "reason"), LEAVES)
def test_the_pck_certificate_was_made_for_signing_by_its_ca(made: Made, reason: str) -> None:
    # Another issuer's name names no PCK CA at all, which is found first.
    assert refusal(in_quote("pck", replace(made, role="pck"))) == ("pck-chain", reason)


@pytest.mark.parametrize(("made", "reason"), AUTHORITIES)
def test_the_ca_in_a_quote_was_made_an_authority_by_the_root(made: Made, reason: str) -> None:
    assert refusal(in_quote("ca", replace(made, role="ca"))) == ("pck-chain", reason)


@pytest.mark.parametrize(("made", "reason"), AUTHORITIES)
def test_the_ca_of_the_pck_crl_was_made_an_authority_by_the_root(made: Made, reason: str) -> None:
    assert refusal(in_collateral("pck_crl", replace(made, role="ca"))) == ("pck-crl", reason)


@pytest.mark.parametrize(
    ("name", "step"),
    [("", "pck-chain"), ("tcb_info", "tcb-signer"), ("qe_identity", "tcb-signer"), ("pck_crl", "pck-crl")],
)
@pytest.mark.parametrize(("made", "reason"), [(made, reason) for made, reason in AUTHORITIES if made.key is None])
def test_the_root_in_every_chain_is_an_authority_that_signed_itself(
    name: str, step: str, made: Made, reason: str
) -> None:
    root = replace(made, role="root")
    evidence = in_collateral(name, root) if name else in_quote("root", root)
    assert refusal(evidence) == (step, reason)


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity", "pck_crl"])
def test_certificates_made_anew_for_the_same_keys_are_as_good(name: str) -> None:
    """What is broken above is nothing but what is said."""
    assert refusal(in_collateral(name, Made("ca" if name == "pck_crl" else "signer"))) == ("", "")
    assert refusal(in_quote("pck", Made("pck"))) == ("", "")
    assert refusal(in_collateral(name, Made("root"))) == ("", "")


def test_a_root_that_allows_no_authority_under_it_has_none() -> None:
    chain = Made("pck").pem(), Made("ca").pem()
    narrow = replace(Made("root"), path_length=None)
    assert refusal((with_chain(*chain, narrow.pem()), GENUINE.collateral)) == ("", "")
    minted = Dcap(root_path_length=0).mint()
    with pytest.raises(Untrusted, match="no authority under it"):
        Verifier([minted.root]).verify(minted.quote, minted.collateral, NOW)


def test_a_pck_certificate_without_its_extension_names_no_platform() -> None:
    assert refusal(in_quote("pck", Made("pck", without=("sgx",)))) == ("pck-chain", "missing")


@pytest.mark.parametrize(
    ("fields", "step"),
    [
        (("qe_identity", "qe_identity_signature", "qe_identity_issuer_chain"), "tcb-signer"),
        (("pck_crl", "pck_crl_issuer_chain"), "pck-crl"),
        (("root_ca_crl",), "root-crl"),
    ],
)
def test_all_collateral_is_under_one_root_though_two_are_trusted(fields: tuple[str, ...], step: str) -> None:
    """The other root has the same name, is as trusted, and certifies the very same keys."""
    other = Dcap(keys=KEYS | {"root": STRANGER}).mint()
    changes: dict[str, Any] = {name: getattr(other.collateral, name) for name in fields}
    found = refusal((GENUINE.quote, replace(GENUINE.collateral, **changes)), other)
    assert found == (step, "bad-signature" if fields == ("root_ca_crl",) else "mismatch")


def test_a_quote_is_under_the_root_of_its_collateral_though_two_are_trusted() -> None:
    other = Dcap().mint()
    assert refusal((GENUINE.quote, other.collateral), other) == ("pck-chain", "mismatch")


@pytest.mark.parametrize(
    ("name", "step"), [("tcb_info", "tcb-signer"), ("qe_identity", "tcb-signer"), ("pck_crl", "pck-crl")]
)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda chain: "", "missing"),
        (lambda chain: "\n", "missing"),
        (lambda chain: chain + chain, "malformed"),
        (lambda chain: chain + ROOT, "mismatch"),
        (lambda chain: ROOT, "mismatch"),
        (lambda chain: chain.replace(ROOT, ""), "mismatch"),
        (lambda chain: chain + "é", "malformed"),
    ],
)
def test_a_chain_is_one_certificate_and_its_root(
    name: str, step: str, change: Callable[[str], str], reason: str
) -> None:
    chain = Made("ca" if name == "pck_crl" else "signer").pem() + ROOT
    changes: dict[str, Any] = {f"{name}_issuer_chain": change(chain)}
    assert refusal((GENUINE.quote, replace(GENUINE.collateral, **changes))) == (step, reason)


@pytest.mark.parametrize("name", ["tcb_info", "qe_identity"])
def test_a_signed_text_that_is_missing_is_called_missing(name: str) -> None:
    changes: dict[str, Any] = {name: "", f"{name}_signature": raw_signature(KEYS["signer"], b"")}
    step = name.replace("_", "-")
    assert refusal((GENUINE.quote, replace(GENUINE.collateral, **changes))) == (step, "missing")


@pytest.mark.parametrize("at", [32, 64])
def test_a_signature_with_a_byte_more_is_another_text_for_the_same_numbers_and_refused(at: int) -> None:
    right = GENUINE.collateral.tcb_info_signature
    for signature in (right[:at] + b"\0" + right[at:], b"\0" + right):
        changed = replace(GENUINE.collateral, tcb_info_signature=signature)
        assert refusal((GENUINE.quote, changed)) == ("tcb-info", "bad-signature")


def test_collateral_may_be_as_large_as_its_ceilings_and_no_larger() -> None:
    largest = replace(GENUINE.collateral, tcb_info="x" * MAX_COLLATERAL_FIELD_BYTES)
    text = collateral_to_json(largest)
    assert parse_collateral_json(text) == largest
    assert parse_collateral_json(text + " " * (MAX_COLLATERAL_JSON_BYTES - len(text))) == largest
    with pytest.raises(Malformed, match="more than"):
        parse_collateral_json(text + " " * (MAX_COLLATERAL_JSON_BYTES - len(text) + 1))
    with pytest.raises(Malformed, match=r"tcb_info: more than"):
        parse_collateral_json(collateral_to_json(replace(largest, tcb_info=largest.tcb_info + "x")))


def test_the_pck_crl_is_by_the_very_ca_of_the_quote_and_not_by_one_of_its_name() -> None:
    """Two authorities of one name under one root; each revokes its own."""
    other = Dcap(keys=KEYS | {"ca": STRANGER}).mint().collateral
    changed = replace(GENUINE.collateral, pck_crl=other.pck_crl, pck_crl_issuer_chain=other.pck_crl_issuer_chain)
    assert refusal((GENUINE.quote, changed)) == ("pck-crl", "mismatch")


def test_only_the_extension_of_that_name_names_the_platform() -> None:
    """Another unknown one that follows is passed over."""
    genuine = x509.load_pem_x509_certificate(Made("pck").pem().encode())
    builder = x509.CertificateBuilder(
        genuine.issuer, genuine.subject, genuine.public_key(), 7, NOW, NOW + timedelta(days=1), list(genuine.extensions)
    )
    other = x509.UnrecognizedExtension(x509.ObjectIdentifier(f"{SGX_OID}.9"), b"\x05\x00")
    leaf = builder.add_extension(other, critical=False).sign(KEYS["ca"], hashes.SHA256())
    pem = leaf.public_bytes(Encoding.PEM).decode()
    assert refusal((with_chain(pem, Made("ca").pem(), ROOT), GENUINE.collateral)) == ("", "")


NAMES = (
    _name("Forged SGX Root CA"),
    x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, "Two"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Org"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        ]
    ),
    x509.Name([x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, "A")])] * 2),
    x509.Name([]),
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_changed_in_any_byte_is_read_quickly_only_as_it_is_read_thoroughly(name: x509.Name) -> None:
    encoded = name.public_bytes()
    for at in range(len(encoded)):
        for value in range(256):
            changed = encoded[:at] + bytes([value]) + encoded[at + 1 :]
            quick = _usual_common_names(changed)
            assert quick is None or quick == _common_names(changed)
    for size in range(len(encoded)):
        quick = _usual_common_names(encoded[:size])
        assert quick is None or quick == _common_names(encoded[:size])


@pytest.mark.parametrize(
    ("name", "common"),
    [
        (_name("x" * 64), "x" * 64),
        (x509.Name([*(x509.NameAttribute(NameOID.ORGANIZATION_NAME, "o" * 60) for _ in range(3)), *_name("CN")]), "CN"),
        (
            x509.Name(
                [
                    x509.RelativeDistinguishedName(
                        [x509.NameAttribute(NameOID.COMMON_NAME, "CN"), x509.NameAttribute(NameOID.COUNTRY_NAME, "US")]
                    )
                ]
            ),
            "CN",
        ),
        (x509.Name([*_name("one"), *_name("two")]), ""),
        (x509.Name([]), ""),
    ],
)
def test_the_common_name_is_the_only_one_however_the_name_is_built(name: x509.Name, common: str) -> None:
    builder = x509.CertificateBuilder(name, name, STRANGER.public_key(), 7, NOW, NOW + timedelta(days=1))
    encoded = builder.sign(STRANGER, hashes.SHA256()).public_bytes(Encoding.DER)
    certificate = read_certificate(encoded, "step", "a certificate")
    assert (certificate.common_name, certificate.issuer_common_name) == (common, common)
