"""The Coordinator's own quote follows its root certificate (issue 5, point 6); see also Q1 to Q3 in test_service."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

from tests.coordinator.running import World
from tests.coordinator.states import INPUTS, NAMES
from tests.coordinator.test_service import CountingIssuer, run, until

from marblerun.attestation.binding import report_data_for
from marblerun.coordinator.commands.start import start_state
from marblerun.coordinator.service import Coordinator
from marblerun.coordinator.state import State


def with_another_root(state: State) -> State:
    return replace(state, authority=start_state(NAMES, INPUTS).authority)


def test_when_the_root_certificate_changes_the_cached_quote_is_made_anew_and_once() -> None:
    issuer = CountingIssuer()

    async def scenario(coordinator: Coordinator) -> None:
        first = await coordinator.own_evidence(b"")
        await coordinator._commit(with_another_root)
        second, third = await asyncio.gather(coordinator.own_evidence(b""), coordinator.own_evidence(b""))
        root = coordinator.state.authority.root_der
        assert second.quote == third.quote == b"quote over " + report_data_for(root)
        assert second.quote != first.quote
        assert second.chain_pem == coordinator.state.authority.chain_pem
        assert len(issuer.asked) == 2

    run(World(issuer=issuer), scenario)


def test_an_answer_never_mixes_the_chain_of_one_root_with_the_quote_of_another() -> None:
    """The root changes while the quote over the old one is being made."""
    issuer = CountingIssuer(gate=threading.Event())

    async def scenario(coordinator: Coordinator) -> None:
        old = coordinator.state.authority
        asking = asyncio.create_task(coordinator.own_evidence(b"nonce"))
        cached = asyncio.create_task(coordinator.own_evidence(b""))
        await until(lambda: len(coordinator._quotes_under_way) == 2)
        await coordinator._commit(with_another_root)
        assert issuer.gate is not None
        issuer.gate.set()
        own = await asking
        assert own.chain_pem == old.chain_pem
        assert own.quote == b"quote over " + report_data_for(old.root_der + b"nonce")
        await cached
        later = await coordinator.own_evidence(b"")
        assert later.quote == b"quote over " + report_data_for(coordinator.state.authority.root_der)

    run(World(issuer=issuer), scenario)
