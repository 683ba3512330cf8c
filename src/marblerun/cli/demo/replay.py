"""An attacker with a genuine quote of somebody else's connection."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from marblerun.attestation.issue import detect_issuer
from marblerun.marble.activation import prepare_request, refusal_of, send_request
from marblerun.marble.pins import AnyCoordinator
from marblerun.marble.settings import load_settings
from marblerun.wire.rpc import GrpcStatus


def replay_quote(environment: Mapping[str, str], mesh: str, marble_type: str) -> str:
    """Send a genuine quote over a TLS key that it does not cover; returns what the Coordinator says."""
    with tempfile.TemporaryDirectory() as place:
        variables = {**environment, "EDG_MARBLE_TYPE": marble_type, "EDG_MARBLE_COORDINATOR_ADDR": mesh}
        settings = load_settings(variables, Path(place))
        issuer = detect_issuer(environment)
        victim = prepare_request(settings, issuer)
        attacker = replace(prepare_request(settings, issuer), evidence=victim.evidence)
        answer = send_request(settings.coordinator, attacker, pin=AnyCoordinator())
    return "admitted" if answer.status is GrpcStatus.OK else str(refusal_of(answer))
