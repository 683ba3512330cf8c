"""The metrics listener: names, labels, what is counted and what never becomes a label."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.coordinator.manifests import CANARY, INTEGRATION, encode, many
from tests.coordinator.peers import read_all
from tests.coordinator.people import ask, office, person
from tests.coordinator.running import Address, Running, World, running
from tests.coordinator.states import UUID_1, UUID_2, applicant
from tests.coordinator.test_service import WatchedStore

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.collect import CacheStatistics
from marblerun.attestation.simulated import SimulatedPlatform
from marblerun.coordinator.commands.activate import Activated, ActivationRefused, ActivationRequest
from marblerun.coordinator.server import metrics as metrics_module
from marblerun.coordinator.server.exchange import Peer, Request
from marblerun.coordinator.server.journal import UNKNOWN
from marblerun.coordinator.server.main import metrics_from_settings
from marblerun.coordinator.server.mesh import Activate
from marblerun.coordinator.server.metrics import OTHER, Metrics, code_name
from marblerun.coordinator.server.ops import LOOPBACK, MAX_CONNECTIONS, listen_ops, ops_service
from marblerun.coordinator.server.overload import Limits
from marblerun.coordinator.server.settings import Settings, settings_from_environment
from marblerun.coordinator.server.turns import Caller, Overload
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.errors import Busy, Misconfigured, Unavailable
from marblerun.marble.credentials import make_credentials
from marblerun.marble.pins import AnyCoordinator
from marblerun.marble.rpc_client import call_unary
from marblerun.marble.settings import Endpoint
from marblerun.pki.profiles import SubjectNames
from marblerun.wire.rpc import ACTIVATE_PATH, ActivationReq, GrpcStatus

ON = Settings(prometheus_address=":1")  # the port is replaced by a free one
WITH_UUID = Settings(prometheus_address=":1", metrics_uuid=True)


def get(address: Address | None, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    """One plain request."""
    assert address is not None
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.getheader("content-type", ""), answer.read()
    finally:
        connection.close()


def samples(up: Running) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a scrape by name and labels."""
    status, _, page = get(up.ops, "/metrics")
    assert status == 200
    families = text_string_to_metric_families(page.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(up: Running, name: str, **labels: str) -> float | None:
    """One sample, ``None`` if there is none."""
    return samples(up).get((name, frozenset(labels.items())))


@pytest.fixture
def up() -> Iterator[Running]:
    with running(World(settings=ON), manifest=INTEGRATION) as started:
        yield started


# -- the reference's metrics -------------------------------------------------------------------------------------


def test_n1_requests_count_by_route_status_and_lower_case_method_in_one_series_each(up: Running) -> None:
    """N1."""
    calls = (("GET", "/api/v2/status", 200), ("PUT", "/api/v2/quote", 405), ("POST", "/api/v2/status", 405),
             ("GET", "/status", 200))  # fmt: skip
    for times in (1, 2):
        for method, path, status in calls:
            assert ask(up.client, method, path).status == status
        found = {
            (labels["path"], labels["code"], labels["method"]): count
            for (name, items), count in samples(up).items()
            if name == "server_client_api_http_request_total"
            for labels in [dict(items)]
        }
        assert found == {(path, str(status), method.lower()): times for method, path, status in calls}


def test_sizes_and_durations_have_the_references_buckets(up: Running) -> None:
    """Protocol, section 1.7."""
    ask(up.client, "POST", "/manifest", b"x" * 3000)
    found = samples(up)

    def buckets(name: str) -> list[str]:
        return [
            dict(labels)["le"] for key, labels in found if key == f"{name}_bucket" and ("path", "/manifest") in labels
        ]

    prefix = "server_client_api_http"
    seconds = ["0.005", "0.025", "0.1", "0.5", "1.0", "2.5", "5.0", "+Inf"]
    sizes = ["100.0", "1000.0", "2000.0", "5000.0", "10000.0", "+Inf"]
    assert buckets(f"{prefix}_request_duration_histogram_seconds") == seconds
    assert buckets(f"{prefix}_request_size_histogram_bytes") == sizes
    assert buckets(f"{prefix}_response_size_histogram_bytes") == sizes
    size = value(up, f"{prefix}_request_size_histogram_bytes_sum", path="/manifest")
    assert size is not None
    assert 3000 < size < 3500
    assert value(up, f"{prefix}_in_flight_requests", path="/manifest") == 0


def test_every_metric_of_the_reference_is_there_with_its_labels(up: Running) -> None:
    """Protocol, section 1.7; series that the reference makes at once are there before anything has happened."""
    expected = {
        "coordinator_version_info": {"version", "commit"},
        "coordinator_state": set(),
        "server_client_api_http_in_flight_requests": {"path"},
        "grpc_server_started_total": {"grpc_type", "grpc_service", "grpc_method"},
        "grpc_server_msg_received_total": {"grpc_type", "grpc_service", "grpc_method"},
        "grpc_server_msg_sent_total": {"grpc_type", "grpc_service", "grpc_method"},
        "grpc_server_handled_total": {"grpc_type", "grpc_service", "grpc_method", "grpc_code"},
        "promhttp_metric_handler_requests_total": {"code"},
        "promhttp_metric_handler_requests_in_flight": set(),
        "promhttp_metric_handler_errors_total": {"cause"},
    }
    found: dict[str, set[str]] = {}
    for name, labels in samples(up):
        found.setdefault(name, {key for key, _ in labels})
    assert {name: found.get(name) for name in expected} == expected
    ask(up.client, "GET", "/api/v2/status")
    up.call(try_activation(up, "bare"))
    later = {
        "coordinator_marble_activations_total": {"type"},
        "coordinator_marble_activations_success_total": {"type"},
        "server_client_api_http_request_total": {"path", "code", "method"},
        "server_client_api_http_request_duration_histogram_seconds_count": {"path", "method"},
        "server_client_api_http_request_size_histogram_bytes_count": {"path"},
        "server_client_api_http_response_size_histogram_bytes_count": {"path"},
    }
    found = {}
    for name, labels in samples(up):
        found.setdefault(name, {key for key, _ in labels})
    assert {name: found.get(name) for name in later} == later
    assert not [name for name in found if name.endswith("_created")]


def test_there_is_a_series_for_every_grpc_status_under_the_name_that_go_gives_it(up: Running) -> None:
    names = {dict(labels)["grpc_code"] for name, labels in samples(up) if name == "grpc_server_handled_total"}
    assert names == {
        "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
        "PermissionDenied", "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented",
        "Internal", "Unavailable", "DataLoss", "Unauthenticated",
    }  # fmt: skip
    assert [code_name(code) for code in GrpcStatus][:2] == ["OK", "Canceled"]


def test_c9_the_state_gauge_follows_the_state() -> None:
    """C9, apart from what recovery does to it."""
    with running(World(settings=ON)) as up:
        assert value(up, "coordinator_state") == 2
        up.set_manifest(INTEGRATION)
        assert value(up, "coordinator_state") == 3


def test_c9_the_state_gauge_shows_recovery(platform: SimulatedPlatform) -> None:
    """C9."""
    world = World(platform=platform, settings=ON)
    with running(world, manifest=INTEGRATION):
        pass
    sealed = world.store.load()
    assert sealed is not None
    with running(replace(world, store=MemoryStore(replace(sealed, keys=())))) as up:
        assert value(up, "coordinator_state") == 1
        assert get(up.ops, "/readyz")[0] == 200
        assert get(up.ops, "/readyz/marbles")[0] == 503


# -- activations -------------------------------------------------------------------------------------------------


async def try_activation(up: Running, marble: str, uuid: str = UUID_1, quote: bytes = b"") -> Activated | None:
    """Through the counted entry, without the network; ``None`` if it was refused."""
    assert up.metrics is not None
    activate = up.metrics.activations(up.coordinator.activate)
    try:
        return await activate(applicant().request(marble, uuid, quote), applicant().certificate)
    except ActivationRefused:
        return None


def test_a23_attempts_and_successes_carry_type_and_uuid_where_that_was_asked_for() -> None:
    """A23: failed attempts only raise the attempt counter."""
    with running(World(settings=WITH_UUID), manifest=encode(many(1))) as up:
        assert up.call(try_activation(up, "m")) is not None
        assert up.call(try_activation(up, "m")) is None
        assert value(up, "coordinator_marble_activations_total", type="m", uuid=UUID_1) == 2
        assert value(up, "coordinator_marble_activations_success_total", type="m", uuid=UUID_1) == 1
        name = "marblerun_coordinator_activation_refusals_total"
        assert value(up, name, stage="budget", reason="activation-refused") == 1


def test_a23_without_being_asked_uuids_are_no_labels(up: Running) -> None:
    """A23, and the limit of protocol 12.2, no. 24."""
    for uuid in (UUID_1, UUID_2, "not a uuid"):
        up.call(try_activation(up, "bare", uuid))
    assert value(up, "coordinator_marble_activations_total", type="bare") == 3
    assert value(up, "coordinator_marble_activations_success_total", type="bare") == 2
    assert value(up, "marblerun_coordinator_activation_refusals_total", stage="uuid", reason="activation-refused") == 1
    assert value(up, "marblerun_coordinator_activation_duration_seconds_count", result="success") == 2
    assert value(up, "marblerun_coordinator_activation_duration_seconds_count", result="refused") == 1
    assert UUID_1.encode() not in get(up.ops, "/metrics")[2]


def test_what_strangers_send_never_becomes_a_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "MAX_UUIDS", 5)
    with running(World(settings=WITH_UUID), manifest=INTEGRATION) as up:
        for number in range(20):
            up.call(try_activation(up, f"evil{number}", f"{number:032x}"))
            ask(up.client, f"EVIL{number}", "/api/v2/status")
            ask(up.client, "GET", f"/evil{number}")
        up.call(try_activation(up, "bare", "x" * 1000))
        up.call(try_activation(up, "bare", "new\nline"))
        page = get(up.ops, "/metrics")[2]
        assert b"evil" not in page.lower()
        assert value(up, "coordinator_marble_activations_total", type=UNKNOWN, uuid=OTHER) == 15
        assert value(up, "coordinator_marble_activations_total", type="bare", uuid=UNKNOWN) == 2
        name = "server_client_api_http_request_total"
        assert value(up, name, path="/api/v2/status", code="405", method=UNKNOWN) == 20


def test_a_refusal_for_evidence_names_the_step(platform: SimulatedPlatform) -> None:
    with running(World(platform=platform, settings=ON), manifest=INTEGRATION) as up:
        assert up.call(try_activation(up, "bare")) is None
        assert up.call(try_activation(up, "bare", quote=platform.quote(bytes(64)))) is None
        bound = report_data_for(applicant().certificate)
        assert up.call(try_activation(up, "bare", quote=platform.quote(bound, signer_id=bytes(32)))) is None
        both = platform.quote(bound, signer_id=bytes(32), debug=True)
        assert up.call(try_activation(up, "bare", quote=both)) is None
        found = {
            tuple(sorted(labels)): count
            for (name, labels), count in samples(up).items()
            if name == "marblerun_coordinator_activation_refusals_total"
        }
        assert found == {
            (("reason", "evidence"), ("stage", "evidence")): 1,
            (("reason", "report-data"), ("stage", "evidence")): 1,
            (("reason", "signer-id"), ("stage", "evidence")): 2,
            (("reason", "debug"), ("stage", "evidence")): 1,
        }
        assert value(up, "marblerun_coordinator_activation_duration_seconds_count", result="refused") == 4


def test_the_collateral_caches_counters_are_told_as_they_are_now() -> None:
    counted = CacheStatistics(misses=2, fetches=3, failures=4, refused=5, stale_served=6, pck_fetches=7, pck_failures=8)
    metrics, statistics = Metrics(), counted
    assert b"marblerun_collateral_" not in metrics.page("")[0]
    metrics.watch_collateral(statistics)
    statistics.hits += 1
    families = text_string_to_metric_families(metrics.page("")[0].decode())
    found = {s.name: s.value for f in families for s in f.samples if s.name.startswith("marblerun_collateral_")}
    assert found == {
        "marblerun_collateral_hits_total": 1,
        "marblerun_collateral_misses_total": 2,
        "marblerun_collateral_fetches_total": 3,
        "marblerun_collateral_failures_total": 4,
        "marblerun_collateral_refused_total": 5,
        "marblerun_collateral_stale_served_total": 6,
        "marblerun_collateral_pck_fetches_total": 7,
        "marblerun_collateral_pck_failures_total": 8,
    }
    assert {field.name for field in fields(CacheStatistics)} == {
        name.removeprefix("marblerun_collateral_").removesuffix("_total") for name in found
    }


# -- refusals, timings, connections ------------------------------------------------------------------------------


def test_refused_requests_count_by_kind_of_error() -> None:
    with running(World(settings=ON), manifest=encode(office({"nobody": ()}))) as up:
        ask(up.client, "GET", "/api/v2/secrets?s=sharedKey")
        ask(up.client, "GET", "/api/v2/secrets?s=sharedKey", by=person("nobody"))
        ask(up.client, "POST", "/api/v2/sign-quote", b"{}")
        ask(up.client, "POST", "/api/v2/manifest", b"{")
        ask(up.client, "POST", "/api/v2/manifest", {"manifest": "e30="})
        ask(up.client, "GET", "/nothing")
        found = {
            (dict(labels)["path"], dict(labels)["reason"]): count
            for (name, labels), count in samples(up).items()
            if name == "marblerun_coordinator_client_api_refusals_total"
        }
        assert found == {
            ("/api/v2/secrets", "unauthorized"): 1,
            ("/api/v2/secrets", "denied"): 1,
            ("/api/v2/sign-quote", "feature-disabled"): 1,
            ("/api/v2/manifest", "bad-request"): 1,
            ("/api/v2/manifest", "wrong-phase"): 1,
            (UNKNOWN, "405"): 1,
        }


def test_sealing_and_storing_are_timed_and_their_failures_counted() -> None:
    store = WatchedStore(failing=True)
    with running(World(store=store, settings=ON)) as up:
        with pytest.raises(Unavailable):
            up.set_manifest(INTEGRATION)
        store.failing = False
        up.set_manifest(INTEGRATION)
        assert value(up, "marblerun_coordinator_seal_duration_seconds_count") == 2
        assert value(up, "marblerun_coordinator_store_duration_seconds_count") == 2
        assert value(up, "marblerun_coordinator_seal_failures_total") == 0
        assert value(up, "marblerun_coordinator_store_failures_total") == 1


def test_connections_and_handshakes_are_told_by_listener(up: Running) -> None:
    ask(up.client, "GET", "/status")
    with socket.create_connection(up.client) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        plain.recv(100)
    assert value(up, "marblerun_coordinator_handshakes_total", listener="client") == 1
    assert value(up, "marblerun_coordinator_failed_handshakes_total", listener="client") == 1
    assert value(up, "marblerun_coordinator_handshakes_total", listener="mesh") == 0


def test_refusals_and_queues_of_an_overload_are_told(up: Running) -> None:
    prefix = "marblerun_coordinator"
    assert value(up, f"{prefix}_queue_length", queue="mesh-handshakes") == 0
    assert value(up, f"{prefix}_in_progress", queue="activations") == 0
    overload = Overload(Limits(requests=1))
    metrics = Metrics()
    metrics.watch_overload(overload)

    async def overfill() -> None:
        await overload.requests.enter(Caller("a"))
        with pytest.raises(Busy):
            await overload.requests.enter(Caller("b"))

    asyncio.run(overfill())
    families = text_string_to_metric_families(metrics.page("")[0].decode())
    found = {(s.name, *s.labels.values()): s.value for f in families for s in f.samples if "queue" in s.labels}
    assert found[f"{prefix}_overload_refusals_total", "requests", "full"] == 1
    assert found[f"{prefix}_in_progress", "requests"] == 1
    queues = {key[1] for key in found if key[0] == f"{prefix}_queue_length"}
    assert queues == {"mesh-handshakes", "client-handshakes", "activations", "requests", "keys", "changes"}
    overload.close()


def test_grpc_calls_count_by_the_status_they_ended_with(up: Running) -> None:
    """Protocol, section 1.7; calls of unknown methods are not told, as there."""

    def call(path: str, marble: str, uuid: str = UUID_1) -> None:
        request = ActivationReq(Quote=b"", CSR=applicant().csr, MarbleType=marble, UUID=uuid)
        context = make_credentials(SubjectNames()).client_context()
        call_unary(Endpoint(*up.mesh), path, request.SerializeToString(), context=context, pin=AnyCoordinator())

    calls = [(ACTIVATE_PATH, "bare", UUID_1), (ACTIVATE_PATH, "bare", UUID_2), (ACTIVATE_PATH, "none", UUID_1),
             (ACTIVATE_PATH, "bare", "bad"), ("/rpc.Marble/Other", "bare", UUID_1)]  # fmt: skip
    for path, marble, uuid in calls:
        call(path, marble, uuid)
    labels = {"grpc_type": "unary", "grpc_service": "rpc.Marble", "grpc_method": "Activate"}
    handled = {
        dict(items)["grpc_code"]: count
        for (name, items), count in samples(up).items()
        if name == "grpc_server_handled_total" and count
    }
    assert handled == {"OK": 2, "PermissionDenied": 1, "InvalidArgument": 1}
    assert value(up, "grpc_server_started_total", **labels) == 4
    assert value(up, "grpc_server_msg_received_total", **labels) == 4
    assert value(up, "grpc_server_msg_sent_total", **labels) == 2


# -- the page itself ---------------------------------------------------------------------------------------------

# promtool does not like the type in a name; these names are the reference's.
REFERENCE_NAMES = {
    f"server_client_api_http_{name} metric name should not include type 'histogram'"
    for name in (
        "request_duration_histogram_seconds",
        "request_size_histogram_bytes",
        "response_size_histogram_bytes",
    )
}


def test_promtool_finds_nothing_but_the_references_own_names(up: Running) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: the metrics page was not linted")
    ask(up.client, "GET", "/api/v2/status")
    up.call(try_activation(up, "bare"))
    up.call(try_activation(up, "none"))
    page = get(up.ops, "/metrics")[2]
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, timeout=60, check=False)
    lines = (checked.stdout + checked.stderr).decode().split("\n")
    assert {line for line in lines if line} == REFERENCE_NAMES


def test_the_page_is_text_or_openmetrics_as_the_scraper_likes() -> None:
    page, content_type = Metrics().page("")
    assert content_type.startswith("text/plain; version=0.0.4")
    assert not page.endswith(b"# EOF\n")
    page, content_type = Metrics().page("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert page.endswith(b"# EOF\n")


def test_no_secret_and_no_manifest_text_is_on_the_page(up: Running) -> None:
    up.call(try_activation(up, "frontend"))
    for path in ("/metrics", "/events", "/readyz"):
        assert CANARY.encode() not in get(up.ops, path)[2]


# -- the listener ------------------------------------------------------------------------------------------------


def test_off_by_default_and_then_the_library_is_not_even_loaded() -> None:
    assert metrics_from_settings(Settings()) is None
    with running() as up:
        assert up.ops is None
    code = (
        "import sys, marblerun.coordinator.server.main as m, marblerun.coordinator.server.settings as s;"
        "m.metrics_from_settings(s.Settings());"
        "sys.exit('prometheus_client' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def test_an_address_without_a_host_is_loopback_and_only_there(up: Running) -> None:
    assert up.ops is not None
    assert up.ops[0] == LOOPBACK


def test_an_address_that_cannot_be_had_is_an_error_at_start(up: Running) -> None:
    assert up.ops is not None
    service = ops_service(Metrics(), lambda: up.coordinator.state)
    for address in (f"127.0.0.1:{up.ops[1]}", "nonsense", "127.0.0.1:x"):
        with pytest.raises(Misconfigured, match="EDG_COORDINATOR_PROMETHEUS_ADDR"):
            asyncio.run(listen_ops(service, address))


def test_the_uuid_label_is_a_setting_of_its_own() -> None:
    for text, expected in (("1", True), ("0", False), ("", False), ("true", False)):
        settings = settings_from_environment({"EDG_COORDINATOR_METRICS_UUID": text}, Path("/"))
        assert (settings.metrics_uuid, settings.warnings) == (expected, ())


def test_too_many_connections_are_closed_and_the_others_live(up: Running) -> None:
    assert up.ops is not None
    opened = [socket.create_connection(up.ops, timeout=60) for _ in range(MAX_CONNECTIONS)]
    try:
        for connection in opened:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
            assert connection.recv(12) == b"HTTP/1.1 200"
        with socket.create_connection(up.ops, timeout=60) as one_more:
            assert read_all(one_more) == b""
    finally:
        for connection in opened:
            connection.close()
    assert get(up.ops, "/healthz")[0] == 200


def test_large_requests_to_the_listener_are_refused(up: Running) -> None:
    assert up.ops is not None
    connection = http.client.HTTPConnection(*up.ops, timeout=60)
    connection.request("POST", "/metrics", b"x" * 5000)
    assert connection.getresponse().status == 413


# -- health ------------------------------------------------------------------------------------------------------


def test_a_load_balancer_can_ask_without_a_certificate(up: Running) -> None:
    for method in ("GET", "HEAD"):
        assert get(up.ops, "/healthz", method)[:2] == (200, "text/plain; charset=utf-8")
    for path in ("/readyz", "/readyz/marbles"):
        status, content_type, body = get(up.ops, path)
        assert (status, content_type, json.loads(body)) == (200, "application/json", {"ready": True, "state": 3})
    assert get(up.ops, "/")[0] == 404
    assert ask(up.client, "GET", "/api/v2/status").status == 200


def test_before_the_manifest_users_may_come_and_marbles_may_not() -> None:
    with running(World(settings=ON)) as up:
        assert get(up.ops, "/readyz")[0] == 200
        status, _, body = get(up.ops, "/readyz/marbles")
        assert (status, json.loads(body)) == (503, {"ready": False, "state": 2})


def test_a_coordinator_that_has_not_started_is_alive_and_not_ready() -> None:
    coordinator = World().coordinator()
    metrics = Metrics()
    metrics.watch_state(lambda: coordinator.state)
    service = ops_service(metrics, lambda: coordinator.state)

    async def statuses() -> list[int]:
        paths = ("/healthz", "/readyz", "/readyz/marbles")
        return [(await service.handle(Request("GET", path, (), b"", Peer("")))).status for path in paths]

    assert asyncio.run(statuses()) == [200, 503, 503]
    assert b"\ncoordinator_state 0.0\n" in metrics.page("")[0]


# -- events ------------------------------------------------------------------------------------------------------


def test_events_are_the_successful_activations_in_the_references_form(up: Running) -> None:
    """Protocol, section 1.6."""
    assert get(up.ops, "/events") == (200, "application/json", b"null\n")
    up.call(try_activation(up, "bare", UUID_1.upper(), b"some quote"))
    up.call(try_activation(up, "none"))
    up.call(try_activation(up, "bare", UUID_2))
    for method in ("GET", "POST", "DELETE"):
        status, content_type, body = get(up.ops, "/events", method)
        assert (status, content_type) == (200, "application/json")
        first, second = json.loads(body)
        assert list(first) == ["time", "activation"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z", first["time"])
        assert list(first["activation"].items())[:2] == [("marbleType", "bare"), ("uuid", UUID_1.upper())]
        assert b64decode(first["activation"]["quote"]) == b"some quote"
        assert second["activation"] == {"marbleType": "bare", "uuid": UUID_2, "quote": None}


def test_errors_outside_our_tree_count_too(up: Running) -> None:
    metrics = up.metrics
    assert metrics is not None

    async def broken(_request: ActivationRequest, _leaf: bytes | None) -> Activated:
        raise ZeroDivisionError

    async def unavailable(_request: ActivationRequest, _leaf: bytes | None) -> Activated:
        raise Unavailable("away")

    async def activate(failing: Activate) -> None:
        with pytest.raises((ZeroDivisionError, Unavailable)):
            await metrics.activations(failing)(applicant().request("bare"), None)

    asyncio.run(activate(broken))
    asyncio.run(activate(unavailable))
    for reason in ("ZeroDivisionError", "unavailable"):
        assert value(up, "marblerun_coordinator_activation_refusals_total", stage="none", reason=reason) == 1
