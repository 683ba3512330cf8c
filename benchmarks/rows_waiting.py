"""Rows about waiting: a light Marble and a user beside Marbles with RSA keys, and five hundred Marbles at once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks import users
from benchmarks.coordinators import Target, coordinator
from benchmarks.effort import Effort
from benchmarks.manifests import typical, with_rsa
from benchmarks.marbles import OK, Maker, Marble, call
from benchmarks.process import MIB, cpu_seconds, usage
from benchmarks.rounds import activation, run_round
from benchmarks.table import Check, Row, percentile

RSA_AT_ONCE = 4
PAUSE = 0.01
"""Between two light calls: a trickle, not a load."""
OF_IDLE, STATUS_MS = 3.0, 10.0
BLOCKS = 4
"""Idle and busy take turns so often."""
CROWD_WAVES = 3
CROWD_MIB = 5.0
"""What resident memory may grow by from the second wave to the last and still be called flat."""


@dataclass(slots=True)
class Waited:
    """Seconds of all calls of one kind, by block."""

    light: list[list[float]] = field(default_factory=list)
    status_new: list[list[float]] = field(default_factory=list)
    status_kept: list[list[float]] = field(default_factory=list)


def latency_row(effort: Effort, target: Target) -> Row:
    """How long a light activation and ``status`` take while other Marbles get RSA keys, and without them."""
    light, heavy = target.maker(marble_type="service"), target.maker(marble_type="rsa")
    idle, busy = Waited(), Waited()
    size, rsa_calls, rsa_seconds = max(effort.samples // BLOCKS, 1), 0, 0.0
    activation(target.mesh, heavy.make())()
    for _ in range(BLOCKS):
        _sample(target, light, idle, size)
        began = time.perf_counter()
        with _storm(target, heavy) as count:
            _sample(target, light, busy, size)
        rsa_seconds += time.perf_counter() - began
        rsa_calls += count()
    before, after = _p99(idle.light), _p99(busy.light)
    checks = (
        Check("p99 of a light activation, of idle", after / before, "x", OF_IDLE),
        Check("p99 of a light activation, busy", after, "ms", None, *_range(busy.light)),
        Check("p99 of a light activation, idle", before, "ms", None, *_range(idle.light)),
        Check("p99 of status, new connections", _p99(busy.status_new), "ms", STATUS_MS, *_range(busy.status_new)),
        Check("p99 of status, kept connection", _p99(busy.status_kept), "ms", STATUS_MS, *_range(busy.status_kept)),
        Check("p99 of status, idle, new", _p99(idle.status_new), "ms", None, *_range(idle.status_new)),
        Check("RSA Marbles a second meanwhile", rsa_calls / rsa_seconds, ""),
    )
    details = {
        name: [round(seconds * 1000, 3) for block in getattr(where, kind) for seconds in block]
        for kind in ("light", "status_new", "status_kept")
        for where, name in ((idle, f"{kind}_idle_ms"), (busy, f"{kind}_busy_ms"))
    }
    note = f"{RSA_AT_ONCE} RSA Marbles in flight; {effort.samples} calls a percentile; spread: p99 of single blocks"
    return Row("latency", "while RSA Marbles start", checks, (note,), details)


def _p99(blocks: Sequence[Sequence[float]]) -> float:
    return percentile((one for block in blocks for one in block), 0.99) * 1000


def _range(blocks: Sequence[Sequence[float]]) -> tuple[float, float]:
    each = [percentile(block, 0.99) * 1000 for block in blocks]
    return min(each), max(each)


def _sample(target: Target, maker: Maker, into: Waited, size: int) -> None:
    """One block: light activations and status calls take turns."""
    marbles, context, request = maker.pool(size), users.user_context(), users.get_request("/status")
    light, new, kept = [], [], []
    with users.Kept(target.client, context) as connection:
        for marble in marbles:
            light.append(_timed(activation(target.mesh, marble)))
            new.append(_timed(lambda: users.ask(target.client, context, request)))
            kept.append(_timed(lambda: connection.ask(request)))
            time.sleep(PAUSE)
    into.light.append(light)
    into.status_new.append(new)
    into.status_kept.append(kept)


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


@contextmanager
def _storm(target: Target, maker: Maker) -> Iterator[Callable[[], int]]:
    """Marbles start one after the other, several at a time, until the block ends; tells how many were served."""
    stop, served, failures = threading.Event(), [0] * RSA_AT_ONCE, list[BaseException]()
    ready = maker.pool(RSA_AT_ONCE)

    def work(number: int) -> None:
        try:
            while not stop.is_set():
                activation(target.mesh, ready[number])()
                served[number] += 1
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(RSA_AT_ONCE)]
    for worker in workers:
        worker.start()
    try:
        time.sleep(0.2)
        yield lambda: sum(served)
    finally:
        stop.set()
        for worker in workers:
            worker.join()
    if failures:
        raise failures[0]


def crowd_row(effort: Effort, target: Target) -> Row:
    """All Marbles of a cluster connect in the same moment; several waves, so that growth would show."""
    maker, size = target.maker(), effort.crowd
    outcomes: Counter[str] = Counter()
    waves: list[dict[str, float]] = []
    for _ in range(CROWD_WAVES):
        marbles = maker.pool(size)
        before, began = cpu_seconds(target.process), time.perf_counter()
        latencies, peak = _rush(target, marbles, outcomes)
        seconds = time.perf_counter() - began
        cpu = cpu_seconds(target.process) - before
        time.sleep(0.3)  # for connections to close
        waves.append(
            {
                "seconds": seconds,
                "cpu_ms_a_call": cpu / size * 1000,
                "longest_ms": max(latencies, default=float("nan")) * 1000,
                "resident_mib": usage(target.process).resident / MIB,
                "peak_mib": peak / MIB,
            }
        )
    served = outcomes.pop(OK, 0)
    checks = (
        Check("not served", CROWD_WAVES * size - served, "", 0),
        Check("growth after the first wave", waves[-1]["resident_mib"] - waves[0]["resident_mib"], "MiB", CROWD_MIB),
        Check("resident memory at the most", max(one["peak_mib"] for one in waves), "MiB"),
        Check("longest that one waited", max(one["longest_ms"] for one in waves), "ms"),
        Check("served a second", size * CROWD_WAVES / sum(one["seconds"] for one in waves), ""),
    )
    notes = tuple(f"{count} x {what}" for what, count in outcomes.most_common(5))
    return Row("crowd", f"{size} Marbles at once, {CROWD_WAVES} times", checks, notes, {"waves": waves})


def _rush(target: Target, marbles: Sequence[Marble], outcomes: Counter[str]) -> tuple[list[float], int]:
    """Seconds of those that were served, and the most memory that was seen meanwhile."""
    together, lock = threading.Barrier(len(marbles) + 1), threading.Lock()
    latencies: list[float] = []

    def start(marble: Marble) -> None:
        together.wait()
        began = time.perf_counter()
        try:
            answer = call(target.mesh, marble)
            outcome = answer.status if answer.status == OK else f"gRPC status {answer.status}: {answer.reason}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        with lock:
            outcomes[outcome] += 1
            if outcome == OK:
                latencies.append(time.perf_counter() - began)

    workers = [threading.Thread(target=start, args=(marble,)) for marble in marbles]
    for worker in workers:
        worker.start()
    together.wait()
    peak = 0
    for worker in workers:
        while worker.is_alive():
            peak = max(peak, usage(target.process).resident)
            worker.join(0.05)
    return latencies, peak


def waiting_rows(effort: Effort, keys: Sequence[str]) -> list[Row]:
    """Those of these rows that are asked for, each on a Coordinator of its own."""
    rows = []
    if "latency" in keys:
        with coordinator(with_rsa()) as target:
            rows.append(latency_row(effort, target))
    if "crowd" in keys:
        with coordinator(typical()) as target:
            run_round([activation(target.mesh, one) for one in target.maker().pool(8)], None, 4)
            rows.append(crowd_row(effort, target))
    return rows
