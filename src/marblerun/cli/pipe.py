"""Programs whose output somebody reads through a pipe and may stop reading, as ``| head`` does: that is no failure."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

CLOSED: Final = 1
"""Exit code of a program whose reader has gone before the end."""


def until_reader_leaves(main: Callable[[], int | None]) -> int:
    """The exit code of ``main`` once all output is written; :data:`CLOSED` if nobody reads it any more.

    Nothing more is said then, not even by the interpreter when it ends.
    """
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
