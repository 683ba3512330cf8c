"""A server that somebody else started: the rows that need nothing but its addresses.

It has to have a manifest with a Marble of the type that is named, and to accept the evidence that the environment
chooses, as it chooses it for a Marble: ``EDG_SIMULATED_PLATFORM`` (and ``EDG_SIMULATED_*`` for the enclave's identity),
``OE_SIMULATION=1`` for none, or the hardware that is there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.coordinators import Target, set_manifest
from benchmarks.effort import Effort
from benchmarks.manifests import PRODUCT, typical
from benchmarks.rounds import Round, activations, run_round
from benchmarks.rows_serving import PATHS, request_round
from benchmarks.table import Check, Row, median_check
from marblerun.cli.demo.manifest import enclave
from marblerun.errors import Misconfigured
from marblerun.marble.settings import Endpoint, parse_endpoint

ELSEWHERE = ("typical", "p256", "durable", "requests")
_NOWHERE = Endpoint("127.0.0.1", 1)


def target_from_options(options: argparse.Namespace) -> Target:
    """The server of the command line, with its manifest set if that is asked for."""
    target = Target(
        mesh=parse_endpoint(options.mesh, "--mesh") if options.mesh else _NOWHERE,
        client=parse_endpoint(options.client, "--client") if options.client else _NOWHERE,
        pid=options.pid,
        evidence={name: os.environ.get(name, value) for name, value in enclave(PRODUCT).items()},
        marble_type=options.marble,
    )
    if options.set_manifest is not None:
        if target.client is _NOWHERE:
            raise Misconfigured("--set-manifest needs --client")
        text = options.set_manifest
        set_manifest(target, typical() if text == "-" else json.loads(Path(text).read_bytes()))
    return target


def rows_elsewhere(effort: Effort, target: Target, wanted: Sequence[str]) -> Iterator[Sequence[Row]]:
    """The rows that are wanted and that the addresses allow."""
    if target.mesh is not _NOWHERE:
        for key, curve, at_once in (
            ("typical", ec.SECP384R1, 4),
            ("p256", ec.SECP256R1, 4),
            ("durable", ec.SECP384R1, 16),
        ):
            if key in wanted:
                yield [_activation_row(effort, target, key, curve(), at_once)]
    if target.client is not _NOWHERE and "requests" in wanted:
        yield [_requests_row(effort, target)]


def _activation_row(effort: Effort, target: Target, key: str, curve: ec.EllipticCurve, at_once: int) -> Row:
    maker = target.maker(curve=lambda: curve)
    run_round(activations(target.mesh, maker, at_once), target.pid, at_once)
    rounds = [
        run_round(activations(target.mesh, maker, effort.calls), target.pid, at_once) for _ in range(effort.rounds)
    ]
    label = f"activation, {curve.name}, {at_once} in flight"
    return Row(key, label, tuple(_checks(target, "a call", rounds)))


def _requests_row(effort: Effort, target: Target) -> Row:
    checks: list[Check] = []
    for is_new in (True, False):
        for path in PATHS:
            server = (target.client, target.pid)
            rounds = [request_round(server, path, effort.calls, is_new) for _ in range(effort.rounds)]
            checks += _checks(target, f"{path}, {'new' if is_new else 'kept'}", rounds)
    return Row("requests", "GET on the client API", tuple(checks))


def _checks(target: Target, what: str, rounds: Sequence[Round]) -> Iterator[Check]:
    if target.pid is not None:
        yield median_check(f"CPU, {what}", [one.cpu_ms for one in rounds], "ms")
    middle = [sorted(one.latencies)[len(one.latencies) // 2] * 1000 for one in rounds]
    yield median_check(f"median time, {what}", middle, "ms")
