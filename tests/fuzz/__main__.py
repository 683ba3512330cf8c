"""Fuzzes for as long as it is told: ``python -m tests.fuzz [TARGET...] [--seconds N] [--seed N]``.

To be run in the project's root. Each round has a seed of its own. A failure ends the run: the input is written to
``fuzz-TARGET-SEED.bin`` in the working directory; ``--seed SEED --rounds 1 TARGET`` makes it again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from tests.fuzz.targets import TARGETS


def fuzz(name: str, seed: int, seconds: float, rounds: int) -> int:
    """How many inputs were checked, until time or rounds are over."""
    target = TARGETS[name]
    done = 0
    end = time.monotonic() + seconds
    while done < rounds and time.monotonic() < end:
        raw = target.make(random.Random(seed + done))
        begin = time.monotonic()
        try:
            target.check(raw)
        except BaseException:
            file = Path(f"fuzz-{name}-{seed + done}.bin")
            file.write_bytes(raw)
            print(f"{name}: seed {seed + done} fails; the input is in {file}", file=sys.stderr)
            raise
        took = time.monotonic() - begin
        if took > 5:
            raise TimeoutError(f"{name}: seed {seed + done} took {took:.1f} seconds")
        done += 1
    return done


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the parsers.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--seconds", type=float, default=60, help="for each target; default: 60")
    parser.add_argument("--rounds", type=int, default=sys.maxsize, help="at most, for each target")
    parser.add_argument("--seed", type=int, default=None, help="of the first round; default: random")
    arguments = parser.parse_args()
    for name in arguments.targets or TARGETS:
        if name not in TARGETS:
            parser.error(f"no target {name}")
        seed = random.getrandbits(48) if arguments.seed is None else arguments.seed
        print(f"{name}: {fuzz(name, seed, arguments.seconds, arguments.rounds)} inputs from seed {seed}")


if __name__ == "__main__":
    main()
