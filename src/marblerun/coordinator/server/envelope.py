"""The client API's answers: JSend envelopes, byte for byte as stock clients know them (protocol, section 7.1)."""

from __future__ import annotations

from typing import Final

from marblerun.coordinator.server.exchange import Headers, Response
from marblerun.wire import gojson

JSON_HEADERS: Final[Headers] = ((b"content-type", b"application/json"),)
# Go's http.Error, which the reference uses for these, says so; clients ignore it.
ERROR_HEADERS: Final[Headers] = (
    (b"content-type", b"text/plain; charset=utf-8"),
    (b"x-content-type-options", b"nosniff"),
)


def success(data: object) -> Response:
    """200 with ``data``."""
    return Response(200, JSON_HEADERS, _body("success", data, ""))


def record(**data: object) -> Response:
    """200 with an object whose keys come in this order, as the reference's do; names that a map holds are sorted."""
    return success(gojson.Struct(tuple(data.items())))


def error(status: int, message: str = "", data: object = None) -> Response:
    """The operation failed; v1 uses it for everything, v2 for what is not the client's fault."""
    return Response(status, ERROR_HEADERS, _body("error", data, message))


def fail(status: int, message: str, data: object = None) -> Response:
    """The client made a mistake (v2 only)."""
    return Response(status, JSON_HEADERS, _body("fail", data, message))


def _body(status: str, data: object, message: str) -> bytes:
    pairs = [("status", status), ("data", data)]
    if message:
        pairs.append(("message", message))
    return gojson.marshal(gojson.Struct(pairs)) + b"\n"
