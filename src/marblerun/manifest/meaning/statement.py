"""One thing that an update changes, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum


class Topic(StrEnum):
    """What a statement is about; the order in which they are told."""

    JOIN = "join"
    READ = "read"
    CHANGE = "change"
    RECOVER = "recover"
    SECRETS = "secrets"
    RUN = "run"
    COORDINATOR = "coordinator"


class Effect(StrEnum):
    """Whether more is allowed than before."""

    GAIN = "gain"
    """Somebody may do what nobody or not they could."""
    LOSS = "loss"
    """Something is not allowed any more."""
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing that changes."""

    topic: Topic
    effect: Effect
    path: str
    text: str
    marbles: tuple[str, ...] = ()
    """Marbles that go on as before until they are restarted."""


def gain(topic: Topic, path: str, text: str, *marbles: str) -> Statement:
    """Somebody may do more."""
    return Statement(topic, Effect.GAIN, path, text, marbles)


def loss(topic: Topic, path: str, text: str, *marbles: str) -> Statement:
    """Somebody may do less."""
    return Statement(topic, Effect.LOSS, path, text, marbles)


def other(topic: Topic, path: str, text: str, *marbles: str) -> Statement:
    """Neither, or both."""
    return Statement(topic, Effect.OTHER, path, text, marbles)


def came_and_went(
    topic: Topic, path: str, old: Iterable[str], new: Iterable[str], gained: str, lost: str, *marbles: str
) -> Iterator[Statement]:
    """A statement for each name that is in one set only; ``{}`` in the texts is the name."""
    before, after = set(old), set(new)
    for name in sorted(after - before):
        yield gain(topic, path, gained.format(name), *marbles)
    for name in sorted(before - after):
        yield loss(topic, path, lost.format(name), *marbles)


def listed(names: Iterable[str]) -> str:
    """Names for a sentence."""
    return ", ".join(sorted(names)) or "none"
