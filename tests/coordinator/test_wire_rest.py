"""The client API over the network: routing and envelopes by stock clients, and what hostile ones try on HTTP/1.1."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.coordinator.manifests import CANARY, INTEGRATION
from tests.coordinator.marbles import GoClient, target
from tests.coordinator.peers import LAST_REQUEST, REQUEST, http1, push, read_all, status_of, tls, wait_until
from tests.coordinator.running import Running, World, running

from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.coordinator.server.exchange import Patience
from marblerun.coordinator.server.turns import Overload

Fetch = Callable[..., dict[str, Any]]


@pytest.fixture(params=[False, True], ids=["http1", "http2"])
def fetch(go: GoClient, request: pytest.FixtureRequest) -> Fetch:
    """One request by Go's HTTP client in one of the two versions."""

    def call(up: Running, method: str, path: str, body: bytes = b"") -> dict[str, Any]:
        url = f"https://{target(up.client)}{path}"
        answer = go.ask("rest", url=url, method=method, body=body.hex(), http2=request.param)
        assert answer.get("protocol", "") == ("HTTP/2.0" if request.param else "HTTP/1.1"), answer
        return answer

    return call


def data_of(answer: dict[str, Any]) -> Any:
    assert answer["status"] == 200
    assert answer["headers"]["Content-Type"] == ["application/json"]
    envelope = json.loads(answer["body"])
    assert (envelope["status"], answer["body"][-1]) == ("success", "\n")
    return envelope["data"]


def test_q5_status_in_both_versions_of_the_api(fetch: Fetch, waiting: Running, unattested: Running) -> None:
    """Q5."""
    for up, code in ((waiting, 2), (unattested, 3)):
        v2, v1 = data_of(fetch(up, "GET", "/api/v2/status")), data_of(fetch(up, "GET", "/status"))
        assert (v2["code"], v1["StatusCode"]) == (code, code)
        assert v2["message"] == v1["StatusMessage"] != ""


def test_sm3_the_manifest_comes_back_byte_for_byte_with_fingerprint_and_signature(
    fetch: Fetch, unattested: Running
) -> None:
    """SM3, SM4."""
    v2, v1 = data_of(fetch(unattested, "GET", "/api/v2/manifest")), data_of(fetch(unattested, "GET", "/manifest"))
    assert base64.b64decode(v2["manifest"]) == INTEGRATION
    assert v2["manifestFingerprint"] == hashlib.sha256(INTEGRATION).hexdigest()
    assert v1 == {
        "ManifestSignatureRootECDSA": v2["manifestSignatureRootECDSA"],
        "ManifestSignature": v2["manifestFingerprint"],
        "Manifest": v2["manifest"],
    }


def test_q4_without_a_manifest_v2_fails_and_v1_says_null(fetch: Fetch, waiting: Running) -> None:
    """Q4 and protocol, section 7.5."""
    assert fetch(waiting, "GET", "/api/v2/manifest")["status"] == 500
    assert data_of(fetch(waiting, "GET", "/manifest")) == {
        "ManifestSignatureRootECDSA": None, "ManifestSignature": "", "Manifest": None,
    }  # fmt: skip


def test_sm4_a_second_manifest_is_refused_in_the_manner_of_each_version(fetch: Fetch, unattested: Running) -> None:
    """SM4."""
    body = json.dumps({"manifest": base64.b64encode(INTEGRATION).decode()}).encode()
    answers = {
        "v1": fetch(unattested, "POST", "/manifest", INTEGRATION),
        "v2": fetch(unattested, "POST", "/api/v2/manifest", body),
    }
    assert {version: answer["status"] for version, answer in answers.items()} == {"v1": 400, "v2": 500}
    for answer in answers.values():
        envelope = json.loads(answer["body"])
        assert (envelope["status"], envelope["data"]) == ("error", None)
        assert "server is not in expected state" in envelope["message"]
        assert answer["headers"]["X-Content-Type-Options"] == ["nosniff"]


def test_sm1_manifests_are_set_in_both_versions_after_failed_tries(fetch: Fetch) -> None:
    """SM1 and protocol, sections 7.4, 7.5: v2 answers with an object even if there are no recovery keys."""
    body = json.dumps({"manifest": base64.b64encode(INTEGRATION).decode()}).encode()
    with running() as up:
        for bad in (b"", b"{", b"[]"):
            assert fetch(up, "POST", "/manifest", bad)["status"] == 400
        for bad in (b"", b"{", b'{"manifest":"!"}'):
            answer = fetch(up, "POST", "/api/v2/manifest", bad)
            assert (answer["status"], json.loads(answer["body"])["status"]) == (400, "fail")
        assert fetch(up, "POST", "/api/v2/manifest", b"{}")["status"] == 500
        trailing = fetch(up, "POST", "/api/v2/manifest", body + b" trailing")
        assert data_of(trailing) == {"RecoverySecrets": {}}
    with running() as up:
        assert data_of(fetch(up, "POST", "/manifest", INTEGRATION)) is None


def test_q2_q3_quotes_over_the_network(fetch: Fetch, attested: Running, platform: SimulatedPlatform) -> None:
    """Q2, Q3, C7."""
    authority = attested.coordinator.state.authority
    cached = data_of(fetch(attested, "GET", "/api/v2/quote"))
    assert cached["cert"] == authority.chain_pem
    assert data_of(fetch(attested, "GET", "/quote")) == {"Cert": cached["cert"], "Quote": cached["quote"]}
    nonce = bytes(range(250, 256)) * 3
    fresh = data_of(fetch(attested, "GET", f"/api/v2/quote?nonce={base64.urlsafe_b64encode(nonce).decode()}"))
    digests = [hashlib.sha256(authority.root_der + part).digest() for part in (b"", nonce)]
    for answer, digest in zip((cached, fresh), digests, strict=True):
        assert digest in base64.b64decode(answer["quote"])
    assert len(digests) == 2
    for bad in ("AA", "A+==", "A/==", "!!!!", "YWJj=", "YWJj====", "YWI==", "=", "YW==YW==", "Y%20W", "%C3%A4"):
        assert fetch(attested, "GET", f"/api/v2/quote?nonce={bad}")["status"] == 400


def test_without_evidence_the_quote_is_null(fetch: Fetch, unattested: Running) -> None:
    """Protocol, section 7.7."""
    assert data_of(fetch(unattested, "GET", "/api/v2/quote"))["quote"] is None
    assert data_of(fetch(unattested, "GET", "/api/v2/quote?nonce=AAAA"))["quote"] is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "/status"), ("PUT", "/status"), ("DELETE", "/manifest"), ("OPTIONS", "/"), ("PATCH", "/api/v2/status"),
        ("POST", "/status"), ("GET", "/"), ("GET", "/nothing"), ("GET", "/status/"), ("GET", "/STATUS"),
        ("GET", "/api/v2"), ("GET", "/api/v3/status"), ("GET", "/api%2Fv2/status"), ("BREW", "/status"),
    ],
)  # fmt: skip
def test_unknown_methods_and_paths_are_405_without_a_message(
    fetch: Fetch, unattested: Running, method: str, path: str
) -> None:
    """Protocol, section 7.2: clients fall back to v1 exactly on 405."""
    answer = fetch(unattested, method, path)
    assert answer["status"] == 405
    assert answer["body"] == ("" if method == "HEAD" else '{"status":"error","data":null}\n')


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("//status", "/status"), ("/api/v2//status?a=b", "/api/v2/status?a=b"), ("/./status", "/status"),
        ("/x/../status", "/status"), ("//evil.example/status", "/evil.example/status"), ("/../../etc", "/etc"),
    ],
)  # fmt: skip
def test_odd_paths_are_redirected_to_the_clean_one_on_this_host(
    fetch: Fetch, unattested: Running, path: str, location: str
) -> None:
    answer = fetch(unattested, "GET", path)
    assert (answer["status"], answer["headers"]["Location"]) == (307, [location])


@pytest.mark.parametrize(
    "path", ["/%2e/status", "/%2E%2E/status", "/api/v2/%2e%2e/status", "/STATUS", "/Api/v2/status"]
)
def test_no_spelling_of_a_path_leads_to_another_one(fetch: Fetch, unattested: Running, path: str) -> None:
    assert fetch(unattested, "GET", path)["status"] == 405


def test_options_of_the_server_as_a_whole_are_answered_empty(unattested: Running) -> None:
    answer = http1(unattested.client, b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert (status_of(answer), body) == (200, b"")
    assert b"content-length: 0" in head.lower()
    other = http1(unattested.client, b"GET * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert status_of(other) == 400


def test_an_escaped_letter_is_that_letter(fetch: Fetch, unattested: Running) -> None:
    assert fetch(unattested, "GET", "/%73tatus")["status"] == 200


def test_curl_is_served(unattested: Running) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed: 1 stock client was not tried")
    for option in ("--http1.1", "--http2"):
        done = subprocess.run(
            ["curl", "-sk", option, "-w", "%{http_code}", f"https://{target(unattested.client)}/api/v2/status"],
            capture_output=True, timeout=60, check=True,
        )  # fmt: skip
        assert done.stdout.endswith(b"200")
        assert b'"code":3' in done.stdout


def test_no_answer_to_a_bad_manifest_repeats_what_was_in_it(fetch: Fetch) -> None:
    """Threats: canary secrets never in errors."""
    with running() as up:
        manifest = INTEGRATION.replace(b'"Package": "shop"', b'"Package": "nope"', 1)
        assert CANARY.encode() in manifest
        answer = fetch(up, "POST", "/manifest", manifest)
        assert (answer["status"], CANARY in answer["body"]) == (400, False)


# -- hostile HTTP/1.1 --------------------------------------------------------------------------------------------


# Much longer than the patience that a test gives, much shorter than every other one: what took less was cut off for it.
SOON_SECONDS = 25.0


def lives(up: Running) -> bool:
    """Whether an honest request is answered; how soon is what the benchmarks measure."""
    return status_of(http1(up.client, LAST_REQUEST)) == 200


def test_a_body_announced_as_too_large_is_refused_before_it_is_sent(patient: Running) -> None:
    head = b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n"
    answer = http1(patient.client, head)
    assert status_of(answer) == 413
    assert b'"status":"error"' in answer


def test_whoever_sends_a_hundred_megabytes_anyway_can_read_why_not(patient: Running) -> None:
    head = b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n"
    with tls(patient.client) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(head + bytes(2 << 20))
        assert status_of(read_all(connection)) == 413


def test_an_endless_chunked_body_is_refused_at_the_limit(patient: Running) -> None:
    chunk = b"100000\r\n" + bytes(0x100000) + b"\r\n"
    with tls(patient.client) as connection:
        connection.sendall(b"POST /manifest HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 100:
                connection.sendall(chunk)
                sent += 1
        assert status_of(read_all(connection)) == 413
    assert lives(patient)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /status HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
        b"A" * 200_000,
    ],
    ids=["header", "target", "headers", "no line"],
)
def test_endless_headers_are_cut_off(patient: Running, request_bytes: bytes) -> None:
    answer = http1(patient.client, request_bytes)
    assert status_of(answer) in (0, 400, 431)
    assert lives(patient)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /status HTTP/1.1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\0y\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"POST /status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET  /status HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /sta\x01tus HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /status HTTP/3.0\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n\r\n\r\n\0\0\0\0",
        b"\x16\x03\x01\x00\x05hello",
    ],
)
def test_what_is_not_http_is_refused_once_and_closed(patient: Running, request_bytes: bytes) -> None:
    """Request smuggling needs a server that goes on after an ambiguous request."""
    answer = http1(patient.client, request_bytes + LAST_REQUEST)
    assert status_of(answer) in (0, 400, 405, 501, 505)
    assert answer.count(b"HTTP/1.1 ") <= 1


CHUNKED = b"POST /status HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (REQUEST * 3 + LAST_REQUEST, [200] * 4),
        (b"GET /status HTTP/1.0\r\n\r\n", [200]),
        (b"GET /status HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" + LAST_REQUEST, [200, 200]),
        (b"GET /status HTTP/1.2\r\nHost: x\r\nConnection: close\r\n\r\n", [200]),
        (b"GET /status HTTP/1.1\r\nHost: x\r\nExpect: a miracle\r\n\r\n" + LAST_REQUEST, [417]),
        (b"GET /sta\xfftus?\xff HTTP/1.1\r\nHost: x\r\n\r\n" + LAST_REQUEST, [405, 200]),
        (b"GET https://other/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [200]),
        (b"OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [200]),
        (b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n" + LAST_REQUEST, [404, 200]),
        (b"GET /status HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n" + LAST_REQUEST, [200, 200]),
        (b"HEAD /status HTTP/1.1\r\nHost: x\r\n\r\n" + LAST_REQUEST, [405, 200]),
        (CHUNKED + b"1\r\na\r\n0\r\n\r\n" + LAST_REQUEST, [405, 200]),
        (b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" + LAST_REQUEST, [405, 200]),
    ],
)  # fmt: skip
def test_legal_but_rare_requests_are_answered_in_order(
    patient: Running, request_bytes: bytes, statuses: list[int]
) -> None:
    answer = http1(patient.client, request_bytes)
    assert [int(status) for status in re.findall(rb"HTTP/1\.[01] ([0-9]{3}) ", answer)] == statuses


def test_who_asks_whether_to_go_on_is_told(patient: Running) -> None:
    head = b"POST /status HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    with tls(patient.client) as connection:
        connection.sendall(head)
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"ab")
        assert status_of(read_all(connection)) == 405


@pytest.mark.parametrize(
    "start",
    [b"", b"GET /status HTTP/1.1\r\nHost: ", b"POST /manifest HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"],
    ids=["silent", "headers", "body"],
)
def test_slow_senders_are_not_waited_for_however_busy_they_look(start: bytes) -> None:
    with running(patience=Patience(request=0.7)) as up:
        begun = time.monotonic()
        with tls(up.client) as connection, contextlib.suppress(OSError):
            connection.sendall(start)
            while time.monotonic() - begun < SOON_SECONDS:
                if start:
                    connection.sendall(b"x")
                connection.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    if not connection.recv(100):
                        break
        assert 0.7 <= time.monotonic() - begun < SOON_SECONDS


def test_an_idle_connection_is_closed_after_its_time() -> None:
    with running(patience=Patience(keep_alive=0.5)) as up, tls(up.client) as connection:
        begun = time.monotonic()
        connection.sendall(REQUEST)
        assert status_of(connection.recv(5000)) == 200
        read_all(connection)
        assert 0.5 <= time.monotonic() - begun < SOON_SECONDS


def test_whoever_does_not_read_the_answer_is_cut_off(large_manifest: bytes) -> None:
    """Zero-window stall: the response is larger than all socket buffers."""
    overload = Overload()
    with running(manifest=large_manifest, patience=Patience(response=0.9, close=0.3), overload=overload) as up:
        with tls(up.client) as connection:
            connection.sendall(b"GET /manifest HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: overload.client.connections.held == 0)
            received = read_all(connection)
            assert len(received) < 8_000_000
            assert not received.endswith(b"}\n")
        assert lives(up)


def test_a_slow_but_honest_reader_gets_everything(unattested: Running, patient: Running) -> None:
    with tls(patient.client) as connection:
        connection.sendall(b"GET /manifest HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = bytearray()
        while chunk := connection.recv(1 << 20):
            received += chunk
            if len(received) < 500_000:
                time.sleep(0.005)
    assert received.endswith(b"}\n")
    assert len(received) > 8_000_000


def test_others_are_answered_while_a_pipelining_peer_reads_nothing(patient: Running) -> None:
    with tls(patient.client) as connection:
        push(connection, REQUEST * 1000, 0.7, 30 << 20)
        assert lives(patient)


def test_a_client_that_leaves_in_the_middle_of_an_answer_is_forgotten(patient: Running) -> None:
    for _ in range(10):
        connection = tls(patient.client)
        connection.sendall(b"GET /manifest HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(1000)
        connection.close()
    assert lives(patient)


def test_the_answer_to_a_large_json_body_does_not_stop_the_others(attested: Running) -> None:
    """Three megabytes of small JSON values, from anybody, while a manifest is set already."""
    body = b'{"manifest":[' + b"1," * 1_500_000 + b"1]}"
    head = b"POST /api/v2/manifest HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with tls(attested.client) as connection:
        connection.sendall(head + body)
        assert lives(attested)
        assert status_of(read_all(connection)) in (400, 500)


def test_a_world_without_a_manifest_answers_others_while_it_reads_a_large_body() -> None:
    body = b'{"manifest":[' + b"1," * 700_000 + b'"x"]}'
    head = b"POST /api/v2/manifest HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
    with running(World()) as up, tls(up.client) as connection:
        connection.sendall(head + body)
        time.sleep(0.2)
        for _ in range(3):
            assert lives(up)
