"""The client API: routes of both versions over one Coordinator (protocol, section 7)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from email.utils import formatdate
from functools import lru_cache
from math import ceil
from typing import Final

from marblerun.attestation.model import Origin
from marblerun.coordinator.commands.caller import Unauthorized
from marblerun.coordinator.commands.features import FeatureDisabled
from marblerun.coordinator.commands.monotonic_counter import UnauthorizedMarble
from marblerun.coordinator.commands.rehearse import NoRecoveryKeys, RehearsalRefused
from marblerun.coordinator.commands.set_manifest import require_no_manifest
from marblerun.coordinator.commands.update_reply import NoUpdateInProgress
from marblerun.coordinator.server import envelope
from marblerun.coordinator.server.attempts import ClientAttempts
from marblerun.coordinator.server.exchange import BadRequest, Request, Response, Service
from marblerun.coordinator.server.overload import network_of
from marblerun.coordinator.server.problems import INTERNAL_TEXT
from marblerun.coordinator.server.rest.document import with_document
from marblerun.coordinator.server.rest.features import FEATURES
from marblerun.coordinator.server.rest.recovery import RECOVERY
from marblerun.coordinator.server.rest.route import (
    MANIFEST_BODY,
    Between,
    Call,
    Route,
    Table,
    base64_text,
    read_body,
)
from marblerun.coordinator.server.rest.strangers import SMALL_BODY_BYTES
from marblerun.coordinator.server.rest.users_v1 import USERS_V1
from marblerun.coordinator.server.rest.users_v2 import USERS_V2
from marblerun.coordinator.server.routing import Routes, clean_path, query_values, redirect, split_target
from marblerun.coordinator.server.turns import Caller, Desk, Overload
from marblerun.coordinator.service import Coordinator, OwnEvidence, SignedManifest, Status
from marblerun.errors import Busy, Denied, MarbleRunError
from marblerun.wire import gojson
from marblerun.wire.limits import MAX_REST_BODY_BYTES

_log = logging.getLogger(__name__)

MAX_NONCE_BYTES: Final = 1024
_URL_ALPHABET: Final = str.maketrans("-_", "+/")
# Probes have their own patience, of seconds mostly; then the last known state has to do.
_PROBE_SECONDS: Final = 5.0


def client_service(
    coordinator: Coordinator, desk: Desk | None = None, attempts: ClientAttempts | None = None
) -> Service:
    """The client listener's requests, answered by ``coordinator`` in the turns that ``desk`` gives."""
    routes: Routes[Route] = Routes(TABLE)
    attempts = attempts or ClientAttempts()
    between = Between()
    desk = desk or Overload().requests

    async def handle(request: Request) -> Response:
        caller = Caller(network_of(request.peer.address))
        try:
            await desk.enter(caller)
        except Busy as busy:
            response = _busy(busy)
        else:
            try:
                response = await _answer(coordinator, routes, attempts, between, request)
            finally:
                desk.leave(caller)
        return response.with_header(b"date", _date(int(time.time())))

    return Service(
        handle=handle,
        max_body_bytes=MAX_REST_BODY_BYTES,
        too_large=lambda: envelope.error(413, f"the request body is larger than {MAX_REST_BODY_BYTES} bytes"),
        failed=lambda: envelope.error(500, INTERNAL_TEXT),
        overloaded=lambda: _busy(Busy("too many requests at once; try again", retry_after=1.0)),
    )


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return formatdate(second, usegmt=True).encode("ascii")


def _busy(busy: Busy) -> Response:
    """Nothing has been begun; the same in both versions, as every failure that is not the client's."""
    refused = envelope.error(503, str(busy))
    return replace(
        refused, headers=(*refused.headers, (b"retry-after", b"%d" % ceil(busy.retry_after))), reason=busy.code
    )


async def _answer(
    coordinator: Coordinator, routes: Routes[Route], attempts: ClientAttempts, between: Between, request: Request
) -> Response:
    path, query = request.target, ""
    if not routes.is_path(path):
        if path == "*" and request.method == "OPTIONS":
            return Response(200)  # about the server as a whole, which Go's answers by itself
        split = split_target(request.target, request.method)
        if split is None:
            return envelope.error(400, "malformed request target")
        path, query = split
        canonical = clean_path(path)
        if request.method == "CONNECT":
            if not path:  # a proxy could be asked for that
                return Response(404, envelope.ERROR_HEADERS, b"404 page not found\n")
        elif canonical != path:
            return redirect(canonical, query, request.method)
    route = routes.find(request.method, path)
    if route is None:
        return envelope.error(405)
    try:
        if route.depends_on_state:
            await (coordinator.catch_up() if route.needs_present else _try_to_catch_up(coordinator))
        if route.operation is not None:
            coordinator.authorize(route.operation, request.peer.leaf)
        return await route.handle(coordinator, Call(request, query, between))
    except BadRequest as problem:
        refused = (envelope.fail if route.jsend_fail else envelope.error)(400, str(problem))
        return replace(refused, reason="bad-request")
    except MarbleRunError as problem:
        return replace(_refused(route, attempts, request, problem), reason=problem.code)
    except Exception:
        _log.exception("a client API handler broke", extra={"path": path})
        return replace(envelope.error(500, INTERNAL_TEXT), reason="internal")


async def _try_to_catch_up(coordinator: Coordinator) -> None:
    with contextlib.suppress(MarbleRunError, TimeoutError):
        async with asyncio.timeout(_PROBE_SECONDS):
            await coordinator.catch_up()


def _refused(route: Route, attempts: ClientAttempts, request: Request, problem: MarbleRunError) -> Response:
    if isinstance(problem, Unauthorized | UnauthorizedMarble):
        return _unauthorized(route, attempts, request, problem)
    if isinstance(problem, RehearsalRefused):
        return _rehearsal_refused(attempts, request, problem)
    if isinstance(problem, Busy):
        return _busy(problem)
    if isinstance(problem, FeatureDisabled):
        return envelope.error(403, str(problem))
    if isinstance(problem, NoUpdateInProgress | NoRecoveryKeys):
        return envelope.error(404, str(problem))
    if route.operation is not None and isinstance(problem, Denied):
        _log.warning("a user was refused", extra={"fields": {"reason": str(problem)}})
    return envelope.error(route.failed, str(problem))


def _rehearsal_refused(attempts: ClientAttempts, request: Request, problem: RehearsalRefused) -> Response:
    """The answer to a secret that does not count; who keeps trying is told to wait, and is no longer logged."""
    wait = attempts.rehearsals.record(request.peer.address)
    if wait:
        refused = envelope.fail(429, f"too many failures from this address; wait {wait} s")
        return replace(refused, headers=(*refused.headers, (b"retry-after", b"%d" % wait)))
    fields = {"peer": request.peer.address, "reason": str(problem)}
    _log.warning("a secret of a recovery rehearsal was refused", extra={"fields": fields})
    return envelope.fail(403, str(problem))


def _unauthorized(
    route: Route, attempts: ClientAttempts, request: Request, problem: Unauthorized | UnauthorizedMarble
) -> Response:
    """The answer to a stranger; too many from one address are no longer logged, and very many told to wait."""
    answer = envelope.fail if route.jsend_fail else envelope.error
    wait = attempts.strangers.record(request.peer.address) if request.peer.leaf else 0
    if wait:
        who = "user" if isinstance(problem, Unauthorized) else "marble"
        refused = answer(429, f"unauthorized {who}: too many failures from this address; wait {wait} s")
        return replace(refused, headers=(*refused.headers, (b"retry-after", b"%d" % wait)))
    if attempts.logged.record(request.peer.address):
        return answer(401, str(problem))
    leaf = request.peer.leaf
    fields = {
        "peer": request.peer.address,
        "operation": route.operation.value if route.operation else "",
        "certificate": hashlib.sha256(leaf).hexdigest() if leaf else "none",
    }
    if problem.__cause__ is not None:
        fields["reason"] = str(problem.__cause__)
    _log.warning(
        "a caller is not a user"
        if isinstance(problem, Unauthorized)
        else "a caller is not a Marble of this deployment",
        extra={"fields": fields},
    )
    return answer(401, str(problem))


_base64 = base64_text


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
        return gojson.decode_base64(text.translate(_URL_ALPHABET))
    except ValueError:
        raise BadRequest("the nonce is not base64url with padding") from None


# -- version 2 ---------------------------------------------------------------------------------------------------


async def _v2_status(coordinator: Coordinator, _call: Call) -> Response:
    return _v2_status_of(coordinator.status())


@lru_cache(maxsize=1)
def _v2_status_of(status: Status) -> Response:
    return envelope.record(code=status.code, message=status.message, **_simulation(status.evidence))


async def _v2_get_manifest(coordinator: Coordinator, _call: Call) -> Response:
    return _v2_signed(coordinator.signed_manifest())


@lru_cache(maxsize=1)
def _v2_signed(signed: SignedManifest) -> Response:
    """Made once a manifest: anybody may ask, and to encode megabytes for each of them would stall everybody."""
    return envelope.record(
        manifestSignatureRootECDSA=_base64(signed.signature),
        manifestFingerprint=signed.fingerprint,
        manifest=_base64(signed.manifest),
    )


async def _v2_set_manifest(coordinator: Coordinator, call: Call) -> Response:
    async def set_manifest() -> Response:
        if len(call.request.body) > SMALL_BODY_BYTES:
            require_no_manifest(coordinator.state)  # before a second is spent on it
        body = await call.between.large_bodies.read(len(call.request.body), lambda: read_body(call, MANIFEST_BODY))
        require_no_manifest(coordinator.state)  # at once, so that strangers do not take up room among those who wait
        shares = await coordinator.set_manifest(body["manifest"])
        return envelope.success({"RecoverySecrets": {name: _base64(share) for name, share in shares.items()}})

    return await call.between.repeats.answer(call.request, set_manifest)


async def _v2_quote(coordinator: Coordinator, call: Call) -> Response:
    nonce = parse_nonce(call.query)
    own = await coordinator.own_evidence(nonce)
    return _v2_evidence.__wrapped__(own) if nonce else _v2_evidence(own)


@lru_cache(maxsize=1)
def _v2_evidence(own: OwnEvidence) -> Response:
    """Made once a root certificate; with a nonce it is always another one, and not kept."""
    return envelope.record(cert=own.chain_pem, quote=_evidence(own.quote), **_simulation(own.evidence))


async def _v2_statement(coordinator: Coordinator, call: Call) -> Response:
    statement = await coordinator.statement(parse_nonce(call.query))
    return envelope.record(statement=statement.text.decode(), quote=_evidence(statement.quote))


V2: Final[Mapping[str, Mapping[str, Route]]] = {
    "/api/v2/status": {"GET": Route(_v2_status, jsend_fail=True, needs_present=False)},
    "/api/v2/manifest": {
        "GET": Route(_v2_get_manifest, jsend_fail=True),
        "POST": Route(_v2_set_manifest, jsend_fail=True),
    },
    "/api/v2/quote": {"GET": Route(_v2_quote, jsend_fail=True)},
    "/api/v2/statement": {"GET": Route(_v2_statement, jsend_fail=True)},
}

# -- version 1 ---------------------------------------------------------------------------------------------------


async def _v1_status(coordinator: Coordinator, _call: Call) -> Response:
    return _v1_status_of(coordinator.status())


@lru_cache(maxsize=1)
def _v1_status_of(status: Status) -> Response:
    return envelope.record(StatusCode=status.code, StatusMessage=status.message)


async def _v1_get_manifest(coordinator: Coordinator, _call: Call) -> Response:
    return _v1_signed(coordinator.signed_manifest_or_none())


@lru_cache(maxsize=1)
def _v1_signed(signed: SignedManifest | None) -> Response:
    return envelope.record(
        ManifestSignatureRootECDSA=_base64(signed.signature) if signed else None,
        ManifestSignature=signed.fingerprint if signed else "",
        Manifest=_base64(signed.manifest) if signed else None,
    )


async def _v1_set_manifest(coordinator: Coordinator, call: Call) -> Response:
    require_no_manifest(coordinator.state)
    shares = await coordinator.set_manifest(call.request.body)
    if not shares:
        return envelope.success(None)
    return envelope.success({"RecoverySecrets": {name: _base64(share) for name, share in shares.items()}})


async def _v1_quote(coordinator: Coordinator, _call: Call) -> Response:
    return _v1_evidence(await coordinator.own_evidence(b""))


@lru_cache(maxsize=1)
def _v1_evidence(own: OwnEvidence) -> Response:
    return envelope.record(Cert=own.chain_pem, Quote=_evidence(own.quote))


V1: Final[Mapping[str, Mapping[str, Route]]] = {
    "/status": {"GET": Route(_v1_status, needs_present=False)},
    "/manifest": {"GET": Route(_v1_get_manifest), "POST": Route(_v1_set_manifest, failed=400)},
    "/quote": {"GET": Route(_v1_quote)},
}

TABLE: Final[Table] = with_document({**V1, **V2, **USERS_V1, **USERS_V2, **RECOVERY, **FEATURES})
"""Everything that the client API answers."""
