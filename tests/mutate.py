"""Takes one check at a time out of the rooms that decide, and says which ones no test misses.

Run in the project's root: ``python -m tests.mutate [ROOM...]`` with ``--jobs N``, ``--only TEXT``, ``--again FILE``,
``--short`` or ``--list``. For every mutant (:mod:`tests.mutants`) the fast tests of its room run in forked processes,
those that come by the changed line first, up to the first failure (:mod:`tests.mutate_runs`); the files themselves are
not touched. A mutant that all tests pass is a survivor: either a test is missing, or the change means nothing, and then
it stands in ``mutate_explained.json`` with its reason. 1 if there are other survivors. ``--again`` takes what an
earlier run said and tries its survivors only.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.mutants import SOURCES, Mutant, mutants
from tests.mutate_runs import prepare, sweep


@dataclass(frozen=True)
class Room:
    """Modules, and the tests that must notice when a check of theirs is missing."""

    modules: tuple[str, ...]
    tests: tuple[str, ...]


_SHARING = SOURCES / "coordinator/server/sharing"
ROOMS = {
    "dcap": Room(
        (
            *(f"attestation/dcap/{file.stem}" for file in sorted(SOURCES.glob("attestation/dcap/[!_]*.py"))),
            *("attestation/" + name for name in ("sgx", "tdx", "binding", "registry", "roots/__init__")),
        ),
        (
            *("tests/attestation/" + name for name in ("test_binding.py", "test_registry.py", "dcap")),
            *("tests/attestation/" + name for name in ("test_verify.py", "test_matrix.py", "test_vectors.py")),
            *(
                "tests/attestation/" + name
                for name in ("collect/test_pck.py", "simulated/test_forge.py", "test_fuzz.py", "test_sweep.py")
            ),
            *("tests/attestation/" + name for name in ("test_rules.py", "test_forms.py", "test_differential.py")),
        ),
    ),
    "admission": Room(
        ("policy/admission",), ("tests/policy/test_admission_strict.py", "tests/policy/test_admission.py")
    ),
    "box": Room(("secrets/box",), ("tests/secrets/test_box.py",)),
    "pki": Room(
        tuple("pki/" + name for name in ("chains", "signatures", "ecdsa", "constraints")),
        ("tests/pki", "tests/attestation/dcap/test_chains.py"),
    ),
    "sharing": Room(
        (
            "policy/sharing",
            *(f"coordinator/server/sharing/{file.stem}" for file in sorted(_SHARING.glob("[!_]*.py"))),
        ),
        (
            "tests/policy/test_sharing.py",
            *("tests/coordinator/" + name for name in ("server/sharing", "kubernetes/test_key_sharing.py")),
        ),
    ),
    "state": Room(
        ("coordinator/store/lineage", "coordinator/store/kubernetes", "coordinator/seal/kek"),
        tuple(
            "tests/coordinator/" + name
            for name in (
                *("store/test_lineage.py", "store/test_entries.py", "store/test_anchors.py", "store/test_takeover.py"),
                *("seal/test_kek.py", "kubernetes/test_api.py", "kubernetes/test_kek_map.py"),
                "kubernetes/test_shared_state.py",
            )
        ),
    ),
    "users": Room(
        ("coordinator/commands/caller", "coordinator/provenance", "policy/access", "policy/names"),
        (
            *("tests/policy/test_access.py", "tests/policy/test_names.py"),
            *(
                "tests/coordinator/" + name
                for name in ("commands/test_caller.py", "test_provenance.py", "test_users.py")
            ),
            *(
                "tests/coordinator/" + name
                for name in ("test_secrets_api.py", "test_updates.py", "test_updates_http.py")
            ),
        ),
    ),
}

EQUIVALENT: dict[str, str] = json.loads(Path(__file__).with_name("mutate_explained.json").read_text())
"""Survivors that change nothing anyone can notice: what :attr:`Mutant.key` says, and why."""

_LINE = re.compile(r"\.py:\d+ | \(explained\)$")


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description="Which checks does no test miss?")
    parser.add_argument("rooms", nargs="*", metavar="ROOM", help=f"of {', '.join(ROOMS)}; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--only", default="", help="mutants with this text in what names them")
    parser.add_argument("--again", metavar="FILE", help="mutants that survived in this output of an earlier run")
    parser.add_argument("--short", action="store_true", help="do not load a module anew for what is left: only a guess")
    parser.add_argument("--list", action="store_true", help="name the mutants and run nothing")
    arguments = parser.parse_args()
    prepare()
    unexplained = 0
    for name in arguments.rooms or ROOMS:
        room = ROOMS[name]
        wanted = [one for module in room.modules for one in mutants(module) if arguments.only in one.key]
        if arguments.again:
            earlier = {_LINE.sub(" ", line).strip() for line in Path(arguments.again).read_text().splitlines()}
            wanted = [one for one in wanted if one.key in earlier]
        if arguments.list:
            print("\n".join(one.shown for one in wanted))
            continue
        print(f"{name}:", flush=True)
        start = time.monotonic()
        found: list[Mutant] = []
        for mutant in sweep(wanted, room.tests, jobs=arguments.jobs, known=EQUIVALENT, short=arguments.short):
            found.append(mutant)
            print(f"  {mutant.shown}{' (explained)' if mutant.key in EQUIVALENT else ''}", flush=True)
        print(f"{len(found)} of {len(wanted)} mutants survive, {time.monotonic() - start:.0f} s", flush=True)
        unexplained += sum(mutant.key not in EQUIVALENT for mutant in found)
    print(f"{unexplained} survivors without explanation")
    return bool(unexplained)


if __name__ == "__main__":
    sys.exit(main())
