"""Activations over the network by a stock Marble's stack (grpc-go), judged with Go's own X.509."""

from __future__ import annotations

import hashlib
import json
import uuid as uuids
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.coordinator.marbles import GoClient
from tests.coordinator.running import Running, new_platform
from tests.coordinator.states import UUID_1

from marblerun.attestation.dcap.quote import add_oe_header
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform

FOREVER = 292 * 365 * 24 * 3600
DIGITAL_SIGNATURE, KEY_AGREEMENT, CERT_SIGN = 1, 16, 32
SERVER_AUTH, CLIENT_AUTH = 1, 2

Quote = Callable[..., str]


@pytest.fixture
def quote(platform: SimulatedPlatform) -> Quote:
    """The hex of a quote over a certificate, by any enclave."""

    def make(certificate: bytes, *, report_data: bytes | None = None, **identity: Any) -> str:
        data = hashlib.sha256(certificate).digest() if report_data is None else report_data
        return add_oe_header(platform.quote_as(EnclaveIdentity(**identity), data)).hex()

    return make


def env_of(answer: dict[str, Any]) -> dict[str, str]:
    assert (answer["code"], answer["message"]) == ("OK", "")
    return {name: bytes.fromhex(value).decode() for name, value in answer["env"].items()}


def activated(go: GoClient, up: Running, quote: Quote, marble: str = "bare", **fields: Any) -> dict[str, str]:
    identity, certificate = go.identity(**fields)
    return env_of(go.activate(up.mesh, identity, marble, UUID_1, quote=quote(certificate)))


def refused(go: GoClient, up: Running, quote_hex: str, identity: int, marble: str = "bare") -> str:
    """The Coordinator's reason."""
    answer = go.activate(up.mesh, identity, marble, UUID_1, quote=quote_hex)
    assert answer["code"] == "PermissionDenied"
    return str(answer["message"])


# -- what a Marble gets ------------------------------------------------------------------------------------------


def test_a1_before_a_manifest_activation_is_a_failed_precondition(go: GoClient, waiting: Running) -> None:
    """A1."""
    identity, _ = go.identity()
    answer = go.activate(waiting.mesh, identity, "bare", UUID_1)
    assert answer["code"] == "FailedPrecondition"
    assert "accepting manifest" in answer["message"]


def test_a4_a5_a_stock_marble_gets_files_variables_and_arguments(go: GoClient, attested: Running, quote: Quote) -> None:
    """A4, A5, A11, A14, A17."""
    identity, certificate = go.identity()
    answer = go.activate(attested.mesh, identity, "frontend", UUID_1, quote=quote(certificate))
    env = env_of(answer)
    files = {path: bytes.fromhex(content) for path, content in answer["files"].items()}
    assert files.pop("/shared.key").hex() == env["SHARED"]
    assert files == {
        "/plain": b"text", "/base64": b"foo\0bar", "/hex": b"foo", "/raw": b"{{ not a template }}",
    }  # fmt: skip
    assert answer["argv"] == ["./shop", "--fast"]
    assert env["MARBLE_PREDEFINED_PRIVATE_KEY"].startswith("-----BEGIN PRIVATE KEY-----\n")
    assert env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"].count("-----BEGIN CERTIFICATE-----") == 2
    config = json.loads(env["MARBLE_TTLS_CONFIG"])["tls"]
    assert (sorted(config["Incoming"]), sorted(config["Outgoing"])) == (
        ["*:8443", "*:9443"], ["service.namespace:8080"],
    )  # fmt: skip


def test_a7_the_marbles_certificate_is_what_go_would_have_made(go: GoClient, attested: Running, quote: Quote) -> None:
    """A7 and protocol, section 2.7, field by field as Go's parser reads them."""
    env = activated(go, attested, quote, dns=("localhost", "svc.ns"), ips=["10.1.2.3"])
    leaf = go.ask("x509", leaf=env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])
    root = go.ask("x509", leaf=env["MARBLE_PREDEFINED_ROOT_CA"])
    now = datetime.now(UTC).timestamp()
    assert abs(leaf.pop("not_before") - now) < 60
    assert leaf.pop("not_after") - now > FOREVER
    assert 64 < leaf.pop("serial_bits") <= 128
    values = leaf.pop("values")
    assert values["2.5.29.15"] == "03020388"
    assert values["2.5.29.19"] == "3000"
    assert bytes.fromhex(values["1.3.9903.2.1"]) == b"bare"
    assert leaf == {
        "version": 3,
        "signature_algorithm": "ECDSA-SHA384",
        "public_key_algorithm": "ECDSA",
        "issuer": "CN=MarbleRun Coordinator - Intermediate CA",
        "subject": f"CN={UUID_1}",
        "key_usage": DIGITAL_SIGNATURE | KEY_AGREEMENT,
        "ext_key_usage": [SERVER_AUTH, CLIENT_AUTH],
        "basic_constraints_valid": True,
        "is_ca": False,
        "max_path_len": -1,
        "max_path_len_zero": False,
        "subject_key_id": "",
        "authority_key_id": root["subject_key_id"],
        "dns_names": ["localhost", "svc.ns"],
        "ip_addresses": ["127.0.0.1", "::1", "10.1.2.3"],
        "emails": None,
        "uris": 0,
        "extensions": ["2.5.29.15", "2.5.29.37", "2.5.29.19", "2.5.29.35", "2.5.29.17", "1.3.9903.2.1"],
        "critical": ["2.5.29.15", "2.5.29.19"],
        "chain": 2,
    }


@pytest.mark.parametrize("which", ["root", "intermediate", "marble root"])
def test_c1_the_ca_certificates_are_what_go_would_have_made(
    go: GoClient, attested: Running, quote: Quote, which: str
) -> None:
    """C1 and protocol, section 3.1."""
    env = activated(go, attested, quote)
    chain = env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"]
    pem = {
        "root": env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"],
        "intermediate": chain[chain.index("-----END CERTIFICATE-----") + 26 :],
        "marble root": env["MARBLE_PREDEFINED_ROOT_CA"],
    }
    read = go.ask("x509", leaf=pem[which])
    root = go.ask("x509", leaf=pem["root"])
    key_id = hashlib.sha256(public_point(pem[which])).hexdigest()[:40]
    signed_by_root = which == "intermediate"
    name = "MarbleRun Coordinator" if which == "root" else "MarbleRun Coordinator - Intermediate CA"
    assert {name: read[name] for name in ("key_usage", "ext_key_usage", "basic_constraints_valid", "is_ca")} == {
        "key_usage": DIGITAL_SIGNATURE | CERT_SIGN,
        "ext_key_usage": [SERVER_AUTH, CLIENT_AUTH],
        "basic_constraints_valid": True,
        "is_ca": True,
    }
    assert (read["max_path_len"], read["max_path_len_zero"]) == (-1, False)
    assert read["subject"] == f"CN={name}"
    assert read["issuer"] == ("CN=MarbleRun Coordinator" if signed_by_root else read["subject"])
    assert read["subject_key_id"] == key_id
    assert read["authority_key_id"] == (root["subject_key_id"] if signed_by_root else "")
    assert (read["dns_names"], read["ip_addresses"]) == (["localhost"], ["127.0.0.1", "::1"])
    assert read["extensions"] == [
        "2.5.29.15", "2.5.29.37", "2.5.29.19", "2.5.29.14", *(["2.5.29.35"] if signed_by_root else []), "2.5.29.17",
    ]  # fmt: skip
    assert read["critical"] == ["2.5.29.15", "2.5.29.19"]
    assert read["not_after"] - read["not_before"] > FOREVER


def public_point(pem: str) -> bytes:
    key = x509.load_pem_x509_certificate(pem.encode()).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def test_a6_a8_a9_go_validates_the_chain_from_every_anchor_for_localhost(
    go: GoClient, attested: Running, quote: Quote
) -> None:
    """A6, A8, A9, I8."""
    env = activated(go, attested, quote)
    chain = env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"]
    end = chain.index("-----END CERTIFICATE-----") + 26
    leaf, intermediate = chain[:end], chain[end:]
    anchors = {
        "Marble root alone": {"roots": env["MARBLE_PREDEFINED_ROOT_CA"]},
        "intermediate alone": {"roots": intermediate},
        "root by way of the intermediate": {
            "roots": env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"],
            "intermediates": intermediate,
        },
    }
    for anchor, fields in anchors.items():
        assert "invalid" not in go.ask("x509", leaf=leaf, name="localhost", **fields), anchor
    wrong = go.ask("x509", leaf=leaf, name="elsewhere", roots=env["MARBLE_PREDEFINED_ROOT_CA"])
    assert "elsewhere" in wrong["invalid"]
    unrelated = go.ask("x509", leaf=leaf, name="localhost", roots=env["MARBLE_PREDEFINED_COORDINATOR_ROOT_CA"])
    assert "unknown authority" in unrelated["invalid"]


def test_a13_go_validates_secret_certificates_too(go: GoClient, attested: Running, quote: Quote) -> None:
    """A13, S3."""
    env = activated(go, attested, quote, "frontend")
    for name in ("SHARED_CERT", "PRIVATE_CERT"):
        read = go.ask("x509", leaf=env[name], name="localhost", roots=env["MARBLE_PREDEFINED_ROOT_CA"])
        assert "invalid" not in read
        assert (read["subject"], read["dns_names"]) == ("CN=localhost", ["localhost"])
        assert abs(read["not_after"] - datetime.now(UTC).timestamp() - 7 * 86400) < 7200


def test_a2_the_second_activation_of_a_marble_that_may_start_once_is_refused(
    go: GoClient, attested: Running, quote: Quote
) -> None:
    """A2."""
    activated(go, attested, quote, "once")
    identity, certificate = go.identity()
    assert "max activations" in refused(go, attested, quote(certificate), identity, "once")


@pytest.mark.parametrize("curve", ["P-256", "", "P-521"])
def test_any_client_key_will_do(go: GoClient, attested: Running, quote: Quote, curve: str) -> None:
    assert activated(go, attested, quote, curve=curve)


def test_the_listener_shows_the_marble_root_and_nothing_else(go: GoClient, attested: Running, quote: Quote) -> None:
    """Protocol, section 2.2."""
    identity, _ = go.identity()
    env = activated(go, attested, quote)
    root = x509.load_pem_x509_certificate(env["MARBLE_PREDEFINED_ROOT_CA"].encode()).public_bytes(Encoding.DER)
    seen = go.ask("tls", target=f"{attested.mesh[0]}:{attested.mesh[1]}", identity=identity)
    assert (bytes.fromhex(seen["certificate"]), seen["chain"]) == (root, 1)


# -- codes of protocol, section 2.4 ------------------------------------------------------------------------------


def test_unknown_types_bad_uuids_and_bad_requests_have_their_codes(
    go: GoClient, attested: Running, quote: Quote
) -> None:
    identity, certificate = go.identity()
    good = {"quote": quote(certificate)}
    answers = {
        "unknown type": go.activate(attested.mesh, identity, "nobody", UUID_1, **good),
        "bad uuid": go.activate(attested.mesh, identity, "bare", "not-a-uuid", **good),
        "no uuid": go.activate(attested.mesh, identity, "bare", "", **good),
        "broken csr": go.activate(attested.mesh, identity, "bare", UUID_1, csr="3000", **good),
        "other method": go.activate(attested.mesh, identity, "bare", UUID_1, path="/rpc.Marble/Deactivate", **good),
        "other service": go.activate(attested.mesh, identity, "bare", UUID_1, path="/grpc.health.v1.Health/Check"),
    }
    assert {case: answer["code"] for case, answer in answers.items()} == {
        "unknown type": "PermissionDenied",
        "bad uuid": "InvalidArgument",
        "no uuid": "InvalidArgument",
        "broken csr": "Internal",
        "other method": "Unimplemented",
        "other service": "Unimplemented",
    }
    assert "unknown marble type" in answers["unknown type"]["message"]


def test_compression_oversize_and_impatience_have_their_codes(go: GoClient, attested: Running, quote: Quote) -> None:
    identity, certificate = go.identity()
    good = {"quote": quote(certificate)}
    assert go.activate(attested.mesh, identity, "bare", UUID_1, compress=True, **good)["code"] == "Unimplemented"
    large = go.activate(attested.mesh, identity, "bare", UUID_1, padding=5 << 20, **good)
    assert large["code"] == "ResourceExhausted"
    assert go.activate(attested.mesh, identity, "bare", UUID_1, padding=4_000_000, **good)["code"] == "OK"
    assert go.activate(attested.mesh, identity, "bare", UUID_1, timeout_ms=1, **good)["code"] == "DeadlineExceeded"
    assert go.activate(attested.mesh, identity, "bare", UUID_1, **good)["code"] == "OK"


def test_without_a_client_certificate_there_is_no_call(go: GoClient, attested: Running) -> None:
    """Protocol, section 2.2."""
    answer = go.activate(attested.mesh, None, "bare", UUID_1, timeout_ms=2000)
    assert answer["code"] == "Unavailable"
    assert "certificate" in answer["message"]


# -- threats -----------------------------------------------------------------------------------------------------


def test_a_quote_replayed_on_another_connection_is_refused(go: GoClient, attested: Running, quote: Quote) -> None:
    """Threats: relay and replay. The thief has his own certificate and somebody's good quote."""
    victim, certificate = go.identity()
    stolen = quote(certificate)
    thief, _ = go.identity()
    assert "report-data" in refused(go, attested, stolen, thief)
    assert env_of(go.activate(attested.mesh, victim, "bare", UUID_1, quote=stolen))


def test_the_victims_certificate_behind_ones_own_does_not_help(go: GoClient, attested: Running, quote: Quote) -> None:
    """Threats: the reference Coordinator. Only the leaf's key is proven."""
    _, certificate = go.identity()
    thief, _ = go.identity()
    for extra in ([certificate.hex()], [certificate.hex()] * 5):
        answer = go.activate(attested.mesh, thief, "bare", UUID_1, quote=quote(certificate), extra_certs=extra)
        assert answer["code"] == "PermissionDenied"
        assert "report-data" in answer["message"]


def test_a_chain_behind_the_leaf_is_dropped_and_does_no_harm(go: GoClient, attested: Running, quote: Quote) -> None:
    _, other = go.identity()
    identity, certificate = go.identity()
    answer = go.activate(
        attested.mesh, identity, "bare", UUID_1, quote=quote(certificate), extra_certs=[other.hex()] * 3
    )
    assert answer["code"] == "OK"


@pytest.mark.parametrize(
    ("identity_fields", "reason"),
    [
        ({"debug": True}, "Packages.shop.Debug: expected false, evidence says true"),
        ({"signer_id": b"x" * 32}, "Packages.shop.SignerID"),
        ({"product_id": 2}, "Packages.shop.ProductID: expected 1, evidence says 2"),
        ({"security_version": 0}, "Packages.shop.SecurityVersion: expected at least 1, evidence says 0"),
    ],
)
def test_an_enclave_that_is_not_the_package_is_refused_with_the_reason(
    go: GoClient, attested: Running, quote: Quote, identity_fields: dict[str, Any], reason: str
) -> None:
    identity, certificate = go.identity()
    assert reason in refused(go, attested, quote(certificate, **identity_fields), identity)


def test_every_mismatch_is_told_at_once(go: GoClient, attested: Running, quote: Quote) -> None:
    identity, certificate = go.identity()
    reason = refused(go, attested, quote(certificate, debug=True, product_id=9, security_version=0), identity)
    assert all(part in reason for part in ("Debug", "ProductID", "SecurityVersion"))


def test_a_production_enclave_is_not_a_debug_package(go: GoClient, attested: Running, quote: Quote) -> None:
    identity, certificate = go.identity()
    assert "Packages.debug.Debug" in refused(go, attested, quote(certificate), identity, "debugger")


def test_no_short_no_foreign_and_no_prefix_evidence_passes(go: GoClient, attested: Running, quote: Quote) -> None:
    """Threats: empty, missing, short, prefix expectation."""
    identity, certificate = go.identity()
    good = quote(certificate)
    digest = hashlib.sha256(certificate).digest()
    reasons = {
        "empty": refused(go, attested, "", identity),
        "half": refused(go, attested, good[: len(good) // 2], identity),
        "header only": refused(go, attested, good[:32], identity),
        "json": refused(go, attested, b'{"quote":1}'.hex(), identity),
        "zero report data": refused(go, attested, quote(certificate, report_data=bytes(64)), identity),
        "short report data": refused(go, attested, quote(certificate, report_data=digest[:31]), identity),
        "shifted": refused(go, attested, quote(certificate, report_data=bytes(32) + digest), identity),
        "of empty": refused(go, attested, quote(certificate, report_data=hashlib.sha256(b"").digest()), identity),
        "of the key only": refused(
            go, attested, quote(certificate, report_data=hashlib.sha256(certificate[50:]).digest()), identity
        ),
    }
    assert {case for case, reason in reasons.items() if "report-data" in reason} == {
        "zero report data", "short report data", "shifted", "of empty", "of the key only",
    }  # fmt: skip
    assert "no evidence was shown" in reasons["empty"]


def test_a_flipped_bit_anywhere_in_the_quote_is_refused(go: GoClient, attested: Running, quote: Quote) -> None:
    identity, certificate = go.identity()
    good = bytes.fromhex(quote(certificate))
    for position in (0, 16, 20, 64 + 16, 300, 448, 460, 600, 1100, 1500):
        broken = bytearray(good)
        broken[position] ^= 1
        assert refused(go, attested, bytes(broken).hex(), identity)


def test_another_platforms_quote_is_refused(
    go: GoClient, attested: Running, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = new_platform(tmp_path_factory.mktemp("impostor") / "platform")
    identity, certificate = go.identity()
    forged = add_oe_header(other.quote_as(EnclaveIdentity(), hashlib.sha256(certificate).digest()))
    assert refused(go, attested, forged.hex(), identity)


def csr_with(*extensions: tuple[x509.ExtensionType, bool], subject: x509.Name | None = None) -> str:
    key = ec.generate_private_key(ec.SECP384R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([]))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(key, hashes.SHA384()).public_bytes(Encoding.DER).hex()


def with_csr(go: GoClient, up: Running, quote: Quote, csr: str) -> dict[str, Any]:
    identity, certificate = go.identity()
    return go.activate(up.mesh, identity, "bare", UUID_1, quote=quote(certificate), csr=csr)


def test_a_request_for_a_ca_certificate_gives_a_leaf(go: GoClient, attested: Running, quote: Quote) -> None:
    """Threats, sweep 3."""
    csr = csr_with(
        (x509.BasicConstraints(ca=True, path_length=5), True),
        (x509.KeyUsage(True, True, True, True, True, True, True, False, False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False),
        (x509.SubjectKeyIdentifier(b"x" * 20), False),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.9903.2.1"), b"frontend"), False),
        (x509.SubjectAlternativeName([x509.DNSName("localhost")]), False),
    )
    env = env_of(with_csr(go, attested, quote, csr))
    leaf = go.ask("x509", leaf=env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])
    assert (leaf["is_ca"], leaf["key_usage"], leaf["ext_key_usage"]) == (False, 17, [SERVER_AUTH, CLIENT_AUTH])
    assert leaf["extensions"] == ["2.5.29.15", "2.5.29.37", "2.5.29.19", "2.5.29.35", "2.5.29.17", "1.3.9903.2.1"]
    assert bytes.fromhex(leaf["values"]["1.3.9903.2.1"]) == b"bare"


def test_a_request_cannot_choose_its_common_name(go: GoClient, attested: Running, quote: Quote) -> None:
    subject = x509.Name.from_rfc4514_string("CN=MarbleRun Coordinator,O=Evil,C=DE")
    env = env_of(with_csr(go, attested, quote, csr_with(subject=subject)))
    leaf = go.ask("x509", leaf=env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])
    assert leaf["subject"] == f"CN={UUID_1},C=DE"


def test_names_for_mail_and_uri_are_dropped_and_a_wildcard_is_a_name_like_any_other(
    go: GoClient, attested: Running, quote: Quote
) -> None:
    """Protocol, section 2.7: names are the attested code's own choice, inside its own mesh."""
    names = x509.SubjectAlternativeName(
        [x509.RFC822Name("a@b.c"), x509.UniformResourceIdentifier("spiffe://x"), x509.DNSName("*.svc")]
    )
    env = env_of(with_csr(go, attested, quote, csr_with((names, False))))
    leaf = go.ask("x509", leaf=env["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])
    assert (leaf["dns_names"], leaf["emails"], leaf["uris"]) == (["*.svc"], None, 0)


def test_huge_and_malformed_requests_are_refused_and_the_coordinator_lives(
    go: GoClient, attested: Running, quote: Quote
) -> None:
    huge = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), bytes(200_000))
    many = x509.SubjectAlternativeName([x509.DNSName(f"n{i}.example") for i in range(8000)])
    good = bytes.fromhex(csr_with())
    answers = [
        with_csr(go, attested, quote, csr_with((huge, False))),
        with_csr(go, attested, quote, csr_with((many, False))),
        with_csr(go, attested, quote, good[:-1].hex()),
        with_csr(go, attested, quote, (good + b"x").hex()),
        with_csr(go, attested, quote, ("30" * 3000)),
    ]
    assert {answer["code"] for answer in answers} == {"Internal"}
    assert activated(go, attested, quote)


def test_a_uuid_is_canonical_in_the_certificate_however_it_was_spelt(
    go: GoClient, attested: Running, quote: Quote
) -> None:
    identity, certificate = go.identity()
    answer = go.activate(attested.mesh, identity, "bare", f"urn:uuid:{UUID_1.upper()}", quote=quote(certificate))
    leaf = go.ask("x509", leaf=env_of(answer)["MARBLE_PREDEFINED_MARBLE_CERTIFICATE_CHAIN"])
    assert uuids.UUID(leaf["subject"].removeprefix("CN=")) == uuids.UUID(UUID_1)
    assert leaf["subject"] == f"CN={UUID_1}"
