"""Every certificate we issue is, field by field and extension by extension, the one Go's crypto/x509 issues."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.go.oracle import Answer, Oracle, running
from tests.pki.authority import AT, NAMES, CountingEntropy, der, intermediate, key, marble_issuer, marble_root, root

from marblerun.errors import Malformed, Untrusted
from marblerun.manifest.certificate import certificate as cert_shape
from marblerun.pki import der as asn1
from marblerun.pki import issue
from marblerun.pki.chains import CLIENT_AUTH, SERVER_AUTH, verify_chain, verify_host
from marblerun.pki.csr import build_csr, parse_csr
from marblerun.pki.encodings import pkcs8, public_key_info
from marblerun.pki.parsed import parse_certificate
from marblerun.pki.profiles import CertificateTemplate
from marblerun.wire.gojson import unmarshal

SERIAL = 7
UUID_1 = UUID("02030400-0000-0000-0000-000000000000")
NOT_AFTER = AT + timedelta(days=7)


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    with running("certdiff", tmp_path_factory.mktemp("certdiff")) as oracle:
        if oracle is None:
            pytest.skip("Go is not installed: no certificate is compared with crypto/x509's")
        yield oracle


def ask(go: Oracle, mode: str, **question: Any) -> Answer:
    def encode(value: object) -> object:
        match value:
            case bytes():
                return b64encode(value).decode()
            case datetime():
                return value.isoformat()
            case list() | tuple():
                return [encode(item) for item in value]
        return value

    return go.ask(mode, json.dumps({name: encode(value) for name, value in question.items()}).encode())


def fields(data: bytes) -> dict[str, object]:
    """Everything a certificate says except its signature."""
    certificate = parse_certificate(data)
    return {
        "serial": certificate.serial,
        "issuer": certificate.issuer,
        "validity": (certificate.not_before, certificate.not_after),
        "subject": certificate.subject,
        "public key": certificate.public_key,
        "extensions": list(certificate.extensions.values()),
        "algorithm": certificate.signature_algorithm,
    }


def from_go(answer: Answer) -> dict[str, object]:
    assert answer.ok, answer.value
    return fields(b64decode(answer.value))


def signing(name: str, issuer: bytes = b"") -> dict[str, object]:
    return {"Issuer": issuer, "Key": pkcs8(key(name)), "Serial": SERIAL.to_bytes(), "At": AT}


def public(name: str) -> bytes:
    return public_key_info(key(name).public_key())


def ips() -> list[str]:
    return [str(address) for address in NAMES.ip_addresses]


@pytest.mark.parametrize("common_name", [issue.ROOT_NAME, issue.INTERMEDIATE_NAME])
def test_self_signed_authorities_are_those_of_go(go: Oracle, common_name: str) -> None:
    make = issue.issue_root if common_name == issue.ROOT_NAME else issue.issue_marble_root
    ours = make(NAMES, key("root"), AT, CountingEntropy(SERIAL))
    theirs = ask(
        go,
        "authority",
        CommonName=common_name,
        DNSNames=NAMES.dns_names,
        IPAddresses=ips(),
        PublicKey=public("root"),
        **signing("root"),
    )
    assert fields(der(ours)) == from_go(theirs)


def test_the_intermediate_is_that_of_go(go: Oracle) -> None:
    ours = issue.issue_intermediate(
        NAMES, key("intermediate"), issue.Issuer.of(root(), key("root")), AT, CountingEntropy(SERIAL)
    )
    theirs = ask(
        go,
        "authority",
        CommonName=issue.INTERMEDIATE_NAME,
        DNSNames=NAMES.dns_names,
        IPAddresses=ips(),
        PublicKey=public("intermediate"),
        **signing("root", der(root())),
    )
    assert fields(der(ours)) == from_go(theirs)


def test_the_marble_tls_certificate_is_that_of_go(go: Oracle) -> None:
    ours = issue.issue_self_signed_marble(NAMES, key("marble"), AT, CountingEntropy(SERIAL))
    theirs = ask(
        go,
        "tls",
        CommonName="MarbleRun Marble",
        DNSNames=NAMES.dns_names,
        IPAddresses=ips(),
        PublicKey=public("marble"),
        **signing("marble"),
    )
    assert fields(ours) == from_go(theirs)


def marble(csr: bytes, marble_type: str = "backendFirst") -> bytes:
    return issue.issue_marble_certificate(
        csr,
        marble_type=marble_type,
        uuid=UUID_1,
        issuer=marble_issuer(),
        public_key=key("leaf").public_key(),
        at=AT,
        entropy=CountingEntropy(SERIAL),
    )


def go_marble(go: Oracle, csr: bytes, marble_type: str = "backendFirst") -> Answer:
    return ask(
        go,
        "marble",
        CSR=csr,
        MarbleType=marble_type,
        UUID=str(UUID_1),
        PublicKey=public("leaf"),
        **signing("intermediate", der(marble_root())),
    )


ATTRIBUTES = [
    (NameOID.COUNTRY_NAME, "DE"),
    (NameOID.COUNTRY_NAME, "FR"),
    (NameOID.ORGANIZATION_NAME, "dropped"),
    (NameOID.ORGANIZATIONAL_UNIT_NAME, "Ünit"),
    (NameOID.LOCALITY_NAME, "Bochum"),
    (NameOID.STATE_OR_PROVINCE_NAME, "NRW & more"),
    (NameOID.STREET_ADDRESS, "Str. 1, (back)"),
    (NameOID.POSTAL_CODE, "44799"),
    (NameOID.COMMON_NAME, "replaced"),
    (NameOID.SERIAL_NUMBER, "1"),
    (NameOID.SERIAL_NUMBER, "2"),
    (NameOID.TITLE, "dropped"),
]


@cache
def full_csr() -> bytes:
    """A request with every attribute, and with everything asked for that has no effect."""
    names = [
        x509.DNSName("b.example"),
        x509.RFC822Name("who@example"),
        x509.DNSName("*.a.example"),
        x509.UniformResourceIdentifier("https://example/"),
        *(x509.IPAddress(address) for address in NAMES.ip_addresses),
    ]
    subject = x509.Name([x509.NameAttribute(oid, text, _validate=False) for oid, text in ATTRIBUTES])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key("csr"), hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize("kind", ["stock", "full"])
@pytest.mark.parametrize("marble_type", ["backendFirst", "", "größer"])
def test_marble_certificates_are_those_of_go(go: Oracle, kind: str, marble_type: str) -> None:
    csr = build_csr(NAMES, key("csr")) if kind == "stock" else full_csr()
    assert fields(marble(csr, marble_type)) == from_go(go_marble(go, csr, marble_type))


TEMPLATES: dict[str, str] = {
    "nothing": "{}",
    "subject": """{"Subject": {"Country": ["DE", "AT"], "Organization": ["E & F"], "OrganizationalUnit": ["ü"],
        "Locality": ["L"], "Province": ["P"], "StreetAddress": ["S"], "PostalCode": ["1"], "SerialNumber": "s*",
        "CommonName": "c@n"}}""",
    "extra names": """{"Subject": {"Organization": ["gone"], "CommonName": "gone", "ExtraNames": [
        {"Type": [2,5,4,10], "Value": "kept"}, {"Type": [2,5,4,3], "Value": "cn"},
        {"Type": [1,3,6,1,4,1,4242,1], "Value": "x_y"}]}}""",
    "empty text": '{"Subject": {"Country": ["", "B"]}}',
    "names": """{"DNSNames": ["a.example", "*.b.example", ""], "EmailAddresses": ["me@example"],
        "IPAddresses": ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.2"],
        "URIs": [{"Scheme": "spiffe", "Host": "example", "Path": "/x"}]}""",
    "one name": '{"DNSNames": ["only.example"]}',
    "empty lists": '{"DNSNames": [], "IPAddresses": [], "ExtKeyUsage": []}',
    "empty lists but unknown usage": '{"ExtKeyUsage": [], "UnknownExtKeyUsage": [[1,2,3,4]]}',
    "authority": '{"IsCA": true, "MaxPathLen": 3}',
    "authority, path of zero": '{"IsCA": true, "MaxPathLenZero": true}',
    "authority, no path": '{"IsCA": true, "MaxPathLen": -1}',
    "authority, key id": '{"IsCA": true, "SubjectKeyId": "AQIDBA==", "AuthorityKeyId": "CQk="}',
    "key id": '{"SubjectKeyId": "AQIDBA=="}',
    "path of minus one": '{"MaxPathLen": -1}',
    "usages": '{"KeyUsage": 511, "ExtKeyUsage": [0,1,2,3,4,5,6,7,8,9,10,11,12,13], "UnknownExtKeyUsage": [[2,999,3]]}',
    "one usage": '{"KeyUsage": 256}',
    "usage without bits": '{"KeyUsage": 65536}',
    "usage beyond the named": '{"KeyUsage": 512}',
    "negative usage": '{"KeyUsage": -1}',
    "urls": """{"OCSPServer": ["http://o.example", "http://ö.example"], "IssuingCertificateURL": ["http://i.example"],
        "CRLDistributionPoints": ["http://c.example/1", "http://c.example/2"]}""",
    "constraints": """{"IsCA": true, "PermittedDNSDomainsCritical": true, "PermittedDNSDomains": ["a.example", ".b"],
        "ExcludedDNSDomains": ["x.a.example", ""], "PermittedIPRanges": [{"IP": "10.1.2.3", "Mask": "/wAAAA=="}],
        "ExcludedIPRanges": [{"IP": "fd00::1", "Mask": "//////////8AAAAAAAAAAA=="}],
        "PermittedEmailAddresses": ["me@example", "example"], "ExcludedEmailAddresses": [".example"],
        "PermittedURIDomains": ["u.example"], "ExcludedURIDomains": [".v.example"]}""",
    "policies": '{"Policies": ["1.2.3", "2.5.29.32.0"]}',
    "extra extensions": """{"ExtraExtensions": [{"Id": [1,2,3], "Critical": true, "Value": "AAE="},
        {"Id": [2,5,29,15], "Value": "AwIHgA=="}]}""",
    "sha-256": '{"SignatureAlgorithm": 10}',
    "sha-384": '{"SignatureAlgorithm": 11}',
    "sha-512": '{"SignatureAlgorithm": 12}',
    "issuer's name": """{"Subject": {"CommonName": "MarbleRun Coordinator - Intermediate CA"},
        "AuthorityKeyId": "BwcH"}""",
}
REFUSED: dict[str, str] = {
    "unknown usage": '{"ExtKeyUsage": [14]}',
    "negative usage number": '{"ExtKeyUsage": [-1]}',
    "path without authority": '{"MaxPathLen": 1}',
    "path of zero without authority": '{"MaxPathLenZero": true}',
    "path below minus one": '{"IsCA": true, "MaxPathLen": -2}',
    "rsa signature": '{"SignatureAlgorithm": 4}',
    "ed25519 signature": '{"SignatureAlgorithm": 16}',
    "no such signature": '{"SignatureAlgorithm": 99}',
    "dns name": '{"DNSNames": ["ö.example"]}',
    "e-mail": '{"EmailAddresses": ["ö@example"]}',
    "uri": '{"URIs": [{"Scheme": "http", "Opaque": "ö"}]}',
    "constraint": '{"PermittedDNSDomains": ["ö.example"]}',
    "constraint with a dot": '{"PermittedDNSDomains": ["a.example."]}',
    "constraint with a space": '{"ExcludedDNSDomains": ["a b"]}',
    "constraint on an address": '{"PermittedURIDomains": ["192.0.2.1"]}',
    "constraint on half a mailbox": '{"PermittedEmailAddresses": ["@example"]}',
    "no address": '{"IPAddresses": [""]}',
    "same extension twice": '{"ExtraExtensions": [{"Id": [1,2,3], "Value": ""}, {"Id": [1,2,3], "Value": ""}]}',
    "short oid": '{"UnknownExtKeyUsage": [[1]]}',
    "oid out of range": '{"UnknownExtKeyUsage": [[1,40]]}',
    "no oid": '{"ExtraExtensions": [{"Value": "AAA="}]}',
    "broken usage": '{"ExtraExtensions": [{"Id": [2,5,29,15], "Value": "AAA="}]}',
    "broken names": '{"ExtraExtensions": [{"Id": [2,5,29,17], "Value": "MAE="}]}',
}


def template_of(document: str) -> CertificateTemplate:
    template = unmarshal(document.encode(), cert_shape).template
    assert template is not None
    return template


def secret(request: CertificateTemplate | bytes) -> bytes:
    return issue.issue_secret_certificate(
        parse_certificate(request) if isinstance(request, bytes) else request,
        public_key=key("leaf").public_key(),
        issuer=marble_issuer(),
        not_after=NOT_AFTER,
        at=AT,
        entropy=CountingEntropy(SERIAL),
    )


def go_secret(go: Oracle, **request: object) -> Answer:
    return ask(
        go,
        "secret",
        PublicKey=public("leaf"),
        NotAfter=NOT_AFTER,
        **request,
        **signing("intermediate", der(marble_root())),
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_secret_certificates_are_those_of_go(go: Oracle, name: str) -> None:
    theirs = go_secret(go, Template=json.loads(TEMPLATES[name]))
    assert fields(secret(template_of(TEMPLATES[name]))) == from_go(theirs)


@pytest.mark.parametrize("name", TEMPLATES)
def test_issuing_again_from_a_stored_certificate_gives_what_go_gives(go: Oracle, name: str) -> None:
    stored = secret(template_of(TEMPLATES[name]))
    assert fields(secret(stored)) == from_go(go_secret(go, Stored=stored))


@pytest.mark.parametrize("name", REFUSED)
def test_templates_that_go_refuses_are_refused(go: Oracle, name: str) -> None:
    assert not go_secret(go, Template=json.loads(REFUSED[name])).ok
    with pytest.raises(Malformed):
        secret(template_of(REFUSED[name]))


@st.composite
def cert_objects(draw: st.DrawFn) -> dict[str, object]:
    texts = st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=6), max_size=2)
    domains = st.lists(st.sampled_from(["a.example", "*.b", "", ".c", "x y", "ö"]), max_size=3)
    numbers = st.integers(-2, 3)
    return draw(
        st.fixed_dictionaries(
            {},
            optional={
                "Subject": st.fixed_dictionaries(
                    {}, optional={"Country": texts, "Organization": texts, "PostalCode": texts}
                ),
                "DNSNames": domains,
                "EmailAddresses": domains,
                "IPAddresses": st.lists(st.ip_addresses().map(str), max_size=3),
                "KeyUsage": st.integers(-600, 600),
                "ExtKeyUsage": st.lists(st.integers(-1, 14), max_size=3),
                "UnknownExtKeyUsage": st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=4), max_size=2),
                "IsCA": st.booleans(),
                "MaxPathLen": numbers,
                "MaxPathLenZero": st.booleans(),
                "SubjectKeyId": st.binary(max_size=3).map(lambda value: b64encode(value).decode()),
                "OCSPServer": texts,
                "CRLDistributionPoints": texts,
                "PermittedDNSDomains": domains,
                "ExcludedEmailAddresses": domains,
                "SignatureAlgorithm": st.sampled_from([0, 10, 11, 12, 4]),
            },
        )
    )


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(document=cert_objects())
def test_generated_templates_are_issued_or_refused_as_by_go(go: Oracle, document: dict[str, object]) -> None:
    theirs = go_secret(go, Template=document)
    try:
        ours = secret(template_of(json.dumps(document)))
    except Malformed:
        assert not theirs.ok
    else:
        assert fields(ours) == from_go(theirs)


# Requests ----------------------------------------------------------------------------------------------------------


def signed_requests() -> dict[str, bytes]:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("a")]), critical=False)
    rsa_key = rsa.generate_private_key(65537, 2048)
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    found = {
        "ed25519": builder.sign(ed25519.Ed25519PrivateKey.generate(), None),
        "rsa": builder.sign(rsa_key, hashes.SHA512()),
        "pss": builder.sign(rsa_key, hashes.SHA256(), rsa_padding=pss),
        "pss, other salt": builder.sign(
            rsa_key, hashes.SHA256(), rsa_padding=padding.PSS(padding.MGF1(hashes.SHA256()), 20)
        ),
        "koblitz": builder.sign(ec.generate_private_key(ec.SECP256K1()), hashes.SHA256()),
    }
    for curve in (ec.SECP224R1(), ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()):
        found[curve.name] = builder.sign(ec.generate_private_key(curve), hashes.SHA256())
    encoded = {name: csr.public_bytes(Encoding.DER) for name, csr in found.items()}
    encoded["sha-1"] = _sha1_request(asn1.single(encoded["secp384r1"]).content)
    return encoded


def _sha1_request(content: bytes) -> bytes:
    """The body of another request for the key that is used everywhere, signed with SHA-1."""
    parts = asn1.children(asn1.elements(content, limit=3)[0], asn1.SEQUENCE, "body")
    body = asn1.sequence(parts[0].encoded, parts[1].encoded, public("csr"), parts[3].encoded)
    signature = key("csr").sign(body, ec.ECDSA(hashes.SHA1()))
    return asn1.sequence(body, asn1.sequence(asn1.oid("1.2.840.10045.4.1")), asn1.bit_string(signature))


def is_accepted(csr: bytes) -> bool:
    try:
        parse_csr(csr)
    except (Malformed, Untrusted):
        return False
    return True


def test_requests_of_every_algorithm_are_accepted_as_by_go(go: Oracle) -> None:
    found = {name: (is_accepted(csr), ask(go, "request", CSR=csr).ok) for name, csr in signed_requests().items()}
    refused = {"koblitz", "pss, other salt"}
    assert found == {name: (name not in refused, name not in refused) for name in found}


def test_the_parts_of_a_request_are_read_as_by_go(go: Oracle) -> None:
    parsed, theirs = parse_csr(full_csr()), ask(go, "request", CSR=full_csr()).value
    subject = parsed.subject
    assert theirs == {
        "Country": list(subject.country),
        "OrganizationalUnit": list(subject.organizational_unit),
        "Locality": list(subject.locality),
        "Province": list(subject.province),
        "StreetAddress": list(subject.street_address),
        "PostalCode": list(subject.postal_code),
        "SerialNumber": subject.serial_number,
        "DNSNames": list(parsed.dns_names),
        "IPAddresses": [str(address) for address in parsed.ip_addresses],
    }


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_what_we_accept_of_changed_requests_go_accepts_too(go: Oracle, data: st.DataObject) -> None:
    csr = bytearray(full_csr())
    for _ in range(data.draw(st.integers(1, 2))):
        csr[data.draw(st.integers(0, len(csr) - 1))] = data.draw(st.integers(0, 255))
    if is_accepted(bytes(csr)):
        assert ask(go, "request", CSR=bytes(csr)).ok


# Chains ------------------------------------------------------------------------------------------------------------


def is_chain(leaf: bytes, between: list[bytes], roots: list[bytes], at: datetime, host: str, client: bool) -> bool:
    try:
        verify_chain(leaf, between, roots, at=at, usage=CLIENT_AUTH if client else SERVER_AUTH)
        if host:
            verify_host(leaf, host)
    except (Untrusted, Malformed):
        return False
    return True


HOSTS = ["", "localhost", "LOCALHOST", "localhost.", "other", "b.x.example", "x.example", "a.b.x.example", "127.0.0.1"]
HOSTS += ["::1", "[::1]", "192.0.2.9", "*.x.example", ""]


@pytest.mark.parametrize("name", ["nothing", "usages", "one usage", "constraints", "extra extensions", "names"])
@pytest.mark.parametrize("anchor", ["marble root", "intermediate", "root", "root without intermediate", "none"])
@pytest.mark.parametrize("client", [False, True])
def test_chains_are_accepted_or_refused_as_by_go(go: Oracle, name: str, anchor: str, client: bool) -> None:
    leaf = secret(template_of(TEMPLATES[name]))
    roots = {"marble root": [der(marble_root())], "intermediate": [der(intermediate())], "none": []}.get(
        anchor, [der(root())]
    )
    between = [der(intermediate())] if anchor == "root" else []
    for at in (AT, NOT_AFTER + timedelta(seconds=1), AT - timedelta(seconds=1)):
        theirs = ask(go, "verify", Leaf=leaf, Intermediates=between, Roots=roots, At=at, Client=client).ok
        assert is_chain(leaf, between, roots, at, "", client) == theirs


@pytest.mark.parametrize("host", HOSTS)
def test_hosts_match_as_by_go(go: Oracle, host: str) -> None:
    document = '{"DNSNames": ["localhost", "*.x.example", "c*.y.example", "*"]}'
    leaf, roots = secret(template_of(document)), [der(marble_root())]
    theirs = ask(go, "verify", Leaf=leaf, Roots=roots, At=AT, Host=host).ok
    assert is_chain(leaf, [], roots, AT, host, False) == theirs


def below(document: str, leaf_names: str) -> tuple[bytes, bytes]:
    """A secret that is an authority, and a certificate it issued with the given alternative names."""
    authority = issue.issue_secret_certificate(
        template_of(document),
        public_key=key("secret-ca").public_key(),
        issuer=marble_issuer(),
        not_after=NOT_AFTER,
        at=AT,
        entropy=CountingEntropy(9),
    )
    leaf = issue.issue_secret_certificate(
        template_of(leaf_names),
        public_key=key("leaf").public_key(),
        issuer=issue.Issuer.of(authority, key("secret-ca")),
        not_after=NOT_AFTER,
        at=AT,
        entropy=CountingEntropy(10),
    )
    return authority, leaf


AUTHORITIES = {
    "plain": '{"IsCA": true, "Subject": {"CommonName": "ca"}}',
    "no authority": '{"Subject": {"CommonName": "ca"}, "SubjectKeyId": "AQ=="}',
    "not for signing": '{"IsCA": true, "KeyUsage": 1, "Subject": {"CommonName": "ca"}}',
    "for clients": '{"IsCA": true, "ExtKeyUsage": [2], "Subject": {"CommonName": "ca"}}',
    "for anything": '{"IsCA": true, "ExtKeyUsage": [0], "Subject": {"CommonName": "ca"}}',
    "path of zero": '{"IsCA": true, "MaxPathLenZero": true, "Subject": {"CommonName": "ca"}}',
    "critical unknown": """{"IsCA": true, "Subject": {"CommonName": "ca"},
        "ExtraExtensions": [{"Id": [1,2,3], "Critical": true, "Value": "BQA="}]}""",
    "permitted names": '{"IsCA": true, "Subject": {"CommonName": "ca"}, "PermittedDNSDomains": ["a.example"]}',
    "permitted below": '{"IsCA": true, "Subject": {"CommonName": "ca"}, "PermittedDNSDomains": [".a.example"]}',
    "excluded names": '{"IsCA": true, "Subject": {"CommonName": "ca"}, "ExcludedDNSDomains": ["x.a.example"]}',
    "permitted network": """{"IsCA": true, "Subject": {"CommonName": "ca"},
        "PermittedIPRanges": [{"IP": "192.0.2.0", "Mask": "////AA=="}]}""",
    "excluded network": """{"IsCA": true, "Subject": {"CommonName": "ca"},
        "ExcludedIPRanges": [{"IP": "192.0.2.128", "Mask": "////gA=="}]}""",
}
LEAVES = {
    "a": '{"DNSNames": ["a.example"], "IPAddresses": []}',
    "x": '{"DNSNames": ["x.a.example"], "IPAddresses": ["192.0.2.1"]}',
    "like a": '{"DNSNames": ["ba.example"], "IPAddresses": ["192.0.2.200"]}',
    "upper": '{"DNSNames": ["X.A.EXAMPLE"], "IPAddresses": ["2001:db8::1"]}',
    "wildcard": '{"DNSNames": ["*.a.example"], "IPAddresses": ["198.51.100.1"]}',
    "nothing": '{"DNSNames": [], "IPAddresses": []}',
}


@pytest.mark.parametrize("authority", AUTHORITIES)
@pytest.mark.parametrize("leaf", LEAVES)
def test_chains_below_a_secret_authority_are_judged_as_by_go(go: Oracle, authority: str, leaf: str) -> None:
    middle, end = below(AUTHORITIES[authority], LEAVES[leaf])
    for between, roots in (([middle], [der(marble_root())]), ([middle, der(intermediate())], [der(root())])):
        theirs = ask(go, "verify", Leaf=end, Intermediates=between, Roots=roots, At=AT)
        assert is_chain(end, between, roots, AT, "", False) == theirs.ok, theirs.value
