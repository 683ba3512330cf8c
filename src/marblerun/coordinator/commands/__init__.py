"""What the Coordinator can do: one file a command, each a pure function from state and request to an outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from marblerun.coordinator.state import State
from marblerun.pki.issue import Entropy

Reply = TypeVar("Reply", covariant=True)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a command may not take for itself: one time for the whole decision, and randomness."""

    at: datetime
    entropy: Entropy


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth telling the operator; ``fields`` never hold secrets."""

    message: str
    fields: Mapping[str, str | int] = field(default_factory=dict)
    warning: bool = False
    """Whether the operator should look at it."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Reply]):
    """What a command decided. The same state object back means that there is nothing to store."""

    state: State
    reply: Reply
    events: tuple[Event, ...] = ()
