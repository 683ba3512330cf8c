"""``python -m benchmarks.soak --minutes N``: a Coordinator under everything at once for as long as one likes.

Marbles start, impostors are refused, connections are dropped, users read, secrets are written, a package and, by two
users, the manifest is updated, and the Coordinator is restarted on its sealed state, by SIGTERM and by SIGKILL in turn.
After two thirds of the time the restarts end, and the last process is looked at: its memory, descriptors and threads
must not grow, latencies must not drift, and nothing may have failed but what a restart cut off. All on loopback, at a
bounded rate. The exit code is 1 if the verdict is bad.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine, users
from benchmarks.coordinators import Site, Target, free_endpoint, set_manifest, site
from benchmarks.process import MIB, Usage, usage
from benchmarks.soak_actors import Findings, Office, careless, impostors, marbles, readers
from benchmarks.table import percentile

RESTARTS_END = 2 / 3
"""Of the time; what comes after belongs to one process."""
MIN_BETWEEN_RESTARTS, MAX_BETWEEN_RESTARTS = 5.0, 300.0
MAX_GROWTH_MIB = 4.0
"""From the middle third of the last process's life to its last third."""
MAX_MORE_DESCRIPTORS = 8
"""In the end, when nobody is connected, than after the first start."""
MAX_THREADS = 64
ALL_LATENCIES_SECONDS = 3600.0
"""A longer soak keeps only a part of them."""
MAX_DRIFT = 2.0
"""Median latency of activations in the last third of the soak over that in the first third."""
QUIET_SECONDS = 60.0
"""Within which connections that were dropped are closed on our side, too; a handshake is waited for a quarter of it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The process at one moment."""

    seconds: float
    life: int
    usage: Usage


@dataclass(slots=True)
class Soak:
    """One soak under way."""

    place: Site
    seconds: float
    target: Target
    office: Office = field(default_factory=Office)
    findings: Findings = field(default_factory=Findings)
    samples: list[Sample] = field(default_factory=list)
    restarts: int = 0

    def run(self) -> None:
        """Start all actors, change and restart things, and end after the time."""
        target, findings = self.target, self.findings
        workers = [
            threading.Thread(target=function, args=(target, findings, *more))
            for function, more in (
                (marbles, ("service", 0.01)),
                (marbles, ("service", 0.02)),
                (marbles, ("counted", 0.03)),
                (impostors, (0.03,)),
                (careless, (0.05,)),
                (readers, (0.05,)),
            )
        ]
        for worker in workers:
            worker.start()
        try:
            self._govern()
        finally:
            findings.stop.set()
            for worker in workers:
                worker.join()

    def _govern(self) -> None:
        """Sample once in a while, change something in between, and restart when it is time."""
        between = min(max(self.seconds * RESTARTS_END / 5, MIN_BETWEEN_RESTARTS), MAX_BETWEEN_RESTARTS)
        step, next_restart, next_line = 0, between, 0.0
        changes = (
            ("secrets written", self.office.write_note),
            ("secrets read", self.office.read_note),
            ("packages updated", self.office.update_package),
            ("manifests updated", self.office.update_manifest),
        )
        while (now := time.monotonic() - self.findings.began) < self.seconds:
            name, change = changes[step % len(changes)]
            self.findings.attempt(name, lambda change=change: change(self.target))  # type: ignore[misc]
            step += 1
            if now >= next_restart and now < self.seconds * RESTARTS_END:
                self._restart(signal.SIGKILL if self.restarts % 2 else signal.SIGTERM)
                next_restart += between
            self.samples.append(Sample(now, self.findings.life, usage(self.target.process)))
            if now >= next_line:
                self._progress(now)
                next_line += max(self.seconds / 60, 5.0)
            time.sleep(min(max(self.seconds / 600, 0.2), 5.0))

    def _restart(self, number: signal.Signals) -> None:
        """End the process and start it on what it left; all that was acknowledged must be there."""
        self.findings.attempt("secrets written", lambda: self.office.write_note(self.target))
        self.findings.life += 1
        code = self.place.stop(number)
        expected = 0 if number is signal.SIGTERM else -signal.SIGKILL
        if code != expected:
            self.findings.fail(f"exit code {code} after {number.name}")
        again = self.place.start()
        self.target = self.place_target(again)
        self.findings.life += 1
        self.restarts += 1
        self.findings.note(f"restarts by {number.name}")
        self.findings.attempt("secrets read", lambda: self.office.read_note(self.target))
        status = users.ask(self.target.client, users.user_context(), users.get_request("/status"))
        if b'"StatusCode":3' not in status.body:
            self.findings.fail(f"after {number.name}: {status.body!r}")

    def place_target(self, again: Target) -> Target:
        """The new process, at the addresses of the old one."""
        if (again.mesh, again.client) != (self.target.mesh, self.target.client):
            self.findings.fail("the Coordinator came back at another address")
        return again

    def _progress(self, now: float) -> None:
        held, counts = self.samples[-1].usage, self.findings.counts
        activated = sum(count for name, count in counts.items() if name.startswith("activations"))
        print(
            f"{now:8.1f} s  {held.resident / MIB:6.1f} MiB  {held.descriptors:4} descriptors  {held.threads:3} threads"
            f"  {activated:8} activations  {counts['refused Marbles']:7} refused  {self.restarts:3} restarts"
            f"  {counts['failures']} failures",
            flush=True,
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """One thing that was looked at."""

    what: str
    value: float
    limit: float
    counts: bool = True
    """Whether the verdict depends on it."""

    @property
    def is_good(self) -> bool:
        """Whether it is within its limit."""
        return self.value <= self.limit


def judge(soak: Soak, first: Usage, quiet: Usage, *, judge_latency: bool) -> list[Judgement]:
    """All that the verdict depends on."""
    last = [sample for sample in soak.samples if sample.life == soak.findings.life]
    third = max(len(last) // 3, 1)
    early, late = last[third : 2 * third] or last, last[-third:]  # the first third warms up
    growth = statistics.median(s.usage.resident for s in late) - statistics.median(s.usage.resident for s in early)
    drift = latency_drift(soak.findings.latencies)
    return [
        Judgement("unexpected failures", soak.findings.counts["failures"], 0),
        Judgement("growth of resident memory, MiB", growth / MIB, MAX_GROWTH_MIB),
        Judgement("descriptors left open", quiet.descriptors - first.descriptors, MAX_MORE_DESCRIPTORS),
        Judgement("threads", max(sample.usage.threads for sample in soak.samples), MAX_THREADS),
        Judgement("latency, last third over first", drift, MAX_DRIFT, judge_latency),
        Judgement("restarts that are missing", max(0, 2 - soak.restarts), 0, soak.seconds >= 30),
    ]


def latency_drift(latencies: Sequence[tuple[float, float]]) -> float:
    """Median latency in the last third of the time over that in the first; 1 if there is too little to tell."""
    if len(latencies) < 30:
        return 1.0
    begin, end = latencies[0][0], latencies[-1][0]
    first = [seconds for at, seconds in latencies if at <= begin + (end - begin) / 3]
    last = [seconds for at, seconds in latencies if at >= end - (end - begin) / 3]
    return statistics.median(last) / statistics.median(first)


def _when_quiet(process: int, first: Usage) -> Usage:
    """The usage once connections that were dropped are closed, or after the time that this may take."""
    end = time.monotonic() + QUIET_SECONDS
    while (now := usage(process)).descriptors - first.descriptors > MAX_MORE_DESCRIPTORS and time.monotonic() < end:
        time.sleep(0.1)
    return now


def run_soak(seconds: float, *, judge_latency: bool = True) -> tuple[list[Judgement], dict[str, Any]]:
    """Run one and return what was judged, and everything that was seen."""
    with site() as place:
        place.environment["EDG_COORDINATOR_MESH_ADDR"] = str(free_endpoint())
        place.environment["EDG_COORDINATOR_CLIENT_ADDR"] = str(free_endpoint())
        target = place.start()
        soak = Soak(
            place, seconds, target, findings=Findings(share=min(1.0, ALL_LATENCIES_SECONDS / max(seconds, 1.0)))
        )
        set_manifest(target, soak.office.manifest())
        first = usage(target.process)
        soak.run()
        judgements = judge(soak, first, _when_quiet(soak.target.process, first), judge_latency=judge_latency)
        if (code := place.stop()) != 0:
            soak.findings.fail(f"exit code {code} at the end")
            judgements.append(Judgement("exit code at the end", abs(code), 0))
    latencies = [one for _, one in soak.findings.latencies] or [float("nan")]
    seen = {
        "counts": dict(soak.findings.counts),
        "failures": soak.findings.failures,
        "latency_ms": {
            "median": statistics.median(latencies) * 1000,
            "p99": percentile(latencies, 0.99) * 1000,
            "longest": max(latencies) * 1000,
        },
        "samples": [
            [round(s.seconds, 1), s.life, s.usage.resident, s.usage.descriptors, s.usage.threads] for s in soak.samples
        ],
    }
    return judgements, seen


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and say what was found; 1 if it was bad."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default %(default)s)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything that was seen there")
    parser.add_argument(
        "--ignore-latency", action="store_true", help="show the drift of latencies, but do not judge it: busy machines"
    )
    options = parser.parse_args(arguments)
    judgements, seen = run_soak(options.minutes * 60, judge_latency=not options.ignore_latency)
    is_good = all(one.is_good for one in judgements if one.counts)
    print()
    for name, count in sorted(seen["counts"].items()):
        print(f"{count:10} {name}")
    print("\n".join(f"  ! {failure}" for failure in seen["failures"]))
    print("activations: " + ", ".join(f"{name} {value:.1f} ms" for name, value in seen["latency_ms"].items()))
    for one in judgements:
        verdict = ("good" if one.is_good else "BAD") if one.counts else "not judged"
        print(f"{one.what:36} {one.value:10.2f}  at most {one.limit:g}  {verdict}")
    print(f"verdict: {'good' if is_good else 'BAD'}")
    if options.json is not None:
        document = {"machine": machine.facts(), "verdict": is_good, **seen}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
