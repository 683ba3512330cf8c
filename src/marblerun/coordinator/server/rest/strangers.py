"""Bodies that anybody may send: small ones are read at once, one large one at a time in a thread.

A manifest of 16 MiB takes a second to take out of its JSON and about three times its size. Nobody has shown who they
are at that moment, so the next large one is told to come back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from marblerun.errors import Busy

T = TypeVar("T")

# Read within about a millisecond.
SMALL_BODY_BYTES: Final = 64 * 1024
_RETRY_SECONDS: Final = 1.0


class LargeBodies:
    """Knows whether a large body is being read. To be used from one event loop."""

    def __init__(self) -> None:
        self._reading: asyncio.Task[object] | None = None

    async def read(self, size: int, decode: Callable[[], T]) -> T:
        """What ``decode`` makes of a body of ``size`` bytes; raises Busy while another large one is being read.

        It is being read until the thread is done, also if its client is gone.
        """
        if size <= SMALL_BODY_BYTES:
            return decode()
        if self._reading is not None and not self._reading.done():
            raise Busy("another large manifest is being read; try again", retry_after=_RETRY_SECONDS)
        work = asyncio.ensure_future(asyncio.to_thread(decode))
        self._reading = work
        work.add_done_callback(_seen)
        return await asyncio.shield(work)


def _seen(done: asyncio.Future[T]) -> None:
    """Nobody may be left who looks at what went wrong."""
    if not done.cancelled():
        done.exception()
