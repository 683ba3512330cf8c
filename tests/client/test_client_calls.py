"""Every call of the API: what is sent, what is read, both versions, and which error each refusal becomes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
from collections.abc import Callable, Generator
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client.coordinators import Answer, FakeCoordinator, failure, mint, serving, success

from marblerun.client import (
    AsyncClient,
    Client,
    ManifestView,
    PendingUpdate,
    PinnedRoot,
    RecoveryKey,
    RecoveryReply,
    Secrets,
    SignedQuote,
    Status,
    UpdateReply,
    UserSecret,
    calls,
)
from marblerun.client.problems import (
    AlreadyPending,
    ApiError,
    BadRequest,
    Forbidden,
    Gone,
    NoManifest,
    NotAllowed,
    NothingThere,
    NotInThisState,
    NotOffered,
    Overloaded,
    Unauthorized,
)
from marblerun.client.rest import Reply, Request, read
from marblerun.errors import Conflict, Denied, Malformed, MarbleRunError, NotFound, Unavailable, WrongPhase
from marblerun.secrets.model import Secret

MANIFEST = b'{"Packages": {}}'
FINGERPRINT = sha256(MANIFEST).hexdigest()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def play(conversation: Generator[Request, Reply, object], *answers: Answer) -> tuple[object, list[Request]]:
    """The result of a conversation with these answers, and what it asked."""
    asked = [next(conversation)]
    for status, body in answers:
        try:
            asked.append(conversation.send(Reply(status, body, "https://c" + asked[-1].path)))
        except StopIteration as end:
            return end.value, asked
    raise AssertionError(f"still asks: {asked[-1]}")


UNKNOWN = failure(405, "")
SECRET_JSON = {
    "Type": "symmetric-key", "Size": 128, "Shared": True, "UserDefined": False, "Cert": None, "ValidFor": 0,
    "Private": b64(b"k"), "Public": b64(b"k"),
}  # fmt: skip
SECRET = Secret("symmetric-key", 128, True, False, 0, b"", b"k", b"k")
UPDATE = {"missingAcknowledgments": 2, "missingUsers": ["bob", "carol"], "recoverySecrets": {"r": b64(b"1")}}
UPDATE_REPLY = UpdateReply(2, ("bob", "carol"), {"r": b"1"})

V2: list[tuple[Generator[Request, Reply, object], object, object]] = [
    (calls.status(), {"code": 2, "message": "m", "evidence": "simulated"}, Status(2, "m", "simulated")),
    (
        calls.manifest_get(),
        {"manifest": b64(MANIFEST), "manifestFingerprint": FINGERPRINT, "manifestSignatureRootECDSA": b64(b"s")},
        ManifestView(MANIFEST, FINGERPRINT, b"s"),
    ),
    (calls.manifest_set(MANIFEST), {"RecoverySecrets": {"r": b64(b"1")}}, {"r": b"1"}),
    (calls.manifest_set(MANIFEST), {"RecoverySecrets": {}}, {}),
    (calls.manifest_log(), {"updateLog": ["{}\n", "{}"]}, ("{}", "{}")),
    (calls.update_apply(MANIFEST), UPDATE, UPDATE_REPLY),
    (calls.update_apply(MANIFEST), {"missingAcknowledgments": 0, "missingUsers": None}, UpdateReply()),
    (calls.update_apply(MANIFEST), {"recoverySecrets": {}}, UpdateReply(recovery_secrets={})),
    (
        calls.update_get(),
        {"manifest": b64(MANIFEST), "message": "m", "missingUsers": ["bob"]},
        PendingUpdate(MANIFEST, ("bob",), "m"),
    ),
    (calls.update_acknowledge(MANIFEST), {**UPDATE, "message": "m"}, replace(UPDATE_REPLY, message="m")),
    (calls.update_cancel(), {"message": "gone"}, "gone"),
    (calls.secrets_set({"s": UserSecret(key=b"k")}), None, None),
    (calls.recover(b"s", b"g"), {"remaining": 1, "message": "m"}, RecoveryReply(1, "m")),
    (calls.recovery_public_key(), {"algorithm": "RSA", "ephemeralPublicKey": b64(b"p")}, RecoveryKey("RSA", b"p")),
    (
        calls.sign_quote(b"q"),
        {"tcbStatus": "UpToDate", "verificationSignature": b64(b"s")},
        SignedQuote("UpToDate", b"s"),
    ),
    (calls.monotonic_counter("c", 2**60), {"value": 2**63}, 2**63),
]  # fmt: skip


@pytest.mark.parametrize(("conversation", "data", "expected"), V2)
def test_version_2_is_asked_first_and_read(
    conversation: Generator[Request, Reply, object], data: object, expected: object
) -> None:
    found, asked = play(conversation, success(data))
    assert found == expected
    assert [request.path.startswith("/api/v2/") for request in asked] == [True]


V1: list[tuple[Generator[Request, Reply, object], object, str, object]] = [
    (calls.status(), {"StatusCode": 3, "StatusMessage": "m"}, "GET /status", Status(3, "m")),
    (
        calls.manifest_get(),
        {"Manifest": b64(MANIFEST), "ManifestSignature": FINGERPRINT, "ManifestSignatureRootECDSA": b64(b"s")},
        "GET /manifest",
        ManifestView(MANIFEST, FINGERPRINT, b"s"),
    ),
    (calls.manifest_get(), {"Manifest": None, "ManifestSignature": ""}, "GET /manifest", ManifestView(b"", "", b"")),
    (calls.manifest_set(MANIFEST), None, "POST /manifest", {}),
    (calls.manifest_set(MANIFEST), {"RecoverySecrets": {"r": b64(b"1")}}, "POST /manifest", {"r": b"1"}),
    (calls.manifest_log(), "{}\n{}\n", "GET /update", ("{}", "{}")),
    (calls.update_apply(MANIFEST), None, "POST /update", UpdateReply()),
    (calls.update_get(), {"manifest": b64(MANIFEST)}, "GET /update-manifest", PendingUpdate(MANIFEST, ())),
    (calls.update_acknowledge(MANIFEST), "All done", "POST /update-manifest", UpdateReply(message="All done")),
    (calls.update_acknowledge(MANIFEST), "2 more", "POST /update-manifest", UpdateReply(2, message="2 more")),
    (calls.update_cancel(), "gone", "POST /update-cancel", "gone"),
    (calls.secrets_set({"s": UserSecret(key=b"k")}), None, "POST /secrets", None),
]


@pytest.mark.parametrize(("conversation", "data", "second", "expected"), V1)
def test_405_leads_to_version_1(
    conversation: Generator[Request, Reply, object], data: object, second: str, expected: object
) -> None:
    found, asked = play(conversation, UNKNOWN, success(data))
    assert found == expected
    assert f"{asked[1].method} {asked[1].path}" == second


def test_secrets_are_read_in_both_versions() -> None:
    for answers in ([success({"secrets": {"s": SECRET_JSON}})], [UNKNOWN, success({"s": SECRET_JSON})]):
        found, asked = play(calls.secrets_get(["s", "t"]), *answers)
        assert isinstance(found, Secrets)
        assert (found.values, found.document) == ({"s": SECRET}, {"s": SECRET_JSON})
        assert asked[-1].query == (("s", "s"), ("s", "t"))


def test_manifests_go_out_byte_for_byte() -> None:
    """In base64 inside JSON in version 2, as they are in version 1."""
    for make in (calls.manifest_set, calls.update_apply, calls.update_acknowledge):
        _, asked = play(make(MANIFEST), UNKNOWN, success("All" if make is calls.update_acknowledge else None))
        assert json.loads(asked[0].body or b"") == {"manifest": b64(MANIFEST)}
        assert (asked[1].body, asked[1].content_type) == (MANIFEST, "text/plain")


def test_no_other_status_than_405_leads_to_version_1() -> None:
    for status in (400, 401, 403, 404, 500):
        with pytest.raises(ApiError):
            play(calls.status(), failure(status, "no"), success({"StatusCode": 3}))


def test_an_empty_body_is_an_old_coordinators_way_to_say_that_an_update_is_in_force() -> None:
    assert play(calls.update_apply(MANIFEST), (200, b""))[0] == UpdateReply()


def test_a_fingerprint_that_is_not_of_the_manifest_is_refused() -> None:
    with pytest.raises(Malformed):
        play(calls.manifest_get(), success({"manifest": b64(MANIFEST), "manifestFingerprint": "00" * 32}))


STATUSES: list[tuple[int, str, type[ApiError], type[MarbleRunError]]] = [
    (400, "bad", BadRequest, Malformed),
    (401, "unauthorized user: nobody", Unauthorized, Denied),
    (403, "feature off", Forbidden, Denied),
    (404, "no update in progress", NothingThere, NotFound),
    (405, "", NotOffered, MarbleRunError),
    (410, "use v2", Gone, MarbleRunError),
    (429, "slow down", Overloaded, Unavailable),
    (500, "server is not in expected state", NotInThisState, WrongPhase),
    (500, "no manifest is set", NoManifest, WrongPhase),
    (500, "user bob is not allowed to read secrets: no permission for key", NotAllowed, Denied),
    (400, "user bob is not allowed to read secrets: no permission for key", NotAllowed, Denied),
    (500, "update already in progress: it has to be acknowledged or cancelled first", AlreadyPending, Conflict),
    (500, "it failed", ApiError, MarbleRunError),
    (503, "later", Overloaded, Unavailable),
]


@pytest.mark.parametrize(("status", "message", "kind", "base"), STATUSES)
def test_each_status_has_its_error(status: int, message: str, kind: type[ApiError], base: type[MarbleRunError]) -> None:
    with pytest.raises(MarbleRunError) as caught:
        read(Request("GET", "/x"), Reply(status, failure(status, message)[1], "https://c/x"))
    error = caught.value
    assert type(error) is kind
    assert isinstance(error, base)
    assert isinstance(error, ApiError)
    assert (error.status, error.url) == (status, "https://c/x")
    assert message in str(error)


def test_401_says_that_it_is_about_the_user() -> None:
    with pytest.raises(Unauthorized, match="authorizing user: unauthorized user"):
        read(Request("GET", "/x"), Reply(401, failure(401, "unauthorized user: x")[1], "u"))


def test_the_text_of_a_fail_answer_is_found_in_its_data() -> None:
    body = json.dumps({"status": "fail", "data": {"sgxQuote": "does not verify"}}).encode()
    with pytest.raises(BadRequest, match="does not verify"):
        read(Request("POST", "/x"), Reply(400, body))


def test_a_servers_message_cannot_command_the_terminal() -> None:
    body = failure(500, "\x1b[2J\x1b]0;owned\x07" + "x" * 10_000)[1]
    with pytest.raises(ApiError) as error:
        read(Request("GET", "/x"), Reply(500, body))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 3000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["code", "manifest", "secrets", "updateLog", "missingUsers", "RecoverySecrets", "value", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
MAKERS: list[Callable[[], Generator[Request, Reply, object]]] = [
    calls.status, calls.manifest_get, calls.manifest_log, calls.update_get, calls.update_cancel,
    calls.recovery_public_key, lambda: calls.manifest_set(b"{}"), lambda: calls.update_apply(b"{}"),
    lambda: calls.update_acknowledge(b"{}"), lambda: calls.secrets_get(["a"]), lambda: calls.recover(b"", b""),
    lambda: calls.sign_quote(b""), lambda: calls.monotonic_counter("c", 1),
    lambda: calls.quote(b"", nonce_required=False),
]  # fmt: skip


@given(JSON, st.sampled_from(MAKERS), st.booleans())
def test_any_answer_is_a_result_or_an_error_of_ours(
    data: object, make: Callable[[], Generator[Request, Reply, object]], old: bool
) -> None:
    with contextlib.suppress(MarbleRunError):
        result, _ = play(make(), *([UNKNOWN] if old else []), success(data))
        assert inspect.isgenerator(result) is False


@given(st.binary(max_size=50), st.integers(100, 599), st.sampled_from(MAKERS))
def test_any_body_is_a_result_or_an_error_of_ours(
    body: bytes, status: int, make: Callable[[], Generator[Request, Reply, object]]
) -> None:
    with contextlib.suppress(MarbleRunError):
        result, _ = play(make(), (status, body), (status, body))
        assert inspect.isgenerator(result) is False


def test_a_counter_beyond_64_bits_is_our_own_mistake() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        next(calls.monotonic_counter("c", 2**64))


CLIENT_CALLS: list[tuple[str, tuple[object, ...], str]] = [
    ("status", (), "GET /api/v2/status"),
    ("quote", (b"nonce",), "GET /api/v2/quote"),
    ("manifest_get", (), "GET /api/v2/manifest"),
    ("manifest_set", (b"{}",), "POST /api/v2/manifest"),
    ("manifest_log", (), "GET /api/v2/update"),
    ("update_apply", (b"{}",), "POST /api/v2/update"),
    ("update_get", (), "GET /api/v2/update-manifest"),
    ("update_acknowledge", (b"{}",), "POST /api/v2/update-manifest"),
    ("update_cancel", (), "POST /api/v2/update-cancel"),
    ("secrets_get", (["a"],), "GET /api/v2/secrets"),
    ("secrets_set", ({"a": UserSecret(key=b"")},), "POST /api/v2/secrets"),
    ("recover", (b"", b""), "POST /api/v2/recover"),
    ("recovery_public_key", (), "GET /api/v2/recover/public-key"),
    ("sign_quote", (b"",), "POST /api/v2/sign-quote"),
    ("monotonic_counter", ("c", 1), "POST /api/v2/monotonic-counter"),
]


def test_both_clients_have_every_call_and_give_the_same() -> None:
    """Over a real connection; each of the calls ends at its own path."""
    root = mint("MarbleRun Coordinator")
    fake = FakeCoordinator(root, root, lambda _: b"", root)
    fake.routes = {path: lambda _: success({}) for _, _, path in CLIENT_CALLS}

    async def all_async(endpoint: str) -> list[object]:
        async with AsyncClient(endpoint, PinnedRoot(root.der)) as client:
            return [await getattr(client, name)(*arguments) for name, arguments, _ in CLIENT_CALLS]

    with serving(fake):
        with Client(fake.endpoint, PinnedRoot(root.der)) as client:
            found = [getattr(client, name)(*arguments) for name, arguments, _ in CLIENT_CALLS]
        assert fake.sent_requests == [path for _, _, path in CLIENT_CALLS]
        again = asyncio.run(all_async(fake.endpoint))
    assert [repr(one) for one in found] == [repr(one) for one in again]
    assert fake.sent_requests == [path for _, _, path in CLIENT_CALLS] * 2


def test_secrets_never_show_in_a_repr() -> None:
    found, _ = play(calls.secrets_get(["s"]), success({"secrets": {"s": SECRET_JSON}}))
    assert b64(b"k") not in repr(found)
    assert "canary" not in repr(UserSecret(key=b"canary"))
