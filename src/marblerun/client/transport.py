"""Sends requests to one Coordinator and brings replies back, within limits of size and time. Blocking and asynchronous.

No redirects, no proxies and no ``.netrc`` from the environment, no compressed bodies: an answer is what the pinned peer
sent, and no larger than the request allows.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self, TypedDict

import httpx

from marblerun.client.pinning import PIN_FAILED, Credentials, PeerTrust, is_pin_failure, tls_context
from marblerun.client.rest import Reply, Request, retry_after, wait_before_retry
from marblerun.errors import Malformed, MarbleRunError, Unavailable, Untrusted
from marblerun.version import __version__

_ENDPOINT: Final = re.compile(r"(?:https://)?(\[[0-9A-Fa-f:.%]+\]|[^\s/@?#\[\]:\\]+):([0-9]{1,5})/?")


@dataclass(frozen=True, slots=True)
class TimeOuts:
    """Seconds: to connect (with the handshake), between two bytes of an answer, and for one request altogether.

    ``idle`` is long because setting a manifest can mean that the Coordinator makes many RSA keys first. ``busy`` is how
    long a question may be repeated while the Coordinator says that it has too much to do.
    """

    connect: float = 10.0
    idle: float = 120.0
    total: float = 300.0
    busy: float = 30.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a Coordinator listens for clients."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Reads ``HOST:PORT`` (IPv6 in brackets).

        Raises:
            Malformed: for anything else.
        """
        match = _ENDPOINT.fullmatch(text)
        if match is None or not 0 < int(match[2]) < 65536:
            raise Malformed(f"{text!r} is not of the form HOST:PORT, for example localhost:4433", where="endpoint")
        return cls(match[1], int(match[2]))

    @property
    def url(self) -> str:
        """The base URL without a path."""
        return f"https://{self.host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class _Arguments(TypedDict):
    """What httpx is called with."""

    method: str
    url: str
    params: list[tuple[str, str | int | float | bool | None]] | None
    content: bytes | None
    headers: dict[str, str]


class _Budget:
    """What one reply may still cost in bytes and time."""

    def __init__(self, request: Request, times: TimeOuts) -> None:
        self.limit = request.limit
        self.path = request.path
        self.seconds = times.total
        self.deadline = time.monotonic() + times.total
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, part: bytes) -> None:
        self.size += len(part)
        if self.size > self.limit:
            raise Malformed(f"the answer is larger than {self.limit} bytes", where=self.path)
        if time.monotonic() > self.deadline:
            raise Unavailable(f"{self.path}: no complete answer within {self.seconds:g} seconds")
        self.parts.append(part)

    def reply(self, response: httpx.Response, url: str) -> Reply:
        return Reply(response.status_code, b"".join(self.parts), url, retry_after(response.headers.get("retry-after")))


def _pause(request: Request, reply: Reply, deadline: float) -> float | None:
    """Seconds until the request is to be repeated, a little different for everybody; ``None`` if it is not."""
    wait = wait_before_retry(request, reply)
    if wait is None or time.monotonic() + wait > deadline:
        return None
    return wait * random.uniform(1.0, 1.25) + random.uniform(0.0, 0.25)  # noqa: S311


class Transport:
    """A blocking connection pool to one Coordinator."""

    def __init__(
        self,
        endpoint: Endpoint,
        trust: PeerTrust,
        credentials: Credentials | None = None,
        times: TimeOuts | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._times = times or TimeOuts()
        self._http = httpx.Client(
            verify=tls_context(trust, credentials),
            headers=_HEADERS,
            timeout=_timeout(self._times),
            trust_env=False,
            follow_redirects=False,
        )

    def exchange(self, request: Request) -> Reply:
        """One request, one reply. A question to a Coordinator that has too much to do is repeated when it says.

        Raises:
            Untrusted: the peer is not the pinned Coordinator; nothing of the request was sent.
            Unavailable: no (timely) answer.
            Malformed: the answer is too large or not HTTP.
        """
        deadline = time.monotonic() + self._times.busy
        while True:
            reply = self._exchange_once(request)
            wait = _pause(request, reply, deadline)
            if wait is None:
                return reply
            time.sleep(wait)

    def _exchange_once(self, request: Request) -> Reply:
        budget = _Budget(request, self._times)
        try:
            with self._http.stream(**_arguments(self._endpoint, request)) as response:
                _plain(response)
                for part in response.iter_raw():
                    budget.add(part)
                return budget.reply(response, _url(self._endpoint, request))
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            raise translate(error, self._endpoint) from error

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncTransport:
    """The same for asyncio."""

    def __init__(
        self,
        endpoint: Endpoint,
        trust: PeerTrust,
        credentials: Credentials | None = None,
        times: TimeOuts | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._times = times or TimeOuts()
        self._http = httpx.AsyncClient(
            verify=tls_context(trust, credentials),
            headers=_HEADERS,
            timeout=_timeout(self._times),
            trust_env=False,
            follow_redirects=False,
        )

    async def exchange(self, request: Request) -> Reply:
        """One request, one reply; repeats and errors as :meth:`Transport.exchange`."""
        deadline = time.monotonic() + self._times.busy
        while True:
            reply = await self._exchange_once(request)
            wait = _pause(request, reply, deadline)
            if wait is None:
                return reply
            await asyncio.sleep(wait)

    async def _exchange_once(self, request: Request) -> Reply:
        budget = _Budget(request, self._times)
        try:
            async with self._http.stream(**_arguments(self._endpoint, request)) as response:
                _plain(response)
                async for part in response.aiter_raw():
                    budget.add(part)
                return budget.reply(response, _url(self._endpoint, request))
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError) as error:
            raise translate(error, self._endpoint) from error

    async def close(self) -> None:
        """Closes all connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


_NOT_THERE: Final = (
    "is a Coordinator running, and is this the address that it listens on for clients (EDG_COORDINATOR_CLIENT_ADDR, or "
    "'marblerun coordinator --client-addr'; port 4433 unless set)?"
)
_HEADERS: Final = {"User-Agent": f"marblerun-python/{__version__}", "Accept-Encoding": "identity"}


def translate(error: Exception, endpoint: Endpoint) -> MarbleRunError:
    """What a failure of the connection means: a refused certificate is never reported as a network problem."""
    if is_pin_failure(error):
        return Untrusted(f"{endpoint}: {PIN_FAILED}; nothing was sent to it", step="tls-pin", reason="mismatch")
    if isinstance(error, httpx.TimeoutException):
        return Unavailable(f"{endpoint} did not answer in time")
    if isinstance(error, (httpx.ProtocolError, httpx.InvalidURL, httpx.DecodingError)):
        return Malformed(f"the answer is not usable HTTP: {error}", where=str(endpoint))
    detail = str(error) or type(error).__name__
    advice = f"; {_NOT_THERE}" if isinstance(error, httpx.ConnectError) else ""
    return Unavailable(f"no connection to {endpoint}: {detail}{advice}")


def _timeout(times: TimeOuts) -> httpx.Timeout:
    return httpx.Timeout(times.idle, connect=times.connect)


def _url(endpoint: Endpoint, request: Request) -> str:
    return f"{endpoint.url}{request.path}"


def _arguments(endpoint: Endpoint, request: Request) -> _Arguments:
    headers = {"Content-Type": request.content_type} if request.body is not None else {}
    if request.key:
        headers["Idempotency-Key"] = request.key
    return {
        "method": request.method,
        "url": _url(endpoint, request),
        "params": [*request.query] or None,
        "content": request.body,
        "headers": headers,
    }


def _plain(response: httpx.Response) -> None:
    """A compressed body could unpack to any size; none was asked for."""
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise Malformed("the answer is compressed although that was not asked for", where=str(response.url.path))
