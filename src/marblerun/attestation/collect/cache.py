"""Collateral kept for as long as it is good, fetched once however many ask.

What is served
    1. younger than its refresh time: from memory, no request;
    2. older, but still valid: from memory at once, while one fetch in the background renews it; when the service is
       away, the valid old collateral goes on being used;
    3. expired or never seen: one fetch that everybody waits for; its failure is everybody's failure, and is
       remembered for a moment, so that evidence of made-up platforms does not become a flood at the service.

What is kept is for the platform asked for, valid now, and has passed the ``check``: a service that lies, or has fallen
behind, cannot displace collateral that is good, and is not asked again for every piece of evidence. Nor can one that
repeats what the vendor said earlier, as long as what came later is valid: a judgement or revocation once known stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Final, Protocol

from marblerun.attestation.collect.contents import read_contents, read_details
from marblerun.attestation.collect.pck import PckCache, family_key
from marblerun.attestation.collect.source import Closable, CollateralSource, describe_key
from marblerun.attestation.model import Collateral, CollateralKey
from marblerun.errors import Malformed, MarbleRunError, Unavailable

_log = logging.getLogger("marblerun.collateral.cache")

_MAX_FAILURES: Final = 1024


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """How much is kept and for how long."""

    max_entries: int = 256
    max_bytes: int = 32 * 1024 * 1024
    max_age: timedelta = timedelta(hours=24)
    """An entry is renewed at this age even if it would be valid for longer."""
    margin: timedelta = timedelta(days=2)
    """An entry is renewed this long before it expires."""
    min_age: timedelta = timedelta(hours=1)
    """But not before this age, or half of what it was still valid for: a service that has nothing newer is not asked
    again for every piece of evidence."""
    pause: timedelta = timedelta(seconds=30)
    """After a failure nothing is asked for the same platform for this long."""
    max_waiting: int = 256
    """How many platforms may be asked for at once, waiting ones included; more are refused."""
    max_fetches: int = 8
    """How many platforms are fetched at the same time; further ones wait."""


@dataclass(slots=True)
class CacheStatistics:
    """Counters since the start, for metrics."""

    hits: int = 0
    misses: int = 0
    fetches: int = 0
    failures: int = 0
    refused: int = 0
    """Requests answered with a failure remembered."""
    stale_served: int = 0
    """Answers past their refresh time, still valid."""
    pck_fetches: int = 0
    """PCK certificates asked for, of machines whose quotes do not carry them."""
    pck_failures: int = 0
    """How many of them could not be had."""


@dataclass(frozen=True, slots=True)
class _Entry:
    collateral: Collateral
    size: int
    refresh_at: datetime
    expires: datetime


class Shelf(Protocol):
    """Where entries survive a restart. Neither method raises: a shelf that does not work is an empty one."""

    def load(self, key: CollateralKey) -> Collateral | None:
        """What was kept for ``key``."""
        ...

    def save(self, key: CollateralKey, collateral: Collateral) -> None:
        """Keep ``collateral`` for ``key``."""
        ...

    def keys(self) -> tuple[CollateralKey, ...]:
        """What :meth:`load` may find something for."""
        ...


def require_usable(
    key: CollateralKey, collateral: Collateral, now: datetime, check: Callable[[Collateral], object] | None
) -> datetime:
    """When ``collateral`` expires.

    Raises:
        Malformed: it is not collateral, or not for ``key``.
        Unavailable: it is not valid at ``now``, or ``check`` does not let it pass.
    """
    contents = read_contents(collateral)
    if contents.key != key:
        raise Malformed(f"asked for {describe_key(key)}, got collateral for {describe_key(contents.key)}")
    if contents.expires <= now:
        raise Unavailable(f"the collateral for {describe_key(key)} has expired at {contents.expires:%Y-%m-%dT%H:%MZ}")
    if contents.issued > now:
        raise Unavailable(
            f"the collateral for {describe_key(key)} is of the future, {contents.issued:%Y-%m-%dT%H:%MZ}; "
            "are the clocks right?"
        )
    try:
        if check is not None:
            check(collateral)
    except MarbleRunError as error:
        raise Unavailable(f"the collateral for {describe_key(key)} is not trustworthy: {error}") from error
    return contents.expires


def require_not_older(key: CollateralKey, collateral: Collateral, kept: Collateral) -> None:
    """Raise Unavailable if any part of ``collateral`` was issued before the same part of ``kept``."""
    new, old = read_details(collateral).parts, read_details(kept).parts
    older = [name for name, part in new.items() if part.issued < old[name].issued]
    if older:
        raise Unavailable(
            f"the collateral for {describe_key(key)} is older than what is known: {', '.join(older)} of "
            f"{new[older[0]].issued:%Y-%m-%dT%H:%MZ}, known is {old[older[0]].issued:%Y-%m-%dT%H:%MZ}"
        )


class CachedSource:
    """A cache in front of a source. For one event loop; close it with :meth:`aclose`."""

    def __init__(
        self,
        source: CollateralSource,
        clock: Callable[[], datetime],
        *,
        limits: CacheLimits | None = None,
        check: Callable[[Collateral], object] | None = None,
        shelf: Shelf | None = None,
        check_pck: Callable[[str], object] = str,
    ) -> None:
        """``clock`` gives the time now, in UTC; ``shelf`` keeps entries across restarts; ``check_pck`` is ``check`` for
        PCK certificate chains.

        ``check`` raises if collateral is not authentic, for example ``verify_collateral`` with the trusted roots. The
        verifier checks again in any case; without ``check`` a lying service is remembered until the next renewal.
        """
        self._source = source
        self._clock = clock
        self._limits = limits or CacheLimits()
        self._check = check
        self._shelf = shelf
        self._entries: OrderedDict[CollateralKey, _Entry] = OrderedDict()
        # Words, not exceptions: those would keep alive what the service sent.
        self._failures: OrderedDict[CollateralKey, tuple[datetime, str]] = OrderedDict()
        self._fetching: dict[CollateralKey, asyncio.Task[Collateral]] = {}
        self._slots = asyncio.Semaphore(self._limits.max_fetches)
        self.statistics = CacheStatistics()
        self._pck = PckCache(
            source,
            clock,
            self.statistics,
            check=check_pck,
            max_age=self._limits.max_age,
            pause=self._limits.pause,
        )

    async def fetch(self, key: CollateralKey) -> Collateral:
        """The collateral for ``key``, from memory, the shelf or the source.

        For a machine whose evidence does not carry its PCK certificate, that is fetched first and comes along.

        Raises:
            Unavailable: there is none that is still valid and none can be had; the source's own words.
            Malformed: the source answered with something else; the same.
            Untrusted: the PCK certificate that it gave has no trusted root.
        """
        if key.pck is not None:
            chain = await self._pck.fetch(key.pck)
            return replace(await self.fetch(family_key(key.tee, chain)), pck_certificate_chain=chain)
        now = self._clock()
        entry = self._current(key, now)
        if entry is None:
            self.statistics.misses += 1
            return await self._join(key, now)
        self.statistics.hits += 1
        if now >= entry.refresh_at:
            self.statistics.stale_served += 1
            self._renew(key, now)
        return entry.collateral

    async def refresh(self) -> None:
        """Renew every entry that is due, and drop what has expired. Failures are logged, not raised."""
        now = self._clock()
        for key in [key for key, entry in self._entries.items() if entry.expires <= now]:
            del self._entries[key]
        tasks = [self._renew(key, now) for key, entry in list(self._entries.items()) if entry.refresh_at <= now]
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)

    async def warm(self) -> None:
        """Take in what the shelf kept of earlier starts and renew it, so that nobody has to wait for it later."""
        for key in () if self._shelf is None else await asyncio.to_thread(self._shelf.keys):
            self._current(key, self._clock())
            await asyncio.sleep(0)
        await self.refresh()

    async def prefetch(self, key: CollateralKey) -> None:
        """Have what :meth:`fetch` would give, before anybody asks. A failure is logged, and held against nobody."""
        try:
            await self.fetch(key)
        except MarbleRunError:
            self._failures.pop(key, None)

    async def keep_fresh(self, every: float = 60.0) -> None:
        """:meth:`warm`, then :meth:`refresh` every so many seconds until cancelled; run it as a task of its own."""
        await self.warm()
        while True:
            await asyncio.sleep(every)
            await self.refresh()

    async def aclose(self) -> None:
        """Stop what is being fetched, and close the source if it can be closed."""
        await self._pck.aclose()
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(self._source, Closable):
            await self._source.aclose()

    def _current(self, key: CollateralKey, now: datetime) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is None and self._shelf is not None:
            entry = self._from_shelf(self._shelf, key, now)
        if entry is None or entry.expires <= now:
            return None
        self._entries.move_to_end(key)
        return entry

    async def _join(self, key: CollateralKey, now: datetime) -> Collateral:
        task = self._fetching.get(key)
        if task is None:
            self._refuse_if_failed_lately(key, now)
            if len(self._fetching) >= self._limits.max_waiting:
                raise Unavailable("collateral for too many platforms is being fetched; try again soon")
            task = self._start(key)
        # The fetch belongs to everybody who waits: one of them going away must not end it.
        return await asyncio.shield(task)

    def _renew(self, key: CollateralKey, now: datetime) -> asyncio.Task[Collateral] | None:
        if key in self._fetching:
            return self._fetching[key]
        failed = self._failures.get(key)
        if failed is not None and now < failed[0]:
            return None
        return self._start(key)

    def _start(self, key: CollateralKey) -> asyncio.Task[Collateral]:
        task = asyncio.create_task(self._fetch(key), name=f"collateral {key.fmspc.hex()}")
        self._fetching[key] = task
        task.add_done_callback(lambda done: self._finished(key, done))
        return task

    def _finished(self, key: CollateralKey, task: asyncio.Task[Collateral]) -> None:
        self._fetching.pop(key, None)
        if not task.cancelled():
            task.exception()  # marks it as seen: a renewal has nobody else to look at it

    async def _fetch(self, key: CollateralKey) -> Collateral:
        self.statistics.fetches += 1
        try:
            async with self._slots:
                collateral = await self._source.fetch(key)
            now = self._clock()
            expires = self._accept(key, collateral, now)
            known = self._entries.get(key)
            if known is not None and now < known.expires:
                require_not_older(key, collateral, known.collateral)
        except MarbleRunError as error:
            self.statistics.failures += 1
            _log.warning("no new collateral for %s: %s", describe_key(key), error)
            self._remember_failure(key, str(error))
            raise
        self._failures.pop(key, None)
        self._keep(key, collateral, self._refresh_time(now, expires), expires)
        if self._shelf is not None:
            await asyncio.to_thread(self._shelf.save, key, collateral)
        return collateral

    def _refresh_time(self, now: datetime, expires: datetime) -> datetime:
        limits = self._limits
        earliest = now + min(limits.min_age, (expires - now) / 2)
        return min(now + limits.max_age, max(expires - limits.margin, earliest))

    def _from_shelf(self, shelf: Shelf, key: CollateralKey, now: datetime) -> _Entry | None:
        kept = shelf.load(key)
        if kept is None:
            return None
        try:
            expires = self._accept(key, kept, now)
        except MarbleRunError as error:
            _log.info("not using what was kept: %s", error)
            return None
        # How long ago it was fetched is not known: good to use, and due to be renewed.
        return self._keep(key, kept, now, expires)

    def _accept(self, key: CollateralKey, collateral: Collateral, now: datetime) -> datetime:
        """When ``collateral`` expires. Raises if it is not for ``key``, not valid now, or fails the check."""
        return require_usable(key, collateral, now, self._check)

    def _keep(self, key: CollateralKey, collateral: Collateral, refresh_at: datetime, expires: datetime) -> _Entry:
        size = sum(len(getattr(collateral, field.name)) for field in fields(collateral))
        entry = _Entry(collateral, size, refresh_at, expires)
        self._entries[key] = entry
        self._entries.move_to_end(key)
        self._shrink()
        return entry

    def _shrink(self) -> None:
        total = sum(entry.size for entry in self._entries.values())
        while len(self._entries) > self._limits.max_entries or total > self._limits.max_bytes:
            _, oldest = self._entries.popitem(last=False)
            total -= oldest.size

    def _refuse_if_failed_lately(self, key: CollateralKey, now: datetime) -> None:
        failed = self._failures.get(key)
        if failed is None:
            return
        until, words = failed
        if now < until:
            self.statistics.refused += 1
            raise Unavailable(f"{words} (not asked again before {until:%H:%M:%S} UTC)")
        del self._failures[key]

    def _remember_failure(self, key: CollateralKey, words: str) -> None:
        self._failures[key] = (self._clock() + self._limits.pause, words)
        self._failures.move_to_end(key)
        while len(self._failures) > _MAX_FAILURES:
            self._failures.popitem(last=False)


class Upkeep:
    """Renews what a cache holds, in the background, from its making until it is closed; then the cache is closed too.

    It begins with what earlier starts left on the shelf, and with what :meth:`prefetch` names. For a source that keeps
    nothing, or ``None``, there is nothing to do. Needs a running event loop.
    """

    def __init__(self, source: CollateralSource | None, every: float = 60.0) -> None:
        """``every``: seconds from one look to the next."""
        self._cache = source if isinstance(source, CachedSource) else None
        self._task: asyncio.Task[None] | None = None
        self._prefetching: list[asyncio.Task[None]] = []
        if self._cache is not None:
            self._task = asyncio.create_task(self._cache.keep_fresh(every), name="collateral upkeep")

    def prefetch(self, key: CollateralKey) -> None:
        """Have collateral for ``key`` fetched in the background, before the first evidence needs it."""
        if self._cache is not None:
            self._prefetching.append(asyncio.create_task(self._cache.prefetch(key), name="collateral prefetch"))

    async def aclose(self) -> None:
        """Stop, and close the cache."""
        tasks = [*self._prefetching, *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._cache is not None:
            await self._cache.aclose()
