"""A whole Coordinator inside the test process: real listeners on free ports, its own event loop in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from marblerun.attestation.collect import CachedSource, DirectorySource
from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.issue import EvidenceIssuer, NoEvidenceIssuer
from marblerun.attestation.issue.simulated import SimulatedIssuer
from marblerun.attestation.model import Origin
from marblerun.attestation.registry import DcapEvidence, NoEvidence, Registry
from marblerun.attestation.simulated import EnclaveIdentity, SimulatedPlatform
from marblerun.coordinator.entropy import SystemEntropy
from marblerun.coordinator.seal import KeySealer
from marblerun.coordinator.seal.none import PlainSealer
from marblerun.coordinator.seal.platform import EnclaveSealer, SimulatedKeys
from marblerun.coordinator.server.exchange import Patience
from marblerun.coordinator.server.main import Listeners, listen, metrics_from_settings
from marblerun.coordinator.server.metrics import Metrics
from marblerun.coordinator.server.settings import Settings
from marblerun.coordinator.server.turns import Overload
from marblerun.coordinator.service import Coordinator, Ports
from marblerun.coordinator.store import Store
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.pki.profiles import SubjectNames
from marblerun.policy.admission import Admission

T = TypeVar("T")
Address = tuple[str, int]


@dataclass
class World:
    """What a Coordinator is started on; starting another one on the same world is a restart."""

    store: Store = field(default_factory=MemoryStore)
    platform: SimulatedPlatform | None = None
    identity: EnclaveIdentity = field(default_factory=EnclaveIdentity)
    sealer: KeySealer | None = None
    issuer: EvidenceIssuer | None = None
    names: SubjectNames = field(default_factory=SubjectNames)
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    settings: Settings = field(default_factory=Settings)
    """Addresses are replaced by free ones; the metrics listener only where one is set."""

    def ports(self) -> Ports:
        """The same choices as the settings would make."""
        entropy = SystemEntropy()
        platform = self.platform
        if platform is None:
            return Ports(
                store=self.store,
                sealer=self.sealer or PlainSealer(),
                registry=Registry([NoEvidence()]),
                admission=Admission(frozenset({Origin.NONE})),
                collateral=None,
                issuer=self.issuer or NoEvidenceIssuer(),
                entropy=entropy,
                clock=self.clock,
            )
        identity = self.identity
        return Ports(
            store=self.store,
            sealer=self.sealer or EnclaveSealer("simulated platform", SimulatedKeys(platform, identity), entropy),
            registry=Registry([DcapEvidence(Verifier([platform.trust_root()]))]),
            admission=Admission(frozenset({Origin.HARDWARE, Origin.SIMULATED})),
            collateral=CachedSource(DirectorySource(platform.directory, self.clock), self.clock),
            issuer=self.issuer or SimulatedIssuer(lambda data: platform.quote_as(identity, data)),
            entropy=entropy,
            clock=self.clock,
        )

    def coordinator(self, metrics: Metrics | None = None) -> Coordinator:
        """One that is not started yet."""
        ports = self.ports()
        return Coordinator(ports if metrics is None else replace(ports, timed=metrics.timed), self.names)


def new_platform(directory: Path) -> SimulatedPlatform:
    """A simulated platform made just now."""
    return SimulatedPlatform.create(directory, at=datetime.now(UTC))


@dataclass
class Running:
    """A Coordinator that listens."""

    world: World
    coordinator: Coordinator
    mesh: Address
    client: Address
    loop: asyncio.AbstractEventLoop
    ops: Address | None = None
    """The metrics listener."""
    metrics: Metrics | None = None

    def call(self, coroutine: Coroutine[Any, Any, T], seconds: float = 120) -> T:
        """Run something on the Coordinator's own loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(seconds)

    def set_manifest(self, manifest: bytes) -> None:
        """Set it without going through the network."""
        self.call(_ignore(self.coordinator.set_manifest(manifest)))


async def _ignore(coroutine: Coroutine[Any, Any, object]) -> None:
    await coroutine


@contextmanager
def running(
    world: World | None = None,
    *,
    manifest: bytes | None = None,
    patience: Patience | None = None,
    overload: Overload | None = None,
) -> Iterator[Running]:
    """A started Coordinator on ``127.0.0.1``; gone at the end, its store stays with the world."""
    world = world or World()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        settings = replace(
            world.settings,
            mesh_address="127.0.0.1:0",
            client_address="127.0.0.1:0",
            prometheus_address=":0" if world.settings.prometheus_address else "",
            http_error_log_level="debug",
        )
        metrics = metrics_from_settings(settings)
        coordinator = world.coordinator(metrics)
        listeners = _on(loop, _start(coordinator, settings, patience, metrics, overload))
        mesh, client = (_address(text) for text in listeners.addresses())
        ops = _address(listeners.ops_address) if listeners.ops is not None else None
        up = Running(world, coordinator, mesh, client, loop, ops, metrics)
        if manifest is not None:
            up.set_manifest(manifest)
        yield up
        _on(loop, _stop(coordinator, listeners))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


def _on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(120)


async def _start(
    coordinator: Coordinator,
    settings: Settings,
    patience: Patience | None,
    metrics: Metrics | None,
    overload: Overload | None,
) -> Listeners:
    await coordinator.start()
    return await listen(coordinator, settings, patience, metrics, overload)


async def _stop(coordinator: Coordinator, listeners: Listeners) -> None:
    for server in listeners.servers:
        server.close()
    await coordinator.stop()
    tasks: Sequence[asyncio.Task[Any]] = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_default_executor()


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)
