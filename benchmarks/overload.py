"""``python -m benchmarks.overload``: good Marbles beside floods from another address, on the loopback interface.

A good Marble starts again and again, first alone and then beside each flood; what counts is that all of them are
served and how much longer they take. Floods come from processes of their own, at another loopback address:

* ``silent``: connections that never send anything;
* ``hellos``: a recorded first flight, over and over, and nothing after it: the most work for us, the least for them;
* ``quotes``: whole handshakes and activations with a spoiled quote;
* ``activations``: Marbles that are as good as ours, as many as there is time for.

The flood's processes have a low priority: this machine has to be the server, the good Marble and the attacker, and it
is the server that is measured. Every run ends by itself; a flood has a fixed number of seconds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import selectors
import socket
import ssl
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks import marbles
from benchmarks.coordinators import Target, coordinator
from benchmarks.manifests import typical
from benchmarks.marbles import OK, CallFailed, Maker, Marble, quote_spoiler
from benchmarks.process import usage
from benchmarks.table import percentile
from marblerun.marble.settings import Endpoint

GOOD, FLOOD = "127.0.0.2", "127.0.0.66"
GOAL: Final = 3.0
"""Times the idle p99 that a good Marble may need beside a flood."""
PAUSE: Final = 0.01
_NICE: Final = 10
_POOL: Final = 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the good Marbles beside one flood."""

    flood: str
    served: int
    failed: int
    p50_ms: float
    idle_p50_ms: float
    idle_p99_ms: float
    p99_ms: float
    times_idle: float
    flood_a_second: float
    flood_outcomes: dict[str, int]
    descriptors: int
    """Of the server, at the most."""
    resident_mib: float


def call_from(source: str, endpoint: Endpoint, marble: Marble, seconds: float) -> str:
    """Activate from an address of the loopback network; the gRPC status."""
    plain = socket.create_connection((endpoint.host, endpoint.port), seconds, source_address=(source, 0))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with marble.context.wrap_socket(plain, server_hostname=endpoint.host) as connection:
        connection.sendall(marble.request)
        return marbles._read_answer(connection).status


# -- floods ------------------------------------------------------------------------------------------------------

Flood = Callable[[Endpoint, Maker, Event, "Counter[str]"], None]


def record_hello(endpoint: Endpoint) -> bytes:
    """The first flight of a stock Marble's handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = context.wrap_bio(incoming, outgoing, server_hostname=endpoint.host)
    with suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def silent(endpoint: Endpoint, _maker: Maker, stop: Event, counts: Counter[str]) -> None:
    """Hold as many connections as the server lets us, and open a new one for each that it closes."""
    _hold(endpoint, b"", 3000, stop, counts)


def hellos(endpoint: Endpoint, _maker: Maker, stop: Event, counts: Counter[str]) -> None:
    """Begin handshakes and leave them."""
    _hold(endpoint, record_hello(endpoint), 500, stop, counts)


def _hold(endpoint: Endpoint, first: bytes, at_most: int, stop: Event, counts: Counter[str]) -> None:
    """Up to ``at_most`` connections; whichever has been answered or closed is replaced by a new one."""
    with selectors.DefaultSelector() as selector:
        open_now = 0
        while not stop.is_set():
            for _ in range(32):
                if open_now >= at_most:
                    break
                try:
                    one = socket.create_connection((endpoint.host, endpoint.port), 5, source_address=(FLOOD, 0))
                    if first:
                        one.sendall(first)
                    one.setblocking(False)
                    selector.register(one, selectors.EVENT_READ)
                    open_now += 1
                    counts["opened"] += 1
                except OSError as error:
                    counts[type(error).__name__] += 1
            for key, _ in selector.select(0.005):
                assert isinstance(key.fileobj, socket.socket)
                try:
                    answered = bool(key.fileobj.recv(65536))
                except OSError:
                    answered = False
                counts["answered" if answered else "closed by the server"] += 1
                selector.unregister(key.fileobj)
                key.fileobj.close()
                open_now -= 1


def quotes(endpoint: Endpoint, maker: Maker, stop: Event, counts: Counter[str]) -> None:
    """Activate with quotes that do not verify."""
    spoiled = Maker(maker.issuer, maker.marble_type, ec.SECP256R1, quote_spoiler)
    _activate_all(endpoint, spoiled, stop, counts)


def activations(endpoint: Endpoint, maker: Maker, stop: Event, counts: Counter[str]) -> None:
    """Activate as fast as it goes."""
    _activate_all(endpoint, Maker(maker.issuer, maker.marble_type, ec.SECP256R1), stop, counts)


def _activate_all(endpoint: Endpoint, maker: Maker, stop: Event, counts: Counter[str]) -> None:
    pool, lock = maker.pool(_POOL), threading.Lock()

    def work(marble: Marble) -> None:
        while not stop.is_set():
            try:
                outcome = f"gRPC status {call_from(FLOOD, endpoint, marble, 20)}"
            except (OSError, CallFailed) as error:
                outcome = type(error).__name__
            with lock:
                counts[outcome] += 1

    workers = [threading.Thread(target=work, args=(marble,)) for marble in pool for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


FLOODS: Final[dict[str, Flood]] = {
    "silent": silent, "hellos": hellos, "quotes": quotes, "activations": activations,
}  # fmt: skip


def _flood_process(
    name: str, endpoint: Endpoint, maker: Maker, stop: Event, results: multiprocessing.SimpleQueue[Counter[str]]
) -> None:
    os.nice(_NICE)
    counts: Counter[str] = Counter()
    FLOODS[name](endpoint, maker, stop, counts)
    results.put(counts)


@contextmanager
def flood(name: str, target: Target, seconds: float) -> Iterator[Counter[str]]:
    """One flood while the block runs and not much longer; its counts are there after the block."""
    context = multiprocessing.get_context("fork")
    stop, results = context.Event(), context.SimpleQueue()
    process = context.Process(target=_flood_process, args=(name, target.mesh, target.maker(), stop, results))
    timer = threading.Timer(seconds, stop.set)
    counts: Counter[str] = Counter()
    process.start()
    timer.start()
    time.sleep(1)  # until it runs at full strength
    try:
        yield counts
    finally:
        stop.set()
        timer.cancel()
        counts.update(results.get())
        process.join()


# -- good Marbles ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Good:
    """Marbles that start one after the other, and what became of them."""

    seconds: list[float]
    failed: Counter[str]
    descriptors: int = 0
    resident: int = 0

    def p(self, part: float) -> float:
        """A percentile in milliseconds."""
        return percentile(self.seconds, part) * 1000 if self.seconds else float("nan")


def start_good(target: Target, pool: Sequence[Marble], number: int) -> Good:
    """Start ``number`` good Marbles, one after the other."""
    good = Good([], Counter())
    for turn in range(number):
        began = time.perf_counter()
        try:
            status = call_from(GOOD, target.mesh, pool[turn % len(pool)], 20)
        except (OSError, CallFailed) as error:
            status = f"{type(error).__name__}: {error}"
        if status == OK:
            good.seconds.append(time.perf_counter() - began)
        else:
            good.failed[status] += 1
        if turn % 20 == 0 and target.pid is not None:
            held = usage(target.pid)
            good.descriptors, good.resident = max(good.descriptors, held.descriptors), max(good.resident, held.resident)
        time.sleep(PAUSE)
    return good


def run(target: Target, names: Sequence[str], number: int, seconds: float) -> list[Outcome]:
    """Idle, then every flood, each beside ``number`` good Marbles."""
    pool = target.maker().pool(32)
    start_good(target, pool, 32)
    outcomes = []
    for name in names:
        idle = start_good(target, pool, number)
        began = time.perf_counter()
        with flood(name, target, seconds) as counts:
            good = start_good(target, pool, number)
        lasted = time.perf_counter() - began
        outcomes.append(
            Outcome(
                flood=name,
                served=len(good.seconds),
                failed=good.failed.total(),
                p50_ms=good.p(0.5),
                idle_p50_ms=idle.p(0.5),
                idle_p99_ms=idle.p(0.99),
                p99_ms=good.p(0.99),
                times_idle=good.p(0.99) / idle.p(0.99),
                flood_a_second=sum(counts[key] for key in counts if key != "opened") / lasted,
                flood_outcomes=dict(counts),
                descriptors=good.descriptors,
                resident_mib=good.resident / 2**20,
            )
        )
        time.sleep(4)  # what the flood left open is closed
    return outcomes


def show(outcomes: Sequence[Outcome]) -> str:
    """The table."""
    head = (
        f"{'flood':12} {'served':>6} {'failed':>6} {'p50 ms':>7} {'idle':>6} {'p99 ms':>7} {'idle':>6} {'x idle':>6} "
    )
    head += f"{'flood/s':>8} "
    lines = [head + f"{'fds':>6} {'MiB':>5}  {'':6} what the flood got"]
    for one in outcomes:
        met = "met" if one.times_idle <= GOAL and not one.failed else "missed"
        lines.append(
            f"{one.flood:12} {one.served:6} {one.failed:6} {one.p50_ms:7.1f} {one.idle_p50_ms:6.1f} {one.p99_ms:7.1f} "
            f"{one.idle_p99_ms:6.1f} {one.times_idle:6.1f} "
            f"{one.flood_a_second:8.0f} {one.descriptors:6} {one.resident_mib:5.0f}  {met:6} {one.flood_outcomes}"
        )
    return "\n".join(lines)


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description="Good Marbles beside floods.")
    parser.add_argument("--only", choices=sorted(FLOODS), action="append", help="this flood; may be repeated")
    parser.add_argument("--marbles", type=int, default=300, help="good Marbles beside each flood (default 300)")
    parser.add_argument("--seconds", type=float, default=60, help="longest that one flood lasts (default 60)")
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")
    options = parser.parse_args()
    with coordinator(typical()) as target:
        outcomes = run(target, options.only or list(FLOODS), options.marbles, options.seconds)
    if options.json:
        print(json.dumps([{name: getattr(one, name) for name in Outcome.__slots__} for one in outcomes], indent=2))
    else:
        print(show(outcomes))
    return 1 if any(one.failed for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
