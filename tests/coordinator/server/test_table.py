"""Every endpoint, by every kind of caller, in every state: the table of what is answered.

A route that is not in the table makes a test fail that asks for its row.
"""

from __future__ import annotations

import http.client
import json
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

import pytest
from tests.coordinator.manifests import encode
from tests.coordinator.peers import read_all, tls
from tests.coordinator.people import ADMIN, Person, office, person
from tests.coordinator.running import Running, World, running
from tests.coordinator.test_features_http import activated

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.coordinator.server.client_api import TABLE
from marblerun.coordinator.store.memory import MemoryStore

STATES: Final = ("recovery", "waiting", "running", "gated")
CALLERS: Final = ("nobody", "stranger", "another user", "user", "marble")
Expected = tuple[int, str]

# Of a body that nobody can read: what comes first, the caller or the body, is then visible.
BROKEN: Final = b"{"


@dataclass(frozen=True)
class Row:
    """What an endpoint answers: for everybody alike, or by caller; by state where states differ."""

    target: str
    answers: Mapping[str, Expected | Mapping[str, Expected]]
    body: bytes | None = None


def everywhere(expected: Expected) -> dict[str, Expected]:
    return dict.fromkeys(STATES, expected)


def running_only(then: Expected, otherwise: Expected = (500, "error")) -> dict[str, Expected]:
    return {"recovery": otherwise, "waiting": otherwise, "running": then, "gated": then}


def users_only(allowed: Expected, denied: Expected, refused: Expected) -> dict[str, Mapping[str, Expected]]:
    """Before a manifest is in force there are no users; then strangers and Marbles are none."""
    by_caller = {"nobody": refused, "stranger": refused, "marble": refused, "another user": denied, "user": allowed}
    nobody_yet = dict.fromkeys(CALLERS, refused)
    return {"recovery": nobody_yet, "waiting": nobody_yet, "running": by_caller, "gated": by_caller}


OK, FAIL, ERROR = (200, "success"), (400, "fail"), (500, "error")
V2_401, V1_401 = (401, "fail"), (401, "error")
V1_400 = (400, "error")
OFF, GONE, NOTHING = (403, "error"), (410, "error"), (404, "error")

ROWS: Final[Mapping[tuple[str, str], Row]] = {
    ("GET", "/api/v2/status"): Row("/api/v2/status", everywhere(OK)),
    ("GET", "/api/v2/manifest"): Row("/api/v2/manifest", running_only(OK)),
    ("POST", "/api/v2/manifest"): Row("/api/v2/manifest", everywhere(FAIL), BROKEN),
    ("GET", "/api/v2/quote"): Row("/api/v2/quote", everywhere(OK)),
    ("GET", "/api/v2/statement"): Row("/api/v2/statement", everywhere(OK)),
    ("GET", "/api/v2/openapi.json"): Row("/api/v2/openapi.json", everywhere((200, ""))),
    ("GET", "/api/v2/update"): Row("/api/v2/update", running_only(OK)),
    ("POST", "/api/v2/update"): Row("/api/v2/update", users_only(FAIL, ERROR, V2_401), BROKEN),
    ("GET", "/api/v2/update-manifest"): Row("/api/v2/update-manifest", everywhere(NOTHING)),
    ("POST", "/api/v2/update-manifest"): Row("/api/v2/update-manifest", users_only(FAIL, NOTHING, V2_401), BROKEN),
    ("POST", "/api/v2/update-cancel"): Row("/api/v2/update-cancel", users_only(NOTHING, ERROR, V2_401)),
    ("GET", "/api/v2/secrets"): Row("/api/v2/secrets?s=sharedKey", users_only(OK, ERROR, V2_401)),
    ("POST", "/api/v2/secrets"): Row("/api/v2/secrets", users_only(FAIL, ERROR, V2_401), BROKEN),
    ("POST", "/api/v2/recover"): Row("/api/v2/recover", everywhere(FAIL), BROKEN),
    ("GET", "/api/v2/recover/public-key"): Row(
        "/api/v2/recover/public-key", {"recovery": OK, "waiting": ERROR, "running": ERROR, "gated": ERROR}
    ),
    ("POST", "/api/v2/recover/rehearse"): Row("/api/v2/recover/rehearse", everywhere(FAIL), BROKEN),
    ("GET", "/api/v2/recover/rehearse/public-key"): Row(
        "/api/v2/recover/rehearse/public-key", {"recovery": ERROR, "waiting": ERROR, "running": OK, "gated": OK}
    ),
    ("POST", "/api/v2/sign-quote"): Row("/api/v2/sign-quote", everywhere(OFF) | {"gated": FAIL}, BROKEN),
    ("POST", "/api/v2/monotonic-counter"): Row(
        "/api/v2/monotonic-counter",
        {**everywhere(OFF), "gated": dict.fromkeys(CALLERS, V2_401) | {"marble": FAIL}},
        BROKEN,
    ),
    ("GET", "/status"): Row("/status", everywhere(OK)),
    ("GET", "/manifest"): Row("/manifest", everywhere(OK)),
    ("POST", "/manifest"): Row("/manifest", everywhere(V1_400), BROKEN),
    ("GET", "/quote"): Row("/quote", everywhere(OK)),
    ("POST", "/recover"): Row("/recover", everywhere(GONE)),
    ("GET", "/update"): Row("/update", running_only(OK)),
    ("POST", "/update"): Row("/update", users_only(V1_400, V1_400, V1_401), BROKEN),
    ("GET", "/update-manifest"): Row("/update-manifest", everywhere(NOTHING)),
    ("POST", "/update-manifest"): Row("/update-manifest", users_only(NOTHING, NOTHING, V1_401), BROKEN),
    ("POST", "/update-cancel"): Row("/update-cancel", users_only(NOTHING, ERROR, V1_401)),
    ("GET", "/secrets"): Row("/secrets?s=sharedKey", users_only(OK, V1_400, V1_401)),
    ("POST", "/secrets"): Row("/secrets", users_only(V1_400, V1_400, V1_401), BROKEN),
}


class Connection:
    """One kept-alive connection of a caller, for whatever method and path."""

    def __init__(self, up: Running, by: Person | None = None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if by is not None:
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(by.pem + by.key_pem)
                file.flush()
                context.load_cert_chain(file.name)
        self._connection = http.client.HTTPSConnection(*up.client, context=context, timeout=60)

    def ask(
        self, method: str, path: str, body: bytes | None = None, content_type: str | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers with lower-case names, body."""
        headers = {} if content_type is None else {"content-type": content_type}
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()

    def close(self) -> None:
        self._connection.close()


@dataclass(frozen=True)
class Scene:
    """A Coordinator in a state, and who may call it."""

    up: Running
    callers: Mapping[str, Connection]


@pytest.fixture(scope="module")
def scenes(platform: SimulatedPlatform) -> Iterator[Mapping[str, Scene]]:
    users = {"user": ADMIN, "other": ()}
    gates = ["SignQuoteEndpoint", "MonotonicCounter"]
    with ExitStack() as stack:
        sealed_world = World(platform=platform)
        with running(sealed_world, manifest=encode(office(users))):
            pass
        sealed = sealed_world.store.load()
        assert sealed is not None
        lost = replace(sealed_world, store=MemoryStore(replace(sealed, keys=())))
        ups = {
            "recovery": stack.enter_context(running(lost)),
            "waiting": stack.enter_context(running()),
            "running": stack.enter_context(running(manifest=encode(office(users)))),
            "gated": stack.enter_context(running(manifest=encode(office(users, FeatureGates=gates)))),
        }
        people = {
            "nobody": None,
            "stranger": person("stranger"),
            "another user": person("other"),
            "user": person("user"),
        }
        marbles = {name: activated(ups[name], marble="front") for name in ("running", "gated")}
        # Elsewhere nobody can be activated: the Marble of another Coordinator comes.
        found = {}
        for name, up in ups.items():
            callers = {**people, "marble": marbles.get(name, marbles["running"])}
            found[name] = Scene(up, {caller: Connection(up, by) for caller, by in callers.items()})
        yield found
        for scene in found.values():
            for connection in scene.callers.values():
                connection.close()


def test_every_route_has_a_row() -> None:
    routed = {(method, path) for path, methods in TABLE.items() for method in methods}
    assert set(ROWS) == routed, "give each route a row that says what every caller gets in every state"


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(("method", "path"), list(ROWS))
def test_what_every_caller_is_answered(scenes: Mapping[str, Scene], method: str, path: str, state: str) -> None:
    """F6, F7, U6 and protocol, sections 7.3 to 7.5."""
    row, scene = ROWS[method, path], scenes[state]
    answers = row.answers[state]
    expected = dict(answers) if isinstance(answers, Mapping) else dict.fromkeys(CALLERS, answers)
    found = {}
    for caller in CALLERS:
        status, headers, body = scene.callers[caller].ask(method, row.target, row.body)
        kind = json.loads(body).get("status", "")
        found[caller] = (status, kind)
        if kind == "error":
            assert headers["content-type"] == "text/plain; charset=utf-8"
            assert headers["x-content-type-options"] == "nosniff"
        else:
            assert headers["content-type"] == "application/json"
    assert found == expected


def test_nothing_was_changed_by_any_of_it(scenes: Mapping[str, Scene]) -> None:
    """To be run after the table; also holds before it."""
    codes = {name: scene.up.coordinator.status().code for name, scene in scenes.items()}
    assert codes == {"recovery": 1, "waiting": 2, "running": 3, "gated": 3}
    for scene in scenes.values():
        assert scene.up.coordinator.state.pending_update is None
        assert scene.up.coordinator.state.counters == {}
        assert scene.up.coordinator.state.update_log.count("\n") <= 1


METHODS: Final = ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "BREW")


@pytest.mark.parametrize("path", list(TABLE))
def test_every_other_method_is_405_without_a_message(scenes: Mapping[str, Scene], path: str) -> None:
    """Protocol, section 7.2: HEAD included."""
    for method in METHODS:
        if method in TABLE[path]:
            continue
        status, _, body = scenes["running"].callers["nobody"].ask(method, path)
        assert status == 405, method
        assert body == (b"" if method == "HEAD" else b'{"status":"error","data":null}\n'), method


@pytest.mark.parametrize("path", list(TABLE))
def test_paths_are_exact(scenes: Mapping[str, Scene], path: str) -> None:
    """Protocol, section 7.2: unknown is 405, never 404; what is not canonical is redirected."""
    unknown = [f"{path}/", f"{path}x", f"{path}%2f", f"{path}%00", f"{path};a=b", path.upper(), f"/api/v1{path}",
               f"/api/v3{path}", f"{path}/..%2f{path}"]  # fmt: skip
    redirected = [f"/{path}", f"{path}/.", f"/x/..{path}", f"/.{path}", f"/x/../..{path}"]
    method = next(iter(TABLE[path]))
    caller = scenes["running"].callers["nobody"]
    for target in unknown:
        status, _, body = caller.ask(method, target)
        assert (status, body) == (405, b'{"status":"error","data":null}\n'), target
    for target in redirected:
        assert caller.ask(method, target)[0] == 307, target


POSTS: Final = [(method, path) for method, path in ROWS if method == "POST"]
CONTENT_TYPES: Final = (None, "", "text/plain", "application/xml", "application/x-www-form-urlencoded", "a" * 1000,
                        "multipart/form-data; boundary=x", "application/json; charset=utf-7")  # fmt: skip


@pytest.mark.parametrize(("method", "path"), POSTS)
def test_the_content_type_is_not_looked_at(scenes: Mapping[str, Scene], method: str, path: str) -> None:
    """Protocol, section 7.2."""
    user = scenes["running"].callers["user"]
    statuses = {user.ask(method, ROWS[method, path].target, BROKEN, kind)[0] for kind in CONTENT_TYPES}
    assert len(statuses) == 1
    assert statuses != {401}


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_http_1_0_is_answered_and_the_connection_ends(scenes: Mapping[str, Scene], version: bytes) -> None:
    up = scenes["running"].up
    with tls(up.client) as connection:
        close = b"connection: close\r\n" if version == b"1.1" else b""
        connection.sendall(b"GET /api/v2/status HTTP/" + version + b"\r\nhost: x\r\n" + close + b"\r\n")
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/" + version + b" 200 ")
    assert json.loads(body)["data"]["code"] == 3
