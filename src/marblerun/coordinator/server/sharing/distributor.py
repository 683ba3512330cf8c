"""When the KEK is asked for, kept and served: the life of an instance among others (protocol, section 11.4)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

_log = logging.getLogger(__name__)

# How often the others are asked, and how often what failed or fell due is looked after.
ROUND_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class Steps:
    """What a distributor does; it decides only when."""

    is_known: Callable[[], bool]
    """Whether the KEK is known here."""
    ask: Callable[[], Awaitable[bool]]
    """Ask the others once; whether one of them gave a KEK that opens the state. Raises nothing for what others do, but
    where the state that a KEK opens is damaged: that ends the Coordinator."""
    keep: Callable[[], Awaitable[None]]
    """Keep the KEK for this machine; never raises."""
    load: Callable[[], Awaitable[None]]
    """Make the stored state the running one; what it raises ends the Coordinator."""
    serve: Callable[[], Awaitable[None]]
    """Give the KEK to whoever may have it from now on; what it raises ends the Coordinator."""
    look_after: Callable[[], Awaitable[None]]
    """Whatever has fallen due while the KEK is served."""


class Distributor:
    """The life of an instance.

    1. If the KEK is known at the start, it is kept and served; nothing is loaded.
    2. Otherwise the others are asked every half minute, until one of them gives it: it is kept, and the state loaded;
       or until it is known here by a manifest or a recovery (:attr:`changed`): the state is loaded.
    3. It is served, and what falls due is looked after.
    """

    def __init__(self, steps: Steps, pause: float = ROUND_SECONDS) -> None:
        self._steps = steps
        self._pause = pause
        self.changed = asyncio.Event()
        """Set by whoever changes the state here; a round begins at once then."""

    async def run(self) -> None:
        """Runs until it is cancelled; raises what loading and serving raise."""
        steps = self._steps
        if steps.is_known():  # 1
            await steps.keep()
        else:  # 2
            if await self._obtain():
                await steps.keep()
            await steps.load()
        await steps.serve()  # 3
        while True:
            await self._rest()
            await steps.look_after()

    async def _obtain(self) -> bool:
        """Wait for the KEK; whether it came from another instance."""
        _log.info("waiting for another Coordinator's key encryption key, a recovery or a manifest")
        while not self._steps.is_known():
            if await self._ask():
                return True
            if not self._steps.is_known():
                await self._rest()
        return False

    async def _ask(self) -> bool:
        """One round; ends early where there is nothing to ask for any more."""
        asking = asyncio.ensure_future(self._steps.ask())
        try:
            while not asking.done() and not self._steps.is_known():
                self.changed.clear()
                changed = asyncio.ensure_future(self.changed.wait())
                await asyncio.wait((asking, changed), return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
            return asking.done() and asking.result()
        finally:
            asking.cancel()
            await asyncio.wait((asking,))

    async def _rest(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._pause):
                await self.changed.wait()
        self.changed.clear()
