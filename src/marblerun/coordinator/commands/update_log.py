"""The update log: one JSON object a line, only ever appended to (protocol, section 7.10)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from marblerun.wire import gojson


def log_line(at: datetime, update: str, fields: Mapping[str, object] | None = None) -> str:
    """One line with its line feed: ``time`` (UTC, milliseconds), ``update``, then ``fields`` in their order."""
    moment = at.astimezone(UTC)
    time = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond // 1000:03}Z"
    pairs = [("time", time), ("update", update), *(fields or {}).items()]
    return gojson.marshal(gojson.Struct(pairs)).decode() + "\n"
