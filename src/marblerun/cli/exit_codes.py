"""Which exit code a failure has: one table, used by the program and shown in its documentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from marblerun.errors import (
    Conflict,
    Denied,
    Malformed,
    MarbleRunError,
    Misconfigured,
    NotFound,
    Unavailable,
    Untrusted,
    WrongPhase,
)


@dataclass(frozen=True, slots=True)
class ExitCode:
    """A code, the errors that lead to it, and when that is."""

    code: int
    errors: tuple[type[MarbleRunError], ...]
    meaning: str


OK: Final = 0
GENERAL: Final = 1
USAGE: Final = 2
FINDINGS: Final = 10
INTERRUPTED: Final = 130

TABLE: Final = (
    ExitCode(OK, (), "done"),
    ExitCode(GENERAL, (MarbleRunError,), "failed for a reason that has no class of its own"),
    ExitCode(USAGE, (), "the command line is wrong; nothing was done"),
    ExitCode(3, (Untrusted,), "refused evidence: not genuine, or the peer is not the Coordinator it has to be"),
    ExitCode(4, (Denied,), "genuine, but denied by a policy, or the user lacks a permission"),
    ExitCode(5, (WrongPhase, Conflict), "the Coordinator is in another state, or somebody else was first"),
    ExitCode(6, (Unavailable,), "a service or file could not be reached; trying again may help"),
    ExitCode(7, (Malformed,), "an input (manifest, policy, key, answer) is not what it has to be"),
    ExitCode(8, (NotFound,), "the named file or thing does not exist"),
    ExitCode(9, (Misconfigured,), "the settings do not allow safe operation; the message says what to do"),
    ExitCode(FINDINGS, (), "'manifest lint' found something to look at, and no error"),
    ExitCode(INTERRUPTED, (), "interrupted by Ctrl-C"),
)


def exit_code(error: MarbleRunError) -> int:
    """The code of the class that is nearest to the error's own."""
    for kind in type(error).__mro__:
        for row in TABLE:
            if kind in row.errors:
                return row.code
    return GENERAL
