"""Do threads or processes make activations faster? What ADR 5 was decided by.

Each worker is a Coordinator of its own with its own event loop, and serves as many activations as it can without a
socket between: the TLS handshake in memory (both sides of it: that much more C code that runs without the
interpreter's lock), then the whole activation from quote to parameters. One worker is compared with two threads of one
process and with two processes, in alternation; what counts is activations a second over all workers.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import Pool
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.floor import handshake, server_context
from benchmarks.manifests import PRODUCT, typical
from marblerun.attestation.issue import detect_issuer
from marblerun.cli.demo.manifest import enclave
from marblerun.cli.demo.world import World, clean_environment
from marblerun.coordinator.commands.activate import ActivationRequest
from marblerun.coordinator.entropy import SystemEntropy
from marblerun.coordinator.seal.none import PlainSealer
from marblerun.coordinator.server.settings import settings_from_environment
from marblerun.coordinator.server.trust import trust_from_settings
from marblerun.coordinator.service import Coordinator, Ports
from marblerun.coordinator.store.memory import MemoryStore
from marblerun.marble.activation import prepare_request
from marblerun.marble.settings import load_settings

ROUNDS = 5
CALLS = 150


def work(place: Path, calls: int, ready: Callable[[], object]) -> float:
    """Activate ``calls`` times after ``ready`` returned; the seconds it took."""
    return asyncio.run(_work(place, calls, ready))


async def _work(place: Path, calls: int, ready: Callable[[], object]) -> float:
    environment = {"EDG_SIMULATED_PLATFORM": str(place / "platform"), **enclave(PRODUCT)}
    coordinator = await _coordinator(environment, place)
    settings = load_settings({**environment, "EDG_MARBLE_TYPE": "service"}, place)
    prepared = prepare_request(settings, detect_issuer(environment), curve=ec.SECP384R1())
    credentials = prepared.credentials
    request = ActivationRequest(prepared.evidence, credentials.csr, prepared.marble_type, str(prepared.uuid))
    server, client = server_context(ec.generate_private_key(ec.SECP384R1())), credentials.client_context()
    await coordinator.activate(request, credentials.certificate)
    await asyncio.to_thread(ready)
    began = time.perf_counter()
    for _ in range(calls):
        handshake(server, client)
        await coordinator.activate(request, credentials.certificate)
    seconds = time.perf_counter() - began
    await coordinator.stop()
    return seconds


async def _coordinator(environment: dict[str, str], place: Path) -> Coordinator:
    settings = settings_from_environment(environment, place)
    trust = trust_from_settings(environment, settings)
    ports = Ports(
        store=MemoryStore(),
        sealer=PlainSealer(),
        registry=trust.registry,
        admission=trust.admission,
        collateral=trust.collateral,
        issuer=trust.issuer,
        entropy=SystemEntropy(),
        environment=environment,
    )
    coordinator = Coordinator(ports, settings.names)
    await coordinator.start()
    await coordinator.set_manifest(json.dumps(typical()).encode())
    return coordinator


def in_threads(place: Path, workers: int, calls: int) -> float:
    """Activations a second of so many threads of this process."""
    together = threading.Barrier(workers)
    with ThreadPoolExecutor(workers) as pool:
        seconds = list(pool.map(lambda _: work(place, calls, together.wait), range(workers)))
    return workers * calls / max(seconds)


def in_processes(place: Path, workers: int, calls: int, pool: Pool) -> float:
    """Activations a second of so many processes."""
    jobs = [(place, calls)] * workers
    seconds = pool.starmap(_in_process, jobs, chunksize=1)
    return workers * calls / max(seconds)


def _in_process(place: Path, calls: int) -> float:
    return work(place, calls, lambda: None)


def main() -> None:
    """Measure in alternation and print medians."""
    with tempfile.TemporaryDirectory() as name, multiprocessing.get_context("spawn").Pool(2) as pool:
        place = Path(name)
        World(place, clean_environment(os.environ)).run(["simulator", "init", "platform"])
        rows: dict[str, list[float]] = {"one": [], "two threads": [], "two processes": []}
        for _ in range(ROUNDS):
            rows["one"].append(in_threads(place, 1, CALLS))
            rows["two threads"].append(in_threads(place, 2, CALLS))
            rows["two processes"].append(in_processes(place, 2, CALLS, pool))
    one = statistics.median(rows["one"])
    print(f"{'workers':16} {'activations/s':>14} {'x one':>7}   (median of {ROUNDS}, range)")
    for label, values in rows.items():
        middle = statistics.median(values)
        print(f"{label:16} {middle:14.0f} {middle / one:7.2f}   ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main()
