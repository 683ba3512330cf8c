"""One GET with limits on everything: size, time, redirections, encodings; and repeated when that may help."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Final

from marblerun.attestation.collect.settings import CollateralSettings
from marblerun.errors import Malformed, Misconfigured, Unavailable
from marblerun.wire.limits import MAX_COLLATERAL_FIELD_BYTES

if TYPE_CHECKING:
    import httpx

# Too many requests, and what proxies and services say when somebody behind them is away.
_WORTH_REPEATING: Final = frozenset({429, 500, 502, 503, 504})
_MAX_PAUSE: Final = 5.0
_MAX_CONNECTIONS: Final = 16
# Some of the libraries' errors hold what was received.
_MAX_QUOTED: Final = 120
# How the libraries below tell an answer that ended too early from one that is not HTTP: by their words only. Other
# words would make a dropped connection Malformed, which is not repeated but refuses just the same.
_DROPPED: Final = ("disconnected", "closed connection")
# Source: formats, section 4.
_MEANINGS: Final = {
    400: "the service does not understand the request",
    401: "the service wants a subscription key",
    404: "the service does not know this platform or path",
    410: "the service no longer offers this",
    429: "the service is asked too often",
    460: "the service could not verify what it fetched",
    461: "the service does not know this platform",
    462: "the service has no certificates for this platform",
    502: "the service cannot reach Intel's service",
}


@dataclass(frozen=True, slots=True)
class Reply:
    """A successful answer."""

    body: bytes
    headers: httpx.Headers


class BoundedClient:
    """An HTTP client for one collateral service; an async context manager."""

    def __init__(self, settings: CollateralSettings) -> None:
        """Misconfigured if the CA file cannot be used."""
        self._settings = settings
        self._tls = _tls_context(settings)
        self._made: httpx.AsyncClient | None = None

    @property
    def _client(self) -> httpx.AsyncClient:
        """Made for the first request: the library and its CA certificates take longer than a Coordinator's start."""
        if self._made is None:
            self._made = self._make_client()
        return self._made

    def _make_client(self) -> httpx.AsyncClient:
        import httpx

        settings = self._settings
        return httpx.AsyncClient(
            verify=self._tls,
            # The whole exchange has its deadline in _once; these bound its single steps as well.
            timeout=httpx.Timeout(settings.timeout),
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS),
            # The collateral service is not to send us elsewhere.
            follow_redirects=False,
            trust_env=False,
            proxy=settings.proxy,
            # Without encodings there is nothing to inflate.
            headers={"Accept-Encoding": "identity", "User-Agent": "marblerun"},
        )

    async def __aenter__(self) -> BoundedClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections."""
        if self._made is not None:
            await self._made.aclose()

    async def get(self, url: str, query: dict[str, str] | None = None, headers: dict[str, str] | None = None) -> Reply:
        """The answer to a GET, repeated with growing pauses while the service is away.

        Raises:
            Unavailable: no answer in time, none or half of one before the connection ended, or another status than
                200; the last failure is named.
            Malformed: the answer is too large, encoded, or not HTTP.
        """
        pause = self._settings.first_pause
        for attempt in range(1, self._settings.attempts + 1):
            try:
                return await self._once(url, query, headers)
            except _Repeatable as failure:
                if attempt == self._settings.attempts:
                    raise Unavailable(f"{failure} (after {attempt} attempts)") from None
                await asyncio.sleep(min(max(pause, failure.retry_after), _MAX_PAUSE))
                pause *= 2
        raise AssertionError("attempts is at least 1")

    async def _once(self, url: str, query: dict[str, str] | None, headers: dict[str, str] | None) -> Reply:
        import httpx

        try:
            async with asyncio.timeout(self._settings.timeout):
                async with self._client.stream("GET", url, params=query, headers=headers) as response:
                    _check_status(response)
                    return Reply(await _read_bounded(response), response.headers)
        except (TimeoutError, httpx.TimeoutException):
            raise _Repeatable(f"no complete answer within {self._settings.timeout:g} s") from None
        except (httpx.RemoteProtocolError, httpx.DecodingError, httpx.InvalidURL) as error:
            if isinstance(error, httpx.RemoteProtocolError) and any(words in str(error) for words in _DROPPED):
                raise _Repeatable(f"the connection was dropped: {error}") from None
            raise Malformed(f"the answer is not HTTP as it should be: {str(error)[:_MAX_QUOTED]}") from None
        except httpx.HTTPError as error:
            raise _Repeatable(f"cannot be reached: {error}") from None


class _Repeatable(Exception):
    """A failure that may be over at the next attempt."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def _check_status(response: httpx.Response) -> None:
    status = response.status_code
    if status == HTTPStatus.OK:
        return
    meaning = _MEANINGS.get(status, response.reason_phrase)
    message = f"status {status}: {meaning}" if meaning else f"status {status}"
    if status in _WORTH_REPEATING:
        raise _Repeatable(message, _retry_after(response))
    raise Unavailable(message)


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0.0


async def _read_bounded(response: httpx.Response) -> bytes:
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Malformed("the answer is compressed, which was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > MAX_COLLATERAL_FIELD_BYTES:
            raise Malformed(f"the answer is larger than {MAX_COLLATERAL_FIELD_BYTES} bytes")
    return bytes(body)


def _tls_context(settings: CollateralSettings) -> ssl.SSLContext | bool:
    if not settings.use_secure_cert or not any(url.startswith("https:") for url in (settings.base, settings.root_crl)):
        # No TLS connection is made to plain http URLs, and redirections are not followed; loading CAs takes a while.
        return False
    if settings.ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise Misconfigured(f"cannot use {settings.ca_file} as CA file of the collateral service: {error}") from None
