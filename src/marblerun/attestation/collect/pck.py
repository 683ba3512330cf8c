"""PCK certificates of single machines, for quotes that name their platform but do not carry its certificate.

Anybody can make up such a quote, and nothing about it can be checked before the certificate is there. So what can be
asked for at a service is bounded apart from all other collateral: a flood of made-up platforms costs only those who
show no chain.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol, runtime_checkable

from marblerun.attestation.dcap.pck import platform_of_chain
from marblerun.attestation.model import CollateralKey, PckQuery, Tee, TrustRoot
from marblerun.errors import MarbleRunError, Unavailable

MAX_KEPT: Final = 1024
MAX_WAITING: Final = 32
"""Machines whose certificates may be asked for at once; more are refused."""
MAX_FETCHES: Final = 4
_MAX_FAILURES: Final = 1024


@runtime_checkable
class PckSource(Protocol):
    """Something that can be asked for a machine's PCK certificate."""

    async def fetch_pck(self, query: PckQuery) -> str:
        """The machine's PCK certificate chain, PEM text, unverified; Unavailable or Malformed if there is none."""
        ...


class PckCounters(Protocol):
    """Where certificates asked for, and those that could not be had, are counted."""

    pck_fetches: int
    pck_failures: int


@dataclass(frozen=True, slots=True)
class _Kept:
    chain: str
    until: datetime


def family_key(tee: Tee, chain: str, roots: Sequence[TrustRoot] = ()) -> CollateralKey:
    """Which collateral belongs to a machine by its PCK certificate chain; Untrusted if it is no chain.

    With ``roots``, its signatures must lead to one of them.
    """
    platform = platform_of_chain(chain, roots)
    return CollateralKey(tee, platform.fmspc, platform.ca)


def query_name(query: PckQuery) -> str:
    """A name for what is asked, 32 hex digits; for files."""
    parts = (query.qe_id, query.cpusvn, query.pce_svn.to_bytes(2, "little"), query.pce_id, query.encrypted_ppid)
    return hashlib.sha256(b"".join(parts)).hexdigest()[:32]


def describe_query(query: PckQuery) -> str:
    """A query in words, for messages."""
    return f"the platform with QE ID {query.qe_id.hex()}, PCESVN {query.pce_svn}"


class PckCache:
    """PCK certificate chains that passed ``check``, each fetched once however many ask. For one event loop."""

    def __init__(
        self,
        source: object,
        clock: Callable[[], datetime],
        counters: PckCounters,
        *,
        check: Callable[[str], object],
        max_age: timedelta,
        pause: timedelta,
    ) -> None:
        """``check`` raises for a chain that is not good to keep; ``pause`` is how long a failure is remembered."""
        self._source = source
        self._clock = clock
        self._check = check
        self._max_age = max_age
        self._pause = pause
        self._kept: OrderedDict[PckQuery, _Kept] = OrderedDict()
        self._failed: OrderedDict[PckQuery, _Kept] = OrderedDict()
        self._fetching: dict[PckQuery, asyncio.Task[str]] = {}
        self._slots = asyncio.Semaphore(MAX_FETCHES)
        self._counters = counters

    async def fetch(self, query: PckQuery) -> str:
        """The chain for ``query``. Raises Unavailable, Malformed or Untrusted; failures are remembered for a moment.

        An old chain is asked for again in the background and goes on being used, as long as nobody has another: whether
        it is still valid is for the verifier.
        """
        now = self._clock()
        kept = self._kept.get(query)
        if kept is None:
            return await asyncio.shield(self._join(query, now))
        self._kept.move_to_end(query)
        if now >= kept.until:
            with suppress(Unavailable):
                self._join(query, now)
        return kept.chain

    def _join(self, query: PckQuery, now: datetime) -> asyncio.Task[str]:
        """The one request under way for ``query``; Unavailable if there is none and none may begin now."""
        task = self._fetching.get(query)
        if task is not None:
            return task
        failed = self._failed.get(query)
        if failed is not None and now < failed.until:
            raise Unavailable(f"{failed.chain} (not asked again before {failed.until:%H:%M:%S} UTC)")
        if len(self._fetching) >= MAX_WAITING:
            raise Unavailable("PCK certificates of too many platforms are being fetched; try again soon")
        task = asyncio.create_task(self._ask(query), name="PCK certificate")
        self._fetching[query] = task
        task.add_done_callback(lambda done: self._finished(query, done))
        return task

    async def aclose(self) -> None:
        """Stop what is being fetched."""
        tasks = list(self._fetching.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, query: PckQuery) -> str:
        if not isinstance(self._source, PckSource):
            raise Unavailable("the source of collateral has no PCK certificates; name a PCCS in EDG_PCCS_URL")
        self._counters.pck_fetches += 1
        try:
            async with self._slots:
                chain = await self._source.fetch_pck(query)
            self._check(chain)
        except MarbleRunError as error:
            self._counters.pck_failures += 1
            _put(self._failed, query, _Kept(str(error), self._clock() + self._pause), _MAX_FAILURES)
            raise
        _put(self._kept, query, _Kept(chain, self._clock() + self._max_age), MAX_KEPT)
        return chain

    def _finished(self, query: PckQuery, task: asyncio.Task[str]) -> None:
        self._fetching.pop(query, None)
        if not task.cancelled():
            task.exception()  # marks it as seen: whoever waited may be gone


def _put(where: OrderedDict[PckQuery, _Kept], query: PckQuery, what: _Kept, limit: int) -> None:
    where[query] = what
    where.move_to_end(query)
    while len(where) > limit:
        where.popitem(last=False)
