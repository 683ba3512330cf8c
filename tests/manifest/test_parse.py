"""Every manifest that Go's decoder accepts loads and means the same, every other one is refused (protocol, 5.1-5.5)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.go.oracle import Oracle, running
from tests.manifest import golden, json_documents
from tests.manifest.keys import certificate_der

from marblerun.errors import Malformed
from marblerun.manifest.model import Config, File, Infrastructure, Manifest, Marble, Package, Parameters
from marblerun.manifest.parse import (
    parse_infrastructure,
    parse_manifest,
    parse_marble,
    parse_package,
    parse_secret_definition,
    parse_tls_tag,
)
from marblerun.pki.profiles import CertificateTemplate, Name
from marblerun.secrets.codec import decode_secret, encode_secret
from marblerun.secrets.model import Secret
from marblerun.wire import limits
from marblerun.wire.gojson import BadJson

GOLDEN = [(text, answer) for mode, text, answer in golden.load() if mode == "manifest"]


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    with running("jsondiff", tmp_path_factory.mktemp("go")) as program:
        if program is None:
            pytest.skip("Go is not installed: no differential test, only the golden file")
        yield program


@pytest.mark.parametrize(("text", "answer"), GOLDEN, ids=lambda value: str(value)[:60])
def test_documents_read_as_go_reads_them(text: bytes, answer: object) -> None:
    assert golden.ours("manifest", text) == answer


_sections = json_documents.sections()
_deep = st.one_of(
    json_documents.documents,
    st.sampled_from(sorted(_sections)).flatmap(
        lambda name: _sections[name].map(lambda text: f'{{"{name}":{text}}}'.encode())
    ),
    json_documents.certificates.map(lambda text: f'{{"Secrets":{{"s":{{"Cert":{text}}}}}}}'.encode()),
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(_deep)
def test_random_documents_read_as_go_reads_them(oracle: Oracle, document: bytes) -> None:
    assert golden.theirs(oracle, "manifest", document) == golden.ours("manifest", document)


def test_m1_a_file_may_be_a_string_or_an_object_in_three_encodings() -> None:
    files = (
        parse_marble(
            b"""{"Parameters": {"Files": {
            "/plain": "{{ hex .Secrets.a }}",
            "/object": {"Data": "{{ hex .Secrets.a }}", "NoTemplates": true},
            "/base64": {"Data": "aGVsbG8=", "Encoding": "Base64"},
            "/hex": {"Data": "68656C6c6f", "Encoding": "hex"}}}}"""
        )
    ).parameters.files
    assert files == {
        "/plain": File(b"{{ hex .Secrets.a }}", "string", False),
        "/object": File(b"{{ hex .Secrets.a }}", "", True),
        "/base64": File(b"hello", "Base64", False),
        "/hex": File(b"hello", "hex", False),
    }


def test_every_section_arrives_in_the_model() -> None:
    manifest = parse_manifest(
        b"""{"Packages": {"p": {"UniqueID": "ab", "AcceptedAdvisories": ["INTEL-SA-00001"]}},
        "Infrastructures": {"i": {"CPUSVN": [1, 2], "QESVN": 3, "RootCA": "AQ=="}},
        "Marbles": {"m": {"Package": "p", "MaxActivations": 2, "TLS": ["t"], "Parameters": {"Argv": ["x"]}}},
        "Config": {"SealMode": "Disabled", "FeatureGates": ["SignQuoteEndpoint"], "UpdateThreshold": 1}}"""
    )
    assert manifest == Manifest(
        packages={"p": Package(unique_id="ab", accepted_advisories=("INTEL-SA-00001",))},
        infrastructures={"i": Infrastructure(cpu_svn=b"\x01\x02", qe_svn=3, root_ca=b"\x01")},
        marbles={"m": Marble("p", 2, Parameters(argv=("x",)), ("t",))},
        config=Config("Disabled", ("SignQuoteEndpoint",), update_threshold=1),
    )


def test_a_certificate_template_keeps_absent_and_empty_lists_apart() -> None:
    definition = parse_secret_definition(
        b"""{"Type": "cert-rsa", "Cert": {"Subject": {"CommonName": "x"}, "DNSNames": [], "IPAddresses": ["::1"],
        "URIs": [{"Scheme": "https", "Host": "h", "Path": "/a b"}], "NotAfter": "2030-01-01T01:00:00+01:00",
        "PermittedIPRanges": [{"IP": "10.1.2.3", "Mask": "/wAAAA=="}], "Policies": ["1.02.3"],
        "ExtraExtensions": [{"Id": [1, 2, 3], "Value": "AQ=="}]}}"""
    )
    assert definition.template == CertificateTemplate(
        subject=Name(common_name="x"),
        dns_names=(),
        ip_addresses=("::1",),
        uris=("https://h/a%20b",),
        not_after=datetime(2030, 1, 1, tzinfo=UTC),
        permitted_ip_ranges=("10.1.2.3/8",),
        policies=("1.2.3",),
        extra_extensions=(("1.2.3", False, b"\x01"),),
    )
    assert definition.template.email_addresses is None


def test_a_certificate_in_base64_is_kept_and_invalid_base64_is_no_certificate() -> None:
    assert parse_secret_definition(b'{"Cert": "not base64"}').certificate is None
    with pytest.raises(Malformed, match="base64 of a certificate"):
        parse_secret_definition(b'{"Cert": ""}')


def test_m6_a_certificate_in_json_reads_back_as_the_same_bytes() -> None:
    """M6: as a stored secret has it, and as a manifest may have it."""
    der = certificate_der("alice")
    stored = encode_secret(Secret(type="cert-rsa", certificate=der))
    assert decode_secret(stored).certificate == der
    assert parse_secret_definition(stored).certificate == der
    assert encode_secret(decode_secret(stored)) == stored


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        (b'{"Marbles":{"m":{"Parameters":{"Files":{"/f":null}}}}}', "Marbles.m.Parameters.Files./f", "found null"),
        (b'{"Marbles":{"m":{"Parameters":{"Env":{"E":{"Encoding":"utf8"}}}}}}', "Marbles.m.Parameters.Env.E", "utf8"),
        (b'{"Secrets":{"s":{"Cert":{"NotAfter":"tomorrow"}}}}', "Secrets.s.Cert.NotAfter", "RFC 3339"),
        (b'{"Secrets":{"s":{"Cert":{"URIs":["https://x"]}}}}', "Secrets.s.Cert.URIs[0]", "expected an object"),
        (b'{"Infrastructures":{"i":{"CPUSVN":[1,256]}}}', "Infrastructures.i.CPUSVN[1]", "from 0 to 255"),
    ],
)
def test_a_refusal_names_the_place_and_what_was_expected(text: bytes, where: str, says: str) -> None:
    with pytest.raises(BadJson, match=says) as caught:
        parse_manifest(text)
    assert caught.value.where == where


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (b"{}", None),
        (b'{"AllowedDNSNames": null}', None),
        (b'{"AllowedDNSNames": []}', ()),
        (b'{"alloweddnsnames": ["a", "*.b"]}', ("a", "*.b")),
        (b'{"AllowedDNSNames": ["a"], "AllowedDNSNames": null}', None),
    ],
)
def test_a_list_of_names_that_is_not_there_is_not_an_empty_one(text: bytes, names: tuple[str, ...] | None) -> None:
    assert parse_marble(text).allowed_dns_names == names
    assert parse_marble(text.replace(b"DNSNames", b"IPs").replace(b"dnsnames", b"ips")).allowed_ips == names


def test_a_manifest_above_the_limit_is_refused_unread() -> None:
    with pytest.raises(Malformed, match="larger than"):
        parse_manifest(b" " * (limits.MAX_MANIFEST_BYTES + 1))


@pytest.mark.parametrize("parse", [parse_package, parse_infrastructure, parse_marble, parse_tls_tag])
def test_stored_entities_refuse_what_is_no_object(parse: object) -> None:
    assert callable(parse)
    with pytest.raises(Malformed):
        parse(b"[]")


@settings(max_examples=100, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda x: st.lists(x) | st.dictionaries(st.sampled_from(["Packages", "a", "Cert", "Files"]), x),
    )
)
def test_any_json_is_read_or_refused_but_never_crashes(value: object) -> None:
    try:
        result: object = parse_manifest(json.dumps(value).encode())
    except Malformed as error:
        result = str(error)
    assert result
