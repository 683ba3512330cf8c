"""The event log on its own: bounded, and times as Go writes them."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from marblerun.coordinator.commands.activate import ActivationRequest
from marblerun.coordinator.server.events import MAX_EVENT_BYTES, MAX_EVENTS, EventLog, go_time


def request(number: int, quote: bytes = b"") -> ActivationRequest:
    return ActivationRequest(quote, b"", "marble", f"{number}")


def test_the_oldest_entries_go_first_and_are_counted() -> None:
    log = EventLog()
    for number in range(MAX_EVENTS + 7):
        log.record(request(number))
    entries = json.loads(log.page())
    assert [entry["activation"]["uuid"] for entry in entries] == [str(n) for n in range(7, MAX_EVENTS + 7)]
    assert log.dropped == 7


def test_large_quotes_are_bounded_by_bytes() -> None:
    log = EventLog()
    for number in range(800):
        log.record(request(number, bytes(16 * 1024)))
    assert len(log.page()) <= MAX_EVENT_BYTES + 1024
    assert 300 < len(json.loads(log.page())) < 800


def test_time_is_written_as_go_does() -> None:
    """Protocol, section 1.6: RFC 3339 with nanoseconds; zeros at the end are left out."""
    assert go_time(0) == "1970-01-01T00:00:00Z"
    assert go_time(1_500_000_000_123_456_789) == "2017-07-14T02:40:00.123456789Z"
    assert go_time(1_500_000_000_100_000_000) == "2017-07-14T02:40:00.1Z"


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_times_can_be_read_back_to_the_microsecond(nanoseconds: int) -> None:
    text = go_time(nanoseconds)
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    moment = datetime.fromisoformat(seconds).replace(tzinfo=UTC)
    assert int(moment.timestamp()) * 10**9 + int(fraction.ljust(9, "0") or 0) == nanoseconds
