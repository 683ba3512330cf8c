"""Requests that may be sent again: whoever named theirs gets the answer that was lost on its way.

Setting a manifest and the last acknowledgment of an update answer with recovery secrets that are told once. A client
that sends ``Idempotency-Key`` with such a request can send the same request again, over another connection, and gets
the same answer; what it began goes on without it. The key is a secret of the client, made for this one request: nobody
else can ask. Without the header everything is as in the reference.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

from marblerun.coordinator.server.exchange import BadRequest, Request, Response
from marblerun.errors import Busy

HEADER: Final = b"idempotency-key"
MIN_KEY_BYTES: Final = 16
MAX_KEY_BYTES: Final = 128
# Answers that succeeded. They hold secrets only in encrypted form, and are gone with the process.
MAX_KEPT: Final = 16
MAX_UNDER_WAY: Final = 16


class Repeats:
    """Answers by what was asked, and requests under way. To be used from one event loop."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, Response] = OrderedDict()
        self._under_way: dict[bytes, asyncio.Task[Response]] = {}

    async def answer(self, request: Request, handle: Callable[[], Awaitable[Response]]) -> Response:
        """What ``handle`` answers, or has answered to the same request with the same key.

        Only success is remembered. Raises BadRequest for a key that can be guessed or is too long, Busy if too many
        requests go on whose clients are gone, and what ``handle`` raises.
        """
        key = request.header(HEADER)
        if not key:
            return await handle()
        if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
            raise BadRequest(f"an Idempotency-Key has {MIN_KEY_BYTES} to {MAX_KEY_BYTES} random characters")
        name = _name(request, key)
        if name in self._kept:
            return self._kept[name]
        task = self._under_way.get(name)
        if task is None:
            if len(self._under_way) >= MAX_UNDER_WAY:
                raise Busy("too many requests at once; try again", retry_after=1.0)
            task = asyncio.ensure_future(self._run(name, handle))
            self._under_way[name] = task
            task.add_done_callback(lambda done: self._ended(name, done))
        return await asyncio.shield(task)

    def _ended(self, name: bytes, done: asyncio.Task[Response]) -> None:
        self._under_way.pop(name, None)
        if not done.cancelled():
            done.exception()  # its client may be gone

    async def _run(self, name: bytes, handle: Callable[[], Awaitable[Response]]) -> Response:
        response = await handle()
        if response.status == 200:
            self._kept[name] = response
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return response


def _name(request: Request, key: bytes) -> bytes:
    """The whole request counts: who asks, where, for what; the key is what makes it nobody else's."""
    parts = (key, request.peer.leaf or b"", request.method.encode(), request.target.encode("latin-1", "replace"))
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in (*parts, request.body))).digest()
