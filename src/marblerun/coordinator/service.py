"""The Coordinator itself: takes a snapshot, gathers inputs, runs one command, seals, commits, publishes.

Everything that waits or touches the outside happens here; what is decided is decided by the pure commands. A request
lives on one snapshot. No lock is held while evidence is verified or keys are made: changes of state go through one
writer, which applies what has queued up, seals once, and answers only when the new state is durable.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final, ParamSpec, Protocol, TypeVar

from marblerun.attestation.binding import report_data_for
from marblerun.attestation.collect import CollateralSource
from marblerun.attestation.issue import EvidenceIssuer
from marblerun.attestation.model import Origin, Verdict
from marblerun.attestation.registry import Registry
from marblerun.coordinator.commands import Event, Inputs, Outcome
from marblerun.coordinator.commands.acknowledge_update import acknowledge_update
from marblerun.coordinator.commands.activate import (
    Activated,
    ActivationRefused,
    ActivationRequest,
    Stage,
    activate,
    admit,
    check_request,
    count_activation,
    needs_rsa,
)
from marblerun.coordinator.commands.caller import Operation, require_caller, require_deployment
from marblerun.coordinator.commands.cancel_update import cancel_update
from marblerun.coordinator.commands.monotonic_counter import authorize_marble, counter_id, raise_counter
from marblerun.coordinator.commands.read_secrets import read_secrets
from marblerun.coordinator.commands.recover import link_of_found, recovered_state, with_recovery_recorded
from marblerun.coordinator.commands.rehearse import Rehearsed
from marblerun.coordinator.commands.set_manifest import set_manifest
from marblerun.coordinator.commands.sign_quote import SignedStatus, evidence_to_verify, sign_quote
from marblerun.coordinator.commands.start import recovery_state, start_state
from marblerun.coordinator.commands.statement import statement_text
from marblerun.coordinator.commands.update_manifest import update_manifest
from marblerun.coordinator.commands.update_reply import NoUpdateInProgress, UpdateReply
from marblerun.coordinator.commands.write_secrets import write_secrets
from marblerun.coordinator.following import Follower
from marblerun.coordinator.keeping import Keeper, Lost, Opened
from marblerun.coordinator.recovering import Recovering, Rehearsing
from marblerun.coordinator.seal import KeySealer
from marblerun.coordinator.sharing import SharedKeeper
from marblerun.coordinator.state import PHASE_MESSAGES, PendingUpdate, Phase, State
from marblerun.coordinator.store import SharedStore, Store
from marblerun.coordinator.store.lineage import Anchor, Link, Mark, agreed
from marblerun.errors import Busy, Conflict, MarbleRunError, NotFound, Unavailable, WrongPhase
from marblerun.pki.issue import Entropy
from marblerun.pki.profiles import SubjectNames
from marblerun.policy.admission import Admission, NotAdmitted
from marblerun.secrets.model import Secret
from marblerun.secrets.upload import SecretUpload

_log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")
Transition = Callable[[State], State]
"""A change to the state as it is when its turn comes; raises Conflict if it was decided on another one."""

# A command that keeps losing against other writers gives up after this many decisions.
MAX_DECISIONS: Final = 8
# Nonce quotes are answered by the platform, often slowly, and anybody may ask: this many at a time, in threads of
# their own so that storage never waits for them, and this many waiting.
MAX_OWN_QUOTES_AT_ONCE: Final = 4
MAX_OWN_QUOTES_UNDER_WAY: Final = 256
# Changes that come several at a time are gathered: until none has come for the first, for the second at most.
GATHER_SECONDS: Final = 0.008
MAX_GATHER_SECONDS: Final = 0.040
_QUOTES_RETRY_SECONDS: Final = 2.0
# Where several Coordinators write, one write may lose so often in a row; then its requests do.
MAX_LOST_WRITES: Final = 32
_MAX_PAUSE_SECONDS: Final = 0.1
_LOST_RETRY_SECONDS: Final = 1.0
_REMOVED: Final = "there is no state, but the anchor remembers one: it was removed, or this is another directory"


class InThread(Protocol):
    """Runs a function in a thread; may raise Busy."""

    async def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result."""


@dataclass(frozen=True, slots=True)
class Ports:
    """What the Coordinator needs of the outside."""

    store: Store | SharedStore
    sealer: KeySealer
    registry: Registry
    admission: Admission
    collateral: CollateralSource | None
    issuer: EvidenceIssuer
    entropy: Entropy
    environment: Mapping[str, str] = field(default_factory=dict)
    """What manifest checks look at: some feature gates need variables to be set."""
    clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    timed: Callable[[str], AbstractContextManager[object]] = nullcontext
    """Entered around each sealing (``seal``) and each write to the store (``store``), in any thread."""
    anchor: Anchor | None = None
    """What remembers the latest state outside the store, if anything does."""
    making_keys: InThread = asyncio.to_thread
    """Where activations run that may make RSA keys."""
    changing: InThread = asyncio.to_thread
    """Where users' commands run."""


@dataclass(frozen=True, slots=True)
class Status:
    """Answer to a status request."""

    code: int
    message: str
    evidence: Origin
    """Who stands behind this Coordinator's own evidence."""


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """The manifest as uploaded, with fingerprint (hex) and signature (ASN.1 DER) (protocol, section 5.9)."""

    manifest: bytes
    fingerprint: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class OwnEvidence:
    """The Coordinator's statement about itself: CA chain (PEM) and a quote over its root certificate."""

    chain_pem: str
    quote: bytes
    evidence: Origin


@dataclass(frozen=True, slots=True)
class OwnStatement:
    """The statement as JSON, and a quote that covers its SHA-256; no quote without a nonce or without a platform."""

    text: bytes
    quote: bytes


@dataclass(frozen=True, slots=True)
class RecoveryProgress:
    """Answer to an uploaded recovery secret: how many more are needed, 0 when the state is back, and a text."""

    remaining: int
    message: str


class Coordinator:
    """One running Coordinator. Methods may be called from any task of the loop it was started on."""

    def __init__(self, ports: Ports, names: SubjectNames) -> None:
        self._ports = ports
        self._names = names
        self._keeper, self._shared = _keeper(ports)
        self._turn = asyncio.Lock()  # of whoever reads or writes the store until the outcome is published
        self._follower = Follower(
            self._turn, self._take_over, lambda: self.state.phase is Phase.RECOVERY, _tell_of_following
        )
        self._state: State | None = None
        self._queue: list[tuple[Transition, asyncio.Future[State]]] = []
        self._writer: asyncio.Task[None] | None = None
        self._latest_batch = 0  # how many changes the latest write made durable
        self._quote: tuple[bytes, bytes] | None = None  # root certificate DER, quote over it
        self._quoting = ThreadPoolExecutor(MAX_OWN_QUOTES_AT_ONCE, "quote")
        self._storing = ThreadPoolExecutor(1, "store")  # waits for nothing but the store
        self._quotes_under_way: OrderedDict[bytes, asyncio.Task[bytes]] = OrderedDict()
        self._rehearsing = Rehearsing(ports.entropy)
        self._recovering: Recovering | None = None  # in the recovery phase, from start to end of it
        self._mark = Mark()  # of the latest durable state, on which the next one builds
        self._doubt = ""  # why the stored state is not trusted although it opens, or that it was removed
        self.listeners: list[Callable[[State], None]] = []
        """Told of every published state."""

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load or create the state (protocol, section 1.3, step 4); raises if what is stored cannot be trusted."""
        for _ in range(MAX_LOST_WRITES):
            with suppress(Conflict):  # another Coordinator has begun at the same moment
                await self._begin()
                break
        else:
            raise Conflict("other Coordinators change the stored state all the time; start again")
        if self._shared is not None:
            self._follower.begin()

    async def _begin(self) -> None:
        found, anchored = await asyncio.to_thread(self._keeper.begin)
        self._mark = anchored or Mark()
        state = self._stored(found)
        if found is None and anchored is not None:
            self._doubt = _REMOVED
            _log.error(_REMOVED)
        self._mark = await asyncio.to_thread(self._keep, state)
        self._publish(state)

    def _stored(self, found: Opened | Lost | None) -> State:
        """The state that was stored, a throw-away one that waits for its recovery, or a new one."""
        self._doubt, self._recovering = "", None
        if isinstance(found, Lost):
            return self._lost(found)
        if found is None or (found.state.deployment is None and self._shared is None):
            return self._fresh()
        self._mark = found.mark
        return found.state

    def _lost(self, lost: Lost) -> State:
        self._doubt = lost.doubt
        self._recovering = Recovering(lost.sealed_data, self._ports.entropy)
        return recovery_state(self._names, lost.recovery_data, self._inputs())

    def _keep(self, state: State) -> Mark:
        """Make ``state`` durable; until the caller takes the mark that comes back, the next one builds on the same."""
        return self._keeper.keep(
            state,
            before=self._state.deployment if self._state is not None else None,
            mark=self._mark,
            lost_data=self._recovering.gathering.sealed_data if self._recovering is not None else None,
        )

    async def stop(self) -> None:
        """Wait for what is being written; quotes under way are given up."""
        self._rehearsing.forget()
        await self._follower.end()
        self._quoting.shutdown(wait=False, cancel_futures=True)
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)
        self._storing.shutdown(wait=False)

    @property
    def state(self) -> State:
        """The present snapshot."""
        if self._state is None:
            raise WrongPhase("the Coordinator is not initialized")
        return self._state

    def _inputs(self) -> Inputs:
        return Inputs(at=self._ports.clock(), entropy=self._ports.entropy)

    def _fresh(self) -> State:
        return start_state(self._names, self._inputs())

    # -- following other Coordinators ----------------------------------------------------------------------------

    async def catch_up(self) -> None:
        """Return when the present state is one that was the stored one after this was called.

        At once where nobody else writes. Raises what the store raises, and Untrusted if what is stored cannot have come
        after the present state: then nothing may be decided here.
        """
        if self._shared is not None:
            await self._follower.catch_up()

    async def reload(self) -> None:
        """:meth:`catch_up` that also tries again to open a state that did not open, as its key may be here by now."""
        if self._shared is not None:
            await self._follower.reload()

    async def _take_over(self, anew: bool) -> None:
        """Make what others have stored the present state, if they have stored anything."""
        shared = self._shared
        assert shared is not None
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._storing, lambda: shared.follow(self.state, self._mark, anew=anew))
        if isinstance(found, Lost):
            self._doubt = found.doubt
            if self._recovering is not None:
                self._recovering.turn_to(found.sealed_data)
            else:
                self._publish(self._lost(found))
        elif found is not None:
            self._doubt, self._mark = "", found.mark
            self._publish(found.state)

    # -- questions -----------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Where in its life the Coordinator is."""
        phase = self.state.phase
        message = PHASE_MESSAGES[phase]
        if phase is not Phase.ACCEPTING_MARBLES and self._doubt:
            message += f"\n{self._doubt}"
        if phase is Phase.ACCEPTING_MARBLES and self._keeper.not_sealed_because:
            message += f"\n{_not_sealed(self._keeper.not_sealed_because)}"
        if self._follower.trouble:
            message += f"\nThe stored state cannot be followed: {self._follower.trouble}"
        return Status(int(phase), message, self._ports.issuer.origin)

    def signed_manifest_or_none(self) -> SignedManifest | None:
        """The active manifest, if one is set."""
        deployment = self.state.deployment
        if deployment is None:
            return None
        fingerprint = _fingerprint(deployment.manifest)
        return SignedManifest(deployment.manifest, fingerprint, deployment.signature)

    def signed_manifest(self) -> SignedManifest:
        """The active manifest; raises NotFound if none is set."""
        signed = self.signed_manifest_or_none()
        if signed is None:
            raise NotFound("no manifest is set")
        return signed

    async def own_evidence(self, nonce: bytes) -> OwnEvidence:
        """The statement over the root certificate, and over ``nonce`` if one is given (protocol, section 4.2)."""
        authority = self.state.authority
        if nonce:
            quote = await self._issue(authority.root_der + nonce)
        elif self._quote is not None and self._quote[0] == authority.root_der:
            quote = self._quote[1]
        else:
            quote = await self._issue(authority.root_der)
            self._quote = (authority.root_der, quote)
        return OwnEvidence(authority.chain_pem, quote, self._ports.issuer.origin)

    async def statement(self, nonce: bytes) -> OwnStatement:
        """What this Coordinator is and how far its history has come; with a nonce, under a quote over the very text."""
        text = statement_text(self.state, self._mark, self._ports.issuer.origin, nonce)
        return OwnStatement(text, await self._issue(text) if nonce else b"")

    async def _issue(self, message: bytes) -> bytes:
        """A quote over ``message``; equal requests under way share one."""
        report_data = report_data_for(message)
        task = self._quotes_under_way.get(report_data)
        if task is None:
            if len(self._quotes_under_way) >= MAX_OWN_QUOTES_UNDER_WAY:
                raise Busy("too many quotes are being made; try again", retry_after=_QUOTES_RETRY_SECONDS)
            task = asyncio.create_task(self._issue_one(report_data))
            self._quotes_under_way[report_data] = task
            task.add_done_callback(lambda _task: self._quotes_under_way.pop(report_data, None))
        return await asyncio.shield(task)

    async def _issue_one(self, report_data: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._quoting, self._ports.issuer.issue, report_data)

    # -- changes -------------------------------------------------------------------------------------------------

    async def set_manifest(self, raw: bytes) -> Mapping[str, bytes]:
        """Make ``raw`` the manifest; the answer holds one encrypted recovery secret by recovery key name."""
        environment, was_stored = self._ports.environment, self._shared is not None
        return await self._change(
            lambda state, inputs: set_manifest(state, raw, inputs, environment, was_stored=was_stored)
        )

    def authorize(self, operation: Operation, leaf: bytes | None) -> None:
        """Look at the caller before the rest of a request is; raises Unauthorized or Denied.

        The command looks again, at the state that it decides on.
        """
        require_caller(self.state, leaf, operation)

    async def read_secrets(self, leaf: bytes | None, names: Sequence[str]) -> Mapping[str, Secret]:
        """The named secrets, for a user who may read them."""
        outcome = read_secrets(self.state, leaf, names)
        self._tell(outcome.events)
        return outcome.reply

    async def write_secrets(self, leaf: bytes | None, uploads: Mapping[str, SecretUpload]) -> None:
        """Store values of user-defined secrets, for a user who may write them."""
        await self._change(lambda state, inputs: write_secrets(state, leaf, uploads, inputs))

    def update_log(self) -> str:
        """The update log: one JSON object a line; raises WrongPhase where no manifest is in force."""
        require_deployment(self.state)
        return self.state.update_log

    def pending_update(self) -> PendingUpdate:
        """The update that waits for acknowledgments; raises NoUpdateInProgress."""
        pending = self.state.pending_update
        if pending is None:
            raise NoUpdateInProgress
        return pending

    async def update_manifest(self, leaf: bytes | None, raw: bytes) -> UpdateReply:
        """Start an update; it is in force at once if nobody else has to agree."""
        environment = self._ports.environment
        return await self._change(lambda state, inputs: update_manifest(state, leaf, raw, inputs, environment))

    async def acknowledge_update(self, leaf: bytes | None, raw: bytes) -> UpdateReply:
        """Agree to the pending update; if it then cannot be applied it is gone, and the reason is raised."""
        environment = self._ports.environment
        reply = await self._change(lambda state, inputs: acknowledge_update(state, leaf, raw, inputs, environment))
        if reply.failure is not None:
            raise reply.failure
        return reply

    async def cancel_update(self, leaf: bytes | None) -> str:
        """Drop the pending update; the answer is for people."""
        return await self._change(lambda state, inputs: cancel_update(state, leaf, inputs))

    async def set_monotonic_counter(self, leaf: bytes | None, name: str, value: int) -> int:
        """Raise a counter of the calling Marble to ``value`` if that is more; its value before, which is durable."""
        for _ in range(MAX_DECISIONS):
            base = self.state
            counter = counter_id(authorize_marble(base, leaf, self._ports.clock()), name)
            previous = base.counters.get(counter, 0)
            if value <= previous:
                return previous
            told: list[int] = []
            try:
                await self._commit(raise_counter(base, counter, value, told.append))
            except Conflict:
                continue
            return told[-1]
        raise Conflict("the state kept changing while the request was decided; send it again")

    def authorize_marble(self, leaf: bytes | None) -> None:
        """Look at a calling Marble before the rest of its request is; raises FeatureDisabled or UnauthorizedMarble."""
        authorize_marble(self.state, leaf, self._ports.clock())

    async def sign_quote(self, quote: bytes) -> SignedStatus:
        """Verify any SGX quote and sign the TCB status found; Malformed or Untrusted if it does not verify."""
        evidence = evidence_to_verify(self.state, quote)
        verdict = await self._verdict(evidence, self._ports.clock())
        return sign_quote(self.state, quote, verdict)

    async def _change(self, command: Callable[[State, Inputs], Outcome[T]]) -> T:
        """Run a command in a thread on the present snapshot and commit what it decided."""
        for _ in range(MAX_DECISIONS):
            base = self.state
            outcome = await self._ports.changing(command, base, self._inputs())
            if outcome.state is not base:
                try:
                    await self._commit(_replacing(base, outcome.state))
                except Conflict:
                    continue
            self._tell(outcome.events)
            return outcome.reply
        raise Conflict("the state kept changing while the request was decided; send it again")

    # -- recovery ------------------------------------------------------------------------------------------------

    async def recovery_public_key(self) -> bytes:
        """The key (PKIX DER) that recovery secrets may be encrypted for, as long as this process lives."""
        return await self._recovery_under_way().public_key()

    async def recover(self, secret: bytes, signature: bytes) -> RecoveryProgress:
        """Take one recovery secret, plain or encrypted; with the last one the old state is back, sealed for here.

        Raises WrongPhase, CannotDecrypt, SecretRefused (nothing has changed), and for a failure at the end Untrusted or
        Unavailable: then nothing is written, and all secrets have to be given again (protocol, section 10.7).
        """
        recovering = self._recovery_under_way()
        async with recovering.turn():
            if self._recovering is not recovering:
                self._recovery_under_way()
            progress = await recovering.give(await recovering.plain(secret), signature)
            if progress.found is None:
                _log.info("recovery secret accepted", extra={"fields": {"remaining": progress.remaining}})
                return RecoveryProgress(progress.remaining, progress.message)
            try:
                state = await asyncio.to_thread(recovered_state, progress.gathering, progress.found)
                state = with_recovery_recorded(state, self._ports.clock())
                link = await asyncio.to_thread(link_of_found, progress.gathering, progress.found)
                quote = await self._issue(state.authority.root_der)
                await self._commit(self._recovering_to(state, link, progress.gathering.sealed_data))
            except MarbleRunError as error:
                _log.warning("recovery failed", extra={"fields": {"reason": str(error)}})
                raise
            finally:
                recovering.forget()
            self._quote = (state.authority.root_der, quote)
            _log.info("recovery successful")
            reason = self._keeper.not_sealed_because
            return RecoveryProgress(0, f"{progress.message}\n{_not_sealed(reason)}" if reason else progress.message)

    def _recovering_to(self, recovered: State, link: Link, sealed_data: bytes) -> Transition:
        """From the recovery phase to the recovered state and its history, unless a new manifest was set meanwhile."""

        def transition(current: State) -> State:
            if current.phase is not Phase.RECOVERY:
                raise WrongPhase("server is not in expected state: there is nothing to recover any more")
            if self._recovering is None or self._recovering.gathering.sealed_data != sealed_data:
                raise Conflict("the stored state changed meanwhile; give the secrets again")
            self._mark = agreed(self._mark, link)
            return recovered

        return transition

    def _recovery_under_way(self) -> Recovering:
        recovering = self._recovering
        if recovering is None or self.state.phase is not Phase.RECOVERY:
            raise WrongPhase("server is not in expected state: there is nothing to recover")
        return recovering

    async def rehearsal_public_key(self) -> bytes:
        """The key (PKIX DER) that secrets of a rehearsal may be encrypted for, as long as this process lives."""
        require_deployment(self.state)
        return await self._rehearsing.public_key()

    async def rehearse(self, secret: bytes, signature: bytes) -> Rehearsed:
        """Take one recovery secret, plain or encrypted, to find out whether it and the others would recover.

        Nothing is stored and nothing changes. Raises WrongPhase, NoRecoveryKeys, CannotDecrypt and RehearsalRefused.
        """
        require_deployment(self.state)
        async with self._rehearsing.turn():
            plain = await self._rehearsing.plain(secret)
            rehearsed = await self._rehearsing.give(self.state, plain, signature)
        fields = {"holder": rehearsed.holder, "given": rehearsed.given, "needed": rehearsed.needed}
        if rehearsed.recoverable is None:
            _log.info("recovery rehearsal: secret accepted", extra={"fields": fields})
        else:
            _log.info("recovery rehearsal ended", extra={"fields": {**fields, "recoverable": rehearsed.recoverable}})
        return rehearsed

    # -- activation ----------------------------------------------------------------------------------------------

    async def activate(self, request: ActivationRequest, client_certificate: bytes | None) -> Activated:
        """Admit a Marble and make everything it runs with; raises ActivationRefused (protocol, section 2.4)."""
        try:
            return await self._activate(request, client_certificate)
        except ActivationRefused as refusal:
            fields: dict[str, object] = {
                "marbleType": request.marble_type[:256],
                "stage": refusal.stage.value,
                "reason": str(refusal),
            }
            if isinstance(refusal.__cause__, NotAdmitted):
                # The Marble is not told everything about platforms; the operator is.
                fields["mismatches"] = [f"{one.code}: {one}" for one in refusal.__cause__.found]
            _log.warning("marble activation refused", extra={"fields": fields})
            raise

    async def _activate(self, request: ActivationRequest, client_certificate: bytes | None) -> Activated:
        at = self._ports.clock()
        await self._caught_up()
        state = self.state
        message = check_request(state, request, client_certificate)
        verdict = await self._verify(request.quote, at)
        await self._caught_up()  # that may have taken a while
        for _ in range(MAX_DECISIONS):
            state = self.state
            inputs = Inputs(at, self._ports.entropy)
            admit(state, request, message, verdict, self._ports.admission)
            if needs_rsa(state, request.marble_type):
                outcome = await self._ports.making_keys(activate, state, request, inputs)
            else:
                outcome = activate(state, request, inputs)
            if outcome.state is not state:
                try:
                    await self._commit(count_activation(state, request.marble_type))
                except Conflict:
                    continue
                except ActivationRefused:
                    raise
                except MarbleRunError as error:
                    raise ActivationRefused(Stage.COMMIT, str(error)) from error
            elif self.state.deployment is not state.deployment:
                continue  # the rules changed while keys were made in a thread
            self._tell(outcome.events)
            return outcome.reply
        raise ActivationRefused(Stage.COMMIT, "the state kept changing during the activation; try again")

    async def _caught_up(self) -> None:
        try:
            await self.catch_up()
        except MarbleRunError as error:
            raise ActivationRefused(Stage.PHASE, f"the present state is not known: {error}") from error

    async def _verify(self, evidence: bytes, at: datetime) -> Verdict:
        """The verdict on a Marble's evidence; the last I/O before it is judged."""
        try:
            return await self._verdict(evidence, at)
        except MarbleRunError as error:
            raise ActivationRefused(Stage.EVIDENCE, f"marble verification failed: {error}") from error

    async def _verdict(self, evidence: bytes, at: datetime) -> Verdict:
        registry = self._ports.registry
        key = registry.collateral_key(evidence)
        collateral = None
        if key is not None:
            if self._ports.collateral is None:
                raise Unavailable("no collateral service is configured; set EDG_PCCS_URL")
            collateral = await self._ports.collateral.fetch(key)
        return registry.verify(evidence, collateral, at)

    # -- the one writer ------------------------------------------------------------------------------------------

    async def _commit(self, transition: Transition) -> State:
        """Apply a change and wait until it is durable; raises what the transition or the store raises."""
        future: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._queue.append((transition, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all())
        return await future

    async def _write_all(self) -> None:
        while self._queue:
            await self._gather()
            batch, self._queue = self._queue, []
            self._latest_batch = len(batch)
            await self._write(batch)

    async def _gather(self) -> None:
        """Where changes come several at a time, wait for some more: a write costs the same for one as for many.

        A change that is alone, and was so before, never waits.
        """
        deadline = asyncio.get_running_loop().time() + MAX_GATHER_SECONDS
        waiting = 1 if self._latest_batch < 2 else 0
        while len(self._queue) > waiting and asyncio.get_running_loop().time() < deadline:
            waiting = len(self._queue)
            await asyncio.sleep(GATHER_SECONDS)

    async def _write(self, batch: Sequence[tuple[Transition, asyncio.Future[State]]]) -> None:
        """Apply a batch of changes in order and make them durable in one write; each gets its own answer.

        If another Coordinator wrote first, they are applied again, to what it wrote.
        """
        async with self._turn:
            for lost in range(MAX_LOST_WRITES):
                try:
                    await self._write_once(batch, last=lost + 1 == MAX_LOST_WRITES)
                except Conflict:
                    await self._pause(lost)
                else:
                    return

    async def _pause(self, lost: int) -> None:
        """Wait longer the more often a write was lost, and not as long as the others do."""
        part = self._ports.entropy.token(1)[0] / 255
        await asyncio.sleep(part * min(_MAX_PAUSE_SECONDS, 0.002 * 2 ** min(lost, 10)))

    async def _write_once(self, batch: Sequence[tuple[Transition, asyncio.Future[State]]], *, last: bool) -> None:
        """One write; raises Conflict, with the present state caught up, if it was lost and is not the last try."""
        base = state = self.state
        mark = self._mark
        applied: list[asyncio.Future[State]] = []
        for transition, future in batch:
            if future.done():  # the caller is gone
                continue
            try:
                state = transition(state)
            except Exception as error:
                future.set_exception(error)
                continue
            applied.append(future)
        try:
            if state is not base:
                loop = asyncio.get_running_loop()
                self._mark = await loop.run_in_executor(self._storing, self._keep, state)
        except Exception as error:
            self._mark = mark
            failure: Exception = error
            if isinstance(error, Conflict):
                try:
                    await self._follower.look()
                except Exception as reason:
                    failure = reason
                else:
                    if not last:
                        raise
                    failure = Busy(
                        "other Coordinators change the state all the time; repeat the operation",
                        retry_after=_LOST_RETRY_SECONDS,
                    )
            for future in applied:
                if not future.done():
                    future.set_exception(failure)
            return
        self._publish(state)
        for future in applied:
            if not future.done():
                future.set_result(state)

    def _publish(self, state: State) -> None:
        if state is self._state:
            return
        self._state = state
        if state.phase is not Phase.RECOVERY:
            self._recovering = None
        for listener in self.listeners:
            try:
                listener(state)
            except Exception:  # the state is durable: whoever waits for it gets an answer, and so do the others
                _log.exception("a listener could not follow the new state")

    def _tell(self, events: Sequence[Event]) -> None:
        for event in events:
            level = logging.WARNING if event.warning else logging.INFO
            _log.log(level, event.message, extra={"fields": dict(event.fields)})


def _tell_of_following(trouble: str) -> None:
    if trouble:
        _log.error("the stored state cannot be followed", extra={"fields": {"reason": trouble}})
    else:
        _log.info("the stored state is followed again")


def _keeper(ports: Ports) -> tuple[Keeper, SharedKeeper | None]:
    """What keeps the state; the same once more where others write it too."""
    if isinstance(ports.store, SharedStore):
        shared = SharedKeeper(ports.store, ports.sealer, ports.anchor, ports.entropy, ports.timed)
        return shared, shared
    return Keeper(ports.store, ports.sealer, ports.anchor, ports.entropy, ports.timed), None


_COUNTED: Final = frozenset(("activations", "counters"))


def _replacing(base: State, new: State) -> Transition:
    """From ``base`` to ``new``, also where nothing but counters moved since; else the change is a Conflict.

    Without this an update, which takes a while, would never get through while Marbles keep starting.
    """

    def transition(current: State) -> State:
        if current is base:
            return new
        if _differ_in(base, current) <= _COUNTED and not _differ_in(base, new) & _COUNTED:
            return replace(new, activations=current.activations, counters=current.counters)
        raise Conflict("the state changed meanwhile")

    return transition


def _differ_in(one: State, other: State) -> set[str]:
    """Names of the fields that are not the same objects."""
    return {f.name for f in fields(State) if getattr(one, f.name) is not getattr(other, f.name)}


def _not_sealed(reason: str) -> str:
    return (
        f"The state is not sealed for this machine: {reason}. Until that is mended every restart needs recovery, and "
        "no change can be kept; once it is, the next change seals the state."
    )


@lru_cache(maxsize=2)
def _fingerprint(manifest: bytes) -> str:
    """SHA-256, hex; anybody may ask for it, and manifests have megabytes."""
    return hashlib.sha256(manifest).hexdigest()
