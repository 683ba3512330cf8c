"""Monotonic counters: numbers of a Marble that only ever rise (protocol, section 7.9)."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Final
from uuid import UUID

from marblerun.coordinator.commands.activate import ActivationRefused, parse_uuid
from marblerun.coordinator.commands.caller import require_deployment
from marblerun.coordinator.commands.features import MONOTONIC_COUNTER, require_feature
from marblerun.coordinator.state import State
from marblerun.errors import Conflict, Denied, Malformed, Untrusted
from marblerun.pki.chains import verify_chain
from marblerun.pki.extensions import MARBLE_TYPE
from marblerun.pki.names import decode_name
from marblerun.pki.parsed import parse_certificate

MAX_COUNTER: Final = (1 << 64) - 1
# Every change seals all of them: names and numbers have an end, so that one Marble cannot make the state grow for ever.
MAX_COUNTER_NAME_BYTES: Final = 1024
MAX_COUNTERS: Final = 100_000


class UnauthorizedMarble(Denied):
    """The caller has not shown the certificate of a Marble that runs now (protocol, section 7.3)."""

    code: ClassVar[str] = "unauthorized-marble"

    def __init__(self) -> None:
        super().__init__(
            "unauthorized marble: this needs the certificate of a Marble that was activated since the last update"
        )


@dataclass(frozen=True, slots=True)
class MarbleIdentity:
    """Which Marble instance a certificate was issued to."""

    marble_type: bytes
    """As in the certificate; UTF-8 where the Coordinator issued it."""
    uuid: UUID


def authorize_marble(state: State, leaf: bytes | None, at: datetime) -> MarbleIdentity:
    """The Marble that proved to own ``leaf`` (DER), in this order.

    1. the feature is on (FeatureDisabled)  2. a manifest is in force (WrongPhase)  3. the leaf, and nothing else that
    the caller may have sent, is issued by the present Marble root and valid at ``at`` (UnauthorizedMarble, as all that
    follows)  4. its common name is a UUID  5. it names a Marble type
    """
    require_feature(state, MONOTONIC_COUNTER)  # 1
    require_deployment(state)  # 2
    try:
        if leaf is None:
            raise Untrusted("there is no client certificate", step="issuer", reason="missing")
        verify_chain(leaf, [], [state.authority.marble_root_der], at=at)  # 3
        certificate = parse_certificate(leaf)
        uuid = parse_uuid(decode_name(certificate.subject).common_name)  # 4
        found = certificate.extensions.get(MARBLE_TYPE)
        if found is None:  # 5
            raise Untrusted("it names no Marble type", step="issuer", reason="type")
    except (Malformed, Untrusted, ActivationRefused) as reason:
        raise UnauthorizedMarble from reason
    return MarbleIdentity(found.value, uuid)


def counter_id(marble: MarbleIdentity, name: str) -> str:
    """The name of a Marble's counter among all counters of the state."""
    encoded = name.encode("utf-8", "replace")
    if len(encoded) > MAX_COUNTER_NAME_BYTES:
        raise Malformed(f"a counter's name has at most {MAX_COUNTER_NAME_BYTES} bytes", where="name")
    parts = (marble.marble_type, marble.uuid.bytes, encoded)
    return ":".join(base64.b64encode(part).decode("ascii") for part in parts)


def raised(state: State, counter: str, value: int) -> State:
    """The state with the counter at ``value`` if that is more than it has; else the very same state."""
    if value <= state.counters.get(counter, 0):
        return state
    if counter not in state.counters and len(state.counters) >= MAX_COUNTERS:
        raise Denied(f"there are {MAX_COUNTERS} monotonic counters already")
    return replace(state, counters={**state.counters, counter: value})


def raise_counter(base: State, counter: str, value: int, tell: Callable[[int], None]) -> Callable[[State], State]:
    """The change to whatever state is current then; ``tell`` gets the value before it.

    Conflict if the caller would have to be looked at again: certificates of another CA, or another manifest.
    """

    def transition(current: State) -> State:
        if current.deployment is not base.deployment or current.authority is not base.authority:
            raise Conflict("the deployment changed during the request")
        tell(current.counters.get(counter, 0))
        return raised(current, counter, value)

    return transition
