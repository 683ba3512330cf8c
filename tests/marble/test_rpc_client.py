"""The unary client: against an independent gRPC server, and against servers that do everything wrong."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.forge.mesh import Mesh, key_pem
from tests.marble.stub import Behaviour, http2_answer, tcp_server, tls_server

from marblerun.cli.demo.world import free_port
from marblerun.errors import Malformed, MarbleRunError, Misconfigured, Unavailable, Untrusted
from marblerun.marble.credentials import make_credentials
from marblerun.marble.pins import AnyCoordinator, PinnedKey
from marblerun.marble.rpc_client import Answer, Timeouts, call_unary
from marblerun.marble.settings import Endpoint
from marblerun.pki.profiles import SubjectNames
from marblerun.wire.limits import MAX_GRPC_MESSAGE_BYTES
from marblerun.wire.rpc.framing import encode_message
from marblerun.wire.rpc.status import GrpcStatus

MESH = Mesh.mint()
CONTEXT = make_credentials(SubjectNames()).client_context()
PATH = "/rpc.Marble/Activate"
HANDSHAKE_SHORT = Timeouts(connect=0.5, answer=60)
ANSWER_SHORT = Timeouts(connect=60, answer=0.7)
PATIENT = Timeouts(connect=60, answer=60)


def call(endpoint: Endpoint, message: bytes = b"request", timeouts: Timeouts = PATIENT) -> Answer:
    return call_unary(endpoint, PATH, message, context=CONTEXT, pin=AnyCoordinator(), timeouts=timeouts)


@contextmanager
def grpc_server(answer: Callable[[bytes, grpc.ServicerContext], bytes]) -> Iterator[Endpoint]:
    """grpcio's server, as an implementation that is not ours."""
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(2), options=limits)
    handler = grpc.method_handlers_generic_handler(
        "rpc.Marble", {"Activate": grpc.unary_unary_rpc_method_handler(answer)}
    )
    server.add_generic_rpc_handlers((handler,))
    certificate = MESH.marble_root.public_bytes(Encoding.PEM)
    credentials = grpc.ssl_server_credentials([(key_pem(MESH.key), certificate)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield Endpoint("127.0.0.1", port)
    finally:
        server.stop(None).wait()


def silent(connection: Any) -> None:
    """Say nothing until the client goes."""
    while connection.recv(65536):
        pass


def saying(data: bytes) -> Behaviour:
    """Say this, whatever is asked, and listen on until the client goes."""

    def behave(connection: Any) -> None:
        connection.sendall(data)
        while connection.recv(65536):
            pass

    return behave


OK = [(":status", "200"), ("content-type", "application/grpc")]
# SETTINGS, then HEADERS for our stream that HPACK cannot read.
BAD_HEADERS = bytes.fromhex("000000040000000000" + "000001010400000001ff")
DONE = [("grpc-status", "0")]


def test_an_independent_server_gets_the_request_and_its_answer_comes_back() -> None:
    seen: list[tuple[bytes, str]] = []

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        seen.append((request, context.auth_context()["transport_security_type"][0].decode()))
        return b"answer to " + request

    with grpc_server(answer) as endpoint:
        assert call(endpoint) == Answer(GrpcStatus.OK, "", b"answer to request")
    assert seen == [(b"request", "ssl")]


def test_messages_larger_than_the_flow_control_window_pass_both_ways() -> None:
    big = bytes(range(256)) * 4096
    with grpc_server(lambda request, _: request[::-1]) as endpoint:
        assert call(endpoint, big).body == big[::-1]


def test_an_answer_above_the_limit_is_refused() -> None:
    with grpc_server(lambda _request, _: bytes(MAX_GRPC_MESSAGE_BYTES + 1)) as endpoint, pytest.raises(Malformed):
        call(endpoint)


def test_a_status_comes_back_with_its_text_on_one_line() -> None:
    def refuse(_request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "100% no:\nUniqueID \x1b[31mwrong – ä")
        raise AssertionError

    with grpc_server(refuse) as endpoint:
        assert call(endpoint) == Answer(GrpcStatus.PERMISSION_DENIED, "100% no:\\nUniqueID \\x1b[31mwrong – ä")


def test_repr_of_an_answer_shows_no_byte_of_its_body() -> None:
    assert repr(Answer(GrpcStatus.OK, "", b"canary")) == "Answer(status=OK, reason='', body of 6 bytes)"


def test_a_server_with_another_key_than_the_pinned_one_gets_no_byte_of_the_request() -> None:
    received: list[bytes] = []
    other = Mesh.mint().marble_root.public_bytes(Encoding.DER)
    own = PinnedKey.of_certificate(MESH.intermediate.public_bytes(Encoding.DER))
    with tls_server(lambda connection: received.append(connection.recv(100))) as endpoint:
        with pytest.raises(Untrusted) as refusal:
            call_unary(endpoint, PATH, b"", context=CONTEXT, pin=PinnedKey.of_certificate(other), timeouts=PATIENT)
        assert (refusal.value.step, refusal.value.reason) == ("coordinator-pin", "mismatch")
    assert [data for data in received if data] == []
    with grpc_server(lambda request, _: request) as endpoint:
        answer = call_unary(endpoint, PATH, b"1", context=CONTEXT, pin=own, timeouts=PATIENT)
        assert answer.body == b"1"


@pytest.mark.parametrize("certificate", [b"", b"garbage"])
def test_a_pin_cannot_be_made_from_what_is_no_certificate(certificate: bytes) -> None:
    with pytest.raises(Untrusted):
        PinnedKey.of_certificate(certificate)


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (http2_answer(OK, reset=True), "gave up the call"),
        (http2_answer([(":status", "200")]), "without a status"),
        (http2_answer(OK, encode_message(b"x")), "without a status"),
        (
            saying(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            "did not answer within",
        ),
        (saying(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"), "did not answer within"),
        (saying(BAD_HEADERS), "broke the rules of HTTP/2"),
        (lambda connection: connection.recv(10), "closed the connection|broke"),
        (silent, "did not answer within"),
    ],
    ids=["reset", "trailers-only-no-status", "no-trailers", "http1", "settings-only", "bad-frame", "closed", "silent"],
)
def test_a_call_that_ends_before_its_answer_is_unavailable(behave: Behaviour, reason: str) -> None:
    timeouts = ANSWER_SHORT if "within" in reason else PATIENT
    with tls_server(behave) as endpoint, pytest.raises(Unavailable, match=reason):
        call(endpoint, timeouts=timeouts)


@pytest.mark.parametrize(
    ("headers", "data", "trailers"),
    [
        (OK, b"\x01" + encode_message(b"x")[1:], DONE),
        (OK, encode_message(b"x") * 2, DONE),
        (OK, encode_message(b"x")[:-1], DONE),
        (OK, b"", DONE),
        (OK, b"\x00\xff\xff\xff\xff", DONE),
    ],
    ids=["compressed", "two", "cut", "none", "endless"],
)
def test_an_answer_that_is_not_one_plain_message_is_malformed(
    headers: list[tuple[str, str]], data: bytes, trailers: list[tuple[str, str]]
) -> None:
    with tls_server(http2_answer(headers, data, trailers)) as endpoint, pytest.raises(Malformed):
        call(endpoint)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([(":status", "503")], GrpcStatus.UNAVAILABLE),
        ([(":status", "404")], GrpcStatus.UNIMPLEMENTED),
        ([(":status", "418")], GrpcStatus.UNKNOWN),
        ([*OK, ("grpc-status", "99")], GrpcStatus.UNKNOWN),
        ([*OK, ("grpc-status", "9")], GrpcStatus.FAILED_PRECONDITION),
    ],
)
def test_headers_alone_give_a_status_that_is_never_ok(headers: list[tuple[str, str]], status: GrpcStatus) -> None:
    with tls_server(http2_answer(headers)) as endpoint:
        assert call(endpoint).status is status


def test_a_server_without_http2_is_the_wrong_address() -> None:
    with (
        tls_server(lambda connection: None, alpn="http/1.1") as endpoint,
        pytest.raises(Misconfigured, match="mesh address"),
    ):
        call(endpoint)


@pytest.mark.parametrize(
    ("behave", "reason"),
    [
        (lambda connection: None, "TLS handshake"),
        (lambda connection: connection.sendall(b"garbage" * 10), "TLS handshake"),
        (silent, "TLS handshake .* timed out"),
    ],
    ids=["closed", "garbage", "silent"],
)
def test_a_failed_handshake_is_unavailable(behave: Behaviour, reason: str) -> None:
    timeouts = HANDSHAKE_SHORT if "timed out" in reason else PATIENT
    with tcp_server(behave) as endpoint, pytest.raises(Unavailable, match=reason):
        call(endpoint, timeouts=timeouts)


def test_nobody_listening_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"cannot connect to 127\.0\.0\.1:"):
        call(Endpoint("127.0.0.1", free_port()))


def test_a_server_that_drips_is_cut_off_at_the_deadline() -> None:
    def drip(connection: Any) -> None:
        for _ in range(600):  # much longer than the deadline, and then it would not be the deadline
            connection.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            time.sleep(0.1)

    with tls_server(drip) as endpoint, pytest.raises(Unavailable, match="did not answer"):
        call(endpoint, timeouts=ANSWER_SHORT)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 3), st.binary(max_size=60)), max_size=6)
)
def test_any_frames_give_an_answer_or_one_of_our_errors(frames: list[tuple[int, int, int, bytes]]) -> None:
    stream = b"".join(
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + number.to_bytes(4, "big") + payload
        for kind, flags, number, payload in [(4, 0, 0, b""), *frames]
    )

    def behave(connection: Any) -> None:
        connection.recv(10_000)
        connection.sendall(stream)

    with tls_server(behave) as endpoint:
        try:
            answer = call(endpoint, timeouts=ANSWER_SHORT)
        except MarbleRunError:
            return
        assert answer.status is not GrpcStatus.OK


@pytest.mark.parametrize(
    ("hint", "seconds"),
    [("0", 0.0), ("1500", 1.5), ("-1", float("inf")), ("soon", float("inf")), ("9" * 400, float("inf")), (None, None)],
)
def test_a_refusal_brings_the_servers_hint_when_to_come_again(hint: str | None, seconds: float | None) -> None:
    headers = [*OK, ("grpc-status", "8"), *([("grpc-retry-pushback-ms", hint)] if hint is not None else [])]
    with tls_server(http2_answer(headers)) as endpoint:
        answer = call(endpoint)
    assert (answer.status, answer.retry_after) == (GrpcStatus.RESOURCE_EXHAUSTED, seconds)
