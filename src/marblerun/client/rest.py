"""Requests and replies of the client API as values: what goes out, and how an answer is read (protocol, section 7.1).

No I/O: the two transports send a :class:`Request` and bring back a :class:`Reply`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final, Literal

from marblerun.client.problems import from_status, printable
from marblerun.errors import Malformed
from marblerun.wire.limits import MAX_REST_BODY_BYTES

Method = Literal["GET", "POST"]
JSON_TYPE: Final = "application/json"
TEXT_TYPE: Final = "text/plain"


@dataclass(frozen=True, slots=True)
class Request:
    """One call. ``query`` keeps repeated names apart; ``limit`` is the most bytes the reply may have."""

    method: Method
    path: str
    query: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    content_type: str = JSON_TYPE
    limit: int = MAX_REST_BODY_BYTES
    key: str = ""
    """Names this very request, so that it may be sent again if the answer is lost; a secret, new for each request."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, unread. ``url`` is for messages."""

    status: int
    body: bytes
    url: str = ""
    retry_after: float | None = None
    """Seconds after which the server wants to be asked again, if it said so."""


def post_json(path: str, document: object, key: str = "") -> Request:
    """A POST with a JSON body."""
    return Request("POST", path, body=json.dumps(document, separators=(",", ":")).encode(), key=key)


def post_text(path: str, body: bytes) -> Request:
    """A POST with the bytes as they are, as the first version of the API wants them."""
    return Request("POST", path, body=body, content_type=TEXT_TYPE)


def wait_before_retry(request: Request, reply: Reply) -> float | None:
    """Seconds to wait before asking again, ``None`` where the answer stands.

    503 with a hint means that nothing was begun; still only questions are repeated by themselves, never changes.
    """
    return reply.retry_after if request.method == "GET" and reply.status == 503 else None


def retry_after(text: str | None) -> float | None:
    """The header ``Retry-After`` in seconds; ``None`` for a date, which no Coordinator sends, or anything else."""
    return float(text) if text is not None and text.isascii() and text.isdigit() and len(text) < 7 else None


def read(request: Request, reply: Reply) -> object:
    """The ``data`` of a successful answer; an :class:`~marblerun.client.problems.ApiError` for any other.

    The content type is not looked at, as the reference's clients do (protocol, section 7.1). An empty body with
    status 200 counts as ``null``: Coordinators before 1.8 answer an update like that (cli-marble-k8s, section 2.2).

    Raises:
        Malformed: a 200 whose body is not the envelope.
    """
    envelope = _envelope(reply.body)
    if reply.status != 200:
        message = envelope.get("message") if envelope else reply.body[:4096].decode("utf-8", "replace")
        data = envelope.get("data") if envelope else None
        if not message and isinstance(data, (str, dict)):
            message = data if isinstance(data, str) else json.dumps(data)
        text = message if isinstance(message, str) else ""
        raise from_status(reply.status, text, method=request.method, url=reply.url, data=data)
    if not reply.body.strip():
        return None
    if envelope is None:
        start = printable(reply.body[:60].decode("utf-8", "replace"))
        raise Malformed(f"the answer is not the JSON envelope of a Coordinator, it begins: {start}", where=reply.url)
    return envelope.get("data")


def _envelope(body: bytes) -> dict[str, object] | None:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None
