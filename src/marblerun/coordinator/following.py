"""One look at what is stored for all requests that come at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable


class Barrier:
    """Passes whoever calls it once a look has ended that began after the call. To be used from one event loop.

    While a look is under way the callers gather, and share the next one: however many they are, there are never more
    than two looks to wait for.
    """

    def __init__(self, look: Callable[[], Awaitable[None]]) -> None:
        self._look = look
        self._under_way: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        """Raises what the look raises."""
        if self._next is None:
            self._next = asyncio.ensure_future(self._after(self._under_way))
            self._next.add_done_callback(_seen)
        await asyncio.shield(self._next)

    async def _after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None and not before.done():
            await asyncio.wait((before,))
        self._under_way, self._next = self._next, None
        await self._look()


def _seen(done: asyncio.Task[None]) -> None:
    """Nobody may be left who looks at what went wrong."""
    if not done.cancelled():
        done.exception()
