"""A short run of every fuzz target; the long one is ``python -m tests.fuzz``."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.forge.dcap import NOW
from tests.fuzz.__main__ import EVERY, check
from tests.fuzz.evidence import _HOSTILE, EVIDENCE, minted
from tests.fuzz.targets import TARGETS, Target

from marblerun.attestation.dcap.verify import Verifier
from marblerun.attestation.model import TcbStatus

ROUNDS = dict.fromkeys(TARGETS, 400) | dict.fromkeys(EVIDENCE, 60)


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@pytest.mark.parametrize("name", EVERY)
def test_every_input_gives_a_value_or_one_of_our_errors(name: str) -> None:
    target = EVERY[name]
    for seed in range(ROUNDS[name]):
        raw = target.make(random.Random(seed))
        try:
            target.check(raw)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {raw[:2000]!r}") from error


@pytest.mark.parametrize("name", EVERY)
def test_inputs_are_of_both_kinds_and_come_from_their_seed(name: str) -> None:
    make = EVERY[name].make
    inputs = {make(random.Random(seed)) for seed in range(ROUNDS[name])}
    assert len(inputs) > ROUNDS[name] / 2
    assert make(random.Random(7)) == make(random.Random(7))


@pytest.mark.parametrize("name", ["tcb-info", "qe-identity"])
def test_an_input_does_not_depend_on_those_made_before(name: str) -> None:
    """Or a long run ends in what the fuzzer itself made, and no seed makes an input again."""
    make = EVERY[name].make
    before = repr(_HOSTILE)
    for seed in range(300):
        make(random.Random(seed))
    assert before == repr(_HOSTILE)


def broken(raw: bytes) -> None:
    raise ZeroDivisionError(len(raw))


def test_an_input_that_fails_is_kept_with_the_command_that_checks_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kept.bin"
    with pytest.raises(ZeroDivisionError):
        check("broken", Target(lambda dice: dice.randbytes(3), broken), b"input", 0, str(file))
    assert file.read_bytes() == b"input"
    assert f"python -m tests.fuzz --replay {file} broken" in capsys.readouterr().err


def test_an_input_that_takes_too_much_memory_fails(tmp_path: Path) -> None:
    file = tmp_path / "kept.bin"
    with pytest.raises(MemoryError):
        check("oe-header", EVERY["oe-header"], b"input", -(1 << 40), str(file))
    assert file.read_bytes() == b"input"


def test_the_evidence_that_is_changed_is_genuine_before() -> None:
    """Or all that is fuzzed would be one refusal."""
    verifier = Verifier([minted()[0].root])
    accepted = [verifier.verify(one.quote, one.collateral, NOW).tcb_status for one in minted()]
    assert accepted == [TcbStatus.UP_TO_DATE] * 3
