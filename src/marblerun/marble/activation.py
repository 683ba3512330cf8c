"""Asking a Coordinator for an identity: credentials, evidence over them, one call, as often as it takes."""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric import ec

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.issue import EvidenceIssuer
from marblerun.attestation.model import Origin
from marblerun.errors import Busy, Denied, Malformed, MarbleRunError, Misconfigured, Unavailable, WrongPhase
from marblerun.marble.credentials import Credentials, make_credentials
from marblerun.marble.identity_file import load_or_create_uuid
from marblerun.marble.pins import AnyCoordinator, CoordinatorPin
from marblerun.marble.rpc_client import DEFAULT_TIMEOUTS, Answer, Timeouts, call_unary
from marblerun.marble.settings import Endpoint, MarbleSettings
from marblerun.wire.rpc import ACTIVATE_PATH, GrpcStatus, encode_activation_request, parse_activation_response

Narrator = Callable[[str], None]
"""Takes one line about what happens next; never gets secrets."""

_TRANSIENT: Final = frozenset(
    {
        GrpcStatus.FAILED_PRECONDITION,  # no manifest yet, or recovery
        GrpcStatus.UNAVAILABLE,  # collateral, or something between us
        GrpcStatus.RESOURCE_EXHAUSTED,  # too many of us at once; nothing was begun
        GrpcStatus.DEADLINE_EXCEEDED,  # too slow this time
    }
)
# A hint is waited for and then up to so much of it more: others were given one, too.
_HINT_JITTER: Final = 0.25


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waiting times between attempts: doubled each time up to a ceiling, then shortened at random by up to half.

    The randomness keeps a cluster's Marbles, all waiting for one Coordinator, from calling in step.
    """

    first: float = 0.25
    ceiling: float = 10.0

    def delay(self, attempt: int) -> float:
        """Return the seconds to wait after failed attempt number ``attempt`` (0 is the first)."""
        longest = min(self.first * 2.0 ** min(attempt, 32), self.ceiling)
        return longest * random.uniform(0.5, 1.0)  # noqa: S311

    def delay_after(self, attempt: int, hint: float | None) -> float:
        """Return the seconds to wait if the server gave a ``hint``: never less than it asks for, and not in step."""
        own = self.delay(attempt)
        return own if hint is None else max(own, hint * random.uniform(1.0, 1.0 + _HINT_JITTER))  # noqa: S311


DEFAULT_BACKOFF: Final = Backoff()


@dataclass(frozen=True, slots=True, repr=False)
class Activation:
    """Everything the manifest gives this Marble. Holds keys and secrets: ``repr`` shows none of them."""

    uuid: UUID
    marble_type: str
    origin: Origin
    """What stood behind our evidence."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Path to content, as the manifest writes the path."""
    env: Mapping[str, bytes] = field(default_factory=dict)
    argv: tuple[str, ...] = ()
    """Empty: the program keeps its own arguments."""

    def __repr__(self) -> str:
        return f"Activation(uuid={self.uuid}, marble_type={self.marble_type!r}, origin={self.origin.value!r})"


@dataclass(frozen=True, slots=True, repr=False)
class ActivationRequest:
    """A Marble's request, ready to be sent as often as necessary: evidence is bound to the credentials it goes with."""

    credentials: Credentials
    evidence: bytes
    marble_type: str
    uuid: UUID


def activate(
    settings: MarbleSettings,
    issuer: EvidenceIssuer,
    *,
    pin: CoordinatorPin | None = None,
    narrate: Narrator = lambda line: None,
    curve: ec.EllipticCurve | None = None,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    backoff: Backoff = DEFAULT_BACKOFF,
) -> Activation:
    """Return this Marble's identity, files, environment and arguments from the Coordinator.

    1. Key, self-signed certificate and request are made. 2. The instance's UUID is read or made. 3. Evidence over the
    SHA-256 of the certificate is taken, once. 4. The Coordinator is asked until it answers: one that cannot be
    reached, has no manifest yet, waits for recovery or has too much to do is asked again until ``settings.timeout``
    has passed; one that says when to come again is not asked before.

    Args:
        settings: who we are and where the Coordinator is.
        issuer: makes the evidence.
        pin: judges the Coordinator before anything is sent; None accepts any, as stock Marbles do.
        narrate: hears about each step.
        curve: of the key of the activation connection, P-256 if None.
        timeouts: of one attempt.
        backoff: waiting times between attempts.

    Raises:
        Misconfigured: the UUID file or a name is unusable, or the address is not a Marble API.
        Unavailable: no evidence (never a reason to go on without), or no Coordinator in time.
        WrongPhase: the Coordinator had no manifest until the time was up.
        Denied: the Coordinator refused, with its reason.
        Untrusted: the pin refused the Coordinator.
        Malformed: the answer, or in the Coordinator's eyes the request, makes no sense.
    """
    request = prepare_request(settings, issuer, narrate=narrate, curve=curve)
    narrate(f"activating marble of type {settings.marble_type} at {settings.coordinator}")
    answer = _ask_until_ready(
        settings, request, pin if pin is not None else AnyCoordinator(), narrate, timeouts, backoff
    )
    parameters = parse_activation_response(answer.body).Parameters
    return Activation(
        uuid=request.uuid,
        marble_type=settings.marble_type,
        origin=issuer.origin,
        files=dict(parameters.Files),
        env=dict(parameters.Env),
        argv=tuple(parameters.Argv),
    )


def prepare_request(
    settings: MarbleSettings,
    issuer: EvidenceIssuer,
    *,
    narrate: Narrator = lambda line: None,
    curve: ec.EllipticCurve | None = None,
) -> ActivationRequest:
    """Return a request with fresh credentials and evidence over them: steps 1 to 3 of :func:`activate`."""
    narrate("loading TLS credentials")
    credentials = make_credentials(settings.names, curve)
    narrate("loading UUID")
    uuid, is_new = load_or_create_uuid(settings.uuid_file)
    narrate(f"UUID {'not found, generated' if is_new else 'found'}: {uuid}")
    narrate(f"generating quote: {issuer.name}")
    evidence = issuer.issue(report_data_for(credentials.certificate))
    return ActivationRequest(credentials, evidence, settings.marble_type, uuid)


def send_request(
    coordinator: Endpoint,
    request: ActivationRequest,
    *,
    pin: CoordinatorPin,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Send the request once and return the Coordinator's answer; errors as of :func:`.rpc_client.call_unary`."""
    message = encode_activation_request(
        quote=request.evidence, csr=request.credentials.csr, marble_type=request.marble_type, uuid=str(request.uuid)
    )
    if context is None:
        context = request.credentials.client_context()
    return call_unary(coordinator, ACTIVATE_PATH, message, context=context, pin=pin, timeouts=timeouts)


def refusal_of(answer: Answer) -> MarbleRunError:
    """Return the error of our tree for an answer that is not OK, with the Coordinator's own reason in it."""
    text = f"the Coordinator answered {answer.status.name}: {answer.reason or 'no reason given'}"
    match answer.status:
        case GrpcStatus.PERMISSION_DENIED | GrpcStatus.UNAUTHENTICATED:
            return Denied(text)
        case GrpcStatus.FAILED_PRECONDITION:
            return WrongPhase(text)
        case GrpcStatus.INVALID_ARGUMENT | GrpcStatus.OUT_OF_RANGE:
            return Malformed(text)
        case GrpcStatus.UNIMPLEMENTED:
            return Misconfigured(text)
        case GrpcStatus.RESOURCE_EXHAUSTED if answer.retry_after is not None:
            return Busy(text, retry_after=answer.retry_after)
        case _:
            return Unavailable(text)


def _ask_until_ready(
    settings: MarbleSettings,
    request: ActivationRequest,
    pin: CoordinatorPin,
    narrate: Narrator,
    timeouts: Timeouts,
    backoff: Backoff,
) -> Answer:
    """Return the OK answer; raise the first error that waiting cannot mend, or the last one when the time is up."""
    deadline = time.monotonic() + settings.timeout
    context = request.credentials.client_context()
    attempt = 0
    while True:
        remaining = max(deadline - time.monotonic(), 1.0)
        error = _ask_once(settings.coordinator, request, pin, timeouts.within(remaining), context)
        if isinstance(error, Answer):
            return error
        hint = error.retry_after if isinstance(error, Busy) else None
        delay = backoff.delay_after(attempt, hint)
        if time.monotonic() + delay > deadline:
            raise _given_up(error, attempt + 1, settings.timeout, hint)
        narrate(f"the Coordinator is not ready ({error}), trying again in {delay:.1f} s")
        time.sleep(delay)
        attempt += 1


def _given_up(
    error: Unavailable | WrongPhase, attempts: int, seconds: float, hint: float | None
) -> Unavailable | WrongPhase:
    text = f"gave up after {attempts} attempts in {seconds:g} s: {error.message}"
    if hint == float("inf"):
        text += "; the Coordinator does not want to be asked again"
    elif hint is not None:
        text += f"; the Coordinator asks to be left alone for {hint:g} s more (EDG_MARBLE_ACTIVATION_TIMEOUT)"
    return WrongPhase(text) if isinstance(error, WrongPhase) else Unavailable(text)


def _ask_once(
    coordinator: Endpoint,
    request: ActivationRequest,
    pin: CoordinatorPin,
    timeouts: Timeouts,
    context: ssl.SSLContext,
) -> Answer | Unavailable | WrongPhase:
    """Return the OK answer or an error worth waiting out; raise every other error."""
    try:
        answer = send_request(coordinator, request, pin=pin, timeouts=timeouts, context=context)
    except (Unavailable, WrongPhase) as error:
        return error
    if answer.status is GrpcStatus.OK:
        return answer
    refusal = refusal_of(answer)
    if answer.status in _TRANSIENT and isinstance(refusal, Unavailable | WrongPhase):
        return refusal
    raise refusal
