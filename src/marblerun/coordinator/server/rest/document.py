"""The description of the client API, served by itself (not in the reference; docs/divergences.md)."""

from __future__ import annotations

from functools import cache
from typing import Final

from marblerun.coordinator.server import envelope
from marblerun.coordinator.server.exchange import Response
from marblerun.coordinator.server.rest.route import Call, Route, Table
from marblerun.coordinator.service import Coordinator

PATH: Final = "/api/v2/openapi.json"


def with_document(table: Table) -> Table:
    """``table`` with one more route, which describes them all; made when it is first asked for."""

    @cache
    def body() -> bytes:
        from marblerun.coordinator.server.openapi import openapi_bytes

        return openapi_bytes(complete)

    async def get_document(_coordinator: Coordinator, _call: Call) -> Response:
        return Response(200, envelope.JSON_HEADERS, body())

    complete = {**table, PATH: {"GET": Route(get_document, jsend_fail=True, depends_on_state=False)}}
    return complete
