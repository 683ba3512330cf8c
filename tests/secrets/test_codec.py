"""Secrets as JSON are what the reference writes, and what it writes is read (protocol, sections 6.6 and 7.6)."""

from __future__ import annotations

from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.coordinator.people import person

from marblerun.errors import Malformed
from marblerun.secrets.codec import decode_secret, decode_uploads, encode_secret, encode_secrets
from marblerun.secrets.model import Secret
from marblerun.secrets.upload import SecretUpload

KEY = Secret(type="symmetric-key", size=16, shared=True, private=b"\x00\xff", public=b"\x00\xff")
KEY_JSON = (
    b'{"Type":"symmetric-key","Size":16,"Shared":true,"UserDefined":false,"Cert":null,"ValidFor":0,'
    b'"Private":"AP8=","Public":"AP8="}'
)
UNSET_JSON = (
    b'{"Type":"plain","Size":0,"Shared":false,"UserDefined":true,"Cert":null,"ValidFor":0,"Private":null,"Public":null}'
)

secrets = st.builds(
    Secret,
    type=st.text(st.characters(codec="utf-8"), max_size=8),
    size=st.integers(0, 2**64 - 1),
    shared=st.booleans(),
    user_defined=st.booleans(),
    valid_for=st.integers(0, 2**64 - 1),
    certificate=st.binary(),
    private=st.binary(),
    public=st.binary(),
)


def test_a_key_is_written_as_the_reference_writes_it() -> None:
    assert encode_secret(KEY) == KEY_JSON
    assert decode_secret(KEY_JSON) == KEY


def test_an_unset_secret_has_nulls() -> None:
    """U2: reading an unset user-defined secret gives empty values, not an error."""
    unset = Secret(type="plain", user_defined=True)
    assert encode_secret(unset) == UNSET_JSON
    assert decode_secret(UNSET_JSON) == unset


@given(secrets)
def test_every_secret_is_read_back(secret: Secret) -> None:
    assert decode_secret(encode_secret(secret)) == secret


def test_several_secrets_are_sorted_by_name() -> None:
    assert encode_secrets({"b": KEY, "a<": KEY}) == b'{"a\\u003c":' + KEY_JSON + b',"b":' + KEY_JSON + b"}"
    assert encode_secrets({}) == b"{}"


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b'"x"', KEY_JSON + b"x", b'{"Size":-1}', b'{"Private":"?"}', b'{"Cert":1}', b'{"Cert":{"Raw":""}}'],
)
def test_what_is_no_secret_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_secret(data)


@given(st.binary())
def test_random_bytes_raise_only_our_errors(data: bytes) -> None:
    try:
        decode_secret(data)
        decode_uploads(data)
    except Malformed:
        return


def test_uploads_are_read_with_their_three_parts() -> None:
    certificate = b64encode(person("alice").der)
    data = b'{"a":{"Key":"AQ=="},"b":{"cert":"%b","PRIVATE":"Ag=="},"c":{"Cert":null,"Key":""},"d":null}' % certificate
    assert decode_uploads(data) == {
        "a": SecretUpload(key=b"\x01"),
        "b": SecretUpload(certificate=person("alice").der, private=b"\x02"),
        "c": SecretUpload(),
        "d": SecretUpload(),
    }


def test_only_a_stream_may_have_something_after_it() -> None:
    data = b'{"a":{"Key":"AQ=="}} trailing'
    assert decode_uploads(data, stream=True) == {"a": SecretUpload(key=b"\x01")}
    with pytest.raises(Malformed):
        decode_uploads(data)


@pytest.mark.parametrize("data", [b"{}", b"null"])
def test_an_empty_upload_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_uploads(data)


@pytest.mark.parametrize("cert", [b'"?"', b"{}", b'{"Subject":{"CommonName":"x"}}', b"null"])
def test_a_certificate_that_is_not_base64_or_an_object_counts_as_none(cert: bytes) -> None:
    """Protocol, sections 5.5 and 6.6: an object is a certificate without DER."""
    assert decode_uploads(b'{"a":{"Cert":%b}}' % cert) == {"a": SecretUpload()}
    kept = b'{"a":{"Cert":"%b","cert":%b}}' % (b64encode(person("alice").der), cert)
    assert decode_uploads(kept) == {"a": SecretUpload(certificate=person("alice").der)}


@pytest.mark.parametrize("cert", [b'""', b'"MAA="', b'"AA=="', b"5", b"true", b"[]"])
def test_base64_of_something_else_is_no_upload_even_where_a_certificate_follows_or_none_is_needed(cert: bytes) -> None:
    """Protocol, section 5.5: also the empty string; the reference finds it while it decodes."""
    certificate = b64encode(person("alice").der)
    for body in (
        b'{"a":{"Key":"AQ==","Cert":%b}}' % cert,
        b'{"a":{"Cert":%b,"Cert":"%b"}}' % (cert, certificate),
        b'{"a":{"Cert":%b},"a":{"Cert":"%b"}}' % (cert, certificate),
    ):
        with pytest.raises(Malformed):
            decode_uploads(body)
