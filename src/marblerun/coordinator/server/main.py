"""The Coordinator's process: settings to running listeners, and a clean end (protocol, section 1.3)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from OpenSSL import SSL

from marblerun.attestation.collect import CachedSource, Upkeep
from marblerun.attestation.registry import Registry
from marblerun.coordinator.entropy import SystemEntropy
from marblerun.coordinator.seal import MachineSealer
from marblerun.coordinator.seal.detect import detect_sealer, verify_sealing
from marblerun.coordinator.server.client_api import TABLE, client_service
from marblerun.coordinator.server.edge import EdgeConfig, InnerFactory, ServerIdentity, server_context
from marblerun.coordinator.server.exchange import Patience, Peer, Service
from marblerun.coordinator.server.http1 import Http1Connection
from marblerun.coordinator.server.http2 import Http2Connection
from marblerun.coordinator.server.journal import journaled
from marblerun.coordinator.server.listening import bind, bound, only_http2
from marblerun.coordinator.server.mesh import mesh_service
from marblerun.coordinator.server.overload import within_descriptors
from marblerun.coordinator.server.settings import Settings
from marblerun.coordinator.server.storage import Storage, open_storage
from marblerun.coordinator.server.trust import Trust, trust_from_settings
from marblerun.coordinator.server.turns import Overload
from marblerun.coordinator.service import Coordinator, Ports
from marblerun.coordinator.state import Authority, Phase, State
from marblerun.coordinator.store.anchors import ClosingAnchor, open_anchor
from marblerun.errors import MarbleRunError, Misconfigured, Unavailable, WrongPhase
from marblerun.pki import ecdsa
from marblerun.pki.issue import Entropy
from marblerun.version import __version__
from marblerun.wire.rpc import ACTIVATE_PATH

if TYPE_CHECKING:
    from marblerun.coordinator.server.metrics import Metrics

_log = logging.getLogger(__name__)

MAX_DESCRIPTORS: Final = 16384
SHUTDOWN_SECONDS: Final = 10.0
# How long a thread that makes keys or applies an update may keep the event loop from the interpreter.
SWITCH_SECONDS: Final = 0.001


class ContextHolder:
    """The TLS context that new connections get; made anew whenever the state shows another identity."""

    def __init__(
        self, alpn: tuple[bytes, ...], identity: Callable[[Authority], ServerIdentity], *, demand_certificate: bool
    ) -> None:
        self._alpn = alpn
        self._identity = identity
        self._demand_certificate = demand_certificate
        self._authority: Authority | None = None
        self._context: SSL.Context | None = None

    def update(self, state: State) -> None:
        """Follow a published state."""
        if state.authority is not self._authority:
            identity = self._identity(state.authority)
            self._context = server_context(identity, self._alpn, demand_certificate=self._demand_certificate)
            self._authority = state.authority

    def get(self) -> SSL.Context:
        """The context of the latest state."""
        if self._context is None:
            raise RuntimeError("a listener was started before the Coordinator")
        return self._context


@dataclass(frozen=True, slots=True)
class Listeners:
    """The bound listeners."""

    mesh: asyncio.Server
    client: asyncio.Server
    ops: asyncio.Server | None = None
    """For metrics, events and health, if there is one."""

    @property
    def servers(self) -> tuple[asyncio.Server, ...]:
        """All of them."""
        return (self.mesh, self.client, self.ops) if self.ops is not None else (self.mesh, self.client)

    def addresses(self) -> tuple[str, str]:
        """Effective mesh and client address as ``host:port``."""
        return bound(self.mesh), bound(self.client)

    @property
    def ops_address(self) -> str:
        """Effective address of the metrics listener, empty if there is none."""
        return bound(self.ops) if self.ops is not None else ""


def metrics_from_settings(settings: Settings) -> Metrics | None:
    """What counts, if anybody may ask; nothing is measured and no library is loaded otherwise."""
    if not settings.prometheus_address:
        return None
    from marblerun.coordinator.server.metrics import Metrics

    return Metrics(uuid_label=settings.metrics_uuid)


async def listen(
    coordinator: Coordinator,
    settings: Settings,
    patience: Patience | None = None,
    metrics: Metrics | None = None,
    overload: Overload | None = None,
) -> Listeners:
    """Bind the listeners for a started Coordinator; raises Misconfigured if an address cannot be had."""
    patience = patience or Patience()
    overload = overload or Overload(settings.limits)
    mesh_context = ContextHolder(
        (b"h2",), lambda a: ServerIdentity(a.marble_root, a.intermediate_key), demand_certificate=True
    )
    client_context = ContextHolder(
        (b"h2", b"http/1.1"), lambda a: ServerIdentity(a.root, a.root_key), demand_certificate=False
    )
    for holder in (mesh_context, client_context):
        holder.update(coordinator.state)
        coordinator.listeners.append(holder.update)
    level = logging.getLevelNamesMapping()[settings.http_error_log_level.upper().replace("WARN", "WARNING")]

    def on_handshake_error(address: str, reason: str) -> None:
        _log.log(level, "TLS handshake failed", extra={"fields": {"peer": address, "reason": reason}})

    activate = coordinator.activate if metrics is None else metrics.activations(coordinator.activate)
    mesh_calls = replace(
        journaled(mesh_service(activate, overload.activations), "mesh", (ACTIVATE_PATH,)), patience=patience
    )
    client_calls = replace(
        journaled(client_service(coordinator, overload.requests), "client", TABLE.keys()), patience=patience
    )
    if metrics is not None:
        mesh_calls, client_calls = metrics.mesh_calls(mesh_calls), metrics.client_requests(client_calls, TABLE.keys())
    mesh = EdgeConfig(mesh_context.get, only_http2(mesh_calls), on_handshake_error, overload.mesh, patience=patience)
    client = EdgeConfig(client_context.get, _http(client_calls), on_handshake_error, overload.client, patience=patience)
    if metrics is not None:
        metrics.watch_state(lambda: coordinator.state)
        metrics.watch_listener("mesh", mesh.statistics)
        metrics.watch_listener("client", client.statistics)
        metrics.watch_overload(overload)
    return Listeners(
        mesh=await bind(mesh, settings.mesh_address, "EDG_COORDINATOR_MESH_ADDR"),
        client=await bind(client, settings.client_address, "EDG_COORDINATOR_CLIENT_ADDR"),
        ops=None if metrics is None else await _listen_ops(metrics, coordinator, settings),
    )


async def _listen_ops(metrics: Metrics, coordinator: Coordinator, settings: Settings) -> asyncio.Server:
    from marblerun.coordinator.server.ops import listen_ops, ops_service

    return await listen_ops(ops_service(metrics, lambda: coordinator.state), settings.prometheus_address)


def _http(service: Service) -> InnerFactory:
    def make(peer: Peer, alpn: bytes) -> asyncio.Protocol:
        return Http2Connection(service, peer, says_length=True) if alpn == b"h2" else Http1Connection(service, peer)

    return make


async def serve(
    environment: Mapping[str, str], settings: Settings, on_ready: Callable[[Listeners], None] | None = None
) -> None:
    """Run a Coordinator until SIGTERM or SIGINT."""
    limits = within_descriptors(settings.limits, _raise_descriptor_limit())
    sys.setswitchinterval(SWITCH_SECONDS)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _log.info("starting the Coordinator", extra={"fields": {"version": __version__}})
    for warning in settings.warnings:
        _log.warning(warning)
    trust = trust_from_settings(environment, settings)
    for warning in trust.warnings:
        _log.warning(warning)
    storage = open_storage(environment, settings)
    metrics = metrics_from_settings(settings)
    overload = Overload(limits)
    upkeep = Upkeep(trust.collateral)
    entropy = SystemEntropy()
    connections = contextlib.ExitStack()
    ecdsa.load()  # now, as it takes a moment
    try:
        machine = detect_sealer(environment, trust.issuer, trust.simulated_platform, entropy)
        ports = _ports(environment, settings, trust, storage, machine, entropy, metrics, overload)
        if isinstance(ports.anchor, ClosingAnchor):
            connections.callback(ports.anchor.close)
        coordinator = await _start(ports, machine, settings)
        listeners = await listen(coordinator, settings, metrics=metrics, overload=overload)
        await storage.share(coordinator, ports, overload, stop.set)
        # What lives now lives long: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        mesh, client = listeners.addresses()
        fields = {"mesh": mesh, "client": client, "state": coordinator.status().code, "evidence": trust.issuer.name}
        if listeners.ops is not None:
            fields["metrics"] = listeners.ops_address
        _log.info("the Coordinator is listening", extra={"fields": fields})
        await prefetch_own_platform(
            coordinator, trust.registry, upkeep
        )  # now, as loading an HTTP client takes a moment
        if on_ready is not None:
            on_ready(listeners)
        await stop.wait()
        _log.info("the Coordinator is shutting down")
        await _close(listeners, coordinator, storage)
    finally:
        overload.close()
        connections.close()
        storage.close()
        await upkeep.aclose()


async def prefetch_own_platform(coordinator: Coordinator, registry: Registry, upkeep: Upkeep) -> None:
    """Begin to fetch collateral for our own machine: most Marbles run on machines of the same family."""
    with contextlib.suppress(MarbleRunError):  # no evidence, or none that needs collateral
        quote = (await coordinator.own_evidence(b"")).quote
        key = registry.collateral_key(quote) if quote else None
        if key is not None:
            upkeep.prefetch(key)


def _ports(
    environment: Mapping[str, str],
    settings: Settings,
    trust: Trust,
    storage: Storage,
    machine: MachineSealer,
    entropy: Entropy,
    metrics: Metrics | None,
    overload: Overload,
) -> Ports:
    ports = Ports(
        store=storage.store,
        sealer=storage.sealer(machine, entropy),
        registry=trust.registry,
        admission=trust.admission,
        collateral=trust.collateral,
        issuer=trust.issuer,
        entropy=entropy,
        environment=environment,
        anchor=open_anchor(settings.anchor, settings.anchor_tls) if settings.anchor is not None else None,
        making_keys=overload.keys,
        changing=overload.changes,
    )
    if metrics is not None:
        ports = replace(ports, timed=metrics.timed)
        if isinstance(trust.collateral, CachedSource):
            metrics.watch_collateral(trust.collateral.statistics)
    return ports


async def _start(ports: Ports, machine: MachineSealer, settings: Settings) -> Coordinator:
    _log.info("opening the state", extra={"fields": {"sealing": ports.sealer.name}})
    coordinator = Coordinator(ports, settings.names)
    await coordinator.start()
    if coordinator.state.deployment is None and coordinator.state.phase is Phase.ACCEPTING_MANIFEST:
        # A state that was opened has shown it already, and one that waits for its recovery must not wait for a machine.
        await asyncio.to_thread(verify_sealing, machine, ports.entropy)
    try:
        await coordinator.own_evidence(b"")
    except Unavailable as error:
        if not settings.dev_mode:
            raise
        _log.warning("own evidence could not be issued", extra={"fields": {"reason": str(error)}})
    await _startup_manifest(coordinator, settings)
    return coordinator


async def _startup_manifest(coordinator: Coordinator, settings: Settings) -> None:
    """Set the start-up manifest, unless an earlier start did (docs/divergences.md)."""
    path = settings.startup_manifest
    if path is None:
        return
    if coordinator.state.phase is Phase.ACCEPTING_MARBLES:
        _log.info("a manifest is already set; the start-up manifest is left alone")
        return
    if coordinator.state.phase is Phase.RECOVERY and settings.kubernetes is not None:
        # It would replace the state of all the others, who run with it and may give us its key in a moment.
        _log.warning("the stored state waits for its key; the start-up manifest is left alone")
        return
    try:
        raw = await asyncio.to_thread(path.read_bytes)
    except OSError as error:
        raise Misconfigured(f"EDG_STARTUP_MANIFEST {path} cannot be read: {error.strerror}") from error
    try:
        shares = await coordinator.set_manifest(raw)
    except WrongPhase:
        _log.info("another Coordinator has set a manifest meanwhile; the start-up manifest is left alone")
        return
    if shares:
        _log.warning("the start-up manifest has recovery keys, but nobody was there to take the recovery secrets")


async def _close(listeners: Listeners, coordinator: Coordinator, storage: Storage) -> None:
    for server in listeners.servers:
        server.close()
    try:
        await storage.unshare()
    finally:
        try:
            await asyncio.wait_for(coordinator.stop(), SHUTDOWN_SECONDS)
        except TimeoutError:
            _log.error("the last write did not end in time")


def _raise_descriptor_limit() -> int:
    """Every connection is a descriptor, and the usual soft limit of 1024 is far below what we serve; the new limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid it; then fewer connections are served
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MAX_DESCRIPTORS)), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def run(environment: Mapping[str, str], settings: Settings) -> None:
    """Run until told to stop; blocks."""
    asyncio.run(serve(environment, settings))
