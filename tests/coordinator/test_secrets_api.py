"""Reading and writing secrets as a user: only what the roles say, and only values that will work."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterator

import pytest
from tests.coordinator.manifests import encode
from tests.coordinator.people import ADMIN, Answer, ask, office, person
from tests.coordinator.running import Running, World, running
from tests.coordinator.states import AT, INPUTS, deployed, fresh

from marblerun.coordinator.commands.caller import Unauthorized
from marblerun.coordinator.commands.read_secrets import read_secrets
from marblerun.coordinator.commands.write_secrets import write_secrets
from marblerun.coordinator.state import State
from marblerun.coordinator.store.entries import decode_state, encode_state
from marblerun.errors import Denied, Malformed, MarbleRunError, NotFound
from marblerun.secrets.model import Secret
from marblerun.secrets.upload import SecretUpload

USERS = {"admin": ADMIN, "reader": ("reader",), "writer": ("writer",)}
MANIFEST = encode(office(USERS))
CANARY = b"canary-secret-77"


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _state(manifest: bytes = MANIFEST) -> State:
    return deployed(manifest)


def _write(state: State, who: str = "admin", **uploads: SecretUpload) -> State:
    return write_secrets(state, person(who).der, uploads, INPUTS).state


def _read(state: State, *names: str, who: str = "admin") -> dict[str, Secret]:
    return dict(read_secrets(state, person(who).der, names).reply)


# -- the commands ------------------------------------------------------------------------------------------------


def test_u1_secrets_are_read_with_the_permission_for_all_of_them() -> None:
    """U1."""
    state = _state()
    assert state.deployment is not None
    assert _read(state, "sharedKey", "sharedCert") == {
        name: state.deployment.secrets[name] for name in ("sharedKey", "sharedCert")
    }


@pytest.mark.parametrize(
    ("who", "names", "error"),
    [
        ("reader", ("sharedKey", "privateKey"), Denied),
        ("reader", ("sharedKey", "no such secret"), Denied),
        ("writer", ("userKey",), Denied),
        ("stranger", ("sharedKey",), Unauthorized),
        ("reader", (), Malformed),
    ],
)
def test_u1_reading_anything_else_is_refused(who: str, names: tuple[str, ...], error: type[MarbleRunError]) -> None:
    """U1: one name without permission spoils the request; whether the name exists makes no difference."""
    with pytest.raises(error):
        _read(_state(), *names, who=who)


def test_u1_reading_before_a_manifest_is_set_is_refused() -> None:
    """U1."""
    with pytest.raises(Unauthorized):
        _read(fresh(), "sharedKey")


def test_a_refusal_is_the_same_for_a_secret_that_exists_and_one_that_does_not() -> None:
    def refusal(name: str) -> str:
        with pytest.raises(Denied) as caught:
            _read(_state(), name, who="reader")
        return str(caught.value).replace(name, "NAME")

    assert refusal("privateKey") == refusal("nothing")


def test_u2_an_unset_secret_is_read_as_empty_values() -> None:
    """U2."""
    assert _read(_state(), "userKey") == {"userKey": Secret("symmetric-key", 128, user_defined=True)}


def test_u3_symmetric_key_certificate_and_plain_value_are_stored() -> None:
    """U3; all of them in one request, with one line of the log each."""
    alice = person("alice")
    state = _write(
        _state(),
        userKey=SecretUpload(key=bytes(16)),
        userPlain=SecretUpload(key=b"text"),
        userCert=SecretUpload(certificate=alice.der, private=alice.key_pkcs8),
    )
    found = _read(state, "userKey", "userPlain", "userCert")
    assert (found["userKey"].private, found["userKey"].public) == (bytes(16), bytes(16))
    assert (found["userPlain"].private, found["userPlain"].public) == (b"text", b"text")
    assert (found["userCert"].certificate, found["userCert"].private) == (alice.der, alice.key_pkcs8)
    lines = [json.loads(line) for line in state.update_log.splitlines()[1:]]
    assert [list(line) for line in lines] == [["time", "update", "user", "secret", "type"]] * 3
    assert [(line["user"], line["secret"], line["type"]) for line in lines] == [
        ("admin", "userCert", "cert-ecdsa"),
        ("admin", "userKey", "symmetric-key"),
        ("admin", "userPlain", "plain"),
    ]
    assert lines[0]["time"] == f"{AT:%Y-%m-%dT%H:%M:%S}.123Z"
    assert decode_state(encode_state(state)).deployment == state.deployment


def test_u3_only_the_current_value_is_written_and_the_previous_entry_stays_empty() -> None:
    """Protocol, section 6.7."""
    state = _write(_state(), userKey=SecretUpload(key=bytes(16)))
    assert state.deployment is not None
    assert state.deployment.previous_secrets["userKey"].private == b""


@pytest.mark.parametrize(
    ("uploads", "text"),
    [
        ({"userKey": SecretUpload(key=bytes(15))}, "declared size and actual size don't match"),
        ({"userKey": SecretUpload(key=bytes(16), private=b"x")}, "userKey"),
        ({"userCert": SecretUpload(key=bytes(16))}, "userCert"),
        ({"userCert": SecretUpload(private=b"x")}, "Cert is missing"),
        ({"userPlain": SecretUpload(certificate=b"x")}, "userPlain"),
        ({"userPlain": SecretUpload(key=b"a\0b")}, "Marbles.plain.Parameters.Env"),
        ({"userKey": SecretUpload(key=bytes(16)), "userPlain": SecretUpload(key=b"\0")}, "NUL"),
    ],
)
def test_u3_values_that_do_not_fit_or_break_a_template_are_refused_and_nothing_is_stored(
    uploads: dict[str, SecretUpload], text: str
) -> None:
    """U3, E12; the template of Marble 'plain' uses ``string``, which cannot take a NUL byte."""
    with pytest.raises(Malformed) as caught:
        write_secrets(_state(), person("admin").der, uploads, INPUTS)
    assert text in str(caught.value)


def test_u3_the_permission_is_looked_at_before_anything_about_the_secret_is_told() -> None:
    """Protocol, section 12.1, no. 14: definitions cannot be probed."""
    for upload in (SecretUpload(key=bytes(15)), SecretUpload(key=bytes(16)), SecretUpload(certificate=b"x")):
        with pytest.raises(Denied):
            _write(_state(), "reader", userKey=upload)
    with pytest.raises(Denied):
        _write(_state(), "writer", userKey=SecretUpload(key=bytes(16)), sharedKey=SecretUpload(key=bytes(16)))


def test_an_upload_that_was_decided_without_a_permission_for_the_name_is_not_even_told_that_it_exists() -> None:
    with pytest.raises(Denied):
        _write(_state(), "writer", nothing=SecretUpload(key=b"x"))


def test_a_secret_that_the_roles_name_and_the_state_lost_is_not_found() -> None:
    """U1: a missing secret."""
    state = _state()
    entries = {key: value for key, value in encode_state(state).items() if key != "secret:userKey"}
    with pytest.raises(NotFound):
        _read(decode_state(entries), "userKey")
    with pytest.raises(NotFound):
        _write(decode_state(entries), userKey=SecretUpload(key=bytes(16)))


# -- over HTTP ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def up() -> Iterator[Running]:
    with running(manifest=MANIFEST) as started:
        yield started


def _ask(up: Running, method: str, path: str, body: object = None, who: str = "admin") -> Answer:
    return ask(up.client, method, path, body, by=person(who))


@pytest.mark.parametrize("query", ["", "?", "?s", "?s=", "?s=sharedKey&s=", "?S=sharedKey", "?s=a;b"])
def test_reading_without_a_name_is_a_bad_request(up: Running, query: str) -> None:
    """Protocol, section 7.4."""
    answer = _ask(up, "GET", f"/api/v2/secrets{query}")
    assert (answer.status, answer.envelope["status"]) == (400, "fail")
    answer = _ask(up, "GET", f"/secrets{query}")
    assert (answer.status, answer.envelope["status"]) == (400, "error")


def test_u2_an_unset_secret_has_nulls_on_the_wire(up: Running) -> None:
    """U2; protocol, section 7.6: every field is there."""
    unset = {
        "Type": "cert-ecdsa",
        "Size": 256,
        "Shared": False,
        "UserDefined": True,
        "Cert": None,
        "ValidFor": 0,
        "Private": None,
        "Public": None,
    }
    assert _ask(up, "GET", "/api/v2/secrets?s=userCert").data == {"secrets": {"userCert": unset}}
    assert _ask(up, "GET", "/secrets?s=userCert").data == {"userCert": unset}


def test_u6_values_set_by_one_version_are_read_by_the_other(up: Running) -> None:
    """U6; names repeat in the query, what follows the first JSON value is ignored in version 2 only."""
    key, text = bytes(range(16)), b"text"
    body = json.dumps({"secrets": {"userKey": {"Key": _b64(key)}}}).encode() + b" trailing"
    answer = ask(up.client, "POST", "/api/v2/secrets", body, by=person("writer"))
    assert (answer.status, answer.body) == (200, b'{"status":"success","data":null}\n')
    assert _ask(up, "POST", "/secrets", {"userPlain": {"Key": _b64(text)}}, "writer").status == 200
    assert _ask(up, "POST", "/secrets", b'{"userPlain":{"Key":"YQ=="}} trailing', "writer").status == 400
    for path in ("/api/v2/secrets", "/secrets"):
        data = _ask(up, "GET", f"{path}?s=userKey&s=userPlain&s=userKey").data
        found = data["secrets"] if path.startswith("/api") else data
        assert {name: secret["Private"] for name, secret in found.items()} == {
            "userKey": _b64(key),
            "userPlain": _b64(text),
        }


@pytest.mark.parametrize(
    ("body", "v2", "v1"),
    [
        (b"", 400, 400),
        (b"{", 400, 400),
        (b"[]", 400, 400),
        (b'"x"', 400, 400),
        (b"{}", 500, 400),
        (b"null", 500, 400),
    ],
)
def test_bodies_that_are_no_upload_are_refused(up: Running, body: bytes, v2: int, v1: int) -> None:
    """An empty upload is the operation's failure in version 2, as in the reference."""
    assert _ask(up, "POST", "/api/v2/secrets", body, "writer").status == v2
    assert _ask(up, "POST", "/secrets", body, "writer").status == v1


@pytest.mark.parametrize("cert", ["", "MAA=", 5])
def test_a_certificate_that_is_none_is_a_body_that_cannot_be_read(up: Running, cert: object) -> None:
    """Protocol, sections 5.5 and 6.6: a client mistake in version 2, although the secret needs no certificate."""
    entries = {"userPlain": {"Key": "YQ==", "Cert": cert}}
    refused = _ask(up, "POST", "/api/v2/secrets", {"secrets": entries}, "writer")
    assert (refused.status, refused.envelope["status"]) == (400, "fail")
    assert _ask(up, "POST", "/secrets", entries, "writer").status == 400


def test_e12_a_wrong_size_is_told_with_the_fixed_text(up: Running) -> None:
    """E12."""
    upload = {"userKey": {"Key": _b64(b"short")}}
    for path, body, status in (("/api/v2/secrets", {"secrets": upload}, 500), ("/secrets", upload, 400)):
        answer = _ask(up, "POST", path, body)
        assert (answer.status, answer.envelope["status"]) == (status, "error")
        assert "declared size and actual size don't match" in answer.message


def test_u7_the_update_log_is_readable_by_everybody(up: Running) -> None:
    """U7; protocol, section 7.10."""
    lines = ask(up.client, "GET", "/api/v2/update").data["updateLog"]
    text = ask(up.client, "GET", "/update").data
    assert "".join(f"{line}\n" for line in lines) == text
    assert json.loads(lines[0]).keys() == {"time", "update"}


def test_the_update_log_needs_a_manifest(waiting: Running) -> None:
    for path in ("/api/v2/update", "/update"):
        answer = ask(waiting.client, "GET", path)
        assert (answer.status, answer.envelope["status"]) == (500, "error")
        assert "server is not in expected state" in answer.message


def test_uploaded_values_survive_a_restart_and_never_reach_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """E4, threats: canary secrets appear in no log at any level."""
    world = World()
    upload = {"secrets": {"userKey": {"Key": _b64(CANARY)}}}
    with caplog.at_level(logging.DEBUG):
        with running(world, manifest=MANIFEST) as up:
            assert _ask(up, "POST", "/api/v2/secrets", upload).status == 200
            assert _ask(up, "GET", "/api/v2/secrets?s=userKey").status == 200
            bad = {"secrets": {"userKey": {"Key": _b64(CANARY + b"x")}}}
            assert CANARY.decode() not in _ask(up, "POST", "/api/v2/secrets", bad).message
        with running(world) as again:
            found = _ask(again, "GET", "/api/v2/secrets?s=userKey").data["secrets"]
    assert found["userKey"]["Private"] == _b64(CANARY)
    everything = "\n".join(f"{record.getMessage()} {record.__dict__.get('fields')}" for record in caplog.records)
    assert "secrets set" in everything
    for form in (CANARY.decode(), _b64(CANARY), CANARY.hex()):
        assert form not in everything
