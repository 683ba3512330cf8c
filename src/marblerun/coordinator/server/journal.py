"""What the log says about requests: an id for each, refusals, and on debug level every answer (protocol, 1.5).

Never bodies, queries, certificates or anything else that may be secret or endless; paths only where they are ours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from dataclasses import replace
from itertools import count
from secrets import token_hex
from typing import Final

from marblerun.coordinator.server.exchange import Request, Response, Service
from marblerun.coordinator.server.routing import split_target

_log = logging.getLogger(__name__)

REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id", default="")
"""The id of the request that is being answered, empty outside of requests; every line of the log has it."""

# Different in every process, so that ids of several starts and instances do not meet in one log.
_PROCESS: Final = token_hex(4)
_NUMBERS: Final = count(1)

UNKNOWN: Final = "(unknown)"
"""Stands for a path, method or name that is not one of ours."""

_METHODS: Final[Mapping[str, str]] = {
    name: name.lower() for name in ("GET", "PUT", "HEAD", "POST", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
}

DEPRECATED: Final[Mapping[str, str]] = {
    path: f"/api/v2{path}" for path in ("/manifest", "/update", "/secrets", "/status", "/quote", "/recover")
}
"""Endpoints of version 1 about which the log gives a hint, with what follows them. Source: protocol, section 1.5."""


def known_path(target: str, paths: Collection[str]) -> str:
    """The path of a request target if it is one of ``paths``, which are plain: no query, no escapes."""
    if target in paths:
        return target
    split = split_target(target)
    return split[0] if split is not None and split[0] in paths else UNKNOWN


def known_method(method: str) -> str:
    """An HTTP method in lower case; anybody may send any other word."""
    return _METHODS.get(method, UNKNOWN)


def journaled(service: Service, api: str, paths: Collection[str]) -> Service:
    """``service`` with an id for every request, and lines in the log about refused ones.

    The client API also tells the caller the id, in the header ``x-request-id``.
    """
    hinted: set[str] = set()

    async def handle(request: Request) -> Response:
        number = f"{_PROCESS}-{next(_NUMBERS):x}"
        token = REQUEST_ID.set(number)
        began = time.perf_counter()
        try:
            response = await service.handle(request)
            _tell(api, request, response, known_path(request.target, paths), time.perf_counter() - began, hinted)
        finally:
            REQUEST_ID.reset(token)
        if api != "client":
            return response
        return response.with_header(b"x-request-id", number.encode("ascii"))

    return replace(service, handle=handle)


def _tell(api: str, request: Request, response: Response, path: str, seconds: float, hinted: set[str]) -> None:
    if api == "client" and path in DEPRECATED and path not in hinted:
        hinted.add(path)
        fields = {"path": path, "use": DEPRECATED[path]}
        _log.warning("version 1 of the client API is deprecated", extra={"fields": fields})
    level = logging.INFO if response.status >= 400 else logging.DEBUG
    if _log.isEnabledFor(level):
        fields = {
            "api": api,
            "method": known_method(request.method),
            "path": path,
            "status": str(response.status),
            "peer": request.peer.address,
            "milliseconds": f"{seconds * 1000:.1f}",
        }
        if response.reason:
            fields["reason"] = response.reason
        _log.log(level, "request refused" if response.status >= 400 else "request answered", extra={"fields": fields})
