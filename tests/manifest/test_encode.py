"""What is written for the sealed state reads back as the same value, in the reference's field names."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from marblerun.manifest import encode, parse
from marblerun.manifest.model import File, Infrastructure, Marble, Package, Parameters, TdxIdentity, TlsEntry, TlsTag

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_texts = st.lists(_text, max_size=3).map(tuple)
_uint = st.integers(0, 2**64 - 1)
tds = st.builds(
    TdxIdentity, _text, st.tuples(_text, _text, _text, _text), *[_text] * 9, st.none() | st.integers(0, 255)
)
packages = st.builds(
    Package, st.booleans(), _text, _text, st.none() | _uint, st.none() | _uint, _texts, _texts, st.none() | tds
)
infrastructures = st.builds(
    Infrastructure,
    st.binary(max_size=16),
    *[st.none() | st.integers(0, 2**16 - 1)] * 2,
    st.binary(max_size=8),
    *[st.none() | _texts] * 3,
    st.none() | st.integers(0, 2**32 - 1),
)
files = st.one_of(
    st.builds(
        lambda text, name, flag: File(text.encode(), name, flag),
        _text,
        st.sampled_from(["", "string", "STRING"]),
        st.booleans(),
    ),
    st.builds(File, st.binary(max_size=8), st.sampled_from(["hex", "Base64", "HEX", "base64"]), st.booleans()),
)
_files = st.dictionaries(_text, files, max_size=3)
_names = st.none() | _texts
_parameters = st.builds(Parameters, _files, _files, _texts)
marbles = st.builds(Marble, _text, _uint, _parameters, _texts, st.booleans(), _names, _names)
_entries = st.lists(st.builds(TlsEntry, _text, _text, _text, st.booleans()), max_size=3).map(tuple)
tags = st.builds(TlsTag, _entries, _entries)


@given(packages)
def test_a_package_reads_back(package: Package) -> None:
    assert parse.parse_package(encode.encode_package(package)) == package


@given(infrastructures)
def test_an_infrastructure_reads_back(infrastructure: Infrastructure) -> None:
    assert parse.parse_infrastructure(encode.encode_infrastructure(infrastructure)) == infrastructure


@given(marbles)
def test_m1_a_marble_reads_back_with_every_file_in_its_own_encoding(marble: Marble) -> None:
    assert parse.parse_marble(encode.encode_marble(marble)) == marble


@given(tags)
def test_a_tls_tag_reads_back(tag: TlsTag) -> None:
    assert parse.parse_tls_tag(encode.encode_tls_tag(tag)) == tag


def test_the_text_is_what_the_reference_stores() -> None:
    marble = Marble("p", 1, Parameters({"/f": File(b"hi", "HEX")}, {}, ("a",)), (), True)
    assert encode.encode_marble(marble) == (
        b'{"Package":"p","MaxActivations":1,"Parameters":{"Files":{"/f":{"Data":"6869","Encoding":"HEX",'
        b'"NoTemplates":false}},"Env":null,"Argv":["a"]},"TLS":null,"DisableSecretBinding":true}'
    )
    ours = encode.encode_marble(Marble(allowed_dns_names=("*.a",), allowed_ips=()))
    assert ours.endswith(b'"DisableSecretBinding":false,"AllowedDNSNames":["*.a"],"AllowedIPs":[]}')
    assert encode.encode_package(Package(signer_id="ab", product_id=3)) == (
        b'{"Debug":false,"UniqueID":"","SignerID":"ab","ProductID":3,"SecurityVersion":null,'
        b'"AcceptedTCBStatuses":null,"AcceptedAdvisories":null}'
    )
    assert encode.encode_infrastructure(Infrastructure(b"\x01", 2)) == (
        b'{"CPUSVN":"AQ==","QESVN":2,"PCESVN":null,"RootCA":null}'
    )
    assert encode.encode_tls_tag(TlsTag(outgoing=(TlsEntry("1", "a"),))) == (
        b'{"Outgoing":[{"Port":"1","Addr":"a","Cert":"","DisableClientAuth":false}],"Incoming":null}'
    )
