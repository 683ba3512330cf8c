"""Version 2 of what a manifest has to switch on: signed quotes and monotonic counters (protocol, 7.8 and 7.9)."""

from __future__ import annotations

from typing import Final

from marblerun.coordinator.commands.features import SIGN_QUOTE, require_feature
from marblerun.coordinator.server import envelope
from marblerun.coordinator.server.exchange import BadRequest, Response
from marblerun.coordinator.server.rest.route import Call, Route, Table, base64_text, read_body
from marblerun.coordinator.service import Coordinator
from marblerun.errors import Malformed, Untrusted
from marblerun.wire import gojson

_QUOTE_BODY: Final = gojson.record(sgxQuote=gojson.byte_string)
# Read without a thread, and the first of them for everybody: a quote in base64, a name with every character escaped.
_MAX_BODY_BYTES: Final = 64 * 1024
_COUNTER_BODY: Final = gojson.record(name=gojson.string, value=gojson.uint(64))


async def _sign_quote(coordinator: Coordinator, call: Call) -> Response:
    """Gate, body, verification. What is wrong with the quote is also told by field, as the reference does."""
    require_feature(coordinator.state, SIGN_QUOTE)
    try:
        signed = await coordinator.sign_quote(read_body(call, _QUOTE_BODY, _MAX_BODY_BYTES)["sgxQuote"])
    except BadRequest as problem:
        return envelope.fail(400, str(problem), {"sgxQuote": str(problem)})
    except (Malformed, Untrusted) as problem:
        return envelope.fail(400, "the quote does not verify", {"sgxQuote": str(problem)})
    return envelope.record(tcbStatus=signed.tcb_status, verificationSignature=base64_text(signed.signature))


async def _monotonic_counter(coordinator: Coordinator, call: Call) -> Response:
    """Gate, certificate, body, counter."""
    coordinator.authorize_marble(call.leaf)
    body = read_body(call, _COUNTER_BODY, _MAX_BODY_BYTES)
    try:
        previous = await coordinator.set_monotonic_counter(call.leaf, body["name"], body["value"])
    except Malformed as problem:
        raise BadRequest(str(problem)) from None
    return envelope.success({"value": previous})


FEATURES: Final[Table] = {
    "/api/v2/sign-quote": {"POST": Route(_sign_quote, jsend_fail=True)},
    "/api/v2/monotonic-counter": {"POST": Route(_monotonic_counter, jsend_fail=True)},
}
