"""Who is asking: only the leaf certificate counts, it is looked at first, and refusals tell nothing."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest
from tests.coordinator.manifests import encode
from tests.coordinator.people import ADMIN, Answer, Person, ask, office, person
from tests.coordinator.running import Running, running
from tests.coordinator.states import deployed, fresh

from marblerun.coordinator.commands.caller import (
    PERMISSIONS,
    UNAUTHORIZED,
    Operation,
    Unauthorized,
    find_caller,
    require_caller,
    require_granted,
)
from marblerun.coordinator.server.attempts import (
    MAX_ADDRESSES,
    MAX_FAILURES_PER_MINUTE,
    MAX_STRANGERS_PER_MINUTE,
    ClientAttempts,
    FailedAttempts,
)
from marblerun.coordinator.server.client_api import V1, V2, client_service
from marblerun.coordinator.server.exchange import Handler, Peer, Request, Response
from marblerun.coordinator.server.rest.users_v1 import USERS_V1
from marblerun.coordinator.server.rest.users_v2 import USERS_V2
from marblerun.coordinator.state import PendingUpdate
from marblerun.errors import Denied
from marblerun.policy.access import READ_SECRET, User

USERS = {"admin": ADMIN, "reader": ("reader",), "nobody": ()}

# Every endpoint that only users may call, with a body that is good enough to be understood.
ENDPOINTS = [
    ("GET", "/api/v2/secrets?s=sharedKey", None),
    ("POST", "/api/v2/secrets", {"secrets": {"userPlain": {"Key": "YQ=="}}}),
    ("POST", "/api/v2/update", {"manifest": "e30="}),
    ("POST", "/api/v2/update-manifest", {"manifest": "e30="}),
    ("POST", "/api/v2/update-cancel", None),
    ("GET", "/secrets?s=sharedKey", None),
    ("POST", "/secrets", {"userPlain": {"Key": "YQ=="}}),
    ("POST", "/update", {}),
    ("POST", "/update-manifest", {}),
    ("POST", "/update-cancel", None),
]


@pytest.fixture(scope="module")
def up() -> Iterator[Running]:
    with running(manifest=encode(office(USERS))) as started:
        yield started


def _kind(answer: Answer) -> tuple[int, str, str]:
    return answer.status, str(answer.envelope["status"]), answer.message


@pytest.mark.parametrize(("method", "path", "body"), ENDPOINTS)
def test_u6_without_and_with_a_wrong_certificate_every_user_endpoint_answers_the_same_401(
    up: Running, method: str, path: str, body: object
) -> None:
    """U4, U6, E12."""
    status = "fail" if path.startswith("/api/v2") else "error"
    expected = (401, status, UNAUTHORIZED)
    assert _kind(ask(up.client, method, path, body)) == expected
    assert _kind(ask(up.client, method, path, body, by=person("stranger"))) == expected


@pytest.mark.parametrize(("method", "path", "body"), ENDPOINTS)
def test_before_a_manifest_is_set_nobody_is_a_user(waiting: Running, method: str, path: str, body: object) -> None:
    """Protocol, section 8.1."""
    answer = ask(waiting.client, method, path, body, by=person("admin"))
    assert (answer.status, answer.message) == (401, UNAUTHORIZED)


@pytest.mark.parametrize("method_path", [(m, p) for m, p, b in ENDPOINTS if m == "POST"])
def test_the_caller_is_looked_at_before_the_body(up: Running, method_path: tuple[str, str]) -> None:
    """Protocol, section 7.3: a broken body of somebody unknown is still 401."""
    assert ask(up.client, *method_path, b"{broken", by=person("stranger")).status == 401


def test_the_caller_is_looked_at_before_the_query(up: Running) -> None:
    assert ask(up.client, "GET", "/api/v2/secrets").status == 401
    assert ask(up.client, "GET", "/secrets?s=").status == 401


def test_u6_the_right_certificate_is_let_in_on_both_versions(up: Running) -> None:
    """U6."""
    admin = person("admin")
    for path in ("/api/v2/secrets?s=sharedKey", "/secrets?s=sharedKey"):
        assert ask(up.client, "GET", path, by=admin).status == 200
    assert (
        ask(up.client, "POST", "/api/v2/secrets", {"secrets": {"userPlain": {"Key": "YQ=="}}}, by=admin).status == 200
    )
    update = b'{"Packages":{"frontend":{"SecurityVersion":1}}}'
    assert ask(up.client, "POST", "/update", update, by=admin).status == 200


def test_u5_only_the_first_certificate_names_the_caller(up: Running) -> None:
    """U5: (admin, other) is the admin; (other, admin) is not, although the reference says so."""
    admin, other = person("admin"), person("stranger")
    path = "/api/v2/secrets?s=sharedKey"
    assert ask(up.client, "GET", path, by=admin, behind=(other,)).status == 200
    assert _kind(ask(up.client, "GET", path, by=other, behind=(admin,))) == (401, "fail", UNAUTHORIZED)


def test_u4_a_user_is_found_by_the_whole_certificate_and_by_nothing_else() -> None:
    """U4."""
    state = deployed(encode(office(USERS)))
    assert find_caller(state, person("admin").der).name == "admin"
    der = person("admin").der
    for leaf in (None, b"", der[:-1], der + b"\0", person("stranger").der):
        with pytest.raises(Unauthorized, match=r"^unauthorized user"):
            find_caller(state, leaf)
    with pytest.raises(Unauthorized):
        find_caller(fresh(), der)


@pytest.mark.parametrize("operation", Operation)
def test_a_user_without_any_permission_may_do_nothing(operation: Operation) -> None:
    state = replace(deployed(encode(office(USERS))), pending_update=PendingUpdate(b"{}", {"admin": False}, 1))
    with pytest.raises(Denied, match=f"^user nobody is not allowed to {operation.value}$"):
        require_caller(state, person("nobody").der, operation)


@pytest.mark.parametrize("who", USERS)
def test_x5_whoever_acknowledges_what_is_not_pending_reads_so(up: Running, who: str) -> None:
    """Protocol, sections 9.4 and 14: that something is pending is asked before who may acknowledge it."""
    for path, body in (("/update-manifest", {}), ("/api/v2/update-manifest", {"manifest": "e30="})):
        answer = ask(up.client, "POST", path, body, by=person(who))
        assert _kind(answer) == (404, "error", "no update in progress")


@pytest.mark.parametrize("operation", Operation)
def test_no_operation_is_open_by_being_left_out_of_the_table(operation: Operation) -> None:
    assert PERMISSIONS[operation]


def test_every_route_that_changes_something_names_its_operation() -> None:
    open_to_all = {"/api/v2/manifest", "/manifest"}
    for table in (USERS_V1, USERS_V2):
        for path, methods in table.items():
            for method, route in methods.items():
                is_open = method == "GET" and not path.endswith("/secrets")
                assert (route.operation is None) == is_open, (method, path)
    for table in (V1, V2):
        posts = {path for path, methods in table.items() for m, r in methods.items() if m == "POST" and not r.operation}
        assert open_to_all & table.keys() <= posts


def test_u8_a_permission_is_needed_for_every_name_and_all_missing_ones_are_told() -> None:
    """U8."""
    user = User("u", b"x", {READ_SECRET: frozenset({"a", "b"})})
    require_granted(user, Operation.READ_SECRETS, READ_SECRET, ["a", "b", "a"])
    with pytest.raises(Denied) as caught:
        require_granted(user, Operation.READ_SECRETS, READ_SECRET, ["a", "d", "c"])
    assert caught.value.mismatches == ("no permission for c", "no permission for d")
    with pytest.raises(Denied):
        require_granted(replace(user, permissions={}), Operation.READ_SECRETS, READ_SECRET)


def test_a_refusal_does_not_repeat_without_end_what_the_caller_sent() -> None:
    user = User("u", b"x", {})
    with pytest.raises(Denied) as caught:
        require_granted(user, Operation.READ_SECRETS, READ_SECRET, (f"{i}" * 1000 for i in range(1000)))
    assert len(str(caught.value)) < 8192


def test_a_missing_permission_is_500_in_version_2_and_400_in_version_1(up: Running) -> None:
    """Protocol, sections 7.4 and 7.5."""
    reader = person("reader")
    assert ask(up.client, "GET", "/api/v2/secrets?s=sharedKey", by=reader).status == 200
    for method, path, body in ENDPOINTS:
        if method == "POST" and "update-manifest" not in path:
            answer = ask(up.client, method, path, body, by=reader)
            expected = 400 if path in ("/secrets", "/update") else 500
            assert (path, answer.status) == (path, expected)
            assert "not allowed" in answer.message


# -- how often ---------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_address_may_fail_so_often_in_a_minute_and_then_waits() -> None:
    clock = Clock()
    attempts = FailedAttempts(clock)
    assert [attempts.record("192.0.2.1") for _ in range(MAX_FAILURES_PER_MINUTE)] == [0] * MAX_FAILURES_PER_MINUTE
    assert attempts.record("192.0.2.1") == 1
    assert attempts.record("::ffff:192.0.2.1") == 1, "the same address, written differently"
    assert attempts.record("192.0.2.2") == 0, "others are not affected"
    clock.now += 1
    assert attempts.record("192.0.2.1") == 0
    assert attempts.record("192.0.2.1") == 1
    assert attempts.total == MAX_FAILURES_PER_MINUTE + 5


def test_one_ipv6_network_counts_as_one_address() -> None:
    attempts = FailedAttempts(Clock())
    for number in range(MAX_FAILURES_PER_MINUTE):
        assert attempts.record(f"2001:db8::{number:x}") == 0
    assert attempts.record("2001:db8::ffff:1") == 1
    assert attempts.record("2001:db8:0:1::1") == 0


def test_the_number_of_remembered_addresses_is_bounded() -> None:
    attempts = FailedAttempts(Clock())
    for number in range(MAX_ADDRESSES * 2):
        attempts.record(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(attempts._buckets) == MAX_ADDRESSES


def test_what_compares_us_with_another_coordinator_is_answered_401_throughout() -> None:
    attempts = ClientAttempts()
    assert sum(attempts.strangers.record("192.0.2.1") for _ in range(MAX_STRANGERS_PER_MINUTE)) == 0
    assert MAX_STRANGERS_PER_MINUTE >= 100 * MAX_FAILURES_PER_MINUTE


async def _answer(handle: Handler, request: Request) -> Response:
    return await handle(request)


def test_unknown_certificates_are_limited_with_429_and_users_at_the_same_address_are_not() -> None:
    """Whoever shows no certificate tries nothing, and is always told the same."""
    few = ClientAttempts(strangers=FailedAttempts(Clock(), per_minute=3))
    with running(manifest=encode(office(USERS))) as up:
        handle = client_service(up.coordinator, attempts=few).handle

        def get(path: str, by: Person | None) -> Response:
            leaf = None if by is None else by.der
            return up.call(_answer(handle, Request("GET", path, (), b"", Peer("192.0.2.1", leaf))))

        v1, v2 = "/secrets?s=sharedKey", "/api/v2/secrets?s=sharedKey"
        assert [get(v2, None).status for _ in range(10)] == [401] * 10
        assert [get(v2, person("stranger")).status for _ in range(5)] == [401] * 3 + [429] * 2
        assert json.loads(get(v1, person("stranger")).body)["status"] == "error"
        answer = get(v2, person("stranger"))
        body = json.loads(answer.body)
        assert (body["status"], body["message"][:17]) == ("fail", "unauthorized user")
        assert int(dict(answer.headers)[b"retry-after"]) >= 1
        assert get(v2, None).status == 401
        assert get(v2, person("admin")).status == 200


def test_failures_beyond_sixty_a_minute_are_answered_and_no_longer_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Failures are logged with the certificate's fingerprint up to the limit, and no further."""
    peer = Peer("192.0.2.1", person("stranger").der)
    request = Request("GET", "/api/v2/secrets?s=sharedKey", (), b"", peer)
    with running(manifest=encode(office(USERS))) as up:
        handle = client_service(up.coordinator, attempts=ClientAttempts(logged=FailedAttempts(Clock()))).handle
        with caplog.at_level(logging.WARNING, "marblerun"):
            answers = [up.call(_answer(handle, request)).status for _ in range(MAX_FAILURES_PER_MINUTE + 20)]
        assert answers == [401] * len(answers)
        logged = [record for record in caplog.records if record.message == "a caller is not a user"]
        assert len(logged) == MAX_FAILURES_PER_MINUTE
        assert len(logged[0].__dict__["fields"]["certificate"]) == 64
