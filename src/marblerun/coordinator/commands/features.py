"""Feature gates: what only works if the manifest in force switches it on (protocol, sections 7.3 and 7.4)."""

from __future__ import annotations

from typing import ClassVar, Final

from marblerun.coordinator.state import State
from marblerun.errors import Denied
from marblerun.wire.gojson import lower

SIGN_QUOTE: Final = "SignQuoteEndpoint"
MONOTONIC_COUNTER: Final = "MonotonicCounter"


class FeatureDisabled(Denied):
    """The manifest in force, if there is one, does not switch the feature on."""

    code: ClassVar[str] = "feature-disabled"


def require_feature(state: State, gate: str) -> None:
    """Return if ``gate`` is on, whatever the phase; upper and lower case of its name do not count."""
    deployment = state.deployment
    gates = deployment.config.feature_gates if deployment is not None else ()
    if lower(gate) not in map(lower, gates):
        raise FeatureDisabled(f"the feature {gate} is not enabled; the manifest has to list it in Config.FeatureGates")
