"""Fuzzes for as long as it is told: ``python -m tests.fuzz [TARGET...] [--seconds N] [--seed N]``.

To be run in the project's root. Each round has a seed of its own. A failure ends the run: the input is written to
``fuzz-TARGET-SEED.bin`` in the working directory, and ``--replay FILE TARGET`` checks it again. Where nothing random
but the seed goes into an input, ``--seed SEED --rounds 1 TARGET`` makes it again too.

An input fails if anything but our errors comes out, if it takes longer than ``MAX_SECONDS``, or if the memory of the
process grows by more than ``MAX_GROWTH`` while a target runs.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.fuzz.evidence import EVIDENCE
from tests.fuzz.targets import TARGETS, Target

EVERY: Final[Mapping[str, Target]] = {**TARGETS, **EVIDENCE}
MAX_SECONDS: Final = 5.0
MAX_GROWTH: Final = 512 * 1024 * 1024
PROGRESS_SECONDS: Final = 10.0


def fuzz(name: str, seed: int, seconds: float, rounds: int) -> int:
    """How many inputs were checked, until time or rounds are over."""
    target = EVERY[name]
    done, size, slowest = 0, 0, 0.0
    memory, end = _most_memory(), time.monotonic() + seconds
    tell = time.monotonic() + PROGRESS_SECONDS
    while done < rounds and time.monotonic() < end:
        raw = target.make(random.Random(seed + done))
        slowest = max(slowest, check(name, target, raw, memory, f"fuzz-{name}-{seed + done}.bin"))
        done += 1
        size += len(raw)
        if time.monotonic() > tell:
            print(f"  {name}: {done} inputs, {size / done:.0f} bytes each, slowest {slowest:.2f} s", flush=True)
            tell += PROGRESS_SECONDS
    return done


def check(name: str, target: Target, raw: bytes, memory: int, file: str) -> float:
    """How many seconds the input took; one that fails is kept in ``file``."""
    begin = time.monotonic()
    try:
        target.check(raw)
        took, growth = time.monotonic() - begin, _most_memory() - memory
        if took > MAX_SECONDS:
            raise TimeoutError(f"{took:.1f} seconds for {len(raw)} bytes")
        if growth > MAX_GROWTH:
            raise MemoryError(f"{growth >> 20} MiB more for {len(raw)} bytes or what came before")
    except BaseException:
        Path(file).write_bytes(raw)
        print(f"{name} fails; again: python -m tests.fuzz --replay {file} {name}", file=sys.stderr)
        raise
    return took


def _most_memory() -> int:
    """The most that was ever resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz parsers and the verifier.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(EVERY)}; default: all")
    parser.add_argument("--seconds", type=float, default=60, help="for each target; default: 60")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help="at most, for each target")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; default: random")
    parser.add_argument("--replay", metavar="FILE", help="check this saved input with the targets, and nothing else")
    arguments = parser.parse_args()
    # pyca warns of serial numbers that are not positive; here they are made by the thousand.
    warnings.simplefilter("ignore")
    for name in arguments.targets or EVERY:
        if name not in EVERY:
            parser.error(f"no target {name}")
        if arguments.replay:
            took = check(name, EVERY[name], Path(arguments.replay).read_bytes(), _most_memory(), arguments.replay)
            print(f"{name}: nothing wrong, {took:.2f} s")
            continue
        seed = random.getrandbits(48) if arguments.seed is None else arguments.seed
        print(f"{name}: {fuzz(name, seed, arguments.seconds, arguments.rounds)} inputs from seed {seed}", flush=True)


if __name__ == "__main__":
    main()
