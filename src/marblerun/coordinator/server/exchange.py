"""One request and its response, whatever protocol carried them, and what a listener spends on its peers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

Headers = tuple[tuple[bytes, bytes], ...]

# Unfinished requests and unsent responses of all connections of one listener together; any more is refused.
MAX_BUFFERED_BYTES: Final = 256 * 1024 * 1024
# What one connection may hold of that beside its largest possible request.
MAX_CONNECTION_EXTRA_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a TLS connection.

    ``leaf`` is the DER of the first certificate the client sent, the only one whose key the handshake proved, or
    ``None``. The rest of the chain is dropped at the edge so that nobody can rely on it (threats, "the reference
    Coordinator").
    """

    address: str
    leaf: bytes | None = None


class BadRequest(Exception):
    """The request itself cannot be understood; answered 400 in the manner of its version."""


@dataclass(frozen=True, slots=True)
class Request:
    """A complete request. ``target`` is the raw path with query, ``headers`` have lower-case names."""

    method: str
    target: str
    headers: Headers
    body: bytes
    peer: Peer

    def header(self, name: bytes) -> bytes:
        """The first value of a header, or empty."""
        for key, value in self.headers:
            if key == name:
                return value
        return b""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete response. ``trailers`` can only be carried by HTTP/2."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    trailers: Headers = ()
    reason: str = ""
    """Why the request was refused, for log and metrics: the code of an error. Not sent."""

    def with_header(self, name: bytes, value: bytes) -> Response:
        """The same response with one header more."""
        return Response(self.status, (*self.headers, (name, value)), self.body, self.trailers, self.reason)


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds a peer may take for what; nothing that a peer does waits for longer."""

    handshake: float = 15.0
    """A Marble on a loaded host may take a while between two flights; nobody honest takes longer than this."""
    request: float = 30.0
    """From a request's first byte to its last, however busily the bytes trickle in."""
    response: float = 120.0
    """From a response's first byte to its last; also how long nothing at all may be taken from us."""
    keep_alive: float = 120.0
    """HTTP/1.1: until the next request has begun."""
    idle: float = 300.0
    """HTTP/2: without any request. Keep-alive pings are answered and do not count."""
    close: float = 3.0
    """Until a connection that we closed is torn down, whatever is still on its way."""


class BufferBudget:
    """How many bytes of unfinished requests and unsent responses may be held at a time."""

    __slots__ = ("_left",)

    def __init__(self, limit: int = MAX_BUFFERED_BYTES) -> None:
        self._left = limit

    def take(self, size: int) -> bool:
        """Whether ``size`` bytes more may be held; if so they count from now on."""
        if size > self._left:
            return False
        self._left -= size
        return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        self._left += size

    @property
    def left(self) -> int:
        """How many bytes are free."""
        return self._left


class ConnectionShare:
    """One connection's part of its listener's budget."""

    __slots__ = ("_budget", "_held", "_limit")

    def __init__(self, service: Service) -> None:
        self._budget = service.budget
        self._limit = service.max_body_bytes + MAX_CONNECTION_EXTRA_BYTES
        self._held = 0

    def take(self, size: int) -> bool:
        """Whether this connection may hold ``size`` bytes more."""
        if self._held + size > self._limit or not self._budget.take(size):
            return False
        self._held += size
        return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        self._held -= size
        self._budget.give(size)

    def give_all(self) -> None:
        """The connection is gone."""
        self.give(self._held)


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Service:
    """What the protocols need to know of the thing they carry: who answers, and the ceilings on its input.

    ``too_large`` makes the answer to a body over ``max_body_bytes``, ``failed`` the one to a handler that broke,
    ``overloaded`` the one to a request that there is no room for now.
    """

    handle: Handler
    max_body_bytes: int
    too_large: Callable[[], Response]
    failed: Callable[[], Response]
    overloaded: Callable[[], Response]
    patience: Patience = field(default_factory=Patience)
    budget: BufferBudget = field(default_factory=BufferBudget)
