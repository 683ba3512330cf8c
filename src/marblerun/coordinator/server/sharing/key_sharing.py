"""The key exchange of a running Coordinator: what its distributor does, put together from the parts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from itertools import product

from marblerun.coordinator.kubernetes.api import KubernetesApi
from marblerun.coordinator.seal import SealMode, seal_mode
from marblerun.coordinator.seal.kek import KekSealer
from marblerun.coordinator.server.exchange import Patience
from marblerun.coordinator.server.sharing.attestor import Attestor
from marblerun.coordinator.server.sharing.distributor import ROUND_SECONDS, Distributor, Steps
from marblerun.coordinator.server.sharing.key_client import MAX_ADDRESSES, Address, KeyClient
from marblerun.coordinator.server.sharing.key_server import KeyServer
from marblerun.coordinator.server.turns import Overload
from marblerun.coordinator.service import Coordinator, Ports
from marblerun.coordinator.state import State
from marblerun.errors import MarbleRunError, Unavailable

_log = logging.getLogger(__name__)

Peers = Callable[[], Sequence[Address]]
"""Where key servers may be, ourselves included; blocks, and raises Unavailable."""


def peers_of(api: KubernetesApi, service: str) -> Peers:
    """Every address and port of a Service, of all its EndpointSlices, as far as anybody would ask them.

    Whoever may write EndpointSlices can name thousands of addresses and of ports in each. Source: protocol, section
    11.4.
    """

    def look() -> Sequence[Address]:
        found: dict[Address, None] = {}
        for one in api.endpoint_slices(service):
            for address in product(one.addresses, one.ports):
                found[address] = None
                if len(found) == MAX_ADDRESSES:
                    return tuple(found)
        return tuple(found)

    return look


class KeySharing:
    """Asks for the KEK, keeps and serves it, in a task of its own on the Coordinator's loop."""

    def __init__(
        self,
        coordinator: Coordinator,
        ports: Ports,
        sealer: KekSealer,
        peers: Peers,
        address: str,
        overload: Overload,
        *,
        patience: Patience | None = None,
        pause: float = ROUND_SECONDS,
    ) -> None:
        """``address`` is where to serve, ``pause`` the seconds between two rounds of asking."""
        self._coordinator = coordinator
        self._sealer = sealer
        self._peers = peers
        self._address = address
        self._overload = overload
        self._patience = patience or Patience()
        self._attestor = Attestor(ports.issuer, ports.registry, ports.collateral, ports.clock)
        self._client = KeyClient(self._attestor, ports.entropy)
        self._server = KeyServer(self._attestor, sealer, self._present_mode, ports.entropy)
        self._distributor = Distributor(
            Steps(
                is_known=lambda: sealer.kek is not None,
                ask=self._ask,
                keep=self._keep,
                load=self._load,
                serve=self._serve,
                look_after=self._look_after,
            ),
            pause,
        )
        self._pause = pause
        self._task: asyncio.Task[None] | None = None
        self._latest: tuple[bool, SealMode] | None = None

    @property
    def address(self) -> str:
        """Where the KEK is served, empty while it is not."""
        return self._server.address

    def start(self, on_failure: Callable[[], None]) -> None:
        """Begin, once the Coordinator has started; ``on_failure`` hears of a failure, which :meth:`stop` raises."""
        self._coordinator.listeners.append(self._follow)
        self._task = asyncio.create_task(self._distributor.run())

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and task.exception() is not None:
                _log.error("the key exchange failed", extra={"fields": {"reason": str(task.exception())}})
                on_failure()

        self._task.add_done_callback(ended)

    async def stop(self) -> None:
        """End; raises what the exchange failed with, if it did."""
        task = self._task
        if task is None:
            return
        task.cancel()
        await asyncio.wait((task,))
        self._server.close()
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            raise failure

    # -- what the distributor does -------------------------------------------------------------------------------

    def _follow(self, state: State) -> None:
        """Every published state comes by here; only some mean something to the distributor."""
        present = (self._sealer.kek is not None, _mode_of(state))
        if present != self._latest:
            self._latest = present
            self._distributor.changed.set()

    def _mode(self) -> SealMode:
        return _mode_of(self._coordinator.state)

    async def _present_mode(self) -> SealMode:
        """Of what is stored now: an update by another Coordinator may have made it stricter; raises Unavailable."""
        try:
            await self._coordinator.catch_up()
        except MarbleRunError as error:
            raise Unavailable(f"the present state is not known: {error}") from error
        return self._mode()

    async def _ask(self) -> bool:
        if not self._attestor.has_evidence:
            return False
        try:
            addresses = await asyncio.to_thread(self._peers)
            async with aclosing(self._client.ask_all(addresses)) as keks:
                async for kek in keks:
                    if await self._try(kek):
                        return True
        except _Damaged as error:
            raise error.reason from error
        except MarbleRunError as error:
            _log.warning("the other Coordinators cannot be asked", extra={"fields": {"reason": str(error)}})
        return False

    async def _try(self, kek: bytes) -> bool:
        """Whether it is the one that the present state is sealed under."""
        self._sealer.offer(kek)
        try:
            await self._coordinator.reload()
        except Unavailable:
            raise
        except MarbleRunError as error:
            raise _Damaged(error) from error
        if self._sealer.kek is None or self._sealer.outdated:
            _log.warning("another Coordinator's key does not open the state: it may be of another deployment")
            return False
        _log.info("another Coordinator gave its key")
        return True

    async def _keep(self) -> None:
        await asyncio.to_thread(self._sealer.keep, self._mode())

    async def _load(self) -> None:
        await self._patiently(self._coordinator.reload, "the state cannot be loaded now")

    async def _serve(self) -> None:
        if not self._attestor.has_evidence:
            _log.warning("there is no evidence here, so there is no key exchange with other Coordinators")
            return

        async def serve() -> None:
            await self._server.start(self._address, self._overload, self._patience)

        await self._patiently(serve, "the key cannot be served now")

    async def _patiently(self, step: Callable[[], Awaitable[None]], trouble: str) -> None:
        """Try again what failed for a reason outside, such as a service that is away; raises everything else."""
        while True:
            try:
                return await step()
            except Unavailable as error:
                _log.warning(trouble, extra={"fields": {"reason": str(error)}})
                await asyncio.sleep(self._pause)

    async def _look_after(self) -> None:
        if self._sealer.outdated:
            with suppress(MarbleRunError):  # a running Coordinator refuses what is stored, and goes on
                await self._ask()
        await self._keep()
        await self._server.renew_if_due()


class _Damaged(Exception):
    """The state that a KEK opens cannot be believed."""

    def __init__(self, reason: MarbleRunError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _mode_of(state: State) -> SealMode:
    """How the KEK is kept; until a manifest is set, as Disabled (protocol, section 10.2)."""
    return seal_mode(state.deployment.config.seal_mode) if state.deployment is not None else SealMode.DISABLED
