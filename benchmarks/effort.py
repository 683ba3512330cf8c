"""How much is measured: enough for numbers, or just enough to see that a row works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effort:
    """Sizes of all rows."""

    rounds: int = 8
    """Paired rounds of a ratio."""
    calls: int = 100
    """Calls a round."""
    samples: int = 400
    """Latencies for one percentile, idle and busy each."""
    crowd: int = 500
    """Marbles that start in the same moment."""
    starts: int = 7
    memory_calls: int = 20_000
    """Activations, and as many refused ones."""
    seconds_a_number: float = 0.5
    """For each number about the verification of evidence."""


FULL = Effort()
SHORT = Effort(
    rounds=2, calls=8, samples=10, crowd=12, starts=1, memory_calls=40, seconds_a_number=0.01
)  # does it work; the numbers say nothing
