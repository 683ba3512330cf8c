"""A route of the client API: its handler, who may call it, and in which manner its failures are told."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from marblerun.coordinator.commands.caller import Operation
from marblerun.coordinator.server.exchange import BadRequest, Request, Response
from marblerun.coordinator.server.rest.repeats import Repeats
from marblerun.coordinator.server.rest.strangers import LargeBodies
from marblerun.coordinator.server.routing import query_values
from marblerun.coordinator.service import Coordinator
from marblerun.errors import MarbleRunError
from marblerun.wire import gojson
from marblerun.wire.gojson import Shape
from marblerun.wire.limits import MAX_REST_BODY_BYTES

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Between:
    """What one listener knows beyond a single request."""

    repeats: Repeats = field(default_factory=Repeats)
    large_bodies: LargeBodies = field(default_factory=LargeBodies)


@dataclass(frozen=True, slots=True)
class Call:
    """A routed request."""

    request: Request
    query: str
    between: Between = field(default_factory=Between)

    @property
    def leaf(self) -> bytes | None:
        """DER of the certificate whose key the caller has proven to own."""
        return self.request.peer.leaf


Handler = Callable[[Coordinator, Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """A handler with the manner in which its failures are told."""

    handle: Handler
    failed: int = 500
    """HTTP status when the operation itself fails; the reference uses 500 for nearly everything."""
    jsend_fail: bool = False
    """Whether client mistakes are JSend ``fail`` (v2) or ``error`` (v1)."""
    needs_present: bool = True
    """Whether it fails where the present state cannot be read; else the last known one answers."""
    depends_on_state: bool = True
    """Whether the answer depends on the state at all; else nobody waits for the present one."""
    operation: Operation | None = None
    """What the caller has to be allowed; looked at before query and body are. ``None``: open to everybody."""


Table = Mapping[str, Mapping[str, Route]]
"""By path, then by method."""


MANIFEST_BODY: Final = gojson.record(manifest=gojson.byte_string)
"""The body with which version 2 takes a manifest."""


def read_body(call: Call, shape: Shape[T], max_bytes: int = MAX_REST_BODY_BYTES) -> T:
    """The body of a version 2 request: one JSON value, whatever follows is ignored (protocol, section 7.2)."""
    if len(call.request.body) > max_bytes:
        raise BadRequest(f"the request body is larger than {max_bytes} bytes")
    try:
        return gojson.unmarshal_first(call.request.body, shape)
    except MarbleRunError as problem:
        raise BadRequest(f"the request body cannot be read: {problem}") from None


async def read_large_body(call: Call, shape: Shape[T]) -> T:
    """The same in a thread: a body of many megabytes takes a while, and connections must not wait for it."""
    return await asyncio.to_thread(read_body, call, shape)


def secret_names(call: Call) -> list[str]:
    """The names in ``s``, at least one and none of them empty."""
    names = query_values(call.query, "s")
    if not names or "" in names:
        raise BadRequest("name the secrets in the query: s=NAME, repeated for several; an empty name is none")
    return names


def base64_text(data: bytes | None) -> str | None:
    """Bytes for JSON; none at all is null."""
    return None if data is None else base64.b64encode(data).decode("ascii")
