"""The client API: routes of both versions over one Coordinator (protocol, section 7)."""

from __future__ import annotations

import base64
import binascii
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final

from marblerun.attestation.model import Origin
from marblerun.coordinator.server import envelope
from marblerun.coordinator.server.exchange import Request, Response, Service
from marblerun.coordinator.server.problems import INTERNAL_TEXT
from marblerun.coordinator.server.routing import Routes, clean_path, query_values, redirect, split_target
from marblerun.coordinator.service import Coordinator
from marblerun.errors import MarbleRunError
from marblerun.wire import gojson
from marblerun.wire.limits import MAX_REST_BODY_BYTES

_log = logging.getLogger(__name__)

MAX_NONCE_BYTES: Final = 1024


class BadRequest(Exception):
    """The request itself cannot be understood; answered 400 in the manner of its version."""


@dataclass(frozen=True, slots=True)
class Call:
    """A routed request."""

    request: Request
    query: str


Handler = Callable[[Coordinator, Call], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    """A handler with the manner in which its failures are told."""

    handle: Handler
    failed: int = 500
    """HTTP status when the operation itself fails; the reference uses 500 for nearly everything."""
    jsend_fail: bool = False
    """Whether client mistakes are JSend ``fail`` (v2) or ``error`` (v1)."""


def client_service(coordinator: Coordinator) -> Service:
    """The client listener's requests, answered by ``coordinator``."""
    routes: Routes[Route] = Routes({**V1, **V2})

    async def handle(request: Request) -> Response:
        response = await _answer(coordinator, routes, request)
        date = formatdate(usegmt=True).encode("ascii")
        return Response(response.status, (*response.headers, (b"date", date)), response.body)

    return Service(
        handle=handle,
        max_body_bytes=MAX_REST_BODY_BYTES,
        too_large=lambda: envelope.error(413, f"the request body is larger than {MAX_REST_BODY_BYTES} bytes"),
        failed=lambda: envelope.error(500, INTERNAL_TEXT),
        overloaded=lambda: envelope.error(503, "too many requests at once; try again"),
    )


async def _answer(coordinator: Coordinator, routes: Routes[Route], request: Request) -> Response:
    split = split_target(request.target)
    if split is None:
        return envelope.error(400, "malformed request target")
    path, query = split
    canonical = clean_path(path)
    if canonical != path:
        return redirect(canonical, query, request.method)
    route = routes.find(request.method, path)
    if route is None:
        return envelope.error(405)
    try:
        return await route.handle(coordinator, Call(request, query))
    except BadRequest as problem:
        return (envelope.fail if route.jsend_fail else envelope.error)(400, str(problem))
    except MarbleRunError as problem:
        return envelope.error(route.failed, str(problem))
    except Exception:
        _log.exception("a client API handler broke", extra={"path": path})
        return envelope.error(500, INTERNAL_TEXT)


def _base64(data: bytes | None) -> str | None:
    return None if data is None else base64.b64encode(data).decode("ascii")


def _evidence(quote: bytes) -> str | None:
    """A quote for the wire; none at all is null (protocol, section 4.2)."""
    return _base64(quote or None)


def _simulation(evidence: Origin) -> dict[str, object]:
    """A field that a Coordinator on real hardware does not have, so that nobody overlooks a simulation."""
    return {} if evidence is Origin.HARDWARE else {"evidence": evidence.value}


# -- both versions -----------------------------------------------------------------------------------------------


def parse_nonce(query: str) -> bytes:
    """The ``nonce`` parameter: base64url with padding, empty if absent (protocol, section 7.7)."""
    text = next(iter(query_values(query, "nonce")), "").replace("\r", "").replace("\n", "")
    if len(text) > MAX_NONCE_BYTES:
        raise BadRequest(f"the nonce is longer than {MAX_NONCE_BYTES} characters")
    try:
        if "+" in text or "/" in text:
            raise ValueError
        return base64.b64decode(text.encode("ascii"), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        raise BadRequest("the nonce is not base64url with padding") from None


# -- version 2 ---------------------------------------------------------------------------------------------------

_SET_MANIFEST_BODY: Final = gojson.record(manifest=gojson.byte_string)


async def _v2_status(coordinator: Coordinator, _call: Call) -> Response:
    status = coordinator.status()
    return envelope.success({"code": status.code, "message": status.message, **_simulation(status.evidence)})


async def _v2_get_manifest(coordinator: Coordinator, _call: Call) -> Response:
    signed = coordinator.signed_manifest()
    return envelope.success(
        {
            "manifestSignatureRootECDSA": _base64(signed.signature),
            "manifestFingerprint": signed.fingerprint,
            "manifest": _base64(signed.manifest),
        }
    )


async def _v2_set_manifest(coordinator: Coordinator, call: Call) -> Response:
    try:
        body = gojson.unmarshal_first(call.request.body, _SET_MANIFEST_BODY)
    except MarbleRunError as problem:
        raise BadRequest(f"the request body cannot be read: {problem}") from None
    shares = await coordinator.set_manifest(body["manifest"])
    return envelope.success({"RecoverySecrets": {name: _base64(share) for name, share in shares.items()}})


async def _v2_quote(coordinator: Coordinator, call: Call) -> Response:
    nonce = parse_nonce(call.query)
    own = await coordinator.own_evidence(nonce)
    return envelope.success({"cert": own.chain_pem, "quote": _evidence(own.quote), **_simulation(own.evidence)})


V2: Final[Mapping[str, Mapping[str, Route]]] = {
    "/api/v2/status": {"GET": Route(_v2_status, jsend_fail=True)},
    "/api/v2/manifest": {
        "GET": Route(_v2_get_manifest, jsend_fail=True),
        "POST": Route(_v2_set_manifest, jsend_fail=True),
    },
    "/api/v2/quote": {"GET": Route(_v2_quote, jsend_fail=True)},
}

# -- version 1 ---------------------------------------------------------------------------------------------------


async def _v1_status(coordinator: Coordinator, _call: Call) -> Response:
    status = coordinator.status()
    return envelope.success({"StatusCode": status.code, "StatusMessage": status.message})


async def _v1_get_manifest(coordinator: Coordinator, _call: Call) -> Response:
    signed = coordinator.signed_manifest_or_none()
    return envelope.success(
        {
            "ManifestSignatureRootECDSA": _base64(signed.signature) if signed else None,
            "ManifestSignature": signed.fingerprint if signed else "",
            "Manifest": _base64(signed.manifest) if signed else None,
        }
    )


async def _v1_set_manifest(coordinator: Coordinator, call: Call) -> Response:
    shares = await coordinator.set_manifest(call.request.body)
    if not shares:
        return envelope.success(None)
    return envelope.success({"RecoverySecrets": {name: _base64(share) for name, share in shares.items()}})


async def _v1_quote(coordinator: Coordinator, _call: Call) -> Response:
    own = await coordinator.own_evidence(b"")
    return envelope.success({"Cert": own.chain_pem, "Quote": _evidence(own.quote)})


V1: Final[Mapping[str, Mapping[str, Route]]] = {
    "/status": {"GET": Route(_v1_status)},
    "/manifest": {"GET": Route(_v1_get_manifest), "POST": Route(_v1_set_manifest, failed=400)},
    "/quote": {"GET": Route(_v1_quote)},
}
