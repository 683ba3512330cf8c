"""The mutation sweep finds a check that no test misses, and leaves the code as it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tests.mutants import SOURCES, mutants
from tests.mutate import EQUIVALENT, ROOMS


@pytest.mark.parametrize("room", ROOMS)
def test_every_mutant_of_a_room_is_another_program(room: str) -> None:
    for module in ROOMS[room].modules:
        before = ast.dump(ast.parse((SOURCES / f"{module}.py").read_text()))
        for mutant in list(mutants(module))[::41]:
            changed = mutant.tree()
            compile(changed, mutant.module, "exec")
            assert ast.dump(changed) != before


def test_the_explained_survivors_are_mutants_that_exist() -> None:
    keys = {mutant.key for room in ROOMS.values() for module in room.modules for mutant in mutants(module)}
    assert EQUIVALENT.keys() - keys == set()


SWEEP = """
import sys
from tests.mutants import mutants
from tests.mutate_runs import sweep
key = "attestation/binding verify_binding: never `if not message`"
(mutant,) = [one for one in mutants("attestation/binding") if one.key == key]
print(*(len([*sweep([mutant], [tests], jobs=1)]) for tests in sys.argv[1:]))
"""


def test_a_check_that_is_missed_is_told_from_one_that_is_not(tmp_path: Path) -> None:
    """One mutant, two sets of tests: one that looks at the rule and one that does not. In a process of its own."""
    looks, looks_away = tmp_path / "test_looks.py", tmp_path / "test_looks_away.py"
    begin = "from marblerun.attestation import binding\n\ndef test_it():\n    "
    looks.write_text(
        "import pytest\n"
        "from marblerun.errors import Untrusted\n"
        f"{begin}with pytest.raises(Untrusted):\n        binding.verify_binding(bytes(64), b'', strict=True)\n"
    )
    looks_away.write_text(f"{begin}assert binding.REPORT_DATA_BYTES == 64\n")
    command = [sys.executable, "-c", SWEEP, str(looks), str(looks_away)]
    done = subprocess.run(command, cwd=SOURCES.parents[1], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 1"
