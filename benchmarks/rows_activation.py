"""Rows: the CPU of one activation, of several kinds, beside its floor and beside the typical one.

Everything that is compared takes turns: a round of one, a round of the other, and the ratio of each pair counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict

from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.coordinators import Target, coordinator
from benchmarks.effort import Effort
from benchmarks.floor import Activation, Floor
from benchmarks.manifests import typical, with_rsa
from benchmarks.rounds import Round, activations, paired, run_round
from benchmarks.table import Row, median_check

TYPICAL_MS, P256_MS, DURABLE_MS = 3.0, 2.2, 3.5
OF_FLOOR, OF_TYPICAL = 1.5, 1.05
AT_ONCE = 4
DURABLE_AT_ONCE = 16


def typical_row(effort: Effort, target: Target) -> Row:
    """The Marble of the manifest ``typical`` with a P-384 key, as stock Marbles are."""
    return _beside_floor(effort, target, ec.SECP384R1(), Row("typical", "activation, typical", ()), TYPICAL_MS)


def p256_row(effort: Effort, target: Target) -> Row:
    """The same with a P-256 key, as our own Marble side has it."""
    return _beside_floor(effort, target, ec.SECP256R1(), Row("p256", "activation, Marble key P-256", ()), P256_MS)


def _beside_floor(effort: Effort, target: Target, curve: ec.EllipticCurve, row: Row, goal: float) -> Row:
    floor, maker = Activation(curve), target.maker(curve=lambda: curve)
    run_round(activations(target.mesh, maker, AT_ONCE), target.pid, AT_ONCE)  # warm
    floors: list[Floor] = []
    rounds: list[Round] = []
    for _ in range(effort.rounds):
        floors.append(floor.measure(effort.calls // 4))
        rounds.append(run_round(activations(target.mesh, maker, effort.calls), target.process, AT_ONCE))
    cpu, below, here = [one.cpu_ms for one in rounds], [one.total for one in floors], [one.total_here for one in floors]
    checks = (
        median_check("CPU a call", cpu, "ms", goal),
        median_check("beside the floor", paired(cpu, below), "x", OF_FLOOR if row.key == "typical" else None),
        median_check("the floor: all by OpenSSL", below, "ms"),
        median_check("beside the second floor", paired(cpu, here), "x"),
        median_check("the second floor: as done here", here, "ms"),
    )
    steps = {name: sorted(asdict(one)[name] for one in floors)[len(floors) // 2] for name in asdict(floors[0])}
    return Row(row.key, row.label, checks, details={**_details(rounds), "floor_ms": steps})


def durable_row(effort: Effort, target: Target) -> Row:
    """Each activation is counted, and answered when that is on disk."""
    maker = target.maker()
    run_round(activations(target.mesh, maker, AT_ONCE), target.pid, AT_ONCE)
    rounds = [
        run_round(activations(target.mesh, maker, effort.calls), target.process, DURABLE_AT_ONCE)
        for _ in range(effort.rounds)
    ]
    checks = (
        median_check("CPU a call, 16 in flight", [one.cpu_ms for one in rounds], "ms", DURABLE_MS),
        median_check("calls a second", [one.per_second for one in rounds], ""),
    )
    return Row("durable", "activation with MaxActivations, durable", checks, details=_details(rounds))


def large_mesh_row(effort: Effort, small: Target, large: Target) -> Row:
    """The typical Marble in a mesh with 200 types of Marbles and 200 secrets that it does not use."""
    return _beside_typical(effort, small, large, "large-mesh", "200 Marbles, 200 secrets not used by this one")


def rsa_mesh_row(effort: Effort, small: Target, rsa: Target) -> Row:
    """The typical Marble where other Marbles have private RSA secrets."""
    return _beside_typical(effort, small, rsa, "rsa-mesh", "Marble without RSA, mesh with private RSA secrets")


def _beside_typical(effort: Effort, small: Target, other: Target, key: str, label: str) -> Row:
    rounds: dict[bool, list[Round]] = {False: [], True: []}
    for target in (small, other):
        run_round(activations(target.mesh, target.maker(), AT_ONCE), target.pid, AT_ONCE)
    for number in range(effort.rounds):
        for is_other in (False, True) if number % 2 == 0 else (True, False):  # so that none is always the later one
            target = other if is_other else small
            ready = activations(target.mesh, target.maker(), effort.calls)
            rounds[is_other].append(run_round(ready, target.process, AT_ONCE))
    cpu, typical_cpu = [one.cpu_ms for one in rounds[True]], [one.cpu_ms for one in rounds[False]]
    checks = (
        median_check("beside the typical one", paired(cpu, typical_cpu), "x", OF_TYPICAL),
        median_check("CPU a call", cpu, "ms"),
    )
    return Row(key, label, checks, details=_details(rounds[True]))


def _details(rounds: Sequence[Round]) -> dict[str, object]:
    return {
        "server_cpu_ms": [round(one.cpu_ms, 3) for one in rounds],
        "client_cpu_ms": [round(one.client_ms, 3) for one in rounds],
        "per_second": [round(one.per_second, 1) for one in rounds],
        "calls_a_round": rounds[0].calls,
    }


def activation_rows(effort: Effort, keys: Sequence[str]) -> list[Row]:
    """Those of these rows that are asked for, each on Coordinators of its own."""
    rows = []
    for key in keys:
        with ExitStack() as stack:
            if key == "durable":
                rows.append(durable_row(effort, stack.enter_context(coordinator(typical(max_activations=10**9)))))
                continue
            small = stack.enter_context(coordinator(typical()))
            if key == "large-mesh":
                large = typical(unused_secrets=200, other_marbles=198)
                rows.append(large_mesh_row(effort, small, stack.enter_context(coordinator(large))))
            elif key == "rsa-mesh":
                rows.append(rsa_mesh_row(effort, small, stack.enter_context(coordinator(with_rsa(4)))))
            else:
                rows.append({"typical": typical_row, "p256": p256_row}[key](effort, small))
    return rows
