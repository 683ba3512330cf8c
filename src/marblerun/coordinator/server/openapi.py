"""The client API as an OpenAPI 3.1 document, made from the route tables and what :mod:`described` says about them.

Paths, methods, who may call and how failures are told come from the tables themselves, so the document cannot promise
what is not routed; a route that nobody has described is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from marblerun.coordinator.server.described import DESCRIPTIONS, Description
from marblerun.coordinator.server.rest.route import Route, Table
from marblerun.version import __version__
from marblerun.wire.limits import MAX_REST_BODY_BYTES

Json = dict[str, Any]

_INFO: Final = """The API of a Coordinator for users, relying parties and, for counters, Marbles.

Every answer is a JSend envelope. Unknown paths and methods are answered with 405. TLS is by the Coordinator's own root
certificate, which only its evidence vouches for: verify that before trusting an answer. Callers are known by the
certificate of their TLS connection."""

_ERROR: Final[Json] = {
    "description": "The operation failed. The body is an envelope in JSON, sent as text.",
    "content": {"text/plain": {"schema": {"type": "string", "contentMediaType": "application/json"}}},
}
_FAIL: Final[Json] = {
    "description": "The caller's mistake.",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Fail"}}},
}
_FAIL_SCHEMA: Final[Json] = {
    "type": "object",
    "required": ["status", "data"],
    "properties": {"status": {"const": "fail"}, "data": {}, "message": {"type": "string"}},
}
_SECURITY: Final[Json] = {
    "user": {"type": "mutualTLS", "description": "The certificate of a user of the manifest; no CA is asked."},
    "marble": {"type": "mutualTLS", "description": "The certificate of a Marble activated since the last update."},
}
# Whatever the operation: too large, too much at once.
_ALWAYS: Final = (413, 500, 503)


def openapi_document(table: Table) -> Json:
    """The document for the routes of ``table``; raises LookupError naming a route without description."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Coordinator client API",
            "version": __version__,
            "description": _INFO,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {path: dict(_operations(path, methods)) for path, methods in sorted(table.items())},
        "components": {
            "schemas": {"Fail": _FAIL_SCHEMA},
            "responses": {"Error": _ERROR, "Fail": _FAIL},
            "securitySchemes": _SECURITY,
        },
    }


def openapi_bytes(table: Table) -> bytes:
    """The document as it is served and shipped."""
    return json.dumps(openapi_document(table), indent=1, ensure_ascii=False).encode() + b"\n"


def _operations(path: str, methods: Mapping[str, Route]) -> Iterator[tuple[str, Json]]:
    for method, route in sorted(methods.items()):
        description = DESCRIPTIONS.get((method, path))
        if description is None:
            raise LookupError(f"{method} {path} has no entry in marblerun.coordinator.server.described")
        yield method.lower(), _operation(path, method, route, description)


def _operation(path: str, method: str, route: Route, description: Description) -> Json:
    operation: Json = {
        "operationId": _operation_id(path, method),
        "summary": description.summary,
        "tags": ["version 2" if path.startswith("/api/v2/") else "version 1"],
        "responses": _responses(route, description),
    }
    if description.detail:
        operation["description"] = description.detail
    if not path.startswith("/api/v2/"):
        operation["deprecated"] = True
    if description.query:
        operation["parameters"] = list(description.query)
    if description.body is not None:
        operation["requestBody"] = {
            "required": True,
            "description": f"At most {MAX_REST_BODY_BYTES} bytes.",
            "content": {description.media_type: {"schema": description.body}},
        }
    who = "user" if route.operation is not None else "marble" if description.by_marble else None
    if who is not None:
        operation["security"] = [{who: []}]
    return operation


def _responses(route: Route, description: Description) -> Json:
    responses: Json = {}
    if description.data is not None:
        responses["200"] = {
            "description": "Success.",
            "content": {"application/json": {"schema": _success(description)}},
        }
    mistakes = {400} if description.body is not None or description.query else set()
    if route.operation is not None or description.by_marble:
        mistakes |= {401, 429}
    told = "Fail" if route.jsend_fail else "Error"
    for status in mistakes:
        responses[str(status)] = {"$ref": f"#/components/responses/{told}"}
    for status in {*_ALWAYS, route.failed, *description.errors} - mistakes:
        responses[str(status)] = {"$ref": "#/components/responses/Error"}
    return dict(sorted(responses.items()))


def _success(description: Description) -> Json:
    if description.bare:
        return dict(description.data or {})
    return {
        "type": "object",
        "required": ["status", "data"],
        "properties": {"status": {"const": "success"}, "data": description.data},
    }


def _operation_id(path: str, method: str) -> str:
    version, name = ("v2", path.removeprefix("/api/v2/")) if path.startswith("/api/v2/") else ("v1", path[1:])
    words = name.replace(".", "-").replace("/", "-").split("-")
    return f"{version}_{method.lower()}_{'_'.join(words)}"


if __name__ == "__main__":
    import sys

    from marblerun.coordinator.server.client_api import TABLE

    sys.stdout.buffer.write(openapi_bytes(TABLE))
