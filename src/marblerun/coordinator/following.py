"""When one of several Coordinators looks at what the others have stored (docs/adr/0010-kubernetes.md, decision 2)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from marblerun.errors import MarbleRunError

# Without any request, how soon a change by another Coordinator is seen: TLS handshakes do not ask.
FOLLOW_SECONDS: Final = 2.0


class Follower:
    """Looks when somebody asks, and every two seconds. To be used from one event loop."""

    def __init__(
        self,
        turn: asyncio.Lock,
        take_over: Callable[[bool], Awaitable[None]],
        is_closed: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        """``take_over`` makes what is stored the present state, with ``True`` also what did not open before.

        It is called by whoever holds ``turn``. ``is_closed`` says whether something is stored that did not open yet;
        ``tell`` hears of every new :attr:`trouble` while nobody asks, and of the end of it (an empty text).
        """
        self._turn = turn
        self._take_over = take_over
        self._is_closed = is_closed
        self._tell = tell
        self._barrier = Barrier(self._look_in_turn)
        self._anew = False
        self._task: asyncio.Task[None] | None = None
        self.trouble = ""
        """Why the present state is not known to be the stored one; empty if it is."""

    async def catch_up(self) -> None:
        """Return after a look that began after the call; raises what that raises."""
        await self._barrier()

    async def reload(self) -> None:
        """:meth:`catch_up`, and try again to open what did not open."""
        self._anew = True
        await self._barrier()

    async def look(self) -> None:
        """Look now; for whoever holds the turn."""
        anew, self._anew = self._anew, False
        try:
            await self._take_over(anew)
        except MarbleRunError as error:
            self.trouble = str(error)
            raise
        self.trouble = ""

    async def _look_in_turn(self) -> None:
        async with self._turn:
            await self.look()

    # -- without being asked -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Look by itself from now on, for handshakes and listeners, and to open what did not open."""
        self._task = asyncio.create_task(self._follow())

    async def end(self) -> None:
        """No longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        told = ""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            found = ""
            try:
                await (self.reload() if self._is_closed() else self.catch_up())
            except MarbleRunError as error:
                found = str(error)
            except Exception as error:  # ours, and no reason to stop
                problem = {"message": "the stored state cannot be followed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(problem)
                continue
            if found != told:
                self._tell(found)
            told = found


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
