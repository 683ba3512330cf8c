"""What would only fail while the manifest is being set is told with everything else (protocol, 5.6 and 6.3-6.5)."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.manifest import keys

from marblerun.errors import Malformed
from marblerun.manifest.check import check_material
from marblerun.manifest.material import certificate_der, recovery_key
from marblerun.manifest.parse import parse_manifest
from marblerun.manifest.report import Problem
from marblerun.pki import der
from marblerun.secrets.given import RSA
from marblerun.wire.gopem import first_block


def _problems(section: str, entry: object) -> list[Problem]:
    manifest = parse_manifest(json.dumps({section: {"x": entry}}).encode())
    return [*check_material(manifest).errors, *check_material(manifest).warnings]


def _codes(section: str, entry: object) -> list[str]:
    return [problem.code for problem in _problems(section, entry)]


@pytest.mark.parametrize(
    "secret",
    [
        {"Type": "symmetric-key", "Size": 8},
        {"Type": "symmetric-key", "Size": 65280},
        {"Type": "symmetric-key", "Size": 65288, "Shared": True},
        {"Type": "symmetric-key", "Size": 65288, "UserDefined": True},
        {"Type": "cert-rsa", "Size": 1024},
        {"Type": "cert-rsa", "Size": 2049},
        {"Type": "cert-rsa", "Size": 16384},
        {"Type": "symmetric-key", "Size": 8 * 1024 * 1024, "Shared": True},
        *({"Type": "cert-ecdsa", "Size": size} for size in (224, 256, 384, 521)),
        {"Type": "cert-ed25519"},
        {"Type": "plain", "UserDefined": True, "Size": 3},
        {"Type": "cert-rsa", "UserDefined": True},
        {"Type": "cert-ed25519", "ValidFor": 100000, "Cert": {"SignatureAlgorithm": 12, "IsCA": True, "MaxPathLen": 1}},
        {"Type": "cert-ed25519", "Cert": {"DNSNames": ["*.a"], "ExtKeyUsage": [13], "UnknownExtKeyUsage": [[1, 2]]}},
    ],
)
def test_what_the_reference_can_make_is_accepted(secret: dict[str, Any]) -> None:
    assert _codes("Secrets", secret) == []


@pytest.mark.parametrize(
    ("secret", "code", "path"),
    [
        ({"Type": "symmetric-key"}, "secret-size", "Size"),
        ({"Type": "symmetric-key", "Size": 12}, "secret-size", "Size"),
        ({"Type": "symmetric-key", "Size": 65288}, "secret-size", "Size"),
        ({"Type": "cert-rsa"}, "secret-size", "Size"),
        ({"Type": "cert-rsa", "Size": 1023}, "secret-size", "Size"),
        ({"Type": "cert-rsa", "Size": 16385}, "secret-size", "Size"),
        ({"Type": "symmetric-key", "Size": 8 * 1024 * 1024 + 8, "Shared": True}, "secret-size", "Size"),
        ({"Type": "cert-ecdsa", "Size": 512}, "secret-size", "Size"),
        ({"Type": "cert-ed25519", "Size": 256}, "secret-size", "Size"),
        ({"Type": "plain"}, "secret-plain", ""),
        ({"Type": "symmetric-key", "UserDefined": True}, "secret-size", "Size"),
        ({"Type": "cert-ed25519", "ValidFor": 3_000_000}, "secret-validity", "ValidFor"),
        ({"Type": "cert-ed25519", "Cert": {"SignatureAlgorithm": 4}}, "secret-template", "Cert.SignatureAlgorithm"),
        ({"Type": "cert-ed25519", "Cert": {"ExtKeyUsage": [14]}}, "secret-template", "Cert.ExtKeyUsage"),
        ({"Type": "cert-ed25519", "Cert": {"MaxPathLen": 1}}, "secret-template", "Cert.MaxPathLen"),
        ({"Type": "cert-ed25519", "Cert": {"DNSNames": ["é"]}}, "secret-template", "Cert.DNSNames"),
    ],
)
def test_what_nobody_can_make_is_found_with_its_place(secret: dict[str, Any], code: str, path: str) -> None:
    assert [(problem.code, problem.path) for problem in _problems("Secrets", secret)] == [
        (code, f"Secrets.x.{path}".rstrip("."))
    ]


def test_a_user_s_certificate_is_the_first_pem_block_whatever_its_label() -> None:
    pem = keys.certificate_pem("alice")
    text = f"notes\n{pem.replace('CERTIFICATE', 'THING')}{keys.certificate_pem('bob')}"
    assert certificate_der(text) == keys.certificate_der("alice")
    assert _codes("Users", {"Certificate": text}) == []


@pytest.mark.parametrize("text", ["x", "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n"])
def test_a_user_s_certificate_that_cannot_be_read_is_found(text: str) -> None:
    assert _codes("Users", {"Certificate": text}) == ["user-certificate"]


def test_two_users_with_one_certificate_written_differently_are_a_warning() -> None:
    pem = keys.certificate_pem("alice")
    users = {"a": {"Certificate": pem}, "b": {"Certificate": pem + "\n"}}
    report = check_material(parse_manifest(json.dumps({"Users": users}).encode()))
    assert (report.errors, [problem.code for problem in report.warnings]) == ((), ["user-certificate-shared"])


def test_a_recovery_key_is_an_rsa_key_in_a_public_key_block() -> None:
    assert recovery_key(keys.rsa_pem()).key_size == 2048
    assert _codes("RecoveryKeys", keys.rsa_pem()) == []


@pytest.mark.parametrize(
    "cert",
    [
        {"URIs": [{"Scheme": "https", "Host": "a b"}]},
        {"URIs": [{"Scheme": "https", "Host": "h:x"}]},
        {"URIs": [{"Scheme": "a b", "Host": "h"}]},
        {"Policies": ["1.2.3", "1.2.4", "1.2.3"]},
    ],
)
def test_a_certificate_that_go_makes_and_cannot_read_is_refused(cert: object) -> None:
    """Protocol, section 6.4: ``Cert`` of a secret is what was read of the certificate that was made."""
    assert _codes("Secrets", {"Type": "cert-ed25519", "Cert": cert}) == ["secret-template"]


def test_usual_uris_and_policies_are_taken() -> None:
    cert = {"URIs": [{"Scheme": "spiffe", "Host": "td", "Path": "/x y"}, {}], "Policies": ["1.2.3", "1.2.4"]}
    assert _codes("Secrets", {"Type": "cert-ed25519", "Cert": cert}) == []


def relabelled_pkcs1() -> str:
    """An RSA key without the structure that names its algorithm, under the label of keys that have it."""
    pem = recovery_key(keys.rsa_pem()).public_bytes(Encoding.PEM, PublicFormat.PKCS1).decode()
    return pem.replace("RSA PUBLIC KEY", "PUBLIC KEY")


def only_for_pss() -> str:
    """An RSA key whose algorithm is RSASSA-PSS."""
    block = first_block(keys.rsa_pem())
    assert block is not None
    algorithm, key = der.children(der.single(block.data), der.SEQUENCE, "key")
    assert algorithm.encoded == der.sequence(der.oid(RSA), der.NULL)
    info = der.sequence(der.sequence(der.oid("1.2.840.113549.1.1.10")), key.encoded)
    return f"-----BEGIN PUBLIC KEY-----\n{b64encode(info).decode()}\n-----END PUBLIC KEY-----\n"


@pytest.mark.parametrize("how", ["empty", "label", "ec", "garbage", "certificate", "pkcs1", "pss"])
def test_other_recovery_keys_are_refused(how: str) -> None:
    text = {
        "empty": "",
        "label": keys.rsa_pem().replace("PUBLIC KEY", "RSA PUBLIC KEY"),
        "ec": keys.ec_pem(),
        "garbage": "-----BEGIN PUBLIC KEY-----\nAQID\n-----END PUBLIC KEY-----\n",
        "certificate": keys.certificate_pem("alice"),
        # What follows are RSA keys, but not as Go's ParsePKIXPublicKey takes them.
        "pkcs1": relabelled_pkcs1(),
        "pss": only_for_pss(),
    }[how]
    with pytest.raises(Malformed):
        recovery_key(text)
    assert _codes("RecoveryKeys", text) == ["recovery-key"]
