"""What the program will be started with: which file, which arguments, which environment.

Source: cli-marble-k8s, sections 3.2 (steps 10 and 11) and 3.3 (Gramine: the file of the command line with the
arguments of the manifest).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from marblerun.errors import Malformed, Misconfigured, NotFound, Unavailable


@dataclass(frozen=True, slots=True, repr=False)
class Launch:
    """A program ready to be started; its environment holds keys and secrets, so ``repr`` shows nothing of it."""

    file: bytes
    argv: tuple[bytes, ...]
    environment: Mapping[bytes, bytes]

    def __repr__(self) -> str:
        return f"Launch(file={self.file!r}, {len(self.argv)} arguments, {len(self.environment)} variables)"

    def exec(self) -> NoReturn:
        """Replace this process by the program; raises Unavailable if the system refuses."""
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the program would inherit that
            signal.signal(number, signal.SIG_DFL)
        try:
            os.execve(self.file, self.argv, self.environment)  # noqa: S606
        except OSError as error:
            raise Unavailable(f"cannot start {os.fsdecode(self.file)}: {error.strerror}") from error


def plan_launch(
    command: Sequence[str], argv: Sequence[str], env: Mapping[str, bytes], base: Mapping[bytes, bytes]
) -> Launch:
    """Return how to start the program.

    The file is the first word of ``command``, or the manifest's ``Argv[0]`` if no command was given; it is looked for
    in the program's own ``PATH``. The arguments are the manifest's ``Argv``, whole, program name included; an empty
    one leaves those of the command. The environment is ``base`` with ``env`` over it.

    Raises:
        Misconfigured: neither names a program.
        NotFound: there is no such program.
        Malformed: an argument or variable cannot be handed to a process.
    """
    if not command and not argv:
        raise Misconfigured("nothing to run: give a PROGRAM, or set Argv for this Marble in the manifest")
    environment = merge_environment(base, env)
    own = tuple(os.fsencode(word) for word in command)
    given = tuple(word.encode() for word in argv)
    if any(b"\x00" in word for word in given):
        raise Malformed("an argument has a NUL in it", where="Argv")
    return Launch(_find((own or given)[0], environment), given or own, environment)


def merge_environment(base: Mapping[bytes, bytes], env: Mapping[str, bytes]) -> dict[bytes, bytes]:
    """Return ``base`` with the manifest's variables over it; raises Malformed for what no process can be given."""
    for name, value in env.items():
        if not name or "=" in name or "\x00" in name:
            raise Malformed("not a name for an environment variable", where=f"variable {name!r}")
        if b"\x00" in value:
            raise Malformed(
                "the value has a NUL in it (write it with the hex or base64 function)", where=f"variable {name!r}"
            )
    return {**base, **{name.encode(): value for name, value in env.items()}}


def _find(program: bytes, environment: Mapping[bytes, bytes]) -> bytes:
    """Return the file to execute, as a shell would find it."""
    if not program:
        raise Misconfigured("the name of the program is empty")
    if b"/" in program:
        candidates = [program]
    else:
        path = environment.get(b"PATH") or os.fsencode(os.defpath)
        candidates = [os.path.join(directory or b".", program) for directory in path.split(b":")]
    for candidate in candidates:
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    raise NotFound(f"there is no program {os.fsdecode(program)!r} that can be executed")
