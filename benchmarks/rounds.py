"""Rounds of calls: how much CPU of the server each took, how long, and what the client itself spent."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.marbles import OK, Maker, Marble, call
from benchmarks.process import cpu_seconds
from marblerun.marble.settings import Endpoint

Action = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Round:
    """Some calls, one after the other or several at a time."""

    calls: int
    seconds: float
    server_cpu: float
    """Seconds."""
    client_cpu: float
    """Seconds, of the benchmark's own process."""
    latencies: tuple[float, ...]
    """Seconds, one a call."""

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of the server's CPU a call."""
        return self.server_cpu / self.calls * 1000

    @property
    def client_ms(self) -> float:
        """Milliseconds of the client's CPU a call."""
        return self.client_cpu / self.calls * 1000

    @property
    def per_second(self) -> float:
        """Calls a second."""
        return self.calls / self.seconds


def run_round(actions: Sequence[Action], pid: int | None, at_once: int) -> Round:
    """Do each action once, ``at_once`` at a time; the first failure of one is raised at the end."""
    left, lock = iter(actions), threading.Lock()
    latencies: list[float] = []
    failures: list[BaseException] = []

    def work() -> None:
        while not failures:
            with lock:
                action = next(left, None)
            if action is None:
                return
            began = time.perf_counter()
            try:
                action()
            except BaseException as error:
                failures.append(error)
                return
            latencies.append(time.perf_counter() - began)

    workers = [threading.Thread(target=work) for _ in range(at_once)]
    server = cpu_seconds(pid) if pid is not None else 0.0
    own, began = time.process_time(), time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - began
    used = cpu_seconds(pid) - server if pid is not None else float("nan")
    if failures:
        raise failures[0]
    return Round(len(latencies), seconds, used, time.process_time() - own, tuple(latencies))


def activation(endpoint: Endpoint, marble: Marble, expected: str = OK) -> Action:
    """One activation; RuntimeError if it does not end with the expected status."""

    def act() -> None:
        answer = call(endpoint, marble)
        if answer.status != expected:
            raise RuntimeError(f"activation: status {answer.status}, expected {expected}: {answer.reason}")

    return act


def activations(endpoint: Endpoint, maker: Maker, calls: int, expected: str = OK) -> list[Action]:
    """So many activations, each of a new Marble; made now, so that it does not count later."""
    return [activation(endpoint, marble, expected) for marble in maker.pool(calls)]


def ratio_of_medians(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """For information beside paired ratios."""
    return statistics.median(numerators) / statistics.median(denominators)


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """The ratio of each pair, measured one right after the other."""
    return [one / other for one, other in zip(numerators, denominators, strict=True)]
