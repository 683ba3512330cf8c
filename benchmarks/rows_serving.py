"""Rows about the process: what users' requests cost, how soon it answers after its start, and its memory.

Requests are compared with ``benchmarks.bare``, the same edge and HTTP with fixed bytes behind them, in turns.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks import users
from benchmarks.coordinators import Site, Target, coordinator, free_endpoint, set_manifest, site
from benchmarks.effort import Effort
from benchmarks.manifests import typical
from benchmarks.marbles import REFUSED, Maker, quote_spoiler
from benchmarks.process import MIB, usage
from benchmarks.rounds import Round, activation, activations, paired, run_round
from benchmarks.table import Check, Row, median_check
from marblerun.cli.demo.manifest import enclave
from marblerun.marble.settings import Endpoint, parse_endpoint

PATHS = ("/status", "/quote", "/manifest")
OF_BARE, START_SECONDS, MEMORY_MIB = 1.3, 0.5, 90.0
KEPT_FACTOR = 5
"""Requests a round on a kept connection, for each on new ones: they cost that much less."""
BATCH = 250
ENOUGH_CALLS = 10_000
"""With fewer, what is kept at all (threads, bounded caches) looks like a slope."""
FLAT_KIB = 10.0
"""Growth in KiB for 100 calls that is still called flat: 1 MiB in the second half of 20,000."""


@contextmanager
def bare_server(directory: Path) -> Iterator[tuple[Endpoint, int]]:
    """The address and process id of a running ``benchmarks.bare``."""
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bare", str(directory)],
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            yield parse_endpoint(process.stdout.readline().decode().strip(), "bare"), process.pid
        finally:
            process.kill()


def record(target: Target, directory: Path) -> None:
    """Keep the Coordinator's answers, for the bare server to give."""
    for path in PATHS:
        reply = users.ask(target.client, users.user_context(), users.get_request(path))
        (directory / path.removeprefix("/")).write_bytes(reply.head + b"\r\n\r\n" + reply.body)


def requests_row(effort: Effort, target: Target) -> Row:
    """``status``, ``quote`` and ``manifest`` on new and on kept connections, beside a bare server."""
    checks: list[Check] = []
    details: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as place:
        record(target, Path(place))
        with bare_server(Path(place)) as (bare, bare_pid):
            for is_new in (True, False):
                for path in PATHS:
                    ours, theirs = _pairs(effort, (target.client, target.process), (bare, bare_pid), path, is_new)
                    kind = "new" if is_new else "kept"
                    checks.append(median_check(f"{path} on {kind}, of bare", paired(ours, theirs), "x", OF_BARE))
                    details[f"{path} {kind}"] = {"server_ms": ours, "bare_ms": theirs}
                    checks.append(median_check(f"{path} on {kind} connections", ours, "ms"))
    note = "beside a server with the same edge and HTTP/1.1 that answers the same bytes from memory"
    return Row("requests", "GET on the client API", tuple(checks), (note,), details)


def _pairs(
    effort: Effort, ours: tuple[Endpoint, int], theirs: tuple[Endpoint, int], path: str, is_new: bool
) -> tuple[list[float], list[float]]:
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, effort.rounds):  # the first pair warms up
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            one = request_round((ours, theirs)[which], path, effort.calls, is_new)
            if number >= 0:
                spent[which].append(one.cpu_ms)
    return spent


def request_round(server: tuple[Endpoint, int | None], path: str, calls: int, is_new: bool) -> Round:
    """A round of one request, each on a connection of its own or all on one."""
    endpoint, pid = server
    context, request = users.user_context(), users.get_request(path)

    def check(reply: users.Reply) -> None:
        if reply.status != 200:
            raise RuntimeError(f"{path}: status {reply.status}")

    if is_new:
        return run_round([lambda: check(users.ask(endpoint, context, request))] * calls, pid, 1)
    with users.Kept(endpoint, context) as connection:
        return run_round([lambda: check(connection.ask(request))] * (calls * KEPT_FACTOR), pid, 1)


def start_row(effort: Effort) -> Row:
    """Seconds from the start of the process to the first answer to ``status``."""
    fresh, again = [], []
    for _ in range(effort.starts):
        with site() as place:
            fresh.append(_start_seconds(place))
            set_manifest(place.target(), typical())
            place.stop()
            again.append(_start_seconds(place))
    checks = (
        median_check("first start, to first status", fresh, "s", START_SECONDS),
        median_check("start with a manifest", again, "s", START_SECONDS),
    )
    return Row("start", "start to first status", checks, details={"first": fresh, "again": again})


def _start_seconds(place: Site) -> float:
    endpoint, context, request = free_endpoint(), users.user_context(), users.get_request("/status")
    began = time.perf_counter()
    place.spawn(EDG_COORDINATOR_CLIENT_ADDR=str(endpoint))
    while time.perf_counter() - began < 120:
        with contextlib.suppress(OSError):
            if users.ask(endpoint, context, request).status == 200:
                return time.perf_counter() - began
        time.sleep(0.002)
    raise RuntimeError("the Coordinator did not answer")


def memory_row(effort: Effort, target: Target) -> Row:
    """Resident memory while many Marbles are activated and as many refused, and how it grows."""
    good = target.maker(curve=ec.SECP256R1)  # quicker, and memory is all that counts here
    bad = (
        target.maker(curve=ec.SECP256R1, change_quote=quote_spoiler),
        target.maker(curve=ec.SECP256R1, marble_type="nobody"),
        Maker.from_environment({**target.evidence, **enclave(99)}, curve=ec.SECP256R1),
    )
    before = usage(target.process)
    seen: dict[str, list[tuple[int, int]]] = {}
    for kind in ("activations", "refused"):
        seen[kind] = [(0, usage(target.process).resident)]
        done = 0
        while done < effort.memory_calls:
            size = min(BATCH, effort.memory_calls - done)
            if kind == "activations":
                actions = activations(target.mesh, good, size)
            else:
                turns = islice(cycle(bad), size)
                actions = [activation(target.mesh, maker.make(), REFUSED) for maker in turns]
            run_round(actions, target.process, 4)
            done += size
            seen[kind].append((done, usage(target.process).resident))
    after = usage(target.process)
    checks = [Check("resident at the end", after.resident / MIB, "MiB", MEMORY_MIB)]
    flat = FLAT_KIB if effort.memory_calls >= ENOUGH_CALLS else None
    for kind, points in seen.items():
        late = [point for point in points if point[0] >= points[-1][0] / 2] or points
        checks.append(Check(f"slope, {kind}, second half", _slope(late) * 100 / 1024, "KiB/100", flat))
    checks.append(Check("resident before", before.resident / MIB, "MiB"))
    checks.append(Check("descriptors more than before", after.descriptors - before.descriptors, ""))
    note = f"{effort.memory_calls} activations and {effort.memory_calls} refused ones, each of a Marble of its own"
    details = {kind: [[done, resident] for done, resident in points] for kind, points in seen.items()}
    return Row("memory", "memory", tuple(checks), (note,), dict(details))


def _slope(points: Sequence[tuple[int, int]]) -> float:
    """Bytes a call, by least squares."""
    if len(points) < 2:
        return 0.0
    return statistics.linear_regression([one for one, _ in points], [two for _, two in points]).slope


def serving_rows(effort: Effort, keys: Sequence[str]) -> list[Row]:
    """Those of these rows that are asked for."""
    rows = []
    if "requests" in keys:
        with coordinator(typical()) as target:
            rows.append(requests_row(effort, target))
    if "start" in keys:
        rows.append(start_row(effort))
    if "memory" in keys:
        with coordinator(typical()) as target:
            rows.append(memory_row(effort, target))
    return rows
