"""The event log: the latest successful activations, for whoever may reach the metrics listener (protocol, 1.6)."""

from __future__ import annotations

import base64
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from marblerun.coordinator.commands.activate import ActivationRequest
from marblerun.wire import gojson

# The reference keeps every activation for ever, quotes included (protocol, section 12.2, no. 24).
MAX_EVENTS: Final = 1000
MAX_EVENT_BYTES: Final = 8 * 1024 * 1024


class EventLog:
    """A bounded list of activations; the oldest ones are dropped. To be used from one thread."""

    def __init__(self, clock: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._entries: deque[bytes] = deque()
        self._size = 0
        self.dropped = 0
        """How many entries had to go since the start."""

    def record(self, request: ActivationRequest) -> None:
        """Add a successful activation."""
        quote = base64.b64encode(request.quote).decode("ascii") if request.quote else None
        activation = (("marbleType", request.marble_type), ("uuid", request.uuid), ("quote", quote))
        entry = gojson.marshal(
            gojson.Struct((("time", go_time(self._clock())), ("activation", gojson.Struct(activation))))
        )
        self._entries.append(entry)
        self._size += len(entry)
        while len(self._entries) > MAX_EVENTS or self._size > MAX_EVENT_BYTES:
            self._size -= len(self._entries.popleft())
            self.dropped += 1

    def page(self) -> bytes:
        """All entries as JSON, oldest first; ``null`` if there are none."""
        return b"[" + b",".join(self._entries) + b"]\n" if self._entries else b"null\n"


def go_time(nanoseconds: int) -> str:
    """A time since 1970 as Go writes it into JSON: RFC 3339, UTC, as many digits as are needed."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"
