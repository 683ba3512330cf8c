"""A short run of every fuzz target; the long one is ``python -m tests.fuzz``."""

from __future__ import annotations

import random

import pytest
from tests.fuzz.targets import TARGETS

ROUNDS = 400


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_gives_a_value_or_one_of_our_errors(name: str) -> None:
    target = TARGETS[name]
    for seed in range(ROUNDS):
        raw = target.make(random.Random(seed))
        try:
            target.check(raw)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {raw!r}") from error


@pytest.mark.parametrize("name", TARGETS)
def test_inputs_are_of_both_kinds_and_come_from_their_seed(name: str) -> None:
    make = TARGETS[name].make
    inputs = {make(random.Random(seed)) for seed in range(ROUNDS)}
    assert len(inputs) > ROUNDS / 2
    assert make(random.Random(7)) == make(random.Random(7))
