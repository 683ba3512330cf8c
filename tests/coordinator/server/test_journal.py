"""What the log says about requests, and what it must never say."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.coordinator.manifests import CANARY, INTEGRATION, encode
from tests.coordinator.people import Person, ask, office, person
from tests.coordinator.running import Running, running
from tests.coordinator.states import UUID_1, applicant

from marblerun.coordinator.commands.activate import ActivationRefused
from marblerun.coordinator.server.client_api import TABLE
from marblerun.coordinator.server.journal import DEPRECATED, REQUEST_ID, UNKNOWN, known_method, known_path
from marblerun.coordinator.server.logs import (
    FIRST_LINES,
    THEN_ONE_IN,
    ConsoleFormatter,
    JsonFormatter,
    Sampling,
    configure_logging,
)
from marblerun.marble.credentials import make_credentials
from marblerun.marble.pins import AnyCoordinator
from marblerun.marble.rpc_client import call_unary
from marblerun.marble.settings import Endpoint
from marblerun.pki.profiles import SubjectNames
from marblerun.wire.rpc import ACTIVATE_PATH, ActivationReq, GrpcStatus


class Log:
    """What was logged, as the process would write it."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def of(self, text: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["msg"] == text]


@contextmanager
def logged(level: int = logging.DEBUG) -> Iterator[Log]:
    log = Log()
    handler = logging.StreamHandler(log.stream)
    handler.setFormatter(JsonFormatter())
    ours = logging.getLogger("marblerun")
    before = ours.level
    ours.addHandler(handler)
    ours.setLevel(level)
    try:
        yield log
    finally:
        ours.removeHandler(handler)
        ours.setLevel(before)


@pytest.fixture
def up() -> Iterator[Running]:
    with running(manifest=encode(office())) as started:
        yield started


def test_every_answer_has_an_id_of_its_own_that_its_lines_in_the_log_have_too(up: Running) -> None:
    with logged() as log:
        answers = [ask(up.client, "GET", "/api/v2/secrets?s=sharedKey", by=person("stranger")) for _ in range(3)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(ids)) == 3
    for text in ("a caller is not a user", "request refused"):
        assert [line["requestId"] for line in log.of(text)] == ids
    assert REQUEST_ID.get() == ""


def test_a_refused_request_is_told_with_route_status_and_kind_of_error(up: Running) -> None:
    with logged(logging.INFO) as log:
        ask(up.client, "POST", "/api/v2/manifest?secret=x", {"manifest": "e30="})
        ask(up.client, "GET", f"/{CANARY}")
        ask(up.client, CANARY.upper(), "/api/v2/status")
    told = [
        {k: line.get(k) for k in ("api", "method", "path", "status", "reason")} for line in log.of("request refused")
    ]
    assert told == [
        {"api": "client", "method": "post", "path": "/api/v2/manifest", "status": "500", "reason": "wrong-phase"},
        {"api": "client", "method": "get", "path": UNKNOWN, "status": "405", "reason": None},
        {"api": "client", "method": UNKNOWN, "path": "/api/v2/status", "status": "405", "reason": None},
    ]
    assert CANARY not in log.stream.getvalue().lower()


def test_answers_are_told_on_debug_level_only(up: Running) -> None:
    """EDG_DEBUG_LOGGING."""
    for level, count in ((logging.DEBUG, 1), (logging.INFO, 0)):
        with logged(level) as log:
            ask(up.client, "GET", "/api/v2/status")
        assert len(log.of("request answered")) == count


def test_version_1_is_called_deprecated_once_a_path(up: Running) -> None:
    """Protocol, section 1.5."""
    with logged(logging.WARNING) as log:
        for _ in range(3):
            for path in DEPRECATED:
                ask(up.client, "GET", path)
                ask(up.client, "GET", f"/api/v2{path}")
    hints = log.of("version 1 of the client API is deprecated")
    assert sorted(line["path"] for line in hints) == sorted(DEPRECATED)
    assert {line["path"]: line["use"] for line in hints} == DEPRECATED


def test_no_secret_is_in_the_log_on_any_level() -> None:
    """Design, threats: a canary as secret value, as manifest text, in headers, paths, queries and names."""
    admin = person("admin")
    document = office()
    document["Marbles"]["plain"]["Parameters"]["Env"]["ALSO"] = CANARY
    with logged() as log, running(manifest=encode(document)) as up:
        upload = {"secrets": {"userPlain": {"Key": "Y2FuYXJ5LTVhMWYwYzc3LWRvLW5vdC1sb2c="}}}
        assert ask(up.client, "POST", "/api/v2/secrets", upload, by=admin).status == 200
        assert ask(up.client, "GET", "/api/v2/secrets?s=sharedKey&s=userPlain", by=admin).status == 200
        up.call(up.coordinator.activate(applicant().request("plain"), applicant().certificate))
        ask(up.client, "GET", f"/api/v2/secrets?s={CANARY}", by=_nobody())
        ask(up.client, "POST", f"/api/v2/update?x={CANARY}", {"manifest": CANARY}, by=admin)
        ask(up.client, "POST", "/api/v2/sign-quote", CANARY.encode())
        state = up.coordinator.state
        text = log.stream.getvalue()
        assert log.of("request answered")
        assert log.of("marble activated")
    for secret in (CANARY, state.root_secret.hex(), "Y2FuYXJ5", "PRIVATE KEY"):
        assert secret not in text


def _nobody() -> Person:
    return person("stranger")


def test_a_refused_activation_is_told_without_what_the_stranger_sent_at_length(up: Running) -> None:
    with logged() as log, pytest.raises(ActivationRefused):
        up.call(up.coordinator.activate(applicant().request("x" * 5000, UUID_1), applicant().certificate))
    assert [len(line["marbleType"]) for line in log.of("marble activation refused")] == [256]


def test_only_our_paths_and_methods_are_named() -> None:
    paths = TABLE.keys()
    assert known_path("/api/v2/status?x=y", paths) == "/api/v2/status"
    for target in ("/api/v2/status/", "/x", "", "*", "/api/v2/%73tatus", "/a%zz"):
        assert known_path(target, paths) == UNKNOWN
    assert (known_method("GET"), known_method("get"), known_method("NEW\nLINE")) == ("get", UNKNOWN, UNKNOWN)


# -- the process's handler ---------------------------------------------------------------------------------------


def record(text: str, level: int = logging.INFO, at: float = 1000.5) -> logging.LogRecord:
    made = logging.LogRecord("marblerun.x", level, __file__, 1, text, (), None)
    made.created = at
    return made


def test_of_equal_lines_in_a_second_the_first_hundred_and_then_every_hundredth_are_written() -> None:
    """Protocol, section 1.5: the reference's sampling, which also keeps strangers from filling the disk."""
    sampling = Sampling()
    written = [number for number in range(1, 1001) if sampling.filter(record("same"))]
    assert written == [*range(1, FIRST_LINES + 1), *range(FIRST_LINES + THEN_ONE_IN, 1001, THEN_ONE_IN)]
    assert sampling.filter(record("other"))
    assert sampling.filter(record("same", logging.ERROR))
    assert sampling.filter(record("same", at=1001.0))


def test_no_line_about_a_user_is_left_out() -> None:
    """Whoever reads a secret cannot hide it behind hundreds of harmless reads in the same second."""
    sampling = Sampling()
    read = record("secrets read")
    read.fields = {"user": "eve", "secrets": "harmless"}
    assert all(sampling.filter(read) for _ in range(500))


def test_sampling_remembers_a_bounded_number_of_texts() -> None:
    sampling = Sampling()
    for number in range(5000):
        sampling.filter(record(f"text {number}"))
    assert len(sampling._seen) <= 1001


def test_both_formats_have_the_request_id_and_json_has_the_references_keys() -> None:
    """Protocol, section 1.5."""
    token = REQUEST_ID.set("abc-1")
    try:
        line = json.loads(JsonFormatter().format(record("hello")))
        assert list(line) == ["level", "ts", "caller", "msg", "requestId"]
        assert ConsoleFormatter().format(record("hello")).endswith("hello requestId=abc-1")
    finally:
        REQUEST_ID.reset(token)
    assert "requestId" not in json.loads(JsonFormatter().format(record("hello")))


@given(
    st.text(),
    st.dictionaries(
        st.text(),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text()) | st.binary(),
    ),
)
def test_a_line_is_what_the_library_makes_of_it(message: str, fields: dict[str, object]) -> None:
    told = record(message)
    told.fields = fields
    entry = {
        "level": "info",
        "ts": round(told.created, 6),
        "caller": f"{told.name}:{told.lineno}",
        "msg": told.getMessage(),
        **fields,
    }
    assert JsonFormatter().format(told) == json.dumps(entry, ensure_ascii=False, default=str)


@pytest.mark.parametrize(("console", "debug", "level"), [(False, False, logging.INFO), (True, True, logging.DEBUG)])
def test_debug_and_console_are_settings(console: bool, debug: bool, level: int) -> None:
    """EDG_DEBUG_LOGGING, EDG_COORDINATOR_DEV_MODE."""
    root = logging.getLogger()
    handlers, before = root.handlers[:], root.level
    try:
        configure_logging(console=console, debug=debug)
        assert root.level == level
        assert isinstance(root.handlers[0].formatter, ConsoleFormatter if console else JsonFormatter)
        assert bool(root.handlers[0].filters) is not console
    finally:
        root.handlers[:], root.level = handlers, before


def test_activations_have_an_id_in_the_log_too() -> None:
    """The mesh listener gets ids as well, but sends none: nothing is added to what a Marble receives."""
    with running(manifest=INTEGRATION) as up, logged() as log:
        context = make_credentials(SubjectNames()).client_context()
        request = ActivationReq(Quote=b"", CSR=applicant().csr, MarbleType="bare", UUID=UUID_1)
        answer = call_unary(
            Endpoint(*up.mesh), ACTIVATE_PATH, request.SerializeToString(), context=context, pin=AnyCoordinator()
        )
        assert answer.status is GrpcStatus.OK
        (told,) = log.of("request answered")
        assert (told["api"], told["path"]) == ("mesh", ACTIVATE_PATH)
        assert [line["requestId"] for line in log.of("marble activated")] == [told["requestId"]]
