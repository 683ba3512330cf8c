"""The update log: one JSON object a line, only ever appended to (protocol, section 7.10)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from marblerun.coordinator.state import State
from marblerun.errors import Denied
from marblerun.wire import gojson

# Every change seals the whole log, and everybody may read it in one answer. A hundred thousand uploads of secrets fit.
# Who only raises versions is stopped later, and who may change the manifest never: nobody can fill it up for them.
MAX_BY_SECRETS: Final = 12 * 1024 * 1024
MAX_BY_PACKAGES: Final = 16 * 1024 * 1024


def log_line(at: datetime, update: str, fields: Mapping[str, object] | None = None) -> str:
    """One line with its line feed: ``time`` (UTC, milliseconds), ``update``, then ``fields`` in their order."""
    moment = at.astimezone(UTC)
    time = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
    pairs = [("time", time), ("update", update), *(fields or {}).items()]
    return gojson.marshal(gojson.Struct(pairs)).decode() + "\n"


def logged(state: State, lines: str, limit: int) -> str:
    """The log with ``lines`` added; raises Denied where that would be more than ``limit`` bytes."""
    log = state.update_log + lines
    if len(log) * 4 > limit and len(log.encode()) > limit:
        raise Denied(f"the update log has reached {limit} bytes, more than which this change may not make it")
    return log
