"""What needs a manifest in force is refused while there is none, whatever else the state holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.coordinator.states import deployed

from marblerun.coordinator.commands.caller import require_deployment
from marblerun.coordinator.state import Phase
from marblerun.errors import WrongPhase


@pytest.mark.parametrize("phase", Phase)
def test_a_manifest_is_in_force_in_one_phase_only(phase: Phase) -> None:
    state = replace(deployed(), phase=phase)
    if phase is Phase.ACCEPTING_MARBLES:
        assert require_deployment(state) is state.deployment
        return
    with pytest.raises(WrongPhase):
        require_deployment(state)


@pytest.mark.parametrize("phase", Phase)
def test_without_a_deployment_no_phase_has_a_manifest_in_force(phase: Phase) -> None:
    with pytest.raises(WrongPhase):
        require_deployment(replace(deployed(), phase=phase, deployment=None))
