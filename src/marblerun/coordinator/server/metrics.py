"""Metrics for Prometheus: the reference's names and labels, and some of our own (protocol, section 1.7).

Imported only where the metrics listener is on. Nothing that a stranger sends becomes a label: types, paths and methods
count under ``(unknown)`` unless they are ours, and UUIDs only count where that was asked for, up to a limit.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from OpenSSL import SSL
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from marblerun.attestation.collect import CacheStatistics
from marblerun.coordinator.commands.activate import Activated, ActivationRefused, ActivationRequest
from marblerun.coordinator.server.edge import EdgeStatistics
from marblerun.coordinator.server.events import EventLog
from marblerun.coordinator.server.exchange import Request, Response, Service
from marblerun.coordinator.server.journal import UNKNOWN, known_method, known_path
from marblerun.coordinator.server.mesh import Activate
from marblerun.coordinator.server.turns import Overload
from marblerun.coordinator.state import State
from marblerun.errors import MarbleRunError, Untrusted
from marblerun.policy.admission import NotAdmitted
from marblerun.version import __version__
from marblerun.wire.rpc import ACTIVATE_PATH, GrpcStatus, parse_status

HTTP_SECONDS: Final = (0.005, 0.025, 0.1, 0.5, 1, 2.5, 5)
HTTP_BYTES: Final = (100, 1000, 2000, 5000, 10000)
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# With UUIDs as labels every Marble instance is a time series of its own; above this many they count together.
MAX_UUIDS: Final = 10_000
OTHER: Final = "(other)"
# The longest spelling of a UUID that an activation can succeed with.
_UUID_LENGTH: Final = 45

_SERVICE, _METHOD = ACTIVATE_PATH.strip("/").split("/")
_GRPC: Final = {"grpc_type": "unary", "grpc_service": _SERVICE, "grpc_method": _METHOD}
_EDGE: Final = (
    ("open_connections", GaugeMetricFamily, "Open connections."),
    ("handshakes", CounterMetricFamily, "TLS handshakes that succeeded."),
    ("failed_handshakes", CounterMetricFamily, "TLS handshakes that failed."),
    ("refused_connections", CounterMetricFamily, "Connections refused because there were too many."),
)
_COLLATERAL: Final = (
    ("hits", "Requests answered from what is kept."),
    ("misses", "Requests that had to wait for a fetch, or were refused one."),
    ("fetches", "Fetches that began, renewals included."),
    ("failures", "Fetches that brought nothing usable."),
    ("refused", "Requests answered with a failure remembered."),
    ("stale_served", "Answers past their refresh time, still valid."),
    ("pck_fetches", "PCK certificates asked for, of machines whose quotes do not carry them."),
    ("pck_failures", "PCK certificates that could not be had."),
)


class _Registry(CollectorRegistry):
    """One without the series of creation times that the library adds: the reference has none."""

    def collect(self) -> Iterable[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


class _Live(Collector):
    """What others count already, as it is when somebody asks: connections, the collateral cache, the event log."""

    def __init__(self, events: EventLog) -> None:
        self.listeners: dict[str, EdgeStatistics] = {}
        self.overload: Overload | None = None
        self.collateral: CacheStatistics | None = None
        self._events = events

    def collect(self) -> Iterable[Metric]:
        for name, kind, text in _EDGE:
            family = kind(f"marblerun_coordinator_{name}", text, labels=("listener",))
            for listener, statistics in self.listeners.items():
                family.add_metric((listener,), getattr(statistics, name))
            yield family
        if self.overload is not None:
            yield from _overload_families(self.overload)
        if self.collateral is not None:
            for name, text in _COLLATERAL:
                yield CounterMetricFamily(f"marblerun_collateral_{name}", text, value=getattr(self.collateral, name))
        name = "marblerun_coordinator_events_dropped"
        yield CounterMetricFamily(name, "Entries that the event log had to drop.", value=self._events.dropped)


def _overload_families(overload: Overload) -> Iterator[Metric]:
    prefix = "marblerun_coordinator"
    refused = CounterMetricFamily(
        f"{prefix}_overload_refusals",
        "Connections and requests refused because there was no room, by queue and reason.",
        labels=("queue", "reason"),
    )
    for (queue, reason), count in overload.tally.refused.items():
        refused.add_metric((queue, reason), count)
    waiting = GaugeMetricFamily(f"{prefix}_queue_length", "Waiting for their turn.", labels=("queue",))
    for queue, count in overload.waiting().items():
        waiting.add_metric((queue,), count)
    under_way = GaugeMetricFamily(f"{prefix}_in_progress", "Under way, those that wait included.", labels=("queue",))
    for queue, count in overload.under_way().items():
        under_way.add_metric((queue,), count)
    yield from (refused, waiting, under_way)


class Metrics:
    """Everything that is counted, in a registry of its own."""

    def __init__(self, *, uuid_label: bool = False) -> None:
        self.events = EventLog()
        self.registry: Final = _Registry()
        self._live = _Live(self.events)
        self.registry.register(self._live)
        self._uuid_label = uuid_label
        self._uuids: set[str] = set()
        self._state: Callable[[], State] | None = None
        self._describe_process()
        self._activations = _Activations(self.registry, ("type", "uuid") if uuid_label else ("type",))
        self._http = _Http(self.registry)
        self._grpc = _Grpc(self.registry)
        self._timings = {
            "seal": _Timing(self.registry, "seal", "Sealing the state"),
            "store": _Timing(self.registry, "store", "Making the sealed state durable"),
        }
        self._scrapes = _Scrapes(self.registry)

    def _describe_process(self) -> None:
        about = Gauge("coordinator_version_info", "Version.", ("version", "commit"), registry=self.registry)
        about.labels(__version__, "unknown").set(0)  # this value is the reference's
        name = "marblerun_coordinator_build_info"
        build = Gauge(
            name, "What this Coordinator is made of.", ("version", "python", "openssl"), registry=self.registry
        )
        build.labels(__version__, platform.python_version(), SSL.OpenSSL_version(SSL.OPENSSL_VERSION).decode()).set(1)
        state = Gauge("coordinator_state", "State number; 0 if there is none yet.", registry=self.registry)
        state.set_function(self._phase)

    def _phase(self) -> float:
        try:
            return float(self._state().phase) if self._state is not None else 0.0
        except MarbleRunError:
            return 0.0

    # -- what is watched -----------------------------------------------------------------------------------------

    def watch_state(self, state: Callable[[], State]) -> None:
        """From now on ``state`` tells the Coordinator's snapshot."""
        self._state = state

    def watch_listener(self, name: str, statistics: EdgeStatistics) -> None:
        """From now on a listener's connections are told."""
        self._live.listeners[name] = statistics

    def watch_overload(self, overload: Overload) -> None:
        """From now on refusals and queues are told."""
        self._live.overload = overload

    def watch_collateral(self, statistics: CacheStatistics) -> None:
        """From now on the counters of the collateral cache are told; without one there are no such series."""
        self._live.collateral = statistics

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure a block; ``name`` is ``seal`` or ``store``. From any thread."""
        with self._timings[name].measured():
            yield

    def activations(self, activate: Activate) -> Activate:
        """``activate``, counted, and with its successes in the event log."""

        async def measured(request: ActivationRequest, leaf: bytes | None) -> Activated:
            labels = self._marble_labels(request)
            with self._activations.measured(labels):
                activated = await activate(request, leaf)
            self.events.record(request)
            return activated

        return measured

    def _marble_labels(self, request: ActivationRequest) -> Sequence[str]:
        deployment = self._state().deployment if self._state is not None else None
        known = deployment is not None and request.marble_type in deployment.marbles
        marble_type = request.marble_type if known else UNKNOWN
        if not self._uuid_label:
            return (marble_type,)
        uuid = request.uuid
        if len(uuid) > _UUID_LENGTH or not uuid.isascii() or not uuid.isprintable():
            return (marble_type, UNKNOWN)
        if uuid not in self._uuids:
            if len(self._uuids) >= MAX_UUIDS:
                return (marble_type, OTHER)
            self._uuids.add(uuid)
        return (marble_type, uuid)

    def mesh_calls(self, service: Service) -> Service:
        """The mesh listener's calls, counted by their gRPC status."""
        return replace(service, handle=self._grpc.counted(service))

    def client_requests(self, service: Service, paths: Collection[str]) -> Service:
        """The client listener's requests, counted by route."""
        return replace(service, handle=self._http.counted(service, paths))

    def page(self, accept: str) -> tuple[bytes, str]:
        """All metrics and their content type, for a scraper that accepts what ``accept`` says."""
        return self._scrapes.page(self.registry, accept)


class _Activations:
    def __init__(self, registry: CollectorRegistry, labels: Sequence[str]) -> None:
        name = "coordinator_marble_activations"
        self._attempts = Counter(f"{name}_total", "Activations that began.", labels, registry=registry)
        self._successes = Counter(f"{name}_success_total", "Activations that succeeded.", labels, registry=registry)
        name = "marblerun_coordinator_activation"
        self._refusals = Counter(
            f"{name}_refusals_total",
            "Activations refused, by stage and by failed step, each kind of mismatch, or kind of error.",
            ("stage", "reason"),
            registry=registry,
        )
        seconds = Histogram(
            f"{name}_duration_seconds", "Duration of activations.", ("result",), buckets=_SECONDS, registry=registry
        )
        self._succeeded, self._refused = seconds.labels("success"), seconds.labels("refused")

    @contextmanager
    def measured(self, labels: Sequence[str]) -> Iterator[None]:
        self._attempts.labels(*labels).inc()
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            self._refused.observe(time.perf_counter() - began)
            stage, reasons = _why(error)
            for reason in reasons:
                self._refusals.labels(stage, reason).inc()
            raise
        self._succeeded.observe(time.perf_counter() - began)
        self._successes.labels(*labels).inc()


def _why(error: BaseException) -> tuple[str, Collection[str]]:
    """Stage of a refusal, and the step that failed or every kind of mismatch once, else the kind of error."""
    if not isinstance(error, ActivationRefused):
        return "none", (error.code if isinstance(error, MarbleRunError) else type(error).__name__,)
    cause = error.__cause__
    if isinstance(cause, Untrusted):
        return error.stage.value, (cause.step,)
    if isinstance(cause, NotAdmitted) and cause.found:
        return error.stage.value, {mismatch.code for mismatch in cause.found}
    return error.stage.value, (cause.code if isinstance(cause, MarbleRunError) else error.code,)


class _Http:
    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "server_client_api_http"
        self._requests = Counter(
            f"{prefix}_request_total", "Requests by answer.", ("path", "code", "method"), registry=registry
        )
        self._seconds = Histogram(
            f"{prefix}_request_duration_histogram_seconds",
            "Duration of requests.",
            ("path", "method"),
            buckets=HTTP_SECONDS,
            registry=registry,
        )
        self._request_bytes, self._response_bytes = (
            Histogram(
                f"{prefix}_{what}_size_histogram_bytes",
                f"Size of {what}s.",
                ("path",),
                buckets=HTTP_BYTES,
                registry=registry,
            )
            for what in ("request", "response")
        )
        self._in_flight = Gauge(
            f"{prefix}_in_flight_requests", "Requests being answered.", ("path",), registry=registry
        )
        self._refusals = Counter(
            "marblerun_coordinator_client_api_refusals_total",
            "Requests refused, by kind of error.",
            ("path", "reason"),
            registry=registry,
        )

    def counted(self, service: Service, paths: Collection[str]) -> Callable[[Request], Awaitable[Response]]:
        for path in paths:
            self._in_flight.labels(path)

        async def handle(request: Request) -> Response:
            path = known_path(request.target, paths)
            if path == UNKNOWN:  # the reference has series for its routes only
                return self._refused(await service.handle(request), path)
            method = known_method(request.method)
            began = time.perf_counter()
            with self._in_flight.labels(path).track_inprogress():
                response = await service.handle(request)
            self._seconds.labels(path, method).observe(time.perf_counter() - began)
            self._request_bytes.labels(path).observe(_request_size(request))
            self._response_bytes.labels(path).observe(len(response.body))
            self._requests.labels(path, str(response.status), method).inc()
            return self._refused(response, path)

        return handle

    def _refused(self, response: Response, path: str) -> Response:
        if response.status >= 400:
            self._refusals.labels(path, response.reason or str(response.status)).inc()
        return response


def _request_size(request: Request) -> int:
    """About what went over the wire, as the reference's library reckons."""
    headers = sum(len(name) + len(value) for name, value in request.headers)
    return len(request.method) + len(request.target) + headers + len(request.body)


class _Grpc:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"grpc_server_{name}_total", text, tuple(_GRPC), registry=registry).labels(**_GRPC)

        self._started = counter("started", "Calls that began.")
        self._received = counter("msg_received", "Messages received.")
        self._sent = counter("msg_sent", "Messages sent.")
        name = "grpc_server_handled_total"
        handled = Counter(name, "Calls that ended, by status.", (*_GRPC, "grpc_code"), registry=registry)
        self._handled = {code: handled.labels(**_GRPC, grpc_code=code_name(code)) for code in GrpcStatus}

    def counted(self, service: Service) -> Callable[[Request], Awaitable[Response]]:
        async def handle(request: Request) -> Response:
            if request.target != ACTIVATE_PATH or request.method != "POST":
                return await service.handle(request)
            self._started.inc()
            self._received.inc()
            code = GrpcStatus.CANCELLED  # what it is if nobody waits for the answer any more
            try:
                response = await service.handle(request)
                code = _code(response)
            except Exception:
                code = GrpcStatus.INTERNAL
                raise
            finally:
                self._handled[code].inc()
            if code is GrpcStatus.OK:
                self._sent.inc()
            return response

        return handle


def _code(response: Response) -> GrpcStatus:
    for name, value in (*response.trailers, *response.headers):
        if name == b"grpc-status":
            return parse_status(value.decode("ascii", "replace"))
    return GrpcStatus.UNKNOWN


def code_name(code: GrpcStatus) -> str:
    """The code's name as Go spells it."""
    if code in (GrpcStatus.OK, GrpcStatus.CANCELLED):
        return {GrpcStatus.OK: "OK", GrpcStatus.CANCELLED: "Canceled"}[code]
    return "".join(word.capitalize() for word in code.name.split("_"))


class _Timing:
    def __init__(self, registry: CollectorRegistry, name: str, text: str) -> None:
        prefix = f"marblerun_coordinator_{name}"
        self._seconds = Histogram(f"{prefix}_duration_seconds", f"{text}.", buckets=_SECONDS, registry=registry)
        self._failures = Counter(f"{prefix}_failures_total", f"{text} failed.", registry=registry)

    @contextmanager
    def measured(self) -> Iterator[None]:
        with self._failures.count_exceptions(), self._seconds.time():
            yield


class _Scrapes:
    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "promhttp_metric_handler"
        answers = Counter(f"{prefix}_requests_total", "Scrapes by HTTP status.", ("code",), registry=registry)
        self._answers = {code: answers.labels(code) for code in ("200", "500", "503")}
        self._in_flight = Gauge(f"{prefix}_requests_in_flight", "Scrapes being served.", registry=registry)
        errors = Counter(f"{prefix}_errors_total", "Scrapes that failed.", ("cause",), registry=registry)
        for cause in ("encoding", "gathering"):
            errors.labels(cause)

    def page(self, registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
        encode, content_type = choose_encoder(accept)
        with self._in_flight.track_inprogress():
            page = encode(registry)
        self._answers["200"].inc()
        return page, content_type
